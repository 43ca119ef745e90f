"""The intake over gRPC: the ``Export`` call of each of OTLP's services.

Calls are answered by threads that wait for the disk, as over HTTP. gRPC passes bytes on undecoded: ``signals.py`` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType

import grpc

from costspan_collector.errors import CollectorError, StartError
from costspan_collector.intake.answers import status
from costspan_collector.intake.delivery import Delivery
from costspan_collector.intake.signals import PROTOBUF, SIGNALS, Signal
from costspan_collector.settings import Settings

_GRACE_S = 5
_THREADS = 16  # calls that share an fsync, each with a message in memory
_DETAILS = "grpc-status-details-bin"
_CODES = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})


class GrpcIntake:
    """A port that is bound, and from :meth:`start` to :meth:`close` answers calls.

    Args:
        settings: Address, port, size limit and TLS files.

    Raises:
        StartError: The port cannot be had.
    """

    def __init__(self, settings: Settings) -> None:
        # Without so_reuseport a second collector on the port is refused, where it would get a part of the calls.
        options = [("grpc.max_receive_message_length", settings.max_body_bytes), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="costspan-grpc"), options=options)
        host, port = settings.host, settings.grpc_port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._bind(address, settings)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {address}: stop what listens there, or choose another with --grpc-port"
            ) from error

    def start(self, delivery: Delivery) -> None:
        """Begin to answer, with what takes payloads."""
        self._server.add_generic_rpc_handlers([_service(delivery, signal) for signal in SIGNALS.values()])
        self._server.start()

    def close(self) -> None:
        """Take no more calls, and finish those that are under way."""
        self._server.stop(_GRACE_S).wait()

    def _bind(self, address: str, settings: Settings) -> int:
        if settings.tls_cert is None or settings.tls_key is None:
            return self._server.add_insecure_port(address)
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        return self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))


def _service(delivery: Delivery, signal: Signal) -> grpc.GenericRpcHandler:
    export: Callable[[bytes, grpc.ServicerContext], bytes] = partial(_export, delivery, signal)
    return grpc.method_handlers_generic_handler(signal.service, {"Export": grpc.unary_unary_rpc_method_handler(export)})


def _export(delivery: Delivery, signal: Signal, body: bytes, context: grpc.ServicerContext) -> bytes:
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    try:
        with delivery.meters.answering(signal.stream, "grpc"):
            taken = delivery.take(signal, body, PROTOBUF, delivery.sender(headers), len(body))
    except CollectorError as error:
        said = status(error)
        context.set_trailing_metadata(((_DETAILS, said.SerializeToString()),))
        context.abort(_CODES[said.code], said.message)
    return signal.answer(taken.rejected, taken.reason).SerializeToString()
