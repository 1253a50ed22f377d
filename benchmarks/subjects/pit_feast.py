"""Feast's `get_historical_features` with its DuckDB store; runs in an environment of its own, so it imports nothing of ours but numbers."""

from __future__ import annotations

import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType  # type: ignore[import-not-found]
from feast.repo_config import RepoConfig  # type: ignore[import-not-found]
from feast.types import Float64, Int64  # type: ignore[import-not-found]

from benchmarks.checksums import checksum_of_batches
from benchmarks.measuring import Run, peak_rss_mb


def run(*, files: list[list[str]], columns: list[list[str]], entities: str, ttl_days: float | None, cache: str) -> Run:
    """Join all features; Feast keeps no order, and is not charged for restoring it."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        store = _store(Path(folder), files, columns, ttl_days)
        references = [f"v{view}:{name}" for view, names in enumerate(columns) for name in names]
        started = time.perf_counter()
        asked = store.get_historical_features(entity_df=pd.read_parquet(entities), features=references)
        frame = asked.to_df()
        seconds, peak = time.perf_counter() - started, peak_rss_mb()
    names = [name for of_view in columns for name in of_view]
    table = pa.Table.from_pandas(frame.sort_values("row")[names], preserve_index=False)
    return Run(seconds=seconds, peak_rss_mb=peak, checksum=checksum_of_batches([table], names))


def _store(folder: Path, files: list[list[str]], columns: list[list[str]], ttl_days: float | None) -> FeatureStore:
    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store={"type": "duckdb"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=f"v{view}",
            entities=[account],
            ttl=timedelta(days=ttl_days or 0),  # to Feast, 0 is for ever
            schema=[Field(name=name, dtype=Int64 if name.endswith("_int") else Float64) for name in names],
            source=FileSource(name=f"source_{view}", path=files[view][0], timestamp_field="event_timestamp"),
        )
        for view, names in enumerate(columns)
    ]
    store.apply([account, *views])
    return store
