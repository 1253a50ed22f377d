"""The same windows in polars, lazy."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import polars as pl

from benchmarks.measuring import Run, peak_rss_mb


def run(*, source: str, target: str, ends: list[str], days_read: int, view: str) -> Run:
    """Write a file for each window, ordered by key and time as the platform's are."""
    started = time.perf_counter()
    for end in map(datetime.fromisoformat, ends):
        at = pl.col("played_at")
        plays = pl.scan_parquet(source).filter(at >= end - timedelta(days=days_read), at < end)
        rows = _snapshot(plays, end) if view == "snapshot" else _event(plays)
        rows.sort("user_id", "event_timestamp").sink_parquet(f"{target}/view/{end:%Y%m%d}.parquet", compression="zstd")
    seconds = time.perf_counter() - started
    return Run(seconds=seconds, rate=len(ends) / seconds, peak_rss_mb=peak_rss_mb(), checksum="")


def _snapshot(plays: pl.LazyFrame, end: datetime) -> pl.LazyFrame:
    grouped = plays.group_by("user_id").agg(plays_int=pl.len(), minutes_int=pl.col("minutes").sum(), best_rating=pl.col("rating").max())
    return grouped.with_columns(event_timestamp=pl.lit(end))


def _event(plays: pl.LazyFrame) -> pl.LazyFrame:
    return plays.select("user_id", pl.col("played_at").alias("event_timestamp"), pl.col("minutes").alias("minutes_int"), "rating")
