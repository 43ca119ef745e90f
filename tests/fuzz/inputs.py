"""How many inputs each test tries, and how valid bytes go wrong. `make fuzz` says FUZZ_INPUTS=2000; the suite tries few."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("FUZZ_INPUTS", "40"))
SLOW_INPUTS = max(INPUTS // 8, 6)
"""For tests whose inputs go to a running collector."""

Test = TypeVar("Test", bound=Callable[..., Any])


def fuzzed(inputs: int = INPUTS) -> Callable[[Test], Test]:
    """Try so many inputs."""
    return settings(
        max_examples=inputs,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes after a few things have happened to them: some cut out, put in, overwritten, or repeated."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(start + draw(st.sampled_from((0, 1, 1, 2, 4, 8, 64))), len(raw))
        raw[start:end] = draw(st.one_of(st.binary(max_size=12), st.just(bytes(raw[start:end]) * 2)))
    return bytes(raw)


def json_values() -> st.SearchStrategy[Any]:
    """Any value that JSON has."""
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    )
