"""What telling everything weighs: bytes of a request on the wire and on disk, its share of the engine's steps included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costspan_analytics.store import Store

_TABLES = ("attempts", "steps", "spans")


def weigh(store: Store, streams: Mapping[str, Mapping[str, Any]], requests: int) -> dict[str, dict[str, float]]:
    """Bytes a request by table, compressed: ``wire`` as senders sent them, ``disk`` as the store keeps them.

    Args:
        store: Whose parts are weighed.
        streams: The collector's, from ``/health``.
        requests: Over how many to divide.
    """
    disk = dict(store.frame("weights").rows())
    return {
        table: {"wire": streams[table]["wire_bytes"] / requests, "disk": disk.get(table, 0) / requests} for table in _TABLES
    }
