"""What is in a Hugging Face model folder. Looked through before anything slow begins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costspan_engine.errors import ModelError
from costspan_engine.models.config import ModelConfig, eos_ids


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that has all that is needed.

    Attributes:
        path: Where.
        config: The model's shape.
        weights: Its safetensors files.
        tokenizer: Its ``tokenizer.json``.
        chat_template: Jinja text, or "".
        special_tokens: Text of ``bos_token`` and the like, which templates use.
    """

    path: Path
    config: ModelConfig
    weights: tuple[Path, ...]
    tokenizer: Path
    chat_template: str
    special_tokens: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Look through a folder.

        Raises:
            ModelError: When something is missing or is not served, with what to do.
        """
        if not path.is_dir():
            raise ModelError(f"there is no folder {path}; download a model with `hf download NAME --local-dir {path}`")
        tokenizer_config = path / "tokenizer_config.json"
        settings = read_json(tokenizer_config) if tokenizer_config.exists() else {}
        return cls(
            path=path,
            config=_config(path),
            weights=_weights(path),
            tokenizer=existing(path / "tokenizer.json"),
            chat_template=_chat_template(path, settings),
            special_tokens={name: _text(value) for name, value in settings.items() if name.endswith("_token") and value},
        )


def existing(path: Path) -> Path:
    """The path, if there is such a file; a :class:`ModelError` that says what to do if not."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; download the whole model folder")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a :class:`ModelError` that says what to do where there is none."""
    try:
        content = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; download it again")
    return content


def _config(path: Path) -> ModelConfig:
    config = ModelConfig.from_hf(read_json(path / "config.json"))
    generation = path / "generation_config.json"
    ends = eos_ids(read_json(generation)) if generation.exists() else ()
    return replace(config, eos_ids=ends) if ends else config


def _weights(path: Path) -> tuple[Path, ...]:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return (existing(path / "model.safetensors"),)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{index} has no weight_map; download it again")
    return tuple(existing(path / name) for name in sorted(set(shards.values())))


def _chat_template(path: Path, settings: Mapping[str, Any]) -> str:
    own_file = path / "chat_template.jinja"
    if own_file.exists():
        return own_file.read_text(encoding="utf-8")
    template = settings.get("chat_template") or ""
    if isinstance(template, list):  # named templates, of which "default" is for plain chat
        return next((str(each["template"]) for each in template if each["name"] == "default"), "")
    return str(template)


def _text(token: Any) -> str:
    # A special token is spelled out, or is an object with its content.
    return str(token["content"]) if isinstance(token, dict) else str(token)
