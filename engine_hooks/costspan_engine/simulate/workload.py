"""A scenario's traffic: who wants what, when; the same for the same seed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costspan_engine.simulate.scenario import (
    Burst,
    Client,
    Constant,
    Gamma,
    Lengths,
    Poisson,
    Scenario,
    ScenarioError,
    Tenant,
    Trace,
)
from costspan_engine.simulate.traffic import GRAIN, Arrival, Traffic

_NS = 1e9
_ENDINGS = {"azure": "a .csv file", "mooncake": "a .jsonl file", "servegen": "a folder"}
_NO_CLIENT = Client()


@dataclass(frozen=True, slots=True)
class Want:
    """What a user wants: one answer, in one call or, where calls time out, in several.

    Attributes:
        at_ns: When, after the beginning.
        tenant: Whose user.
        prompt_tokens: Length of the prompt, shared beginning included.
        output_tokens: Length of the answer.
        client: How the caller behaves.
        prefix: Ids of the pieces of ``grain`` tokens that the prompt begins with.
        grain: Tokens in a piece.
        stops_after: Tokens after which the user presses stop; 0 for never.
    """

    at_ns: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    client: Client = _NO_CLIENT
    prefix: tuple[int, ...] = ()
    grain: int = GRAIN
    stops_after: int = 0


def draw(scenario: Scenario) -> list[Want]:
    """Everything that is wanted, in the order of time.

    A tenant's draws depend on the seed and its name alone, so that taking another tenant away changes nothing of its own.

    Raises:
        TrafficError: A trace cannot be read.
    """
    streams = [_tenant(scenario, tenant) for tenant in scenario.tenants]
    clients = {tenant.name: tenant.client for tenant in scenario.tenants}
    bursts = [_burst(event, clients) for event in scenario.events if isinstance(event, Burst)]
    return list(merge(*streams, *bursts, key=lambda want: want.at_ns))


def _tenant(scenario: Scenario, tenant: Tenant) -> list[Want]:
    random = np.random.default_rng([scenario.seed, zlib.crc32(tenant.name.encode())])
    if isinstance(tenant.arrivals, Trace):
        asked = _recorded(tenant.arrivals, scenario)
    else:
        asked = _drawn(tenant, tenant.arrivals, scenario.duration_s, random)
    stops = random.random(len(asked)) < tenant.client.abort_probability
    return [
        Want(
            arrival.at_ns,
            tenant.name,
            arrival.prompt_tokens,
            arrival.output_tokens,
            tenant.client,
            arrival.prefix,
            arrival.grain,
            tenant.client.abort_after_tokens if stop else 0,
        )
        for arrival, stop in zip(asked, stops, strict=True)
    ]


def _drawn(tenant: Tenant, arrivals: Poisson | Gamma, duration_s: float, random: np.random.Generator) -> list[Arrival]:
    times = list(takewhile(lambda at_s: at_s < duration_s, _times(arrivals, random)))
    count, shared = len(times), tenant.prefix
    prompts, outputs = (_lengths(each, count, random) for each in (tenant.prompt_tokens, tenant.output_tokens))
    groups = random.integers(shared.groups, size=count) if shared else np.zeros(count, np.int64)
    base = zlib.crc32(tenant.name.encode()) << 32  # no tenant shares a beginning with another
    return [
        Arrival(
            at_ns=round(at_s * _NS),
            tenant=tenant.name,
            prompt_tokens=int(prompt) + (shared.tokens if shared else 0),
            output_tokens=int(output),
            prefix=(base + int(group),) if shared else (),
            grain=shared.tokens if shared else GRAIN,
        )
        for at_s, prompt, output, group in zip(times, prompts, outputs, groups, strict=True)
    ]


def _times(arrivals: Poisson | Gamma, random: np.random.Generator) -> Iterator[float]:
    """Seconds of arrivals, without end. Gaps of shape k have coefficient of variation 1/√k; k = 1 is Poisson's process."""
    shape = 1 / arrivals.cv**2 if isinstance(arrivals, Gamma) else 1.0
    at_s = 0.0
    while True:
        at_s += random.gamma(shape, 1 / (shape * arrivals.rate))
        yield at_s


def _lengths(lengths: Lengths | None, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """So many lengths, each at least 1."""
    if lengths is None:
        raise ValueError("a tenant whose traffic is drawn has lengths")
    if isinstance(lengths, Constant):
        return np.full(count, lengths.value)
    drawn = np.exp(np.log(lengths.median) + lengths.sigma * random.standard_normal(count))
    whole: NDArray[np.int64] = np.maximum(1, np.rint(drawn)).astype(np.int64)
    return whole


def _recorded(trace: Trace, scenario: Scenario) -> list[Arrival]:
    if not _looks_like(trace.file, trace.format):
        raise ScenarioError(
            f"{trace.file} is no {trace.format} trace: that is {_ENDINGS[trace.format]}; correct file or format"
        )
    return list(Traffic.read([trace.file], seed=scenario.seed, hours=scenario.duration_s / 3600))


def _looks_like(file: Path, kind: str) -> bool:
    return file.is_dir() if kind == "servegen" else file.suffix == {"azure": ".csv", "mooncake": ".jsonl"}[kind]


def _burst(event: Burst, clients: dict[str, Client]) -> list[Want]:
    client = event.client or clients.get(event.tenant, _NO_CLIENT)
    return [
        Want(round((event.at_s + event.over_s * number / event.requests) * _NS), event.tenant, *lengths, client)
        for number, lengths in enumerate([(event.prompt_tokens, event.output_tokens)] * event.requests)
    ]
