"""The COPY of the same query that an expert writes by hand for each window."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import duckdb

from benchmarks.measuring import Run, peak_rss_mb


def run(*, source: str, target: str, ends: list[str], days_read: int, query: str, features: list[str], memory: str | None) -> Run:
    """Write a file for each window, ordered by key and time as the platform's are."""
    with duckdb.connect(config={"temp_directory": f"{target}/spill"}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        if memory is not None:
            connection.execute(f"set memory_limit = '{memory}'")
        started = time.perf_counter()
        for end in map(datetime.fromisoformat, ends):
            first, last = f"timestamptz '{end - timedelta(days=days_read)}'", f"timestamptz '{end}'"
            plays = f"select * from read_parquet('{source}') where played_at >= {first} and played_at < {last}"
            at = "event_timestamp" if "event_timestamp" in query else f"{last}::timestamp as event_timestamp"
            rows = f"with plays as ({plays}) select user_id, {at}, {', '.join(features)} from ({query}) order by user_id, event_timestamp"
            connection.execute(f"copy ({rows}) to '{target}/view/{end:%Y%m%d}.parquet' (format parquet, compression zstd)")
        seconds = time.perf_counter() - started
        return Run(seconds=seconds, rate=len(ends) / seconds, peak_rss_mb=peak_rss_mb(), checksum="")
