"""`FeatureStore.materialize` of one view into the embedded server, which runs already."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.measuring import Run, peak_rss_mb
from benchmarks.online_data import NOW, online_registry, online_settings
from feature_platform import FeatureStore


def run(*, folder: str, online_root: str, view: str) -> Run:
    """Push every key once."""
    with FeatureStore(online_registry(), online_settings(Path(folder), Path(online_root))) as store:
        store.online.ping()
        started = time.perf_counter()
        (report,) = store.materialize(view, now=NOW)
        seconds = time.perf_counter() - started
    return Run(seconds=seconds, rate=report.rows_written / seconds, peak_rss_mb=peak_rss_mb(), checksum="")
