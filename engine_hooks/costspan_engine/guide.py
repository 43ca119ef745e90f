"""Answers that are JSON, and match a schema: what may be said next, from llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from costspan_engine.errors import CostspanEngineError, RequestError
from costspan_engine.tokenizer import Tokenizer
from costspan_engine.trial import LIMITS, try_grammar

_BLANKS = r"[ \n\t]{1,24}"
"""Enough to indent with, and an end to it: a model that likes nothing better would say blanks for ever."""
_REMEMBERED = 64
_LONGEST_REASON = 300


class JsonGuide:
    """A place in a grammar; see :class:`costspan_engine.sequence.Guide`.

    Args:
        matcher: Moved by this guide alone.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def ended(self) -> bool:
        """Whether the answer is whole and can only end."""
        return self._matcher.is_stopped()

    def fill(self, row: NDArray[np.int32]) -> None:
        """Write the tokens allowed next into a row of a bit mask; those that end a sequence when the answer is whole.

        Raises:
            CostspanEngineError: When the grammar has become too large to follow.
        """
        row[:] = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)[: len(row)]
        self._check()

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            CostspanEngineError: When the grammar does not allow it, or has become too large to follow.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _brief(self._matcher.get_error())
            raise CostspanEngineError(f"the answer cannot be held to its schema ({reason}); simplify the schema")


class Guides:
    """Makes guides; safe to call from any thread, and best from one that may wait for a tenth of a second.

    Args:
        tokenizer: The model's.
        vocab_size: Width of the model's logits; the tokenizer may know fewer tokens.
        eos_ids: Tokens that end a sequence: allowed when the answer is whole.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self._tokenizer = LLTokenizer(
            tokenizer.definition, n_vocab=max(vocab_size, tokenizer.size), eos_token=list(eos_ids) or None
        )
        self._compiled = lru_cache(_REMEMBERED)(self._compile)

    def json_schema(self, schema: Mapping[str, Any]) -> JsonGuide:
        """A guide to what matches a JSON schema.

        Raises:
            RequestError: When the schema is not valid, nothing can match it, it asks for what cannot be enforced, or it takes
                too long to compile.
        """
        return JsonGuide(self._compiled(json.dumps(schema)).deep_copy())

    def json_object(self) -> JsonGuide:
        """A guide to any JSON object."""
        return self.json_schema({"type": "object"})

    def _compile(self, schema: str) -> LLMatcher:
        # A keyword that cannot be enforced is refused rather than ignored, whatever the schema asks the library for.
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _BLANKS, "lenient": False})
        except ValueError as error:  # NaN, which Python reads and writes, is no JSON
            raise _refusal(str(error)) from error
        if reason := try_grammar(grammar):
            raise _refusal(reason)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        matcher.compute_bitmask()  # what is too large for this vocabulary shows here, before the engine has to do with it
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return matcher


def _refusal(reason: str) -> RequestError:
    return RequestError(
        f"The JSON schema cannot be used ({_brief(reason)}); change it and send the request again.",
        code="invalid_json_schema",
        param="response_format",
    )


def _brief(reason: str) -> str:
    """The library's words on one line: they may go over several, with the place in a pattern marked."""
    if "NoExtension" in reason:
        return "nothing can match it"
    return " ".join(reason.replace("<non-verbose/>", "").split())[:_LONGEST_REASON]
