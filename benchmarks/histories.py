"""
The data of the offline benchmarks: seeded feature history, written by the platform's own compute, and entity rows.

Knows the declarations and the files. Measures nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform import Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings

__all__ = ["History", "ensure_days", "ensure_entity_rows", "ensure_history"]

_START: Final = datetime(2024, 1, 1, tzinfo=UTC)
_ROWS_PER_KEY: Final = 100
_CHUNK: Final = 1_000_000
_ROW_GROUP: Final = 122_880
_SEED: Final = 7
_DAY_MICROS: Final = 86_400_000_000
_START_MICROS: Final = int(_START.timestamp()) * 1_000_000


@dataclass(frozen=True, kw_only=True)
class History:
    """
    The history of some event views, all of one shape: 100 rows a key, in the order of time, every third feature an int.

    Attributes:
        rows: Of each view.
        views: How many.
        features: Of each view.
        days: That it spans.
        daily: Whether there is a file a day; else one a view.
        hourly: Whether there is a file an hour.
    """

    rows: int
    views: int
    features: int
    days: int = 90
    daily: bool = False
    hourly: bool = False

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return max(1, self.rows // _ROWS_PER_KEY)

    @property
    def name(self) -> str:
        """The folder in the cache."""
        cut = "_hourly" if self.hourly else "_daily" if self.daily else ""
        return f"history_{self.rows}x{self.views}x{self.features}_{self.days}d{cut}"

    @property
    def view_names(self) -> list[str]:
        """The views."""
        return [f"v{view}" for view in range(self.views)]

    def feature_names(self, view: int) -> list[str]:
        """Return the features of one view; what ends in `_int` is an int, the rest are floats."""
        return [f"v{view}_f{number}{'_int' if number % 3 == 2 else ''}" for number in range(self.features)]

    @property
    def columns(self) -> list[str]:
        """All features of all views."""
        return [name for view in range(self.views) for name in self.feature_names(view)]

    def files(self, folder: Path, view: int) -> list[str]:
        """Return the Parquet files of a view, as the platform wrote them."""
        return [str(path) for path in sorted((self.settings(folder).offline_root / f"v{view}").glob("*.parquet"))]

    def day(self, number: float) -> datetime:
        """Return a moment of the history."""
        return _START + timedelta(days=number)

    def registry(self, ttl_days: float | None = None) -> Registry:
        """Return the declarations."""
        account = Entity("account", join_keys={"account_id": int})
        schedule = "@hourly" if self.hourly else "@daily" if self.daily else None
        return Registry(
            views=[
                FeatureView(
                    name,
                    entity=account,
                    sources=[ParquetSource(f"source_{name}", f"sources/{name}.parquet", timestamp="event_timestamp")],
                    features=[Feature(one, int if one.endswith("_int") else float) for one in self.feature_names(view)],
                    schedule=schedule,
                    start=_START if schedule else None,
                    ttl=None if ttl_days is None else timedelta(days=ttl_days),
                )
                for view, name in enumerate(self.view_names)
            ]
        )

    def settings(self, folder: Path, memory_limit: str | None = None) -> Settings:
        """Return the settings of the project in the folder."""
        return Settings(project="benchmark", root=folder, memory_limit=memory_limit)


def ensure_history(history: History, cache: Path) -> Path:
    """Return the project folder that holds a history, made where it is not there yet."""
    folder = cache / history.name
    if (folder / "complete").exists() and _is_readable(history, folder):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sources").mkdir(parents=True)
    for view, name in enumerate(history.view_names):
        source = folder / "sources" / f"{name}.parquet"
        with pq.ParquetWriter(source, _schema(history, view), compression="zstd") as writer:
            for batch in _source(history, view):
                writer.write_table(batch, row_group_size=_ROW_GROUP)
        with FeatureStore(history.registry(), history.settings(folder)) as store:
            store.compute(name, now=history.day(history.days + 1))
        source.unlink()
    (folder / "complete").touch()
    return folder


def ensure_days(history: History, folder: Path, *, first_day: int, last_day: int) -> Path:
    """Return the project folder that holds some days of a partitioned history and nothing else."""
    alone = folder.with_name(f"{folder.name}_from_{first_day}_to_{last_day}")
    for view in range(history.views):
        for file in history.files(folder, view):
            if f"{history.day(first_day):%Y-%m-%d}" <= Path(file).name < f"{history.day(last_day):%Y-%m-%d}":
                copy = history.settings(alone).offline_root / f"v{view}" / Path(file).name
                copy.parent.mkdir(parents=True, exist_ok=True)
                if not copy.exists():
                    shutil.copy2(file, copy)
    return alone


def ensure_entity_rows(history: History, folder: Path, rows: int, *, first_day: float, last_day: float, every: int = 1) -> Path:
    """Return a Parquet file of entity rows of one key in `every`, in no order; one key in 50 of those has no history."""
    path = folder / f"entities_{rows}_{first_day:g}_{last_day:g}{f'_every_{every}' if every > 1 else ''}.parquet"
    if not path.exists():
        rng = np.random.default_rng([_SEED, rows])
        times = _START_MICROS + rng.integers(int(first_day * _DAY_MICROS), int(last_day * _DAY_MICROS), rows)
        table = pa.table(
            {
                "row": np.arange(rows, dtype=np.int64),
                "account_id": rng.integers(0, int(history.keys * 1.02) // every + 1, rows) * every,
                "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
            }
        )
        temporary = path.with_suffix(".tmp")
        pq.write_table(table, temporary)
        temporary.replace(path)
    return path


def _is_readable(history: History, folder: Path) -> bool:
    """Say whether the platform finds every row: another version of it passes over files that it does not know."""
    registry = history.registry()
    with FeatureStore(registry, history.settings(folder)) as store:
        return all(sum(one.rows for one in store.offline.partitions(view)) == history.rows for view in registry.views.values())


def _schema(history: History, view: int) -> pa.Schema:
    keys = [("account_id", pa.int64()), ("event_timestamp", pa.timestamp("us", tz="UTC"))]
    return pa.schema([*keys, *((name, pa.int64() if name.endswith("_int") else pa.float64()) for name in history.feature_names(view))])


def _source(history: History, view: int) -> Iterator[pa.Table]:
    """Make the rows, a million at a time; each lies in a step of its own, so that times rise and never repeat."""
    rng = np.random.default_rng([_SEED, history.rows, view])
    step = history.days * _DAY_MICROS // history.rows
    for start in range(0, history.rows, _CHUNK):
        count = min(_CHUNK, history.rows - start)
        times = _START_MICROS + np.arange(start, start + count) * step + rng.integers(0, step, count)
        columns = [pa.array(rng.integers(0, history.keys, count)), pa.array(times, pa.timestamp("us", tz="UTC"))]
        for name in history.feature_names(view):
            if name.endswith("_int"):
                columns.append(pa.array(rng.integers(0, 1_000_000, count)))
            else:
                # One value in 100 is null: the newest row counts as a whole, nulls included.
                columns.append(pa.array(rng.random(count), mask=rng.random(count) < 0.01))
        yield pa.Table.from_arrays(columns, schema=_schema(history, view))
