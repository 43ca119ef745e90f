"""Readers of recorded traffic."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path

import pytest

from costspan_engine.simulate.traffic import Arrival, Traffic, TrafficError

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def azure(folder: Path, *rows: str) -> Path:
    path = folder / "azure.csv"
    path.write_text(AZURE + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def mooncake(folder: Path, *rows: object) -> Path:
    path = folder / "mooncake.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def servegen(folder: Path, clients: int = 2, *, trace: str = "", dataset: object = None) -> Path:
    """Clients that send 60 and 30 requests in the first and third window of ten minutes."""
    path = folder / "servegen"
    path.mkdir(exist_ok=True)
    rows = trace or "0,0.1,1.2,Gamma,0.7,14\n600,0,0,,0,0\n1200,0.05,0.9,Weibull,1.1,20\n"
    empty = {"input_tokens": "{}", "output_tokens": "{}", "reason_ratio": "{}"}
    first = {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{7: 1.0}", "reason_ratio": "{}"}
    for client in range(clients):
        (path / f"chunk-{client}-trace.csv").write_text(rows, encoding="utf-8")
        text = json.dumps(dataset or {"0": first, "1200": empty})
        (path / f"chunk-{client}-dataset.json").write_text(text, encoding="utf-8")
    return path


def read(*paths: Path, seed: int = 1, hours: float = 24.0) -> list[Arrival]:
    return list(Traffic.read(paths, seed=seed, hours=hours))


def test_azure_rows_count_from_the_first(tmp_path: Path) -> None:
    path = azure(tmp_path, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109")

    assert read(path) == [Arrival(0, "azure", 374, 44), Arrival(4_314_579_000, "azure", 396, 109)]


def test_mooncake_rows_keep_their_prefixes(tmp_path: Path) -> None:
    path = mooncake(tmp_path, {"timestamp": 40, "input_length": 1000, "output_length": 3, "hash_ids": [7, 9]})

    assert read(path) == [Arrival(40_000_000, "mooncake", 1000, 3, prefix=(7, 9))]


def test_servegen_clients_send_as_many_requests_as_were_recorded_whatever_the_seed(tmp_path: Path) -> None:
    path = servegen(tmp_path)

    for seed in range(5):
        arrivals = read(path, seed=seed)
        assert len(arrivals) == 180
        for tenant in ("client-0", "client-1"):
            seconds = [each.at_ns / 1e9 for each in arrivals if each.tenant == tenant]
            assert sum(each < 600 for each in seconds) == 60
            assert sum(1200 <= each < 1800 for each in seconds) == 30


def test_servegen_lengths_follow_the_distribution_and_the_last_known_one_holds_on(tmp_path: Path) -> None:
    trace = "0,10,1,Gamma,1,0.1\n1200,10,1,Gamma,1,0.1\n"
    arrivals = read(servegen(tmp_path, 1, trace=trace))

    assert len(arrivals) == 12_000
    assert {each.output_tokens for each in arrivals} == {7}
    assert sum(each.prompt_tokens == 20 for each in arrivals) / 12_000 == pytest.approx(0.75, abs=0.02)


def test_bursty_clients_stay_bursty(tmp_path: Path) -> None:
    def spread(shape: str) -> float:
        arrivals = read(servegen(tmp_path, 1, trace=f"0,10,1,Gamma,{shape},1\n"))
        gaps = [later.at_ns - each.at_ns for each, later in pairwise(arrivals)]
        mean = sum(gaps) / len(gaps)
        deviation: float = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
        return deviation / mean

    # The coefficient of variation of a Gamma distribution is the root of one over its shape.
    assert spread("0.25") == pytest.approx(2, rel=0.15)
    assert spread("4") == pytest.approx(0.5, rel=0.15)


def test_a_seed_says_it_all(tmp_path: Path) -> None:
    path = servegen(tmp_path)

    assert read(path, seed=3) == read(path, seed=3)
    assert read(path, seed=3) != read(path, seed=4)


def test_traces_are_laid_over_one_another_in_the_order_of_time(tmp_path: Path) -> None:
    arrivals = read(
        servegen(tmp_path),
        azure(tmp_path, "2023-11-16 18:00:00.0000000,5,5", "2023-11-16 18:00:30.0000000,5,5"),
        hours=0.05,
    )

    assert [each.at_ns for each in arrivals] == sorted(each.at_ns for each in arrivals)
    assert {each.tenant for each in arrivals} == {"azure", "client-0", "client-1"}
    assert arrivals[-1].at_ns < 180 * 10**9


def test_arrivals_are_drawn_as_they_are_asked_for(tmp_path: Path) -> None:
    path = azure(tmp_path, "2023-11-16 18:15:46.6805900,374,44", "nonsense,396,109")

    assert len(list(islice(Traffic.read([path], seed=1, hours=24), 1))) == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["2023-11-16 18:15:46.6805900,374,44", "yesterday,1,1"], "request 2 of"),
        (["2023-11-16 18:15:46.6805900,374,0"], "a length is below 1"),
        (["2023-11-16 18:15:46.6805900,many,1"], "request 1 of"),
        (["2023-11-16 18:15:46.6805900,5"], "request 1 of"),
        (["2023-11-16 18:15:46.0000000,5,5", "2023-11-16 18:15:45.0000000,5,5"], "before the one above it"),
    ],
)
def test_a_broken_azure_row_is_told_of(tmp_path: Path, rows: list[str], says: str) -> None:
    with pytest.raises(TrafficError, match=says):
        read(azure(tmp_path, *rows))


@pytest.mark.parametrize("line", ["{", "[]", '{"timestamp": 1}', '{"timestamp": "a", "input_length": 1, "output_length": 1}'])
def test_a_broken_mooncake_row_is_told_of(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(line, encoding="utf-8")

    with pytest.raises(TrafficError, match=r"request 1 of .* cannot be used"):
        read(path)


@pytest.mark.parametrize(
    ("trace", "dataset", "says"),
    [
        ("0,0.1,1,Gamma,0,1\n", None, "shape 0 at second 0"),
        ("0,0.1,1,Pareto,1,1\n", None, "family 'Pareto'"),
        ("0,0.1\n", None, "chunk-0-trace.csv"),
        ("", {"0": {"input_tokens": "{}", "output_tokens": "{}"}}, "says of no hour"),
        ("", {"0": {"input_tokens": "{0: 1}", "output_tokens": "{1: 1}"}}, "a length is below 1"),
        ("", {"0": {"input_tokens": "nonsense", "output_tokens": "{1: 1}"}}, "chunk-0-dataset.json"),
        ("", {"0": 3}, "chunk-0-dataset.json"),
    ],
)
def test_a_broken_servegen_folder_is_told_of(tmp_path: Path, trace: str, dataset: object, says: str) -> None:
    with pytest.raises(TrafficError, match=says):
        read(servegen(tmp_path, 1, trace=trace, dataset=dataset))


def test_what_is_no_trace_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(TrafficError, match="is no trace"):
        read(tmp_path / "notes.txt")
    with pytest.raises(TrafficError, match="cannot be read"):
        read(tmp_path / "missing.csv")
    with pytest.raises(TrafficError, match=r"holds no chunk-\*-trace.csv"):
        read(tmp_path)
    (servegen(tmp_path) / "chunk-1-dataset.json").unlink()
    with pytest.raises(TrafficError, match="cannot be read"):
        read(tmp_path / "servegen")
