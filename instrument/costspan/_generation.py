"""The meter of one model call, as its client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import TypeVar, final, overload

from opentelemetry.context import create_key, get_current, get_value, set_value
from opentelemetry.trace import SpanKind

from costspan import _runtime
from costspan._meter import AsyncMeter, Meter, Reading
from costspan._observation import SILENT, Attribute, start
from costspan._operation import current_operation
from costspan._outcome import outcome_of
from costspan._propagation import carry, outgoing_headers
from costspan.clock import now_ns
from costspan.semconv import (
    ABORTED,
    ATTEMPT,
    CALL_ABORT,
    CALL_DELIVERED,
    CALL_END,
    CALL_FIRST,
    CALL_HEADERS,
    CALL_LAST,
    CALL_SENT,
    CALL_START,
    GEN_AI_CACHE_READ_TOKENS,
    GEN_AI_INPUT_TOKENS,
    GEN_AI_OPERATION,
    GEN_AI_OUTPUT_TOKENS,
    GEN_AI_PROVIDER,
    GEN_AI_REQUEST_MODEL,
    INVALID,
    OPERATION,
    PROJECT,
    Kind,
    Outcome,
)

T = TypeVar("T")
_CURRENT = create_key("costspan-generation")


@final
class Generation:
    """One model call while it runs. Made by :func:`generation`. Every stamp is nanoseconds since the Unix epoch; 0 if never."""

    def __init__(self, model: str, provider: str) -> None:
        self._model = model
        self._provider = provider
        self._observation = SILENT
        self._start_ns = self._sent_ns = self._headers_ns = 0
        self._output_tokens = 0
        self._stopped = False
        self._reading = Reading()

    def __enter__(self) -> Generation:
        self._start_ns = now_ns()
        context = get_current()
        operation = current_operation(context)
        attempt = 1 if operation is None else operation.next_attempt()
        runtime = _runtime.current()
        who = {ATTEMPT: str(attempt), PROJECT: "" if runtime is None else runtime.settings.project}
        attributes: dict[str, Attribute] = {
            GEN_AI_OPERATION: "chat",
            GEN_AI_PROVIDER: self._provider,
            GEN_AI_REQUEST_MODEL: self._model,
        }
        if operation is not None:
            attributes[OPERATION] = operation.id
        self._observation = start(
            f"chat {self._model}",
            Kind.GENERATION,
            attributes,
            within=set_value(_CURRENT, self, carry(context, who)),
            start_ns=self._start_ns,
            role=SpanKind.CLIENT,
        )
        self._observation.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        end_ns = now_ns()
        self._observation.leave()
        outcome = self._outcome(error)
        self._observation.end(outcome, error, attributes=self._measures(outcome, end_ns), end_ns=end_ns)

    def headers(self) -> dict[str, str]:
        """What to send with the request, so that the engine's spans and ledger belong to this call; empty before ``init()``."""
        runtime = _runtime.current()
        context = self._observation.context
        if runtime is None or context is None:
            return {}
        return outgoing_headers(context, runtime.who)

    def sent(self) -> None:
        """The request goes to the network now. Of several (a client's own retries), the last counts."""
        self._sent_ns = now_ns()

    def answered(self) -> None:
        """The headers of the response have come."""
        self._headers_ns = now_ns()

    @overload
    def meter(self, stream: AsyncIterable[T], tokens: Callable[[T], int] | None = None) -> AsyncMeter[T]: ...

    @overload
    def meter(self, stream: Iterable[T], tokens: Callable[[T], int] | None = None) -> Meter[T]: ...

    def meter(
        self, stream: AsyncIterable[T] | Iterable[T], tokens: Callable[[T], int] | None = None
    ) -> AsyncMeter[T] | Meter[T]:
        """Pass a stream through, noting when its tokens come and how many the consumer gets.

        Read it to its end: a consumer that leaves the loop early has aborted the call, at that moment.

        Args:
            stream: The response, item by item.
            tokens: How many tokens an item carries; one each by default. An item may carry none.
        """
        if isinstance(stream, AsyncIterable):
            return AsyncMeter(aiter(stream), self._reading, tokens)
        return Meter(iter(stream), self._reading, tokens)

    def usage(self, *, input_tokens: int = 0, output_tokens: int = 0, cached_tokens: int = 0) -> None:
        """What the provider says it counted.

        Args:
            input_tokens: Tokens of the prompt, cached ones included.
            output_tokens: Tokens generated.
            cached_tokens: Tokens of the prompt that were read from a cache.
        """
        self._output_tokens = output_tokens
        self._observation.set(
            {
                GEN_AI_INPUT_TOKENS: input_tokens,
                GEN_AI_OUTPUT_TOKENS: output_tokens,
                GEN_AI_CACHE_READ_TOKENS: cached_tokens,
            }
        )

    def abort(self) -> None:
        """The user pressed stop. Call it at once: what the engine makes from now on is waste."""
        self._stopped = True
        self._reading.left()

    def invalid(self, reason: str) -> None:
        """The answer failed validation. Say so inside the block, and ask again within one :func:`operation`."""
        self._observation.set({INVALID: reason})

    def _outcome(self, error: BaseException | None) -> Outcome:
        reading = self._reading
        outcome = outcome_of(error) if error is not None else reading.failure
        if reading.is_whole:
            return Outcome.ERROR if outcome is Outcome.ERROR else Outcome.OK
        left = reading.abort_ns > 0 or reading.is_streamed
        if (outcome is Outcome.OK and left) or (outcome is Outcome.ERROR and self._stopped):
            outcome = Outcome.CANCELLED
        if outcome is Outcome.CANCELLED and not reading.delivered:
            outcome = Outcome.ABANDONED
        return outcome

    def _measures(self, outcome: Outcome, end_ns: int) -> dict[str, Attribute]:
        reading = self._reading
        delivered, last_ns = reading.delivered, reading.last_ns
        if outcome is Outcome.OK and not reading.is_streamed:  # an answer that came in one piece
            delivered, last_ns = self._output_tokens, end_ns
        abort_ns = 0 if outcome is Outcome.OK else reading.abort_ns
        if outcome in ABORTED:
            abort_ns = abort_ns or end_ns
        stamps = {
            CALL_START: self._start_ns,
            CALL_SENT: self._sent_ns,
            CALL_HEADERS: self._headers_ns,
            CALL_FIRST: reading.first_ns,
            CALL_LAST: last_ns,
            CALL_ABORT: abort_ns,
            CALL_END: end_ns,
        }
        return {CALL_DELIVERED: delivered, **{key: stamp for key, stamp in stamps.items() if stamp}}


def current_generation() -> Generation | None:
    """The model call that the running code makes, if it is in one."""
    found = get_value(_CURRENT)
    return found if isinstance(found, Generation) else None


def generation(*, model: str, provider: str) -> Generation:
    """Meter one model call, in sync and async code alike.

    ::

        with costspan.generation(model="llama-8b", provider="costspan") as call:
            stream = client.chat.completions.create(..., stream=True, extra_headers=call.headers())
            for chunk in call.meter(stream):
                ...

    How it ends is told from what the block raises and from what was read: ``ok``, ``error``, ``timeout``, ``cancelled``, or
    ``abandoned`` when it was cancelled before the consumer had a token.

    Args:
        model: The model asked for.
        provider: Who serves it, in OpenTelemetry's spelling: ``openai``, ``aws.bedrock``.
    """
    return Generation(model, provider)
