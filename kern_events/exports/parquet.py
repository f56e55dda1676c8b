"""Recorded events as a Parquet file: one row each, in the columns of the log.

`meta` and `payload` are JSON text, `event_id`, `native` and `hash` bytes, `at` is a time in UTC. Of an
event that is erased `payload` and `native` are null and `erased` is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any, Final

from kern_events.events import Event, json_text

_MISSING: Final = "Parquet export needs: pip install 'kern-events[parquet]'"
_GROUP_ROWS: Final = 10_000
_GROUP_BYTES: Final = 64 << 20
_COLUMNS: Final = (
    "namespace", "session_id", "version", "position", "event_id", "type", "type_version", "kind", "turn",
    "ref", "at", "actor", "meta", "idempotency_key", "payload", "native", "erased", "hash",
)  # fmt: skip


def write(events: Iterable[Event], file: IO[bytes]) -> None:
    """Write a file of the events, in groups of rows, so that no more than a group is held.

    Raises:
        ImportError: The extra is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as missing:
        raise ImportError(_MISSING) from missing
    schema = _schema(pyarrow)
    with ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in _groups(events):
            columns = [
                pyarrow.array(column, field.type)
                for column, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def _schema(pyarrow: Any) -> Any:
    text, number = pyarrow.string(), pyarrow.int64()
    types = {
        "version": number,
        "position": number,
        "event_id": pyarrow.binary(16),
        "type_version": pyarrow.int32(),
        "kind": pyarrow.int8(),
        "turn": number,
        "ref": number,
        "at": pyarrow.timestamp("us", tz="UTC"),
        "native": pyarrow.binary(),
        "erased": pyarrow.bool_(),
        "hash": pyarrow.binary(32),
    }
    nullable = {"ref", "actor", "meta", "idempotency_key", "payload", "native"}
    return pyarrow.schema(
        [pyarrow.field(name, types.get(name, text), nullable=name in nullable) for name in _COLUMNS]
    )


def _groups(events: Iterable[Event]) -> Iterator[list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    size_bytes = 0
    for event in events:
        row = _row(event)
        rows.append(row)
        size_bytes += len(row[14] or "") + len(row[15] or b"") + len(row[12] or "")
        if len(rows) >= _GROUP_ROWS or size_bytes > _GROUP_BYTES:
            yield rows
            rows, size_bytes = [], 0
    if rows:
        yield rows


def _row(event: Event) -> tuple[Any, ...]:
    return (
        event.namespace, event.session_id, event.version, event.position, event.event_id, event.type,
        event.type_version, event.kind, event.turn, event.ref, event.at_us, event.actor,
        None if event.meta is None else json_text(event.meta), event.idempotency_key,
        None if event.erased else json_text(event.payload), event.native, event.erased, event.hash,
    )  # fmt: skip
