"""Answers to payloads that are not taken, as OTLP wants them: a ``google.rpc.Status``, with when to try again."""

from __future__ import annotations

from types import MappingProxyType

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types
from grpc import StatusCode

from costspan_collector.errors import BusyError, CollectorError, QuotaError, RefusedError

_RETRY_AFTER_S = 1
_CODES = MappingProxyType(
    {
        401: StatusCode.UNAUTHENTICATED,
        403: StatusCode.PERMISSION_DENIED,
        404: StatusCode.NOT_FOUND,
        429: StatusCode.RESOURCE_EXHAUSTED,
        503: StatusCode.UNAVAILABLE,
    }
)


def http_status(error: CollectorError) -> int:
    """The HTTP status that says what kind of error it is; of those, only 429 and 503 ask to be tried again."""
    if isinstance(error, RefusedError):
        return error.status
    return 429 if isinstance(error, QuotaError) else 503


def retry_after_s(error: CollectorError) -> int | None:
    """Seconds after which the same payload may be sent again; None when it never may."""
    if isinstance(error, QuotaError):
        return error.retry_after_s
    return _RETRY_AFTER_S if isinstance(error, BusyError) else None


def status(error: CollectorError) -> Status:
    """An error as OTLP's clients read it, over HTTP and gRPC."""
    said = Status(code=_CODES.get(http_status(error), StatusCode.INVALID_ARGUMENT).value[0], message=str(error))
    after_s = retry_after_s(error)
    if after_s is not None:
        said.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=after_s)))
    return said
