"""What the embedded store says instead of a result."""

from __future__ import annotations

import re

NOT_IMPLEMENTED, UNKNOWN_TABLE, SYNTAX_ERROR, INCORRECT_DATA, READONLY, ACCESS_DENIED, UNKNOWN_EXCEPTION = (
    48,
    60,
    62,
    117,
    164,
    497,
    1002,
)
_CODE = re.compile(r"Code: (\d+)\.")


class Failure(Exception):  # noqa: N818  (an answer of the engine's, never raised beyond the door)
    """A refusal, in ClickHouse's words.

    Args:
        code: ClickHouse's error code.
        message: Its message, from ``Code:`` on.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def of(cls, code: int, name: str, sentence: str) -> Failure:
        """One that is the door's own, under ClickHouse's code and name for such."""
        return cls(code, f"Code: {code}. DB::Exception: {sentence}. ({name})")

    @classmethod
    def from_engine(cls, error: Exception) -> Failure:
        """One that chDB raised."""
        message = str(error)
        if "codec can't decode" in message:  # it quotes what it refuses, and chDB cannot pass that on
            return cls.of(INCORRECT_DATA, "INCORRECT_DATA", "The data cannot be read in their format, and are not UTF-8")
        message = message[max(message.find("Code: "), 0) :]
        code = _CODE.match(message)
        return cls(int(code[1]) if code else UNKNOWN_EXCEPTION, message)


def denied(sentence: str) -> Failure:
    """Not for who asks."""
    return Failure.of(ACCESS_DENIED, "ACCESS_DENIED", sentence)


def read_only(sentence: str) -> Failure:
    """Not for who only reads."""
    return Failure.of(READONLY, "READONLY", sentence)


def unknown_table(name: str) -> Failure:
    """There is no such table, or none that may be read: an answer that tells these apart would tell too much."""
    return Failure.of(UNKNOWN_TABLE, "UNKNOWN_TABLE", f"There is no table {name!r} that this key may read")
