"""What a push to the online store does first: the newest rows, in a table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.checksums import checksum_of_newest
from benchmarks.measuring import Run, peak_rss_mb
from benchmarks.newest import KeyedHistory
from feature_platform import FeatureStore
from feature_platform.offline.newest import NewestRows
from feature_platform.offline.query import configure, spill_directory


def run(*, history: dict[str, Any], folder: str, memory: str | None = None) -> Run:
    """Find the rows that are newest at the history's end."""
    shape = KeyedHistory(**history)
    with (
        FeatureStore(shape.registry(), shape.settings(Path(folder))) as store,
        duckdb.connect(config={"temp_directory": spill_directory()}) as connection,
    ):
        configure(connection, memory_limit=memory)
        view = store.registry.view("v0")
        started = time.perf_counter()
        connection.execute(f"create temp table newest as {NewestRows.at(view, store.offline, shape.day(shape.days)).rows().sql}")
        seconds, peak = time.perf_counter() - started, peak_rss_mb()
        return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum_of_newest(connection, shape.columns))
