"""Rules that make kept text fit to be kept: what they match is replaced by their name in brackets.

Patterns run on RE2, in time linear in the text, so that neither a rule nor a text can stall the collector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from types import MappingProxyType
from typing import Any

import re2  # type: ignore[import-untyped]  # ships no types

from costspan_collector.errors import RulesError

_OWN = "[redacted]"
_QUIET = re2.Options()
_QUIET.log_errors = False
_LEAST_DIGITS, _MOST_DIGITS = 13, 19
_GROUP = re.compile(r"\d+")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"


def _card(match: Any) -> str:
    """What a run of digits, in groups, becomes: whole groups that together are a card's number are replaced."""
    run: str = match.group(0)
    groups = [(group.start(), group.end()) for group in _GROUP.finditer(run)]
    put, at = "", 0
    for first, (start, _) in enumerate(groups):
        if start < at:
            continue
        for _, end in reversed(groups[first : first + _MOST_DIGITS]):
            if _is_card(run[start:end]):
                put, at = f"{put}{run[at:start]}[card]", end
                break
    return put + run[at:]


def _is_card(grouped: str) -> bool:
    """Whether it has as many digits as a card, and the check digit is right (Luhn, ISO/IEC 7812-1)."""
    digits = [int(char) for char in grouped if char.isdigit()]
    if not _LEAST_DIGITS <= len(digits) <= _MOST_DIGITS:
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0


_PATTERNS = MappingProxyType(
    {
        "secret": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)"
        r"|\bcostspan_[0-9a-f]{12}_[0-9a-f]{64}"
        r"|\b(?:sk|pk|rk)[-_][\w-]{16,}"  # OpenAI, Anthropic, Stripe, Langfuse
        r"|\b(?:gh[oprsu]_|github_pat_|glpat-|hf_|npm_|pypi-|xox[abeoprs]-)[\w-]{16,}"
        r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{35}"
        r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"  # a JSON web token
        r"|(?i:\bbearer\s+)[\w.~+/-]{16,}=*",
        "email": r"[\w.%+-]+@[\w-]+(?:\.[\w-]+)+",
        "card": r"\b\d(?:[ -]?\d){12,}\b",
        "ipv4": rf"\b{_OCTET}(?:\.{_OCTET}){{3}}\b",
        "phone": r"\+\d(?:[ ().-]{0,2}\d){6,14}\b"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b"
        r"|\b0\d{1,4}[ /-]\d(?:[ -]?\d){4,8}\b",
    }
)
"""In the order in which they apply: what is secret may hold what looks like the rest."""

NAMES = tuple(_PATTERNS)


class Redaction:
    """Rules, applied one after the other.

    Args:
        names: Which of :data:`NAMES`.
        patterns: Own patterns, in RE2's syntax.

    Raises:
        RulesError: There is no such name, or a pattern cannot be used.
    """

    def __init__(self, names: Iterable[str], patterns: Iterable[str] = ()) -> None:
        wanted = frozenset(names)
        for name in sorted(wanted - _PATTERNS.keys()):
            raise RulesError(
                f"there is no redaction rule {name!r}: the rules are {', '.join(NAMES)}; put a pattern in redact_regex"
            )
        self._rules: list[tuple[Any, str | Callable[[Any], str]]] = [
            (_compiled(pattern), _card if name == "card" else f"[{name}]")
            for name, pattern in _PATTERNS.items()
            if name in wanted
        ]
        self._rules += [(_compiled(pattern), _OWN) for pattern in patterns]

    def __call__(self, text: str) -> str:
        """The text with everything replaced that a rule matches."""
        for pattern, put in self._rules:
            text = pattern.sub(put, text)
        return text


@cache
def _compiled(pattern: str) -> Any:
    try:
        compiled = re2.compile(pattern, _QUIET)
    except re2.error as error:
        raise RulesError(f"the pattern {pattern!r} cannot be used ({_said(error)}): write it in RE2's syntax") from error
    if compiled.search(""):
        raise RulesError(f"the pattern {pattern!r} matches empty text, so everything: make it match something")
    return compiled


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else error
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
