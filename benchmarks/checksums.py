"""
Checksums over ordered answers, so that subjects need not hold each other's to be compared.

Knows Arrow columns. Values are compared as they mean: widths, chunks and dictionary encodings do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import duckdb

__all__ = ["checksum_of_batches", "checksum_of_newest", "checksum_of_query", "checksum_of_rows"]


def checksum_of_batches(batches: Iterable[pa.RecordBatch | pa.Table], columns: Sequence[str]) -> str:
    """Return the checksum of some columns of numbers, streamed: their values and which of them are null, in order."""
    hashes = {name: (hashlib.sha256(), hashlib.sha256()) for name in columns}
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        for name, (values, nulls) in hashes.items():
            column = batch.column(name)
            # pandas has no integers with gaps: their floats are exact up to 2^53, and ours stay far below it.
            target = pa.int64() if name.endswith("_int") else pa.float64()
            missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
            filled = pc.if_else(missing, pa.scalar(0, target), column.cast(target, safe=False))
            values.update(_buffer(filled))
            nulls.update(_buffer(missing))
    parts = [f"{name}:{values.hexdigest()}:{nulls.hexdigest()}" for name, (values, nulls) in hashes.items()]
    return hashlib.sha256("\n".join([str(rows), *parts]).encode()).hexdigest()


def checksum_of_query(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return the checksum of what a SELECT of numbers returns, in its order."""
    relation = connection.sql(sql)
    with relation.to_arrow_reader() as reader:
        return checksum_of_batches(reader, relation.columns)


def checksum_of_newest(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> str:
    """Return the checksum of the table `newest`: a key, a time and the features a row."""
    key = "account_id as account_int, epoch_us(event_timestamp) as at_int"
    return checksum_of_query(connection, f"select {key}, {', '.join(columns)} from newest order by account_id")


def checksum_of_rows(rows: Iterable[Sequence[Any]]) -> str:
    """Return the checksum of rows of JSON values."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(list(row)).encode() + b"\n")
    return found.hexdigest()


def _buffer(column: pa.Array | pa.ChunkedArray) -> memoryview:
    values = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values).data
