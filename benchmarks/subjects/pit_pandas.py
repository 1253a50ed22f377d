"""`merge_asof` of pandas, as most notebooks do it."""

from __future__ import annotations

import time

import pandas as pd
import pyarrow as pa

from benchmarks.checksums import checksum_of_batches
from benchmarks.measuring import Run, peak_rss_mb


def run(*, files: list[list[str]], columns: list[list[str]], entities: str, ttl_days: float | None) -> Run:
    """Join all features, answers in the order of the entity rows."""
    tolerance = None if ttl_days is None else pd.Timedelta(days=ttl_days)
    started = time.perf_counter()
    rows = _naive(pd.read_parquet(entities)).sort_values("event_timestamp")
    for of_view in files:
        history = _naive(pd.concat([pd.read_parquet(file) for file in of_view])).sort_values("event_timestamp")
        rows = pd.merge_asof(rows, history, on="event_timestamp", by="account_id", tolerance=tolerance)
    rows = rows.sort_values("row")
    seconds, peak = time.perf_counter() - started, peak_rss_mb()
    names = [name for of_view in columns for name in of_view]
    table = pa.Table.from_pandas(rows[names], preserve_index=False)
    return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum_of_batches([table], names))


def _naive(frame: pd.DataFrame) -> pd.DataFrame:
    """Bring times to naive UTC: the platform's files and the entity rows differ in it."""
    if getattr(frame["event_timestamp"].dtype, "tz", None) is not None:
        frame["event_timestamp"] = frame["event_timestamp"].dt.tz_convert(None)
    return frame
