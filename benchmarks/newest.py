"""
The newest row of each key, as a push to the online store extracts them, beside hand-written scans of the whole history.

Knows the cases, and what the platform keeps before the newest day. How a subject finds the rows is its own module's.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb

from benchmarks.histories import History, ensure_history
from benchmarks.measuring import REFERENCE, Context, Point, Subject, Tally, in_worker, measure, size_text
from feature_platform import FeatureStore
from feature_platform.dtypes import to_micros
from feature_platform.offline.kept_states import keep_state
from feature_platform.offline.query import configure

__all__ = ["SCANS", "KeyedHistory", "measure_newest", "run"]

SCANS: Final = ("scan", "arg_max")
"""What is written by hand."""

_DAYS: Final = 60


@dataclass(frozen=True, kw_only=True)
class KeyedHistory(History):
    """A history of as many keys as are wanted."""

    key_count: int

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return self.key_count

    @property
    def name(self) -> str:
        """The folder in the cache."""
        return f"{super().name}_{self.key_count}_keys"


def run(context: Context, tally: Tally) -> None:
    """Measure the case of the size wanted."""
    rows, keys = context.of_size(tiny=(2000, 40), quick=(2_000_000, 40_000), full=(50_000_000, 1_000_000))
    runs = context.of_size(tiny=1, quick=5, full=3)
    measure_newest(context, tally, rows, keys, runs=runs)
    case = f"{size_text(rows)} rows {size_text(keys)} keys, nothing kept, memory=1GB"
    if context.wants(case):
        _measure_bounded(
            context, tally, case, KeyedHistory(rows=rows, views=1, features=3, days=_DAYS, daily=True, key_count=keys), runs=runs
        )


def measure_newest(
    context: Context, tally: Tally, rows: int, keys: int, *, runs: int, scans: Sequence[str] = SCANS, curve: str | None = None
) -> None:
    """Measure one size: 60 daily partitions, the last of them new since the platform last kept anything."""
    case = f"{curve} R={size_text(rows)}" if curve else f"{size_text(rows)} rows {size_text(keys)} keys"
    history = KeyedHistory(rows=rows, views=1, features=3, days=_DAYS, daily=True, key_count=keys)
    if not context.wants(case):
        return
    context.say(f"{case}: data")
    folder = _prepare(history, context.cache)
    subjects = [Subject(REFERENCE, partial(in_worker, "newest_feature_platform", history=asdict(history), folder=str(folder)))]
    if "duckdb" in context.peers:
        peer: dict[str, Any] = {"files": history.files(folder, 0), "columns": history.columns}
        subjects += [Subject(name, partial(in_worker, "newest_duckdb", **peer, how=name)) for name in scans]
    measure(context, tally, case, subjects, runs=runs, point=Point(curve, rows) if curve else None)


def _measure_bounded(context: Context, tally: Tally, case: str, history: KeyedHistory, *, runs: int) -> None:
    """Measure the first push of a history, of which nothing is kept yet, with little memory and with what it takes."""
    context.say(f"{case}: data")
    folder = _without_states(history, ensure_history(history, context.cache))
    asked: dict[str, Any] = {"history": asdict(history), "folder": str(folder)}
    subjects = [Subject(REFERENCE, partial(in_worker, "newest_feature_platform", **asked, memory="1GB"))]
    if context.limits:
        subjects.append(Subject("unbounded", partial(in_worker, "newest_feature_platform", **asked)))
    measure(context, tally, case, subjects, runs=runs)


def _without_states(history: KeyedHistory, folder: Path) -> Path:
    """Return a project folder with the same files and nothing else."""
    bare = folder.with_name(f"{folder.name}_bare")
    shutil.rmtree(bare, ignore_errors=True)
    for file in history.files(folder, 0):
        copy = history.settings(bare).offline_root / "v0" / Path(file).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.hardlink_to(file)
    return bare


def _prepare(history: KeyedHistory, cache: Path) -> Path:
    """Return the project folder with the history, and with what the platform keeps of it every night, made before the last day."""
    folder = ensure_history(history, cache)
    with FeatureStore(history.registry(), history.settings(folder)) as store, duckdb.connect() as connection:
        configure(connection)
        keep_state(connection, store.registry.view("v0"), store.offline, to_micros(history.day(history.days - 1)))
    return folder
