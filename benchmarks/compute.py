"""
Computing daily windows of a view from its source to Parquet, beside the same query written by hand for each window.

Knows the cases, the declarations and the source, and reads the files back to compare them. How a subject computes is its own module's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.checksums import checksum_of_query
from benchmarks.measuring import REFERENCE, Context, Point, Run, Subject, Tally, in_worker, measure, size_text
from feature_platform import Entity, Feature, FeatureView, ParquetSource, Registry, Settings

__all__ = ["Case", "measure_compute", "registry", "run", "settings", "snapshot"]

START: Final = datetime(2025, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_CHUNK: Final = 1_000_000
_SEED: Final = 7

_SNAPSHOT: Final = """select user_id, count(*) as plays_int, sum(minutes) as minutes_int, max(rating) as best_rating
from plays
group by user_id"""
_EVENT: Final = "select user_id, played_at as event_timestamp, minutes as minutes_int, rating from plays"


@dataclass(frozen=True, kw_only=True)
class Case:
    """
    Some daily windows of one view.

    Attributes:
        view: Its name.
        events: Rows of its source.
        windows: How many are computed: the last days of the source.
        days_read: What a window reads, its own day included: the source begins as long before the first one's end.
        query: Of the view; reads `plays`.
        features: What it returns beside the key and the time; what ends in `_int` is an int, the rest are floats.
        events_a_user: In the whole source.
        memory: DuckDB's limit.
        peers: Other libraries in which the query is as simple.
    """

    view: str
    events: int
    windows: int
    days_read: int
    query: str
    features: tuple[str, ...]
    events_a_user: int = 100
    memory: str | None = None
    peers: frozenset[str] = frozenset({"duckdb", "polars", "pandas"})

    @property
    def name(self) -> str:
        """The name of the case."""
        days = f"{self.windows} days" if self.windows > 1 else "1 day"
        return f"{self.view} {days} {size_text(self.events)} events{f' memory={self.memory}' if self.memory else ''}"

    @property
    def ends(self) -> list[datetime]:
        """The ends of the windows."""
        return [START + (self.days_read + number) * _DAY for number in range(self.windows)]


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    events = context.of_size(tiny=3000, quick=1_000_000, full=10_000_000)
    windows = context.of_size(tiny=3, quick=30, full=30)
    large = context.of_size(tiny=3000, quick=5_000_000, full=50_000_000)
    bounded = replace(_event(large, 1), memory=context.of_size(tiny="1GB", quick="200MB", full="1GB"), peers=frozenset({"duckdb"}))
    for case in (snapshot(events, windows), _event(events, windows), bounded, _wide(events)):
        measure_compute(context, tally, case, runs=context.of_size(tiny=1, quick=3, full=3))


def snapshot(events: int, windows: int) -> Case:
    """Return the case of a group by over the last week, every day."""
    features = ("plays_int", "minutes_int", "best_rating")
    return Case(view="snapshot", events=events, windows=windows, days_read=7, query=_SNAPSHOT, features=features)


def _event(events: int, windows: int) -> Case:
    return Case(view="event", events=events, windows=windows, days_read=1, query=_EVENT, features=("minutes_int", "rating"))


def _wide(events: int) -> Case:
    """Return the case of 50 aggregates of few events a user: what is grouped is as large as what is read."""
    features = tuple(f"f{number}_int" for number in range(50))
    # No two are functions of each other, or DuckDB would compute one of them.
    columns = ", ".join(f"max(minutes * {2 * number + 3} % 1009) as {name}" for number, name in enumerate(features))
    return Case(
        view="wide 50 features",
        events=events,
        windows=1,
        days_read=36,
        query=f"select user_id, {columns} from plays group by user_id",
        features=features,
        events_a_user=5,
        memory="1GB",
        peers=frozenset({"duckdb"}),
    )


def measure_compute(context: Context, tally: Tally, case: Case, *, runs: int, curve: str | None = None) -> None:
    """Measure one case; every run starts from an empty folder."""
    name = f"{curve} R={size_text(case.events)}" if curve else case.name
    if not context.wants(name):
        return
    context.say(f"{name}: data")
    source = _ensure_source(case, context.cache)
    asked = {"source": str(source), "ends": [end.isoformat() for end in case.ends], "days_read": case.days_read}
    by_query = asked | {"query": case.query, "features": list(case.features), "memory": case.memory}
    wanted = context.peers & case.peers
    subjects = [Subject(REFERENCE, partial(_compute, context, case, "feature_platform", by_query))]
    if "duckdb" in wanted:
        subjects.append(Subject("duckdb", partial(_compute, context, case, "duckdb", by_query)))
    if case.memory and context.limits:
        subjects.append(Subject("unbounded", partial(_compute, context, case, "feature_platform", by_query | {"memory": None})))
    libraries = [peer for peer in ("polars", "pandas") if peer in wanted]
    subjects += [Subject(peer, partial(_compute, context, case, peer, asked | {"view": case.view})) for peer in libraries]
    measure(context, tally, name, subjects, runs=runs, point=Point(curve, case.events) if curve else None)


def registry(query: str, features: list[str], days_read: int, source: str) -> Registry:
    """Return the declarations of one view."""
    is_event = "event_timestamp" in query
    view = FeatureView(
        "view",
        entity=Entity("user", join_keys={"user_id": int}),
        sources=[ParquetSource("plays", source, timestamp="played_at")],
        query=query,
        features=[Feature(name, int if name.endswith("_int") else float) for name in features],
        schedule="@daily",
        start=START,
        lookback=None if is_event else days_read * _DAY,
    )
    return Registry([view])


def settings(target: Path, memory: str | None) -> Settings:
    """Return the settings of a project whose history is the folder `view` of the target."""
    return Settings(project="benchmark", root=target, offline_root=target, memory_limit=memory)


def _compute(context: Context, case: Case, subject: str, arguments: dict[str, Any]) -> Run:
    with tempfile.TemporaryDirectory(prefix="computed-", dir=context.cache) as target:
        folder = Path(target) / "view"
        folder.mkdir()
        done = in_worker(f"compute_{subject}", **arguments, target=target)
        return replace(done, checksum=_checksum(case, sorted(folder.glob("*.parquet"))))


def _checksum(case: Case, files: list[Path]) -> str:
    """Return the checksum of all rows, in the order of the files and of their rows."""
    columns = ", ".join(["user_id as user_int", "epoch_us(event_timestamp) as at_int", *case.features])
    listed = [str(file) for file in files]
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        return checksum_of_query(connection, f"select {columns} from read_parquet({listed})")


def _ensure_source(case: Case, cache: Path) -> Path:
    """Return a file of plays in the order of time, over the windows and what they look back at; no two at the same time."""
    days = case.windows + case.days_read - 1
    path = cache / f"plays_{case.events}_{days}d_{case.events_a_user}.parquet"
    if path.exists():
        return path
    rng = np.random.default_rng([_SEED, case.events])
    step = days * 86_400_000_000 // case.events
    users, begin = max(1, case.events // case.events_a_user), int(START.timestamp()) * 1_000_000
    schema = pa.schema(
        [("user_id", pa.int64()), ("played_at", pa.timestamp("us", tz="UTC")), ("minutes", pa.int64()), ("rating", pa.float64())]
    )
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for first in range(0, case.events, _CHUNK):
            count = min(_CHUNK, case.events - first)
            times = begin + np.arange(first, first + count) * step + rng.integers(0, step, count)
            columns = [
                pa.array(rng.integers(0, users, count)),
                pa.array(times, schema.field("played_at").type),
                pa.array(rng.integers(0, 1_000_000, count)),
                pa.array(rng.random(count), mask=rng.random(count) < 0.01),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    temporary.replace(path)
    return path
