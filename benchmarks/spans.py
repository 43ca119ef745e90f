"""Realistic spans, for benchmarks and tests: requests to an engine, each as its client saw it and as the engine did.

A request is the client's span with what GenAI instrumentations write, the engine's span under it, and a span for each phase
of that, as ``costspan_hooks/spans.py`` makes them and stamped with who it is for, as a baggage processor stamps them: twelve
attributes a span. Tenants follow Zipf's law; token counts and durations are log-normal; some requests fail, stop or are
preempted.

Making a span costs far more than sending one, so :class:`Traffic` makes payloads once and, for each that is sent, writes new
ids, times, units and response ids into the bytes of one of them: what differs between real payloads differs between these, at
more than a million spans a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.pages import RESPONSE, RESPONSE_DIGITS, UNIT, UNIT_DIGITS, Page, Payload, Told, Value
from costspan import semconv
from costspan.semconv import Kind, Outcome, Phase

REQUESTS = 146
"""Requests of a payload, for about a thousand spans."""
_PAGES = 64
_MS = 1_000_000
_TENANTS, _ZIPF = 400, 1.1
_FEATURES = ("chat", "search", "summary", "extraction", "classification", "agent", "translation", "review")
_MODELS = ("llama-3.3-70b-instruct", "llama-3.1-8b-instruct", "qwen3-32b", "mistral-small-3.2")
_OUTCOMES = {Outcome.OK: 0.95, Outcome.CANCELLED: 0.03, Outcome.ERROR: 0.01, Outcome.TIMEOUT: 0.01}
_FINISH = {Outcome.OK: "stop", Outcome.ERROR: "error", Outcome.CANCELLED: "abort", Outcome.TIMEOUT: "abort"}
_STAMPS = (
    semconv.CALL_START,
    semconv.CALL_SENT,
    semconv.CALL_HEADERS,
    semconv.CALL_FIRST,
    semconv.CALL_LAST,
    semconv.CALL_ABORT,
    semconv.CALL_END,
)


class Traffic:
    """Payloads without end, the same for the same seed and times.

    Args:
        seed: Of all that is random.
        requests: How many each payload has.
        pages: How many payloads are made; the same values but for ids, times and units come again after as many.
    """

    def __init__(self, seed: int = 0, requests: int = REQUESTS, pages: int = _PAGES) -> None:
        self._rng = np.random.default_rng(seed)
        self._pages = [Page.of([_request(self._rng) for _ in range(requests)], number) for number in range(pages)]
        self._sent = 0

    @property
    def attributes_per_span(self) -> float:
        """On average."""
        return sum(page.attributes for page in self._pages) / sum(page.spans for page in self._pages)

    @property
    def spans_per_payload(self) -> float:
        """On average."""
        return sum(page.spans for page in self._pages) / len(self._pages)

    def payload(self, at_ns: int) -> Payload:
        """The next payload: requests that ended within the second before ``at_ns``."""
        page = self._pages[self._sent % len(self._pages)]
        self._sent += 1
        return page.filled(self._rng, at_ns)


# --- one request ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """What chance said of one request."""

    who: Mapping[str, Value]
    model: str
    outcome: Outcome
    tokens: Mapping[str, int]
    lasted: tuple[tuple[Phase, int, int], ...]  # phase, nanoseconds, tokens computed
    network_ns: int


def _draw(rng: np.random.Generator) -> _Draw:
    prompt = int(np.clip(rng.lognormal(6.8, 1.1), 8, 120_000))
    answer = int(np.clip(rng.lognormal(5.2, 0.9), 1, 8_000))
    cached = prompt // 16 * 16 * (rng.random() < 0.45) // 2
    weights = 1 / np.arange(1, _TENANTS + 1) ** _ZIPF
    chances = np.fromiter(_OUTCOMES.values(), float)
    prefill_ns = int((prompt - cached) * rng.lognormal(11.2, 0.3)) + _MS
    decode_ns = int(answer * rng.lognormal(16.6, 0.25))
    phases = [(Phase.QUEUE, int(rng.lognormal(15.5, 1.5)), 0)]
    if cached:
        phases.append((Phase.CACHE_HIT, int(rng.lognormal(11.0, 0.5)), cached))
    phases.append((Phase.PREFILL, prefill_ns, prompt - cached))
    if rng.random() < 0.02:
        phases += [(Phase.DECODE, decode_ns // 3, answer // 3), (Phase.PREEMPTED, int(rng.lognormal(18.0, 0.8)), 0)]
        phases.append((Phase.PREFILL, prefill_ns, prompt))
    phases += [(Phase.DECODE, decode_ns, answer), (Phase.STREAM, int(rng.lognormal(12.5, 0.6)), 0)]
    return _Draw(
        who={
            semconv.TENANT: f"tenant-{rng.choice(_TENANTS, p=weights / weights.sum()):03d}",
            semconv.FEATURE: str(rng.choice(_FEATURES)),
            semconv.UNIT: UNIT + "0" * UNIT_DIGITS,
            semconv.ATTEMPT: 1 + int(rng.random() < 0.05),
        },
        model=str(rng.choice(_MODELS, p=(0.4, 0.3, 0.2, 0.1))),
        outcome=list(_OUTCOMES)[int(rng.choice(len(chances), p=chances))],
        tokens={
            semconv.GEN_AI_INPUT_TOKENS: prompt,
            semconv.GEN_AI_OUTPUT_TOKENS: answer,
            semconv.GEN_AI_CACHE_READ_TOKENS: cached,
        },
        lasted=tuple(phases),
        network_ns=int(rng.lognormal(13.5, 0.5)),
    )


def _request(rng: np.random.Generator) -> list[Told]:
    """The spans of one request: the client's, the engine's, then its phases."""
    draw = _draw(rng)
    engine = _engine_span(draw)
    return [_client_span(rng, draw, engine), engine, *_phase_spans(draw, engine)]


def _client_span(rng: np.random.Generator, draw: _Draw, engine: Told) -> Told:
    end_ns = engine.end_ns + draw.network_ns
    first_ns = engine.start_ns + sum(lasted for phase, lasted, _ in draw.lasted if phase is not Phase.DECODE)
    aborted = draw.outcome in semconv.ABORTED
    stamps = (
        0,
        draw.network_ns // 3,
        engine.start_ns + draw.network_ns,
        first_ns,
        end_ns - draw.network_ns // 4,
        end_ns,
        end_ns,
    )
    attributes: dict[str, Any] = {
        semconv.KIND: Kind.GENERATION,
        semconv.OUTCOME: draw.outcome,
        **draw.who,
        semconv.OPERATION: rng.bytes(8).hex(),
        semconv.GEN_AI_OPERATION: "chat",
        semconv.GEN_AI_PROVIDER: "vllm",
        semconv.GEN_AI_REQUEST_MODEL: draw.model,
        semconv.GEN_AI_RESPONSE_MODEL: draw.model,
        semconv.GEN_AI_RESPONSE_ID: RESPONSE + "0" * RESPONSE_DIGITS,
        semconv.GEN_AI_FINISH_REASONS: _FINISH[draw.outcome],
        **draw.tokens,
        semconv.CALL_DELIVERED: draw.tokens[semconv.GEN_AI_OUTPUT_TOKENS],
        "gen_ai.request.temperature": round(float(rng.random()), 2),
        "gen_ai.request.top_p": 0.95,
        "gen_ai.request.max_tokens": int(2 ** rng.integers(8, 13)),
        "gen_ai.request.stream": 1,
        "server.address": f"engine-{rng.integers(8)}.internal",
        "server.port": 8000,
    }
    if draw.outcome is Outcome.ERROR:
        attributes[semconv.ERROR_TYPE] = "openai.InternalServerError"
    told = {name: at for name, at in zip(_STAMPS, stamps, strict=True) if aborted or name != semconv.CALL_ABORT}
    return Told(f"chat {draw.model}", Span.SPAN_KIND_CLIENT, None, 0, end_ns, attributes, told, _failure(draw))


def _engine_span(draw: _Draw) -> Told:
    attributes = {
        semconv.KIND: Kind.ENGINE_REQUEST,
        **draw.who,
        semconv.OUTCOME: draw.outcome,
        semconv.GEN_AI_OPERATION: "chat",
        semconv.GEN_AI_REQUEST_MODEL: draw.model,
        **draw.tokens,
    }
    end_ns = draw.network_ns + sum(lasted for _, lasted, _ in draw.lasted)
    return Told(f"chat {draw.model}", Span.SPAN_KIND_SERVER, 0, draw.network_ns, end_ns, attributes, error=_failure(draw))


def _phase_spans(draw: _Draw, engine: Told) -> Iterator[Told]:
    at_ns = engine.start_ns
    for phase, lasted_ns, tokens in draw.lasted:
        attributes = {
            semconv.KIND: Kind.ENGINE_PHASE,
            semconv.PHASE: phase,
            **draw.who,
            semconv.GEN_AI_OPERATION: "chat",
            semconv.GEN_AI_REQUEST_MODEL: draw.model,
        }
        if tokens:
            attributes[semconv.ITEMS] = tokens
        yield Told(phase.value, Span.SPAN_KIND_INTERNAL, 1, at_ns, at_ns + lasted_ns, attributes)
        at_ns += lasted_ns
    if draw.outcome in semconv.ABORTED:
        attributes = {semconv.KIND: Kind.ENGINE_PHASE, **draw.who}
        yield Told(semconv.CANCELLATION_WASTE, Span.SPAN_KIND_INTERNAL, 1, at_ns - 20 * _MS, at_ns, attributes)


def _failure(draw: _Draw) -> str:
    return "the engine ran out of memory" if draw.outcome is Outcome.ERROR else ""
