"""`join_asof` of polars, lazy, both sides sorted by time as it asks for."""

from __future__ import annotations

import time
from datetime import timedelta

import polars as pl

from benchmarks.checksums import checksum_of_batches
from benchmarks.measuring import Run, peak_rss_mb


def run(*, files: list[list[str]], columns: list[list[str]], entities: str, ttl_days: float | None) -> Run:
    """Join all features, answers in the order of the entity rows."""
    tolerance = None if ttl_days is None else timedelta(days=ttl_days)
    started = time.perf_counter()
    # The platform's files hold naive UTC times, the entity rows aware ones.
    rows = pl.scan_parquet(entities).with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)).sort("event_timestamp")
    for of_view in files:
        history = pl.scan_parquet(of_view)
        if isinstance(history.collect_schema()["event_timestamp"], pl.Datetime):
            history = history.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None))
        history = history.sort("event_timestamp")
        rows = rows.join_asof(
            history, on="event_timestamp", by="account_id", strategy="backward", tolerance=tolerance, check_sortedness=False
        )
    frame = rows.sort("row").collect()
    seconds, peak = time.perf_counter() - started, peak_rss_mb()
    names = [name for of_view in columns for name in of_view]
    return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum_of_batches([frame.to_arrow()], names))
