"""What a collector is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from costspan_collector.store.retention import Keep

EMBEDDED = "embedded"
LOOPBACK = "127.0.0.1"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one collector.

    Attributes:
        data: Folder of the log, the quarantine, the keys, the projects' rules and the embedded store, as an absolute path. One
            process at a time.
        host: Address that the intake listens on.
        port: Port of the intake; 0 picks a free one.
        grpc_port: Port of the intake over gRPC; 0 picks a free one.
        store: ``embedded``, or the URL of a ClickHouse server.
        store_host: Address that the embedded store listens on.
        store_port: Port of the embedded store; 0 picks a free one.
        tls_cert: File of the certificate that intake and embedded store show, and of those above it; None for no TLS.
        tls_key: File of its private key.
        disk_budget_bytes: How much of what is not yet written the log may hold.
        max_body_bytes: Largest payload, as sent and unpacked.
        keep: For how long the store keeps what.
    """

    data: Path
    host: str = LOOPBACK
    port: int = 4318
    grpc_port: int = 4317
    store: str = EMBEDDED
    store_host: str = LOOPBACK
    store_port: int = 8123
    tls_cert: Path | None = None
    tls_key: Path | None = None
    disk_budget_bytes: int = 4096 * MIB
    max_body_bytes: int = 32 * MIB
    keep: Keep = field(default_factory=Keep)
