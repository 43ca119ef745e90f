"""The meter of one model call, as its client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import TypeVar, final, overload

from opentelemetry.context import Context, create_key, get_current, get_value, set_value
from opentelemetry.trace import SpanKind, format_span_id

from costspan import _runtime
from costspan._attempt import Attempt, current_attempt
from costspan._meter import AsyncMeter, Meter, Reading
from costspan._observation import SILENT, Attribute, start
from costspan._operation import Operation, current_operation
from costspan._propagation import carry, outgoing_headers
from costspan._try import Try
from costspan.clock import now_ns
from costspan.semconv import (
    ATTEMPT,
    GEN_AI_CACHE_READ_TOKENS,
    GEN_AI_CACHE_WRITE_TOKENS,
    GEN_AI_FINISH_REASONS,
    GEN_AI_INPUT_TOKENS,
    GEN_AI_OPERATION,
    GEN_AI_OUTPUT_TOKENS,
    GEN_AI_PROVIDER,
    GEN_AI_REASONING_TOKENS,
    GEN_AI_REQUEST_MODEL,
    GEN_AI_RESPONSE_ID,
    GEN_AI_RESPONSE_MODEL,
    INVALID,
    OPERATION,
    PROJECT,
    REPLACES,
    Kind,
    Outcome,
)

T = TypeVar("T")
_CURRENT = create_key("costspan-generation")
_NOWHERE = Context()


@final
class Generation:
    """One model call while it runs. Made by :func:`generation`.

    A client library that tries again by itself sends several requests in one call. Each is a span of its own, and everything
    here is about the last.

    Attributes:
        automatic: An integration opened it, and meters what it answers.
    """

    def __init__(self, model: str, provider: str, *, kind: str = "chat", automatic: bool = False) -> None:
        self.automatic = automatic
        self._kind = kind
        self._model = model
        self._provider = provider
        self._operation: Operation | None = None
        self._attempt: Attempt | None = None
        self._around = _NOWHERE
        self._first = SILENT
        self._try = Try(SILENT, 0)

    def __enter__(self) -> Generation:
        if _runtime.current() is None:
            return self
        self._around = get_current()
        operation, attempt = current_operation(self._around), current_attempt(self._around)
        self._operation = operation
        if operation is not None and attempt is not None and attempt.is_of(operation):
            self._attempt = attempt
        self._begin(self._number(), now_ns())
        self._first = self._try.observation
        self._first.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._first is not SILENT:
            end_ns = now_ns()
            self.leave()
            self._end(error, end_ns)

    @property
    def is_open(self) -> bool:
        """Whether it has begun and not ended."""
        return self._try.observation.is_open

    @property
    def reading(self) -> Reading:
        """What its client has seen of the answer."""
        return self._try.reading

    def leave(self) -> None:
        """Let the code that follows run outside of the call, which goes on until :meth:`end`."""
        self._first.leave()

    def end(self, error: BaseException | None = None) -> None:
        """End after :meth:`leave`: as what was read says, and when the client stopped reading."""
        self._end(error, self._try.reading.abort_ns or now_ns())

    def headers(self) -> dict[str, str]:
        """What to send with the request, so that the engine's spans and ledger belong to this call; empty before ``init()``."""
        runtime = _runtime.current()
        context = self._try.observation.context
        if runtime is None or context is None:
            return {}
        return outgoing_headers(context, runtime.who)

    def sent(self) -> None:
        """A request goes to the network now; take its :meth:`headers` after this.

        A second one in the same call is the client library's own retry. The try so far ends here, as what :meth:`answered` or
        :meth:`failed` said of it, and the next begins where it ended: what the library waited in between is time of the next
        try, before it sent. Both are of one :func:`operation`, which is named after the first where the app named none. A
        request that follows a redirect is no other try.
        """
        if self._try.is_spent:
            self._roll_over()
        self._try.sent()

    def answered(self, status: int = 0) -> None:
        """The headers of the response have come.

        Args:
            status: The HTTP status, if known; from 400 on, this try has failed.
        """
        self._try.answered(status)

    def failed(self, error: BaseException) -> None:
        """This request failed with ``error``; the client library may send another."""
        self._try.failed(error)

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
            return AsyncMeter(aiter(stream), self._try.reading, tokens)
        return Meter(iter(stream), self._try.reading, tokens)

    def usage(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """What the provider says it counted.

        Args:
            input_tokens: Tokens of the prompt, those read from a cache or written to one included.
            output_tokens: Tokens generated, reasoning included.
            cached_tokens: Tokens of the prompt that were read from a cache.
            cache_write_tokens: Tokens of the prompt that were written to a cache.
            reasoning_tokens: Tokens generated that are no part of the answer.
        """
        self._try.output_tokens = output_tokens
        counts = {
            GEN_AI_INPUT_TOKENS: input_tokens,
            GEN_AI_OUTPUT_TOKENS: output_tokens,
            GEN_AI_CACHE_READ_TOKENS: cached_tokens,
            GEN_AI_CACHE_WRITE_TOKENS: cache_write_tokens,
            GEN_AI_REASONING_TOKENS: reasoning_tokens,
        }
        self._try.observation.set(counts)

    def response(self, *, id: str = "", model: str = "", finish_reason: str = "") -> None:  # noqa: A002  (the API's own name)
        """What the answer says of itself; what is empty changes nothing.

        Args:
            id: The provider's name for it.
            model: The model that answered, where the one asked for was an alias.
            finish_reason: Why it ended: ``stop``, ``length``.
        """
        said = {GEN_AI_RESPONSE_ID: id, GEN_AI_RESPONSE_MODEL: model, GEN_AI_FINISH_REASONS: finish_reason}
        self._try.observation.set({key: text for key, text in said.items() if text})

    def abort(self) -> None:
        """The user pressed stop. Call it at once: what the engine makes from now on is waste."""
        self._try.stopped = True
        self._try.reading.left()

    def invalid(self, reason: str) -> None:
        """The answer failed validation. Say so inside the block, and ask again within one :func:`operation`."""
        self._try.observation.set({INVALID: reason})
        if self._attempt is not None:
            self._attempt.is_spoilt = True

    def _end(self, error: BaseException | None, end_ns: int) -> None:
        outcome = self._try.end(error, end_ns)
        if self._attempt is not None and outcome is not Outcome.OK:
            self._attempt.is_spoilt = True

    def _number(self) -> int:
        """The number of its first try."""
        if self._attempt is not None:
            self._attempt.is_spoilt = False
            return self._attempt.number
        return 1 if self._operation is None else self._operation.next_attempt()

    def _begin(self, number: int, start_ns: int, replaces: str = "") -> None:
        """Open the span of a try."""
        runtime = _runtime.current()
        who = {ATTEMPT: str(number), PROJECT: "" if runtime is None else runtime.settings.project}
        attributes: dict[str, Attribute] = {
            GEN_AI_OPERATION: self._kind,
            GEN_AI_PROVIDER: self._provider,
            GEN_AI_REQUEST_MODEL: self._model,
        }
        if self._operation is not None:
            attributes[OPERATION] = self._operation.id
        if replaces:
            attributes[REPLACES] = replaces
        observation = start(
            f"{self._kind} {self._model}",
            Kind.GENERATION,
            attributes,
            within=set_value(_CURRENT, self, carry(self._around, who)),
            start_ns=start_ns,
            role=SpanKind.CLIENT,
        )
        self._try = Try(observation, start_ns)

    def _roll_over(self) -> None:
        """Let the next try take over, under the same operation."""
        before = self._try
        if self._operation is None:
            self._operation = Operation("")
            self._operation.next_attempt()  # the first
            self._operation.name_after(before.observation)
        number = self._operation.next_attempt()
        if self._attempt is not None:
            self._attempt.number = number  # of what follows in it, too
        replaces = format_span_id(before.observation.span.get_span_context().span_id)
        self._begin(number, before.give_way(), replaces)


def current_generation() -> Generation | None:
    """The model call that the running code makes, if it is in one that has not ended."""
    found = get_value(_CURRENT)
    return found if isinstance(found, Generation) and found.is_open else None


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
