"""From the engine's thread to a socket, and the news of a client that left back to the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from costspan.clock import now_ns
from costspan_engine import answer
from costspan_engine.answer import DONE, Form
from costspan_engine.engine import Engine, Output
from costspan_engine.errors import RequestError
from costspan_engine.protocol import error_body
from costspan_engine.sequence import Request
from costspan_engine.text import TextStream
from costspan_hooks.observer import EngineObserver

_FAILED = RequestError("The engine failed while it computed this request; send it again.", status=500, code="engine_error")


class Mailbox:
    """One request's outputs, waiting for its response. Event loop only."""

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._news = asyncio.Event()
        self._closed = False

    def put(self, output: Output) -> None:
        """Add an output."""
        self._outputs.append(output)
        self._news.set()

    def close(self) -> None:
        """The client left: nobody will want more."""
        self._closed = True
        self._news.set()

    async def take(self) -> list[Output]:
        """All that came since the last call, at least one; empty once closed."""
        await self._news.wait()
        if self._closed:
            return []
        self._news.clear()
        outputs, self._outputs = self._outputs, []
        return outputs


class PostOffice:
    """Hands requests to the engine and its outputs to their mailboxes.

    Args:
        engine: Computes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._boxes: dict[str, Mailbox] = {}

    def submit(self, request: Request) -> Mailbox:
        """Hand in a request; returns where its outputs will come.

        Raises:
            RequestError: When the engine refuses it.
        """
        self._engine.submit(request)
        box = self._boxes[request.info.request_id] = Mailbox()
        return box

    def cancel(self, request_id: str, disconnect_ns: int) -> None:
        """The client of a request left."""
        self._boxes[request_id].close()
        self._engine.cancel(request_id, disconnect_ns)

    def close(self, request_id: str) -> None:
        """No more mail for a request."""
        del self._boxes[request_id]

    def sort(self, outputs: list[Output]) -> None:
        """Put the outputs of one turn of the engine where they belong."""
        for output in outputs:
            if box := self._boxes.get(output.request_id):
                box.put(output)


class Generation(Response):
    """The ASGI response to a request that the engine has.

    It speaks ASGI itself so that it knows when each ``send`` returned, and hears of a disconnect in the moment the server
    does, whether the request waits, computes or is being written.

    Args:
        request: What is being computed.
        office: Where it was handed in.
        box: Brings its outputs.
        observer: Told when delivery ended.
        form: The answer's envelope.
        text: Decodes the answer's tokens.
        stream: Whether the answer is sent token by token.
    """

    def __init__(
        self,
        request: Request,
        office: PostOffice,
        box: Mailbox,
        observer: EngineObserver,
        *,
        form: Form,
        text: TextStream,
        stream: bool,
    ) -> None:
        self.background = None  # FastAPI looks for it
        self._request = request
        self._office = office
        self._box = box
        self._observer = observer
        self._form = form
        self._text = text
        self._stream = stream
        self._generated = 0
        self._delivered = 0
        self._cached = 0
        self._gone_ns = 0
        self._sent_ns = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Deliver, until the answer is whole or the client has left."""
        del scope
        watch = asyncio.create_task(self._watch(receive))
        whole = False
        try:
            whole = await (self._send_stream(send) if self._stream else self._send_whole(send))
            if not self._gone_ns:
                # Once the response is complete a server reports a disconnect whatever the client does.
                watch.cancel()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except BaseException:  # above all the cancellation of this task, when the server goes down
            self._leave()
            raise
        finally:
            watch.cancel()
            request_id = self._request.info.request_id
            self._office.close(request_id)
            self._observer.closed(request_id, self._sent_ns if whole else self._gone_ns, self._delivered)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self._gone_ns:
            self._gone_ns = now_ns()
            self._office.cancel(self._request.info.request_id, self._gone_ns)

    async def _send_stream(self, send: Send) -> bool:
        """Send tokens as they come; whether all were handed over."""
        await send(_start(200, b"text/event-stream", [(b"cache-control", b"no-cache")]))
        while outputs := await self._box.take():
            # What the client was too slow for goes out together.
            before = self._generated
            events = [self._event(output) for output in outputs]
            if ended := bool(outputs[-1].finish_reason):
                events.append(self._farewell())
            await self._send_body(send, b"".join(events), self._generated - before)
            if ended:
                return True
        return False

    def _event(self, output: Output) -> bytes:
        self._cached = output.cached_tokens
        if output.token is None:
            return answer.event(error_body(_FAILED))
        text = self._decode(output)
        return answer.event(self._form.chunk(text, output.finish_reason, first=self._generated == 1))

    def _farewell(self) -> bytes:
        return answer.event(self._form.usage_chunk(self._usage())) + DONE if self._form.counted else DONE

    async def _send_whole(self, send: Send) -> bool:
        """Send the answer when it is whole; whether it was handed over."""
        texts: list[str] = []
        while outputs := await self._box.take():
            for output in outputs:
                self._cached = output.cached_tokens
                if output.token is None:
                    await self._send_json(send, _FAILED.status, error_body(_FAILED), 0)
                    return True
                texts.append(self._decode(output))
            if reason := outputs[-1].finish_reason:
                await self._send_json(send, 200, self._form.whole("".join(texts), reason, self._usage()), self._generated)
                return True
        return False

    def _decode(self, output: Output) -> str:
        """The text that a token adds; a token that only ends the answer adds none."""
        self._generated += 1
        ends = output.token in self._request.sampling.stop_ids
        text = "" if ends or output.token is None else self._text.push(output.token)
        return text + self._text.finish() if output.finish_reason else text

    def _usage(self) -> dict[str, Any]:
        return answer.usage(len(self._request.prompt), self._cached, self._generated)

    async def _send_json(self, send: Send, status: int, content: dict[str, Any], tokens: int) -> None:
        body = json.dumps(content).encode()
        await send(_start(status, b"application/json", [(b"content-length", str(len(body)).encode())]))
        await self._send_body(send, body, tokens)

    async def _send_body(self, send: Send, body: bytes, tokens: int) -> None:
        # Read before the hand-over, not after: the client must not seem to have the last byte before it was sent.
        self._sent_ns = now_ns()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if not self._gone_ns:  # to a client that left, a server sends nothing and says nothing
            self._delivered += tokens


def _start(status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
