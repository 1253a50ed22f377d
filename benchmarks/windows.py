"""
Sliding aggregates at the limit: one more hour, and 720 hours, beside the queries over the raw events that one would write by hand.

Knows the events, the view, and how a history comes to hold the predecessors. How a subject computes is its own module's.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import REFERENCE, Context, Subject, Tally, in_worker, measure, size_text
from feature_platform import Aggregate, Entity, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.dtypes import to_micros
from feature_platform.offline.kept_states import keep_state
from feature_platform.offline.query import configure

__all__ = ["LAST_N", "SETS", "TOTALS", "Events", "run"]

TOTALS: Final = ("count", "sum")
SETS: Final = ("min", "max", "first", "last", "count_distinct", "last_n")
LAST_N: Final = 5

_START: Final = datetime(2024, 1, 1, tzinfo=UTC)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_DAYS: Final = 60
_WINDOW: Final = timedelta(days=30)
_SEED: Final = 7
_BUILT_ON: Final = 24
"""Windows before the one hour, the first of them with the complete state."""


@dataclass(frozen=True, kw_only=True)
class Events:
    """
    Events of 60 days in a file a day, each with an amount, and the view of some functions of them over 30 days, hour by hour.

    Attributes:
        rows: Events.
        users: Who have them; the square of a uniform draw, so that some have many.
        functions: Of the view.
        memory: DuckDB's limit.
    """

    rows: int
    users: int
    functions: tuple[str, ...] = TOTALS
    memory: str | None = None

    @property
    def name(self) -> str:
        """The folder in the cache."""
        return f"windows_{self.rows}_{self.users}"

    @property
    def view(self) -> FeatureView:
        """The view: 30 days, hourly, over the second half."""
        return FeatureView(
            "activity",
            entity=Entity("user", join_keys={"user_id": int}),
            sources=[ParquetSource("events", "events/*.parquet", timestamp="at")],
            features=[_aggregate(function) for function in self.functions],
            schedule="@hourly",
            start=_START + _WINDOW - _BUILT_ON * _HOUR,
        )

    def store(self, root: Path) -> FeatureStore:
        """Open the feature store over a folder that holds the events."""
        return FeatureStore(Registry([self.view]), Settings(project="benchmark", root=root, memory_limit=self.memory))

    def hour(self, number: int) -> datetime:
        """Return the start of an hour of the second half; negative numbers are before it."""
        return _START + _WINDOW + number * _HOUR


def _aggregate(function: str) -> Aggregate:
    last_n: dict[str, Any] = {"n": LAST_N, "dtype": list[float]} if function == "last_n" else {}
    return Aggregate(function, function, window=_WINDOW, column=None if function == "count" else "amount", **last_n)


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    totals = Events(
        rows=context.of_size(tiny=20_000, quick=2_000_000, full=50_000_000),
        users=context.of_size(tiny=200, quick=20_000, full=500_000),
    )
    sets = replace(totals, functions=SETS)
    sampled = context.of_size(tiny=2, quick=3, full=6)
    hours = {totals: context.of_size(tiny=4, quick=72, full=720), sets: context.of_size(tiny=4, quick=72, full=72)}
    context.say(f"windows: {size_text(totals.rows)} events")
    root = _ensure_events(totals, context.cache)
    size = f"{size_text(totals.rows)} events"
    for events, of in ((totals, size), (sets, f"{size}, extremes and sets")):
        context.say(f"windows: {of}, the hours before")
        base = _ensure_predecessors(events, root)
        _measure_hour(context, tally, f"one hour {of}", events, root, base)
        _measure_hours(context, tally, f"{hours[events]} hours {of}", events, root, base, hours=hours[events], sampled=sampled)
    base, every = _ensure_predecessors(totals, root), hours[totals]
    whole: dict[str, Any] = {"hours": every, "of": every, "step": every, "checked": sampled}
    subjects = [_ours(replace(totals, memory="1GB"), root, base, **whole)]
    if context.limits:
        subjects.append(_ours(totals, root, base, name="unbounded", **whole))
    measure(context, tally, f"{every} hours {size} memory=1GB", subjects, runs=1)


def _ours(events: Events, root: Path, base: Path, *, name: str = REFERENCE, **arguments: Any) -> Subject:  # noqa: ANN401 - the subject's
    return Subject(name, partial(in_worker, "windows_feature_platform", events=asdict(events), root=str(root), base=str(base), **arguments))


def _raw(events: Events, root: Path, *, hours: int, of: int) -> Subject:
    return Subject("raw", partial(in_worker, "windows_raw", events=asdict(events), root=str(root), hours=hours, of=of))


def _measure_hour(context: Context, tally: Tally, case: str, events: Events, root: Path, base: Path) -> None:
    """Measure one hour more: on its predecessor, from nothing, and by hand."""
    one: dict[str, Any] = {"hours": 1, "of": 1, "step": 1, "checked": 1}
    subjects = [_ours(events, root, base, **one)]
    if context.limits:
        subjects.append(_ours(events, root, base, name="from_nothing", **one, is_alone=True))
        subjects.append(_raw(events, root, hours=1, of=1))
    measure(context, tally, case, subjects, runs=context.of_size(tiny=1, quick=5, full=5))


def _measure_hours(context: Context, tally: Tally, case: str, events: Events, root: Path, base: Path, *, hours: int, sampled: int) -> None:
    """Measure a range of hours: in one run, one by one, and by hand."""
    subjects = [_ours(events, root, base, hours=hours, of=hours, step=hours, checked=sampled)]
    if context.limits:
        subjects.append(_raw(events, root, hours=sampled, of=hours))
        subjects.append(_ours(events, root, base, name="per_partition", hours=sampled, of=hours, step=1, checked=sampled))
        tally.left_out.append(f"{case}: raw and per_partition are {sampled} of the hours, extrapolated to {hours}")
    measure(context, tally, case, subjects, runs=1)


def _ensure_events(events: Events, cache: Path) -> Path:
    """Return the project folder that holds the events, made where it is not there yet."""
    root = cache / events.name
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    (root / "events").mkdir(parents=True)
    count, day = events.rows // _DAYS, int(_DAY.total_seconds()) * 1_000_000
    for number in range(_DAYS):
        rng = np.random.default_rng([_SEED, events.rows, number])
        times = int(_START.timestamp()) * 1_000_000 + number * day + np.sort(rng.integers(0, day, count))
        table = {
            "user_id": (rng.random(count) ** 2 * events.users).astype(np.int64),
            "at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "amount": np.round(rng.gamma(2.0, 15.0, count), 2),
        }
        pq.write_table(pa.table(table), root / "events" / f"{number:02}.parquet", compression="zstd", row_group_size=122_880)
    (root / "complete").touch()
    return root


def _ensure_predecessors(events: Events, root: Path) -> Path:
    """Return a folder with the view's history up to the second half, computed by this version of the platform."""
    base = root / f"predecessors_{events.functions[0]}"
    shutil.rmtree(base, ignore_errors=True)
    shutil.rmtree(root / "data", ignore_errors=True)
    with events.store(root) as store:
        store.compute(start=events.hour(-_BUILT_ON), end=events.hour(0), now=events.hour(0))
        with duckdb.connect() as connection:
            configure(connection)
            keep_state(connection, store.registry.view("activity"), store.offline, to_micros(events.hour(0)))  # as every night
    (root / "data" / "features").rename(base)
    return base
