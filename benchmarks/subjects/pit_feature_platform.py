"""`get_historical_features` on the platform's own history."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.checksums import checksum_of_batches
from benchmarks.histories import History
from benchmarks.measuring import Run, peak_rss_mb
from feature_platform import FeatureStore


def run(*, history: dict[str, Any], folder: str, entities: str, ttl_days: float | None, memory: str | None, to_file: bool = False) -> Run:
    """Join all features; where memory is limited, into a file, since the answers alone are more."""
    shape = History(**history)
    references = [f"{view}:{name}" for number, view in enumerate(shape.view_names) for name in shape.feature_names(number)]
    target = Path(entities).with_name(f"answers_{memory or 'unbounded'}.parquet")
    with FeatureStore(shape.registry(ttl_days), shape.settings(Path(folder), memory)) as store:
        started = time.perf_counter()
        asked = store.get_historical_features(entities, references)
        table = asked.to_parquet(target) if memory is not None or to_file else asked.to_arrow()
        seconds = time.perf_counter() - started
        peak = peak_rss_mb()
    if not isinstance(table, int):
        checksum = checksum_of_batches([table], shape.columns)
    else:
        checksum = checksum_of_batches(pq.ParquetFile(target).iter_batches(columns=shape.columns), shape.columns)
        target.unlink()
    return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum)
