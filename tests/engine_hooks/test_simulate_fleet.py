"""GPUs, models, fleets and the command."""

from __future__ import annotations

import argparse
import json
import math
import random
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan_engine.errors import ConfigError, ModelError
from costspan_engine.models.presets import TINY
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate import cli
from costspan_engine.simulate.fleet import Fleet, Offered
from costspan_engine.simulate.profiles import ARITHMETIC_SHARE, BANDWIDTH_SHARE, MODELS, Deployment, Model
from costspan_engine.simulate.tally import quantiles
from costspan_engine.simulate.traffic import Arrival, TrafficError
from costspan_hooks.cost_model import Coefficients, Load
from costspan_hooks.devices import GPUS
from tests.engine_hooks.engine_fixtures import MINI, torch_executor
from tests.engine_hooks.simulation import times
from tests.engine_hooks.test_simulate_traffic import azure, mooncake, servegen

# --- GPUs and models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "active_bn", "stored_bn"),
    [("llama-8b", 7.5, 8.03), ("llama-70b", 69.5, 70.55), ("qwen3-8b", 7.57, 8.19), ("qwen3-30b-a3b", 3.04, 30.53)],
)
def test_models_weigh_what_their_cards_say(name: str, active_bn: float, stored_bn: float) -> None:
    model = Model.find(name)

    assert model.shape.parameters / 1e9 == pytest.approx(active_bn, rel=0.005)
    assert model.weight_bytes / 2e9 == pytest.approx(stored_bn, rel=0.002)


def test_a_token_of_llama_8b_takes_128_kib_of_cache() -> None:
    assert Model.find("llama-8b").shape.kv_bytes_per_token == 128 * 1024


def test_shapes_are_those_of_the_torch_executor(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": MINI.vocab_size,
        "hidden_size": MINI.hidden_size,
        "intermediate_size": MINI.intermediate_size,
        "num_hidden_layers": MINI.num_layers,
        "num_attention_heads": MINI.num_heads,
        "num_key_value_heads": MINI.num_kv_heads,
        "head_dim": MINI.head_dim,
        "max_position_embeddings": MINI.max_context,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")

    ours, real = Model.find(str(tmp_path)), torch_executor(EngineConfig()).shape

    assert ours.shape.parameters == real.parameters
    assert ours.shape.flops_per_pair == real.flops_per_pair
    # It is served in float32 there.
    assert 2 * ours.shape.kv_bytes_per_token == real.kv_bytes_per_token
    assert ours.max_context == MINI.max_context


def test_tiny_is_the_engines_own_preset() -> None:
    assert {name: MODELS["tiny"][name] for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim")} == {
        "hidden_size": TINY.hidden_size,
        "intermediate_size": TINY.intermediate_size,
        "vocab_size": TINY.vocab_size,
        "head_dim": TINY.head_dim,
    }
    assert MODELS["tiny"]["num_hidden_layers"] == TINY.num_layers
    assert MODELS["tiny"]["num_attention_heads"] == TINY.num_heads
    assert MODELS["tiny"]["num_key_value_heads"] == TINY.num_kv_heads
    assert MODELS["tiny"]["max_position_embeddings"] == TINY.max_context


@pytest.mark.parametrize("gpu", GPUS)
def test_a_lone_decode_reads_the_weights_once_and_a_long_prompt_is_bound_by_arithmetic(gpu: str) -> None:
    roofline, model = Deployment(Model.find("llama-8b"), gpu).roofline, Model.find("llama-8b").shape

    decode, prompt = Load(0, 0.0, 1, 100), Load(8192, 8192 * 4096.0, 0, 0)

    assert roofline.regime(decode) == "memory"
    floor_ns = 2 * model.parameters / (GPUS[gpu].peaks.bytes_per_s * BANDWIDTH_SHARE) * 1e9
    assert decode.predict(roofline.coefficients("memory")) == pytest.approx(floor_ns, rel=0.01)
    assert roofline.regime(prompt) == "compute"
    flops = 2 * model.parameters * 8192 + model.flops_per_pair * 8192 * 4096
    floor_ns = flops / (GPUS[gpu].peaks.flops_per_s * ARITHMETIC_SHARE) * 1e9
    assert prompt.predict(roofline.coefficients("compute")) == pytest.approx(floor_ns, rel=0.01)


def test_a_mixture_of_experts_keeps_all_of_them_and_computes_with_few() -> None:
    model = Model.find("qwen3-30b-a3b")

    assert model.shape.resident_parameters > 9 * model.shape.parameters
    assert model.weight_bytes > 2 * model.shape.resident_parameters


def test_what_fits_beside_the_weights() -> None:
    model = Model.find("llama-8b")

    assert Deployment(model, "h200").kv_blocks(16) == int((141e9 * 0.9 - model.weight_bytes) // (16 * 131_072))
    assert Deployment(Model.find("llama-70b"), "h200", gpus=2).kv_blocks(16) > 10_000


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "says"),
    [
        ("llama-70b", "h200", 1, "give a replica more GPUs"),
        ("tiny", "b300", 1, "name one of h200"),
        ("tiny", "l4", 0, "at least 1"),
    ],
)
def test_what_cannot_be_deployed_is_told_of(model: str, gpu: str, gpus: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Deployment(Model.find(model), gpu, gpus)


def test_what_is_no_model_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name one of tiny, llama-8b"):
        Model.find("llama-9000b")
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="no JSON object"):
        Model.find(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    with pytest.raises(ModelError, match="'mamba' is not supported"):
        Model.find(str(tmp_path))


# --- fleets -----------------------------------------------------------------------------------------------------------

CONFIG = EngineConfig(max_num_seqs=8, max_batched_tokens=512, kv_blocks=2000, prefix_cache=False)


def fleet(arrivals: list[Arrival], replicas: int) -> Fleet:
    made = Fleet(times(), CONFIG, max_context=10_000, replicas=replicas)
    made.run(arrivals, lambda _at_ns, _count: None)
    return made


def load(count: int, every_ns: int) -> list[Arrival]:
    return [Arrival(each * every_ns, f"t{each % 3}", 100, 50) for each in range(count)]


def test_more_replicas_serve_the_same_requests_sooner() -> None:
    arrivals = load(300, 100_000)

    one, four = fleet(arrivals, 1), fleet(arrivals, 4)

    for each in (one, four):
        assert sum(tally.ended for tally in each.tenants.values()) == 300
        assert {name: tally.output_tokens for name, tally in each.tenants.items()} == {f"t{at}": 5000 for at in range(3)}
    waits = [quantiles(*(tally.latencies.queue for tally in each.tenants.values()))["p99"] for each in (one, four)]
    assert waits[1] < waits[0] / 2
    assert four.busy < one.busy <= 1


def test_the_router_takes_the_replica_with_the_fewest_requests() -> None:
    short = [Arrival(1_000_000 * each, "a", 10, 2) for each in range(1, 40)]

    made = fleet([Arrival(0, "a", 10, 5000), *short], 2)

    assert [replica.steps for replica in made.replicas] == [5000, 2 * 39]


def test_the_same_traffic_gives_the_same_day() -> None:
    arrivals = load(200, 150_000)

    runs = [fleet(arrivals, 3) for _ in range(2)]

    first, again = ({name: tally.latencies for name, tally in each.tenants.items()} for each in runs)
    assert first == again


def test_requests_too_long_are_counted() -> None:
    made = fleet([Arrival(0, "a", 9999, 2), Arrival(1, "a", 10, 2)], 1)

    assert made.refused == 1
    assert made.tenants["a"].ended == 1


def test_no_fleet_has_no_replicas() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        fleet([], 0)


def test_as_many_replicas_as_it_needs_keep_the_queue_short_and_one_fewer_does_not() -> None:
    unit = Coefficients(1e7, 1e5, 0.0, 1e6, 0.0)
    slow = times({"memory": unit, "compute": unit})
    draw = random.Random(5)
    moments = sorted(draw.randrange(600 * 10**9) for _ in range(6000))
    arrivals = [Arrival(at_ns, "a", 100, 100) for at_ns in moments]

    def waited(replicas: int) -> float:
        made = Fleet(slow, CONFIG, max_context=10_000, replicas=replicas)
        made.run(arrivals, lambda _at_ns, _count: None)
        return quantiles(made.tenants["a"].latencies.queue)["p50"]

    # 10 requests a second of 100 steps each: 10 ms of a step shared by 0.8 of 8 slots, 1 ms of their own; 10 ms for the prompt.
    assert Offered.of(arrivals).replicas(slow, CONFIG) == math.ceil(10 * 100 * (0.010 / 6.4 + 0.001) + 10 * 0.010)
    assert waited(3) < 100
    assert waited(2) > 10_000


def test_traffic_that_stops_within_a_window_is_not_spread_over_all_of_it() -> None:
    unit = Coefficients(1e7, 1e5, 0.0, 1e6, 0.0)
    slow = times({"memory": unit, "compute": unit})
    arrivals = [Arrival(each * 10**8, "a", 100, 100) for each in range(6000)]

    whole, part = Offered.of(arrivals), Offered.of(arrivals[:2000])

    assert part.replicas(slow, CONFIG) == whole.replicas(slow, CONFIG) == 3


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300))
def test_quantiles_are_exact(values: list[int]) -> None:
    ordered = sorted(values)

    found = quantiles(array("q", values[: len(values) // 2]), array("q", values[len(values) // 2 :]))

    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        value = round(found[name] * 1e6)
        assert sum(each <= value for each in ordered) >= share * len(ordered) - 1e-9
        assert sum(each < value for each in ordered) < share * len(ordered) + 1e-9
    assert quantiles(array("q")) == {}


# --- the command ------------------------------------------------------------------------------------------------------


def simulate(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["simulate", *map(str, arguments)])
    parsed.run(parsed)


def test_the_command_prints_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(servegen(tmp_path), "--gpu", "l4", "--model", "tiny", "--seed", "5")

    printed = capsys.readouterr()
    assert "1 x 1 l4 serving tiny" in printed.out
    assert "seed 5" in printed.out
    assert "180 requests" in printed.out
    assert "client-1" in printed.out
    assert not printed.err


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mooncake(
        tmp_path,
        {"timestamp": 0, "input_length": 1024, "output_length": 20, "hash_ids": [1, 2]},
        {"timestamp": 9000, "input_length": 1500, "output_length": 30, "hash_ids": [1, 2, 3]},
    )

    simulate(path, "--replicas", "1", "--policy", "fair", "--json")

    summary = json.loads(capsys.readouterr().out)
    assert summary["requests"] == 2
    assert summary["replicas"] == 1
    assert summary["policy"] == "fair"
    assert summary["output_tokens"] == 50
    assert summary["cached_tokens"] == 1008  # the last block of the first prompt ends with a token of its own
    assert 0 < summary["busy_share"] < 1
    assert summary["tenants"]["mooncake"]["ttft_ms"]["p99"] > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hours", "0"], "--hours is 0"),
        (["--hours", "nan"], "--hours is nan"),
        (["--seed", "-1"], "--seed is -1"),
        (["--block-size", "0"], "block_size is 0"),
        (["--max-num-seqs", "9000"], "below max_num_seqs"),
        (["--model", "llama-70b"], "does not fit|give a replica more GPUs"),
    ],
)
def test_options_that_cannot_work_are_told_of(tmp_path: Path, options: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(azure(tmp_path, "2023-11-16 18:15:46.6805900,374,44"), *options)


def test_traffic_without_requests_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raise --hours"):
        simulate(azure(tmp_path))
    with pytest.raises(TrafficError, match="is no trace"):
        simulate(tmp_path / "trace.txt")


@pytest.mark.parametrize("replicas", ["0", "-1", "few"])
def test_a_wrong_number_of_replicas_is_a_usage_error(tmp_path: Path, replicas: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate(tmp_path, "--replicas", replicas)
    assert "neither a number above 0 nor 'auto'" in capsys.readouterr().err
