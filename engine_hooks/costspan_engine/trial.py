"""Compiles a grammar in a process of its own, so that one that takes for ever takes nothing else with it.

A schema of a kilobyte can keep llguidance busy for minutes (it intersects the patterns of an ``allOf``), where none of its own
limits reaches and nothing can interrupt it but the end of its process. So what compiles here within a second of CPU time is
compiled again in the engine. It reads the grammar from its input, and prints why it cannot be used, or nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_CPU_S = 1
_MEMORY_BYTES = 2 * 2**30
_PATIENCE_S = 10.0
"""Wall time for a second of CPU time on a machine that is busy."""
_TOO_HARD = f"it takes longer than {_CPU_S} s to compile"
LIMITS = LLParserLimits(verbose_errors=False)
"""llguidance's own: a mask costs at most about 15 ms before the grammar fails."""


def try_grammar(grammar: str) -> str:
    """Compile a grammar in a process of its own; returns why it cannot be used, or ""."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(  # noqa: S603 - our own module; the grammar is its input, not part of the command
            command, input=grammar, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _TOO_HARD
    return done.stdout if done.returncode == 0 else _TOO_HARD


def main() -> None:
    """The process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    matcher = LLMatcher(LLTokenizer("byte"), sys.stdin.read(), log_level=0, limits=LIMITS)
    matcher.compute_bitmask()  # a grammar that nothing can satisfy, or that is too large, may show only here
    sys.stdout.write(matcher.get_error())


if __name__ == "__main__":
    main()
