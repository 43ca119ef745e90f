"""From the engine to a socket, and the news of a client that left back to the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from costspan.clock import now_ns
from costspan_engine.engine import Output
from costspan_engine.errors import RequestError
from costspan_engine.serving import answer
from costspan_engine.serving.answer import DONE, Form, Piece
from costspan_engine.serving.choice import Choice, join
from costspan_engine.serving.post import Mailbox, PostOffice
from costspan_engine.serving.protocol import error_body, error_headers
from costspan_hooks.observer import EngineObserver

_ABORT, _STOPPING = "abort", "stopping"
_FAILURES = {
    "error": RequestError(
        "The engine failed while it computed this request; send it again.", status=500, code="engine_error", retry_after_s=1
    ),
    "timeout": RequestError(
        "The answer was not ready in time; allow more time or ask for less.", status=504, code="request_timeout"
    ),
    _STOPPING: RequestError(
        "The engine shut down before the answer was whole; send the request again.",
        status=503,
        code="engine_stopping",
        retry_after_s=1,
    ),
}
"""Finish reasons that are no answer, and what callers are told of them."""


class InFlight:
    """The answers that are being made and delivered, by the ids that callers know them by. Event loop only.

    Attributes:
        none: Set while there are none.
    """

    def __init__(self) -> None:
        self.none = asyncio.Event()
        self.none.set()
        self._answers: dict[str, list[Generation]] = {}

    def add(self, generation: Generation) -> None:
        """An answer begins."""
        for name in generation.names:
            self._answers.setdefault(name, []).append(generation)
        self.none.clear()

    def remove(self, generation: Generation) -> None:
        """An answer is over."""
        for name in generation.names:
            self._answers[name].remove(generation)
            if not self._answers[name]:
                del self._answers[name]
        if not self._answers:
            self.none.set()

    def cancel(self, name: str) -> bool:
        """End the answers of this id; false when there are none. A caller may have given several requests one id."""
        found = self._answers.get(name, [])
        for generation in found:
            generation.cancel()
        return bool(found)

    def hand_back(self) -> None:
        """End every answer with an error that says that the engine shuts down."""
        for generation in {each for found in self._answers.values() for each in found}:
            generation.hand_back()


class Generation(Response):
    """The ASGI response to a request that the engine has.

    It speaks ASGI itself so that it knows when each ``send`` returned, and hears of a disconnect in the moment the server
    does, whether the request waits, computes or is being written.

    Args:
        choices: What is to be computed. The first is handed in at once, the others when it has made a token: by then its
            prompt is in the prefix cache, and they need not compute it again.
        office: Where they are handed in.
        in_flight: Knows this answer until it is over.
        observer: Told when delivery of each choice ended.
        form: The answer's envelope.
        request_id: What the caller calls it; "" for the answer's own id.
        stream: Whether the answer is sent token by token.

    Raises:
        RequestError: When the engine refuses the first choice.
    """

    def __init__(
        self,
        choices: list[Choice],
        office: PostOffice,
        in_flight: InFlight,
        observer: EngineObserver,
        *,
        form: Form,
        request_id: str,
        stream: bool,
    ) -> None:
        self.background = None  # FastAPI looks for it
        self.names = {form.answer_id, request_id or form.answer_id}
        self._request_id = request_id or form.answer_id
        self._choices = {choice.request_id: choice for choice in choices}
        self._first, *self._held_back = choices
        self._office = office
        self._in_flight = in_flight
        self._observer = observer
        self._form = form
        self._stream = stream
        self._box = Mailbox()
        self._failure: RequestError | None = None
        self._gone = False
        self._cut_ns = 0
        self._submit(self._first)
        in_flight.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Deliver, until the answer is whole or the client has left."""
        del scope
        watch = asyncio.create_task(self._watch(receive))
        try:
            await (self._send_stream(send) if self._stream else self._send_whole(send))
            if not self._gone:
                # Once the response is complete a server reports a disconnect whatever the client does.
                watch.cancel()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except BaseException:  # above all the cancellation of this task
            self._leave()
            raise
        finally:
            watch.cancel()
            self._close()

    def cancel(self) -> None:
        """Its caller wants no more of it than there is."""
        at_ns = now_ns()
        for choice in self._unended():
            if choice.submitted:
                self._office.cancel(choice.request_id, at_ns)
        # Each is told of once, however often it is cancelled before that is read.
        for choice in self._held_back:
            self._box.put(Output(choice.request_id, None, _ABORT, 0))
        self._held_back = []

    def hand_back(self) -> None:
        """The engine shuts down, and will do no more for it."""
        self._held_back = []
        if unended := self._unended():
            self._box.put(Output(unended[0].request_id, None, _STOPPING, unended[0].cached))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._cut()
            self._box.close()

    def _cut(self) -> None:
        """Nobody will want what is still being computed."""
        self._cut_ns = now_ns()
        self._held_back = []
        for choice in self._unended():
            if choice.submitted:
                self._office.cancel(choice.request_id, self._cut_ns)

    def _close(self) -> None:
        self._in_flight.remove(self)
        for choice in self._choices.values():
            if choice.submitted:
                self._office.close(choice.request_id)
                over_ns = choice.sent_ns if choice.reason and choice.sent_ns else self._cut_ns
                self._observer.closed(choice.request_id, over_ns, choice.delivered)

    def _unended(self) -> list[Choice]:
        return [choice for choice in self._choices.values() if not choice.reason]

    def _submit(self, choice: Choice) -> None:
        choice.stamp()
        self._office.submit(choice.request, self._box)
        choice.submitted = True

    # --- what the engine made ----------------------------------------------------------------------------------------

    def _take(self, outputs: list[Output]) -> Iterator[tuple[Piece, bool]]:
        """Pieces, and whether each is the first of its choice; up to a failure, which is the end of all choices."""
        for output in outputs:
            choice = self._choices[output.request_id]
            first, piece = not choice.begun, choice.take(output)
            if failure := _FAILURES.get(output.finish_reason):
                self._fail(failure)
                return
            yield piece, first
            self._follow()

    def _follow(self) -> None:
        """Hand in the choices that were held back for the first's prompt to be computed."""
        held_back, self._held_back = self._held_back, []
        try:
            for choice in held_back:
                self._submit(choice)
        except RequestError as error:  # the engine has just stopped: all else was checked with the first
            self._fail(error)

    def _fail(self, failure: RequestError) -> None:
        self._failure = failure
        if failure is _FAILURES[_STOPPING]:
            self._cut_ns = now_ns()  # the engine ends them itself
        else:
            self._cut()

    @property
    def _ended(self) -> bool:
        return self._failure is not None or not self._unended()

    def _usage(self) -> dict[str, Any]:
        choices = self._choices.values()
        reasoning = None if self._first.reasoning is None else sum(choice.reasoning or 0 for choice in choices)
        made = sum(choice.made for choice in choices)
        return answer.usage(len(self._first.request.prompt), self._first.cached, made, reasoning)

    # --- to the client -----------------------------------------------------------------------------------------------

    async def _send_stream(self, send: Send) -> None:
        """Send tokens as they come."""
        await self._send_start(send, 200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        while not self._ended and (outputs := await self._box.take()):
            # What the client was too slow for goes out together.
            body = b"".join(self._events(outputs))
            await self._send_body(send, body, {output.request_id for output in outputs})

    def _events(self, outputs: list[Output]) -> Iterator[bytes]:
        for piece, first in self._take(outputs):
            yield answer.event(self._form.chunk(piece, self._usage() if self._form.continuous else None, first=first))
        if self._failure:
            yield answer.event(error_body(self._failure))
        if self._ended:
            yield answer.event(self._form.usage_chunk(self._usage())) + DONE if self._form.counted else DONE

    async def _send_whole(self, send: Send) -> None:
        """Send the answer when it is whole."""
        pieces: dict[int, list[Piece]] = {choice.index: [] for choice in self._choices.values()}
        while not self._ended and (outputs := await self._box.take()):
            for piece, _ in self._take(outputs):
                pieces[piece.index].append(piece)
        if self._failure:
            await self._send_json(send, self._failure.status, error_body(self._failure), error_headers(self._failure))
        elif self._ended:
            content = self._form.whole([join(found) for found in pieces.values()], self._usage())
            await self._send_json(send, 200, content, {})

    async def _send_json(self, send: Send, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        await self._send_start(send, status, headers)
        await self._send_body(send, body, set(self._choices))

    async def _send_start(self, send: Send, status: int, headers: dict[str, str]) -> None:
        headers = {**headers, "x-request-id": self._request_id}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})

    async def _send_body(self, send: Send, body: bytes, about: set[str]) -> None:
        # Read before the hand-over, not after: the client must not seem to have the last byte before it was sent.
        sent_ns = now_ns()
        for request_id in about:
            self._choices[request_id].sent_ns = sent_ns
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if self._gone or (self._failure and not self._stream):  # to a client that left, a server sends nothing and says nothing
            return
        for request_id in about:
            self._choices[request_id].delivered = self._choices[request_id].made
