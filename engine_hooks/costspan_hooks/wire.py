"""Records as Arrow tables, column for column as the store has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from costspan.semconv import Phase
from costspan_hooks.observer import Batching
from costspan_hooks.records import AttemptRecord, EngineRecord, EvictionRecord, SampleRecord, Segment, StepRecord

TEXT, INT, REAL = pa.string(), pa.int64(), pa.float64()
U16, U32, U64 = pa.uint16(), pa.uint32(), pa.uint64()

_SEGMENT: dict[str, pa.DataType] = {
    "name": TEXT,
    "start_ns": INT,
    "duration_ns": INT,
    "step_first": INT,
    "step_last": INT,
    "tokens": U32,
    "context": U32,
    "cost_ns": INT,
    "solo_ns": REAL,
    "interference_ns": REAL,
    "deviation_ns": REAL,
    "host_gap_ns": REAL,
    "waste": TEXT,
    "waste_ns": INT,
    "culprit": TEXT,
}
_SHARE: dict[str, pa.DataType] = {
    "name": TEXT,
    "seqs": U16,
    "tokens": U32,
    "blocks": U32,
    "compute_ns": REAL,
    "prefill_ns": REAL,
    "cost_ns": REAL,
}
_REQUEST = ("request_id", "parent_span_id", "tenant", "feature", "unit")


@dataclass(frozen=True, slots=True)
class Delivered:
    """An attempt with both its ends: the engine's record, and the server's word on what reached the socket.

    Attributes:
        record: What the ledger handed on.
        trace_id: The trace of the request span that was emitted for it, 32 hex digits: the caller's, or one of its own.
        span_id: That span, 16 hex digits.
        sent_ns: Last byte handed to the socket; the removal's time where there is no server.
        delivered_tokens: Tokens written to the socket.
    """

    record: AttemptRecord
    trace_id: str
    span_id: str
    sent_ns: int
    delivered_tokens: int

    def phases(self) -> list[Segment]:
        """The engine's segments, with the server's own before and after them."""
        request, removal = self.record.request, self.record.removal
        admission = Segment(Phase.ADMISSION, request.received_ns, request.enqueued_ns - request.received_ns)
        phases = [admission, *self.record.segments]
        if self.sent_ns > removal.at_ns:
            phases.append(Segment(Phase.STREAM, removal.at_ns, self.sent_ns - removal.at_ns))
        return phases


@dataclass(frozen=True, slots=True)
class Origin:
    """The engine that rows come from."""

    project: str
    engine: str
    device_kind: str


MEDIA_TYPE = "application/vnd.apache.arrow.stream"
"""What :func:`encode` makes."""

_LATER = {
    *("adapter", "latency_class", "priority", "block_ns", "drafted_tokens", "accepted_tokens", "prefix", "energy_j"),
    *("expert_tokens", "expert_skew", "prefill_pairs", "decode_seqs", "decode_tokens", "padding", "padding_ns"),
    *("utilization", "memory_bytes", "memory_total_bytes", "power_w"),
    *("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "throttle"),
}
"""Columns with a default in the store, or that may be null: a payload may leave them out."""


def encode(rows: pa.Table) -> bytes:
    """A table as an Arrow IPC stream, without columns that say nothing in any row: each would cost as much as several rows."""
    silent = [name for name in rows.column_names if name in _LATER and _says_nothing(rows.column(name))]
    rows = rows.drop_columns(silent)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _says_nothing(column: pa.ChunkedArray[Any]) -> bool:
    """Whether every value is its type's default: null where there may be any, else zero, "" or nothing."""
    if column.null_count:
        return column.null_count == len(column)
    if pa.types.is_list(column.type):
        column = pc.list_value_length(column)
    elif pa.types.is_string(column.type):
        column = pc.binary_length(column)
    return bool(pc.max(pc.abs(column)).as_py() == 0)


_UNKNOWN = Batching("", "", 0, 0, 0, 0, prefix_cache=False, tenant_max_seqs=0, draft_tokens=0, max_context=0, prefix_grain=0)


def _column(rows: Sequence[Any], name: str, kind: pa.DataType) -> pa.Array[Any]:
    return pa.array([getattr(row, name) for row in rows], kind)


def _nested(prefix: str, rows: Sequence[Sequence[Any]], kinds: dict[str, pa.DataType]) -> dict[str, pa.Array[Any]]:
    """One list column per field, as ClickHouse spells Nested."""
    return {
        f"{prefix}.{name}": pa.array([[getattr(item, name) for item in row] for row in rows], pa.list_(kind))
        for name, kind in kinds.items()
    }


def _constant(value: str, count: int) -> pa.Array[Any]:
    return pa.array([value] * count, TEXT)


def attempts(origin: Origin, rows: Sequence[Delivered]) -> pa.Table:
    """Table ``attempts``."""
    records = [row.record for row in rows]
    requests = [record.request for record in records]
    removals = [record.removal for record in records]
    phases = [row.phases() for row in rows]
    return pa.table(
        {
            "project": _constant(origin.project, len(rows)),
            "engine": _constant(origin.engine, len(rows)),
            **{name: _column(requests, name, TEXT) for name in _REQUEST},
            "trace_id": _column(rows, "trace_id", TEXT),
            "span_id": _column(rows, "span_id", TEXT),
            "attempt": _column(requests, "attempt", U16),
            "model": _column(requests, "model", TEXT),
            "device_kind": _constant(origin.device_kind, len(rows)),
            "outcome": _column(removals, "outcome", TEXT),
            "finish_reason": _column(removals, "finish_reason", TEXT),
            "prompt_tokens": _column(requests, "prompt_tokens", U32),
            "cached_tokens": _column(records, "cached_tokens", U32),
            "output_tokens": _column(removals, "output_tokens", U32),
            "delivered_tokens": _column(rows, "delivered_tokens", U32),
            "preemptions": _column(records, "preemptions", U16),
            "received_ns": _column(requests, "received_ns", INT),
            "enqueued_ns": _column(requests, "enqueued_ns", INT),
            "first_token_ns": _column(records, "first_token_ns", INT),
            "disconnect_ns": _column(removals, "disconnect_ns", INT),
            "disconnect_step": _column(removals, "disconnect_step", INT),
            "removed_ns": _column(removals, "at_ns", INT),
            "sent_ns": _column(rows, "sent_ns", INT),
            "last_step": _column(records, "last_step", INT),
            "cost_ns": pa.array([sum(segment.cost_ns for segment in row) for row in phases], INT),
            "evicted_tokens": _column(records, "evicted_tokens", U32),
            **_nested("phases", phases, _SEGMENT),
            "adapter": _column(requests, "adapter", TEXT),
            "latency_class": _column(requests, "latency_class", TEXT),
            "priority": _column(requests, "priority", INT),
            "block_ns": _column(removals, "block_ns", INT),
            "prefix": _column(removals, "prefix", pa.list_(U64)),
            "energy_j": _column(records, "energy_j", REAL),
            "drafted_tokens": _column(records, "drafted_tokens", U32),
            "accepted_tokens": _column(records, "accepted_tokens", U32),
        }
    )


def steps(origin: Origin, rows: Sequence[StepRecord]) -> pa.Table:
    """Table ``steps``."""
    units = [row.unit for row in rows]
    return pa.table(
        {
            "project": _constant(origin.project, len(rows)),
            "engine": _constant(origin.engine, len(rows)),
            "device_kind": _constant(origin.device_kind, len(rows)),
            **{
                name: _column(rows, name, INT)
                for name in ("step", "start_ns", "duration_ns", "host_gap_ns", "idle_ns", "cold_start_ns")
            },
            "bound": _column(rows, "bound", TEXT),
            "participants": _column(rows, "participants", U16),
            "prefill_tokens": _column(rows, "prefill_tokens", U32),
            "predicted_ns": _column(rows, "predicted_ns", REAL),
            **{
                f"{name}_ns": _column(units, name, REAL)
                for name in ("fixed", "prefill_token", "prefill_pair", "decode_seq", "decode_token")
            },
            "regime": _column(rows, "regime", TEXT),
            **_nested("tenants", [row.tenants for row in rows], _SHARE),
            "drafted_tokens": _column(rows, "drafted_tokens", U32),
            "expert_tokens": _column(rows, "expert_tokens", pa.list_(U32)),
            "expert_skew": _column(rows, "expert_skew", REAL),
            "prefill_pairs": _column(rows, "prefill_pairs", REAL),
            "decode_seqs": _column(rows, "decode_seqs", U16),
            "decode_tokens": _column(rows, "decode_tokens", INT),
            "padding": _column(rows, "padding", U16),
            "padding_ns": _column(rows, "padding_ns", INT),
            "energy_j": _column(rows, "energy_j", REAL),
        }
    )


def evictions(origin: Origin, rows: Sequence[EvictionRecord]) -> pa.Table:
    """Table ``evictions``."""
    return pa.table(
        {
            "project": _constant(origin.project, len(rows)),
            "engine": _constant(origin.engine, len(rows)),
            "at_ns": _column(rows, "at_ns", INT),
            "step": _column(rows, "step", INT),
            "victim": _column(rows, "victim", TEXT),
            "culprit": _column(rows, "culprit", TEXT),
            "tokens": _column(rows, "tokens", U32),
        }
    )


def engines(origin: Origin, rows: Sequence[EngineRecord]) -> pa.Table:
    """Table ``engines``; rules that are not known are zeros and empty texts."""
    models = [row.info.model for row in rows]
    devices = [row.info.device for row in rows]
    batching = [row.info.batching or _UNKNOWN for row in rows]
    shape = ("parameters", "resident_parameters", "bytes_per_parameter", "kv_bytes_per_token", "flops_per_pair")
    rules = ("max_num_seqs", "max_batched_tokens", "kv_blocks", "block_size", "prefix_cache")
    more = ("tenant_max_seqs", "draft_tokens", "max_context", "prefix_grain")
    return pa.table(
        {
            "project": _constant(origin.project, len(rows)),
            "engine": _constant(origin.engine, len(rows)),
            "device_kind": _constant(origin.device_kind, len(rows)),
            **{name: _column(rows, name, INT) for name in ("started_ns", "ready_ns")},
            **{name: _column(models, name, INT) for name in shape},
            **{name: _column(devices, name, REAL) for name in ("flops_per_s", "bytes_per_s")},
            **{name: _column(batching, name, TEXT) for name in ("scheduler", "policy")},
            **{name: pa.array([int(getattr(row, name)) for row in batching], U32) for name in rules + more},
        }
    )


def gpu_samples(project: str, rows: Sequence[SampleRecord]) -> pa.Table:
    """Table ``gpu_samples``."""
    return pa.table(
        {
            "project": _constant(project, len(rows)),
            **{name: _column(rows, name, TEXT) for name in ("host", "device", "device_kind", "client")},
            "start_ns": _column(rows, "start_ns", INT),
            "end_ns": _column(rows, "end_ns", INT),
            "utilization": _column(rows, "utilization", pa.float32()),
            "memory_bytes": _column(rows, "memory_bytes", U64),
            "power_w": _column(rows, "power_w", pa.float32()),
            "energy_j": _column(rows, "energy_j", REAL),
            "memory_total_bytes": _column(rows, "memory_total_bytes", U64),
            **{name: _column(rows, name, U32) for name in ("sm_clock_mhz", "memory_clock_mhz", "temperature_c")},
            "throttle": _column(rows, "throttle", TEXT),
        }
    )
