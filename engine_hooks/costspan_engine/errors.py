"""Everything that the engine raises on purpose.

::

    CostspanError
    └── CostspanEngineError
        ├── ConfigError     settings that cannot work, or not together
        ├── ModelError      a model folder that cannot be served
        └── RequestError    a request that is refused; carries what OpenAI's error body needs
"""

from __future__ import annotations

from costspan.errors import CostspanError


class CostspanEngineError(CostspanError):
    """Root of this package's errors; its text is one sentence that says what to do."""


class ConfigError(CostspanEngineError):
    """Settings that cannot work, or not together."""


class ModelError(CostspanEngineError):
    """A model folder that cannot be served."""


class RequestError(CostspanEngineError):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        code: OpenAI's machine-readable reason, such as ``context_length_exceeded``.
        param: The field at fault, or ``None``.
        retry_after_s: When it is worth another try, or ``None``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
