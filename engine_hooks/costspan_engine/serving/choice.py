"""One of the answers that a caller asked for: an engine request, and what became of it."""

from __future__ import annotations

from dataclasses import replace

from costspan.clock import now_ns
from costspan_engine.engine import Output
from costspan_engine.executor import Logprobs
from costspan_engine.sequence import Request
from costspan_engine.serving.answer import Likelihood, Piece, Spelled
from costspan_engine.serving.text import Reasoning, TextStream
from costspan_engine.tokenizer import Tokenizer


class Choice:
    """Turns the tokens of one engine request into the pieces of one choice.

    Args:
        index: Its place among the caller's choices.
        request: What is to be computed for it.
        tokenizer: Decodes its tokens.
        stops: Strings that end its text.

    Attributes:
        submitted: Whether the engine has been given it.
        reason: Why it ended; "" while it goes on.
        made: Tokens that the engine made, as far as they were taken.
        delivered: Tokens that were handed to a client that was there.
        cached: Prompt tokens found in the prefix cache.
        sent_ns: When the last bytes with anything of it were handed over.
        begun: Whether a piece of it has been made.
    """

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.index = index
        self.request = request
        self.submitted = False
        self.reason = ""
        self.made = 0
        self.delivered = 0
        self.cached = 0
        self.sent_ns = 0
        self.begun = False
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, stops)
        self._reasoning = Reasoning.of(tokenizer, request.prompt)
        self._offset = 0

    @property
    def request_id(self) -> str:
        """The engine request's id."""
        return self.request.info.request_id

    @property
    def reasoning(self) -> int | None:
        """Tokens of its reasoning; ``None`` for a model that does not mark it."""
        return self._reasoning.tokens if self._reasoning else None

    def stamp(self) -> None:
        """It is about to enter the engine's inbox."""
        self.request = replace(self.request, info=replace(self.request.info, enqueued_ns=now_ns()))

    def take(self, output: Output) -> Piece:
        """What an output adds; a token that only ends the answer, and an end without a token, add no text of their own."""
        self.begun = True
        self.cached, self.reason = output.cached_tokens, output.finish_reason
        text, likelihoods = "", []
        if output.token is not None:
            self.made += 1
            if self._reasoning:
                self._reasoning.push(output.token)
            if output.token not in self.request.sampling.stop_ids:
                text = self._text.push(output.token)
                if output.logprobs is not None:
                    likelihoods = [self._likelihood(output.token, output.logprobs)]
        if output.finish_reason:
            text += self._text.finish()
        return Piece(self.index, text, self.reason, None if self.request.sampling.logprobs is None else likelihoods)

    def _likelihood(self, token: int, logprobs: Logprobs) -> Likelihood:
        chosen = self._spelled(token, logprobs.logprob)
        offset, self._offset = self._offset, self._offset + len(chosen.text)
        return Likelihood(chosen, [self._spelled(*each) for each in logprobs.top], offset)

    def _spelled(self, token: int, logprob: float) -> Spelled:
        return Spelled(self._tokenizer.token_bytes(token), logprob)


def join(pieces: list[Piece]) -> Piece:
    """All pieces of a choice in one."""
    last = pieces[-1]
    likelihoods = None if last.likelihoods is None else [each for piece in pieces for each in piece.likelihoods or ()]
    return Piece(last.index, "".join(piece.text for piece in pieces), last.reason, likelihoods)
