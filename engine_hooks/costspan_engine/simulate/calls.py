"""Model calls as their callers live through them: reading, pressing stop, losing patience, trying again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span

from costspan import semconv
from costspan.semconv import Outcome
from costspan_engine.simulate.workload import Want
from costspan_hooks.observer import Removal, RequestInfo

CLIENT_NS = 200_000
"""The client's own work before it sends and after it has read."""
WIRE_NS = 500_000
"""One way between client and server."""
SERVER_NS = 200_000
"""From a request's arrival at the server to the engine's inbox, and from its last token to the socket."""
BACKOFF_NS = 500_000_000
"""From a timeout to the next try."""
UNREAD = 8
"""Tokens that a connection holds before its reader: with more, the server waits for it."""

Times = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Call:
    """One call: an attempt at what somebody wants. Nanoseconds since the Unix epoch.

    Attributes:
        want: What.
        operation: Under which its attempts are numbered.
        attempt: 1 for the first.
        span: The client's.
        start_ns: When the client began.
        made: When the engine made each token.
        removal: How it left the engine, once it has.
        left_ns: When its client left; 0 while it has not.
        over: Whether its client is done with it.
    """

    want: Want
    operation: str
    attempt: int
    span: Span
    start_ns: int
    made: list[int] = field(default_factory=list)
    removal: Removal | None = None
    left_ns: int = 0
    over: bool = False

    @property
    def request_id(self) -> str:
        """What the engine calls it."""
        return f"{self.operation}-{self.attempt}"

    @property
    def enqueued_ns(self) -> int:
        """When it reaches the engine's inbox."""
        return self.start_ns + CLIENT_NS + WIRE_NS + SERVER_NS

    @property
    def patience_ns(self) -> int:
        """When its client loses patience; 0 for never."""
        timeout_s = self.want.client.timeout_s
        return self.start_ns + round(timeout_s * 1e9) if timeout_s else 0

    def request(self, told: RequestInfo, model: str) -> RequestInfo:
        """What the server knows of it, beside what the engine was offered."""
        context = self.span.get_span_context()
        return RequestInfo(
            request_id=told.request_id,
            tenant=told.tenant,
            feature="",
            unit="",
            attempt=self.attempt,
            trace_id=f"{context.trace_id:032x}",
            parent_span_id=f"{context.span_id:016x}",
            model=model,
            prompt_tokens=told.prompt_tokens,
            received_ns=told.enqueued_ns - SERVER_NS,
            enqueued_ns=told.enqueued_ns,
            has_server=True,
        )

    def read(self) -> Times:
        """When its client reads each token that was made: not before it comes, and no faster than it can."""
        come = np.array(self.made, np.int64) + SERVER_NS + WIRE_NS
        pace = self.want.client.read_tokens_per_s
        if not pace:
            return come
        # r_i = max(c_i, r_{i-1} + gap) is the running maximum of c_i - i·gap, with i·gap added again.
        lead = np.arange(len(come)) * round(1e9 / pace)
        return np.maximum.accumulate(come - lead) + lead

    def written(self) -> tuple[int, int]:
        """When the last byte was handed to the socket, and how many tokens had been: a full connection waits for its reader."""
        if self.removal is None:
            raise ValueError("a call that is in the engine is still being written")
        if not self.made:
            return self.removal.at_ns, 0
        handed = np.array(self.made, np.int64) + SERVER_NS
        handed[UNREAD:] = np.maximum(handed[UNREAD:], self.read()[:-UNREAD])
        until_ns = min(int(handed[-1]), self.left_ns + WIRE_NS) if self.left_ns else int(handed[-1])
        return max(self.removal.at_ns, until_ns), int(np.searchsorted(handed, until_ns, side="right"))

    def leave(self, at_ns: int, outcome: Outcome) -> None:
        """The client goes before the answer is whole."""
        read = self.read()
        read = read[read <= at_ns]
        self.left_ns, self.over = at_ns, True
        self._end(outcome if len(read) or outcome is Outcome.TIMEOUT else Outcome.ABANDONED, read, at_ns)

    def finish(self, last_ns: int) -> None:
        """The client has the whole answer; it read the last of it at ``last_ns``."""
        self.over = True
        read = self.read()
        read[-1] = last_ns
        self.span.set_attributes(
            {semconv.GEN_AI_INPUT_TOKENS: self.want.prompt_tokens, semconv.GEN_AI_OUTPUT_TOKENS: len(read)}
        )
        self._end(Outcome.OK, read, last_ns + CLIENT_NS)

    def _end(self, outcome: Outcome, read: Times, end_ns: int) -> None:
        stamps = {
            semconv.CALL_START: self.start_ns,
            semconv.CALL_SENT: self.start_ns + CLIENT_NS,
            semconv.CALL_FIRST: int(read[0]) if len(read) else 0,
            semconv.CALL_LAST: int(read[-1]) if len(read) else 0,
            semconv.CALL_ABORT: self.left_ns,
            semconv.CALL_END: end_ns,
        }
        self.span.set_attributes({key: stamp for key, stamp in stamps.items() if stamp})
        self.span.set_attributes({semconv.OUTCOME: outcome.value, semconv.CALL_DELIVERED: len(read)})
        self.span.end(end_ns)
