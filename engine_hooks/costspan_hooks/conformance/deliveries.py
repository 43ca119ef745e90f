"""What a server told of the end of its responses: at any time, from any of its threads."""

from __future__ import annotations

from dataclasses import dataclass

from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.observer import Removal, RequestInfo


@dataclass(slots=True)
class _Response:
    request: RequestInfo | None = None
    removal: Removal | None = None
    sent_ns: int = -1
    delivered: int = 0


class Deliveries:
    """Brings together what the engine and the server told of each request.

    Args:
        found: Where breaches go.
    """

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._open: dict[str, _Response] = {}
        self._over: dict[str, bool] = {}  # whether it had a server

    def enqueued(self, request: RequestInfo) -> None:
        """A request came in; a server may have told its end already."""
        self._response(request.request_id).request = request

    def closed(self, request_id: str, sent_ns: int, delivered: int) -> None:
        """A response is over."""
        if self._over.get(request_id) is False:
            self._found.add(Rule.CLOSED_OWN, f"{request_id} has no server, and was closed")
            return
        if request_id in self._over or self._response(request_id).sent_ns >= 0:
            self._found.add(Rule.CLOSED_ONCE, f"{request_id} was closed twice")
            return
        response = self._response(request_id)
        response.sent_ns, response.delivered = sent_ns, delivered
        self._settle(request_id)

    def removed(self, removal: Removal) -> None:
        """A request left the engine."""
        self._response(removal.request_id).removal = removal
        self._settle(removal.request_id)

    def finish(self) -> None:
        """Nothing more is told: who was not closed will not be."""
        for name, response in self._open.items():
            request = response.request
            if request is None:
                self._found.add(Rule.CLOSED_OWN, f"{name} was closed, and never came into the engine")
            elif request.has_server and response.removal and response.sent_ns < 0:
                self._found.add(Rule.CLOSED_OWN, f"{name} has a server, and was never closed")
        self._open.clear()

    def _response(self, request_id: str) -> _Response:
        return self._open.setdefault(request_id, _Response())

    def _settle(self, request_id: str) -> None:
        response = self._open[request_id]
        request, removal = response.request, response.removal
        if request and not request.has_server:
            self._found.unless(response.sent_ns < 0, Rule.CLOSED_OWN, f"{request_id} has no server, and was closed")
        elif not (request and removal and response.sent_ns >= 0):
            return
        if request and removal:
            self._compare(request, removal, response)
            self._over[request_id] = request.has_server
            del self._open[request_id]

    def _compare(self, request: RequestInfo, removal: Removal, response: _Response) -> None:
        told = f"{response.delivered} tokens of {request.request_id} were delivered, and {removal.output_tokens} made"
        self._found.unless(0 <= response.delivered <= removal.output_tokens, Rule.DELIVERED, told)
        early = 0 <= response.sent_ns < request.received_ns
        self._found.unless(not early, Rule.DELIVERED, f"{request.request_id} was sent before it was received")
