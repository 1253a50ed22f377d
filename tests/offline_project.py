"""A project in a temporary folder: source tables in, a feature store out. Shared by the tests of the offline half."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform import Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.online.memory import MemoryOnlineStore

T0 = datetime(2026, 3, 28, tzinfo=UTC)  # daylight saving begins in Europe on the 29th
HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)
NOW = T0 + 10 * DAY
MICROS = pa.timestamp("us", tz="UTC")

user = Entity("user", join_keys={"user_id": str})
watches = ParquetSource("watches", "source/watches.parquet", timestamp="at")
late_watches = ParquetSource("watches", "source/watches.parquet", timestamp="at", created_timestamp="known_at")


def write(root: Path, table: pa.Table | dict[str, Any], name: str = "watches") -> None:
    """Write a source's one file."""
    (root / "source").mkdir(exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), root / "source" / f"{name}.parquet")


def put(root: Path, name: str, *rows: tuple[str, datetime] | tuple[str, datetime, datetime]) -> None:
    """Write a file of watches: user, time, and the time at which it was known, its own if left out."""
    users, times, known = zip(*[(*row, row[1])[:3] for row in rows], strict=True) if rows else ((), (), ())
    (root / "source").mkdir(exist_ok=True)
    table = {"user_id": pa.array(users, pa.string()), "at": pa.array(times, MICROS), "known_at": pa.array(known, MICROS)}
    pq.write_table(pa.table(table), root / "source" / f"{name}.parquet")


def store_of(root: Path, *views: FeatureView, online: Any = None, **options: Any) -> FeatureStore:
    """Open the feature store of some views in a folder."""
    return FeatureStore(Registry(list(views), **options), Settings(root=root), online=online or MemoryOnlineStore())


def instants(*offsets: timedelta) -> pa.Array:
    """Return times after T0 as an Arrow column."""
    return pa.array([T0 + offset for offset in offsets], MICROS)


def history_view(name: str = "values", *, dtype: Any = int, entity: Entity = user, **options: Any) -> FeatureView:
    """Return an event view whose source holds the history of values already, computed whole."""
    source = options.pop("source", ParquetSource(name, f"source/{name}.parquet", timestamp="event_timestamp"))
    features = options.pop("features", [Feature("value", dtype)])
    return FeatureView(name, entity=entity, sources=[source], features=features, **options)


def asked(times: list[datetime], users: list[Any] | None = None) -> pa.Table:
    """Return entity rows: one user at some times, or pairs."""
    return pa.table({"user_id": pa.array(users or ["ann"] * len(times)), "event_timestamp": pa.array(times, MICROS)})


def answers(store: FeatureStore, features: list[str], times: list[datetime], users: list[Any] | None = None, **options: Any) -> list[Any]:
    """Return each row's values with their statuses, as tuples (one pair where one feature is asked for)."""
    table = store.get_historical_features(asked(times, users), features, statuses=True, **options).to_arrow()
    columns = [table.column(index).to_pylist() for index in range(2, table.num_columns)]
    pairs = [list(zip(columns[i], columns[i + 1], strict=True)) for i in range(0, len(columns), 2)]
    return pairs[0] if len(pairs) == 1 else [list(row) for row in zip(*pairs, strict=True)]
