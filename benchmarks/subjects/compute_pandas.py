"""The same windows in pandas, each read by its time as far as Parquet's row groups allow."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import pandas as pd

from benchmarks.measuring import Run, peak_rss_mb


def run(*, source: str, target: str, ends: list[str], days_read: int, view: str) -> Run:
    """Write a file for each window, ordered by key and time as the platform's are."""
    started = time.perf_counter()
    for end in map(datetime.fromisoformat, ends):
        first = end - timedelta(days=days_read)
        plays = pd.read_parquet(source, filters=[("played_at", ">=", first), ("played_at", "<", end)])
        rows = _snapshot(plays, end) if view == "snapshot" else _event(plays)
        ordered = rows.sort_values(["user_id", "event_timestamp"])
        ordered.to_parquet(f"{target}/view/{end:%Y%m%d}.parquet", compression="zstd", index=False)
    seconds = time.perf_counter() - started
    return Run(seconds=seconds, rate=len(ends) / seconds, peak_rss_mb=peak_rss_mb(), checksum="")


def _snapshot(plays: pd.DataFrame, end: datetime) -> pd.DataFrame:
    grouped = plays.groupby("user_id", as_index=False).agg(
        plays_int=("user_id", "size"), minutes_int=("minutes", "sum"), best_rating=("rating", "max")
    )
    grouped["event_timestamp"] = pd.Timestamp(end)
    return grouped


def _event(plays: pd.DataFrame) -> pd.DataFrame:
    return plays.rename(columns={"played_at": "event_timestamp", "minutes": "minutes_int"})
