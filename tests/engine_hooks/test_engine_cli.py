"""The command: one line where it cannot start, a real server where it can."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from costspan_engine.cli import main
from costspan_engine.compute.device import choose_dtype
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.presets import PRESETS, TINY
from costspan_engine.serve import _listen

CODE = "import sys; from costspan_engine.cli import main; sys.exit(main(sys.argv[1:]))"
COMMAND = [sys.executable, "-c", CODE, "serve", "--port", "0", "--threads", "1"]


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def test_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "choose another with --port" in _refusal(capsys, "--preset", "tiny", "--port", port)


def test_small_answers_are_not_held_back() -> None:
    with _listen("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
        with accepted:  # asyncio sets TCP_NODELAY on what says that it is TCP, and on nothing else
            assert accepted.proto == socket.IPPROTO_TCP


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be in 0..65535" in _refusal(capsys, "--preset", "tiny", "--port", "70000")


def test_settings_that_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert "raise the first" in _refusal(capsys, "--preset", "tiny", "--max-num-seqs", "64", "--max-batched-tokens", "8")
    assert "--threads" in _refusal(capsys, "--preset", "tiny", "--threads", "0")


def test_a_missing_or_incomplete_model_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def refusal() -> str:
        return _refusal(capsys, "--model", str(tmp_path / "model"), "--port", "0")

    assert "there is no folder" in refusal()
    folder = tmp_path / "model"
    folder.mkdir()
    assert "no config.json" in refusal()
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in refusal()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert' is not supported" in refusal()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "has no 'hidden_size'" in refusal()
    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 8, **shape}))
    assert "no model.safetensors" in refusal()
    (folder / "model.safetensors").write_bytes(b"rubbish")
    assert "no tokenizer.json" in refusal()
    (folder / "tokenizer.json").write_text("{}")
    assert "model.safetensors cannot be read" in refusal()


def test_limits_and_adapters_that_cannot_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny = ("--preset", "tiny", "--device", "cpu", "--port", "0")
    for flag, value in (
        ("--max-queue", "-1"),
        ("--tenant-rate", "-2"),
        ("--request-timeout", "nan"),
        ("--drain-timeout", "-1"),
    ):
        assert f"{flag} is" in _refusal(capsys, *tiny, flag, value)
    assert "at least 0" in _refusal(capsys, *tiny, "--draft-tokens", "-1")
    for adapter in ("tuned", "=x", "tuned="):
        assert "NAME=DIR" in _refusal(capsys, *tiny, "--adapter", adapter)
    assert "another name" in _refusal(capsys, *tiny, "--adapter", "a=x", "--adapter", "a=y")
    assert "rename one" in _refusal(capsys, *tiny, "--adapter", f"tiny={tmp_path}")
    assert "adapter_config.json" in _refusal(capsys, *tiny, "--adapter", f"tuned={tmp_path}")
    for gib in ("0.000001", "0", "-1", "nan"):
        assert "more memory" in (said := _refusal(capsys, *tiny, "--kv-memory", gib)) or "above 0" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "finds no GPU here" in _refusal(capsys, "--preset", "tiny", "--device", "cuda", "--port", "0")


def test_the_checkpoints_own_type_is_for_gpus(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "float16"}))
    folder = ModelFolder(tmp_path, TINY, (), tmp_path / "tokenizer.json", "", {})
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype(None, cpu, folder) is torch.float32
    assert choose_dtype(None, cuda, folder) is torch.float16
    assert choose_dtype("bfloat16", cpu, folder) is torch.bfloat16
    (tmp_path / "config.json").write_text("{}")
    assert choose_dtype(None, cuda, folder) is torch.bfloat16


def test_serves_the_preset_and_stops_cleanly() -> None:
    arguments = ["--preset", "tiny", "--model-name", "house", "--device", "cpu", "--kv-memory", "0.05", "--policy", "fair"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            *report, line = _until_ready(server.stderr)
            assert report[0] == "memory of the host:\n"
            assert "blocks of 16 tokens: " in report[-1]
            found = re.fullmatch(r"costspan engine: house is ready on (http://127\.0\.0\.1:\d+)\n", line)
            assert found, line
            body = {"model": "house", "prompt": "Once", "max_tokens": 12, "temperature": 0}
            first, second = (httpx.post(f"{found[1]}/v1/completions", json=body).json() for _ in range(2))
            text = first["choices"][0]["text"]
            assert text == second["choices"][0]["text"]
            assert re.fullmatch(r"[ -~]{12}", text), "the preset writes what can be read"
            assert 'costspan_engine_memory_bytes{part="weights"} 2' in httpx.get(f"{found[1]}/metrics").text
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.stderr.read() == ""
    assert server.returncode == 0


def _until_ready(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if "is ready on" in line:
            return


def test_the_preset_is_the_same_every_time() -> None:
    first, second = (PRESETS["tiny"]().model.state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)
    assert TINY.num_kv_heads < TINY.num_heads


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["serve", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--model",
        "--preset",
        "--max-batched-tokens",
        "--kv-blocks",
        "--kv-memory",
        "--adapter",
        "--max-queue",
        "--drain-timeout",
        "--collector",
    ):
        assert option in text
    assert os.sep + "root" not in text
