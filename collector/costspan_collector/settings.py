"""What a collector is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EMBEDDED = "embedded"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one collector.

    Attributes:
        data: Folder of the log, the quarantine and the embedded store, as an absolute path. One process at a time.
        host: Address that the intake listens on. The embedded store listens on loopback only.
        port: Port of the intake; 0 picks a free one.
        store: ``embedded``, or the URL of a ClickHouse server.
        store_port: Port of the embedded store; 0 picks a free one.
        disk_budget_bytes: How much of what is not yet written the log may hold.
        max_body_bytes: Largest payload, as sent and unpacked.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 4318
    store: str = EMBEDDED
    store_port: int = 8123
    disk_budget_bytes: int = 4096 * MIB
    max_body_bytes: int = 32 * MIB
