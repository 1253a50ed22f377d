"""The limit that matters: the ASOF joins that an expert writes by hand for this question, and nothing around them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from benchmarks.checksums import checksum_of_batches
from benchmarks.measuring import Run, peak_rss_mb


def run(*, files: list[list[str]], columns: list[list[str]], entities: str, ttl_days: float | None, memory: str | None) -> Run:
    """Join all features in one statement, answers in the order of the entity rows."""
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    # Its default joins by nested loops where it expects few rows: up to 240 times slower.
    connection.execute("set asof_loop_join_threshold = 0")
    names = [name for of_view in columns for name in of_view]
    with tempfile.TemporaryDirectory(dir=Path(entities).parent) as spill:
        connection.execute(f"set temp_directory = '{spill}'")
        if memory is not None:
            connection.execute(f"set memory_limit = '{memory}'")
        sql, target = _sql(files, columns, entities, ttl_days), Path(spill) / "answers.parquet"
        started = time.perf_counter()
        if memory is None:
            table = connection.sql(sql).to_arrow_table()
        else:
            connection.execute(f"copy ({sql}) to '{target}' (format parquet, compression zstd)")
        seconds, peak = time.perf_counter() - started, peak_rss_mb()
        batches = [table] if memory is None else pq.ParquetFile(target).iter_batches(columns=names)
        checksum = checksum_of_batches(batches, names)
    return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum)


def _sql(files: list[list[str]], columns: list[list[str]], entities: str, ttl_days: float | None) -> str:
    selected = ["e.row", "e.account_id", "e.event_timestamp"]
    joins = []
    for view, names in enumerate(columns):
        for name in names:
            fresh = f"v{view}.event_timestamp >= e.event_timestamp - to_microseconds({int((ttl_days or 0) * 86_400_000_000)})"
            selected.append(f"v{view}.{name}" if ttl_days is None else f"case when {fresh} then v{view}.{name} end as {name}")
        joins.append(
            f"asof left join read_parquet({files[view]}) as v{view} "
            f"on e.account_id = v{view}.account_id and e.event_timestamp >= v{view}.event_timestamp"
        )
    # Cast here: else every time of the history becomes an aware one in the comparison, for half as much time again.
    rows = f"select row, account_id, event_timestamp::timestamp as event_timestamp from '{entities}'"
    return f"select {', '.join(selected)} from ({rows}) as e {' '.join(joins)} order by e.row"
