"""`FeatureStore.compute` of all windows."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

from benchmarks.compute import registry, settings
from benchmarks.measuring import Run, peak_rss_mb
from feature_platform import FeatureStore


def run(*, source: str, target: str, ends: list[str], days_read: int, query: str, features: list[str], memory: str | None) -> Run:
    """Compute the windows into the folder `view` of the target."""
    times = [datetime.fromisoformat(end) for end in ends]
    with FeatureStore(registry(query, features, days_read, source), settings(Path(target), memory)) as store:
        started = time.perf_counter()
        store.compute("view", start=times[0] - timedelta(days=1), end=times[-1], now=times[-1])
        seconds = time.perf_counter() - started
        return Run(seconds=seconds, rate=len(ends) / seconds, peak_rss_mb=peak_rss_mb(), checksum="")
