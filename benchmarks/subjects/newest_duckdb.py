"""The two statements that an expert writes by hand for the newest row of each key, over the whole history."""

from __future__ import annotations

import time

import duckdb

from benchmarks.checksums import checksum_of_newest
from benchmarks.measuring import Run, peak_rss_mb


def run(*, files: list[str], columns: list[str], how: str) -> Run:
    """Find the newest rows of all files, by a window function (`scan`) or an aggregate (`arg_max`)."""
    with duckdb.connect() as connection:
        started = time.perf_counter()
        connection.execute(f"create temp table newest as {_scan(files) if how == 'scan' else _arg_max(files, columns)}")
        seconds, peak = time.perf_counter() - started, peak_rss_mb()
        return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum_of_newest(connection, columns))


def _scan(files: list[str]) -> str:
    newest = "row_number() over (partition by account_id order by event_timestamp desc) = 1"
    return f"select * from read_parquet({files}) qualify {newest}"


def _arg_max(files: list[str], columns: list[str]) -> str:
    # The row as one value: arg_max of each column would pass over a NULL, to an older value.
    row = ", ".join(f"'{name}': {name}" for name in ["event_timestamp", *columns])
    newest = f"select account_id, arg_max({{{row}}}, event_timestamp) as newest from read_parquet({files}) group by account_id"
    return f"select account_id, unnest(newest) from ({newest})"
