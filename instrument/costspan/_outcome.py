"""How a call ended, told from what it raised."""

from __future__ import annotations

from costspan.semconv import Outcome

# By name, because the SDK imports no HTTP client: asyncio's, httpx's, openai's and requests' own.
_TIMEOUTS = frozenset({"TimeoutError", "TimeoutException", "APITimeoutError", "Timeout"})


def outcome_of(error: BaseException | None) -> Outcome:
    """The outcome of a call that raised ``error``, or nothing.

    What is not an :class:`Exception` comes from outside the call (a cancelled task, a closed generator, Ctrl-C), and so is
    no error of it. A deadline around a task looks from inside like a person's cancellation: put deadlines inside the call.
    """
    if error is None:
        return Outcome.OK
    names = {base.__name__ for base in type(error).__mro__}
    if names & _TIMEOUTS:
        return Outcome.TIMEOUT
    if not isinstance(error, Exception) or "CancelledError" in names:
        return Outcome.CANCELLED
    return Outcome.ERROR
