"""Text to tokens and back, and a conversation to a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from costspan_engine.errors import ModelError, RequestError

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies made with SentencePiece spell a byte that is no character of theirs."""


def byte_characters() -> list[str]:
    """GPT-2's visible stand-in for each byte: itself where it is printable in Latin-1, else the next character from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(stand_ins)) for byte in range(256)]


_CHARACTER_BYTES = {character: byte for byte, character in enumerate(byte_characters())}


class Tokenizer:
    """A model's tokenizer and its chat template.

    Args:
        inner: The tokenizer of ``tokenizer.json``.
        chat_template: Jinja text, or "" for a model that is not made for chat.
        variables: What the template may use besides the messages, such as ``bos_token``.

    Raises:
        ModelError: When the template is not valid Jinja.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, chat_template: str = "", variables: Mapping[str, str] | None = None
    ) -> None:
        self._inner = inner
        self._byte_level = b'"ByteLevel"' in inner.decoder.__getstate__() if inner.decoder else False
        self._variables = dict(variables or {})
        self._template = _compile(chat_template) if chat_template else None

    @property
    def definition(self) -> str:
        """What ``tokenizer.json`` says."""
        text: str = self._inner.to_str()
        return text

    @property
    def size(self) -> int:
        """Tokens that it knows, special ones among them."""
        count: int = self._inner.get_vocab_size()
        return count

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the model begins a text with."""
        ids: list[int] = self._inner.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special ones; bytes that are no character are U+FFFD."""
        text: str = self._inner.decode(list(tokens), skip_special_tokens=True)
        return text

    def token_id(self, text: str) -> int | None:
        """The token that is spelled so, or ``None`` when there is none."""
        token: int | None = self._inner.token_to_id(text)
        return token

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, special ones too; many stand for a part of a character."""
        text = self._inner.id_to_token(token) or ""
        if byte := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(byte[1], 16)])
        if self._byte_level and all(character in _CHARACTER_BYTES for character in text):
            return bytes(_CHARACTER_BYTES[character] for character in text)
        return text.replace("\u2581", " ").encode()  # SentencePiece's stand-in for a blank

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Raises:
            RequestError: When the model has no chat template, or its template refuses the messages.
        """
        if self._template is None:
            raise RequestError("This model has no chat template; send a prompt to /v1/completions instead.", param="messages")
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._variables)
        except jinja2.TemplateError as error:
            raise RequestError(f"The model's chat template refuses these messages: {error}", param="messages") from error
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template is not valid Jinja ({error}); download the model folder again") from error


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
