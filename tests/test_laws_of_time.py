"""
The laws of time (L1 to L9), each held against brute force on random histories.

Every example writes real Parquet, computes it with the real engine in a random order, and asks at random moments.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feature_platform import Aggregate, Entity, Feature, FeatureStatus, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.dtypes import to_micros
from feature_platform.offline.kept_states import keep_state
from feature_platform.offline.query import configure
from feature_platform.offline.question import AsOf
from feature_platform.online.codec import ViewCodec
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.testing import Answer, Row, aggregate_state, event_answer, window_answer

pytestmark = pytest.mark.law

T0 = datetime(2026, 3, 28, tzinfo=UTC)  # daylight saving begins in Europe on the 29th
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
HOURS = 14
USERS = ["ann", "bob", "çem", "d,e"]
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("known_at", pa.timestamp("us", tz="UTC")),
        ("amount", pa.int64()),
        ("price", pa.float64()),
        ("genre", pa.string()),
    ]
)

slow = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
minutes = st.integers(0, HOURS * 60)
lags = st.sampled_from([0, 0, 0, 1, 7, 59, 60, 61, 150, 400])


@st.composite
def watch_events(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw source rows: some at window bounds, some late, some without a key, some values NULL."""
    rows = []
    for _ in range(draw(st.integers(0, 25))):
        at = T0 + draw(st.one_of(minutes, st.integers(0, HOURS).map(lambda hour: hour * 60))) * MINUTE
        known_at = at + draw(lags) * MINUTE if draw(st.integers(0, 3)) else None
        rows.append(
            {
                "user_id": draw(st.one_of(st.sampled_from(USERS), st.sampled_from([*USERS, None]))),
                "at": at,
                "known_at": known_at,
                "amount": draw(st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**53 + 1, -(2**53) - 1]))),
                "price": draw(st.one_of(st.none(), st.floats(-1e6, 1e6))),
                "genre": draw(st.sampled_from(["drama", "horror", None])),
            }
        )
    return rows


@st.composite
def moments(draw: st.DrawFn) -> list[datetime]:
    """Draw the times asked about: anywhere, and exactly at and just before bounds."""
    near = st.builds(lambda m, us: T0 + m * MINUTE + timedelta(microseconds=us), minutes, st.sampled_from([-1, 0, 1]))
    return draw(st.lists(st.one_of(near, st.integers(0, HOURS + 5).map(lambda h: T0 + h * HOUR)), min_size=1, max_size=12))


@st.composite
def orders(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw ranges of hourly windows to compute, in any order, with gaps, overlaps and repetition."""
    return draw(st.lists(st.tuples(st.integers(0, HOURS - 1), st.integers(1, 6)), min_size=1, max_size=7))


@st.composite
def upkeep(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Draw what is done between ranges: after which one, states as of which hours are kept, and (hour -1) whether days are merged."""
    hours = st.lists(st.one_of(st.just(-1), st.integers(0, HOURS + 2)), min_size=1, max_size=3)
    return draw(st.lists(st.tuples(st.integers(0, 6), hours), max_size=2))


@dataclass(frozen=True)
class World:
    """One random history: the source's rows, the order of computing, the moments asked about, the view's times."""

    rows: list[dict[str, Any]]
    times: list[datetime]
    order: list[tuple[int, int]]
    delay: timedelta
    spare_ttl: timedelta | None
    is_known_late: bool
    upkeep: list[tuple[int, list[int]]] = field(default_factory=list)
    is_large: bool = False

    @property
    def source(self) -> ParquetSource:
        """The declared source, with or without a time of knowledge."""
        return ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at" if self.is_known_late else None)

    def ttl(self, least: timedelta) -> timedelta | None:
        """Return a ttl that is at least what the view's kind allows."""
        return None if self.spare_ttl is None else least + self.delay + self.spare_ttl

    def compute(self, store: FeatureStore) -> set[datetime]:
        """Compute the drawn ranges of windows, in the drawn order; return the ends of all."""
        ends = set()
        for step, (first, length) in enumerate(self.order):
            reports = store.compute(start=T0 + first * HOUR, end=T0 + (first + length) * HOUR, now=T0 + (HOURS + 6) * HOUR)
            ends |= {report.window.end for report in reports}
            self.keep(store, step)
        return ends

    def keep(self, store: FeatureStore, step: int) -> None:
        """Merge files and keep states, as drawn: no answer may change."""
        for hour in (hour for after, hours in self.upkeep for hour in hours if after == step):
            if hour < 0:
                store.compact(now=T0 + 72 * HOUR)
                continue
            with duckdb.connect() as connection:
                configure(connection)
                for view in store.registry.views.values():
                    keep_state(connection, view, store.offline, to_micros(T0 + hour * HOUR))


worlds = st.builds(
    World,
    rows=watch_events(),
    times=moments(),
    order=orders(),
    delay=st.sampled_from([timedelta(0), timedelta(0), 30 * MINUTE, 2 * HOUR]),
    spare_ttl=st.sampled_from([None, timedelta(0), 20 * MINUTE, 3 * HOUR]),
    is_known_late=st.booleans(),
    upkeep=upkeep(),
    is_large=st.booleans(),
)


IS_LARGE = {
    "newest._FEW_ROWS": 0,
    "explanation.ROW_GROUP": 1,
    "explanation._GROUPS_A_RANGE": 1,
    "explanation._RANGE_BYTES": 50,
    "asof._SAMPLE_PERCENT": 100,
}


@contextlib.contextmanager
def store_of(world: World, view: FeatureView) -> Iterator[FeatureStore]:
    """Open a store over the world's rows, written as two files, so that a source is more than one."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if world.is_large:  # newer rows are found first, and joins are run in ranges of keys
            for name, value in IS_LARGE.items():
                stack.enter_context(patch(f"feature_platform.offline.{name}", value))
        source = Path(folder) / "source"
        source.mkdir()
        for index in (0, 1):
            pq.write_table(pa.Table.from_pylist(world.rows[index::2], schema=SCHEMA), source / f"{index}.parquet")
        with FeatureStore(Registry([view]), Settings(root=Path(folder)), online=MemoryOnlineStore()) as store:
            yield store


def asked(times: list[datetime]) -> pa.Table:
    """Return an entity row for every user (one unknown, one NULL) and time, with a label that must pass through."""
    rows = [{"user_id": user, "event_timestamp": at} for at in times for user in [*USERS, "zoe", None]]
    table = pa.Table.from_pylist(rows, schema=pa.schema([("user_id", pa.string()), ("event_timestamp", pa.timestamp("us", tz="UTC"))]))
    return table.append_column("label", pa.array(range(len(rows))))


def offline_answers(store: FeatureStore, view: FeatureView, entity_df: pa.Table, as_of: AsOf = "known") -> list[dict[str, Answer]]:
    """Return what the point-in-time join answers, a dict a row, after checking L1."""
    names = [f"{view.name}:{name}" for name in view.feature_by_name]
    result = store.get_historical_features(entity_df, names, as_of, statuses=True).to_arrow()
    assert result.select(entity_df.column_names).equals(entity_df), "L1: rows, order and input columns are untouched"
    plain = store.get_historical_features(entity_df, names, as_of).to_arrow()
    assert plain.equals(result.select(plain.column_names)), "statuses only add columns"
    return [{name: Answer(row[name], FeatureStatus(row[f"{name}__status"])) for name in view.feature_by_name} for row in result.to_pylist()]


def same(expected: Answer, found: Answer) -> bool:
    """Compare answers; sums of floats may differ in the last bits, by the order of addition."""
    if isinstance(expected.value, float) and isinstance(found.value, float):
        return expected.status == found.status and found.value == pytest.approx(expected.value, rel=1e-9, abs=1e-9)
    return expected == found


def assert_online_is_offline(store: FeatureStore, view: FeatureView, times: list[datetime]) -> None:
    """L6: after materializing at each M in turn, an online read equals the join at the greatest M so far, ttl judged at the read."""
    newest: datetime | None = None
    for moment in times[:4]:
        store.materialize(view.name, now=moment)
        newest = moment if newest is None else max(newest, moment)
        known = offline_answers(store, view, asked([newest]))
        rows = [{"user_id": user} for user in [*USERS, "zoe"]]
        if not store.online.get_many([ViewCodec("feature_platform", view).meta_key])[0]:
            assert {answer.status for row in known for answer in row.values()} == {FeatureStatus.NOT_FOUND}, "nothing existed yet"
            continue
        online = store.get_online_features([f"{view.name}:{name}" for name in view.feature_by_name], rows, now=newest)
        for expected, found in zip(known, online.rows, strict=False):
            for name in view.feature_by_name:
                value = found[name]
                assert same(expected[name], Answer(value.value, value.status)), (view.name, newest, name)


user = Entity("user", join_keys={"user_id": str})


def assert_like_brute_force(
    store: FeatureStore, view: FeatureView, world: World, expect: Callable[[tuple[Any, ...], str, datetime], Answer], as_of: AsOf = "known"
) -> None:
    """Ask for every user at every moment, offline; then hold the online store to it."""
    entity_df = asked(world.times)
    answers = offline_answers(store, view, entity_df, as_of)
    for row, answer in zip(entity_df.to_pylist(), answers, strict=True):
        for name in view.feature_by_name:
            expected = expect((row["user_id"],), name, row["event_timestamp"])
            assert same(expected, answer[name]), (row, name, expected, answer[name])
    assert_online_is_offline(store, view, world.times)


@slow
@given(world=worlds)
def test_aggregates_answer_like_brute_force(world: World) -> None:
    """L2, L3, L7, L8, L9: aggregates at any moment, computed in any order, are what counting by hand gives."""
    view = FeatureView(
        "activity",
        entity=user,
        sources=[world.source],
        features=[
            Aggregate("n3", "count", window=3 * HOUR),
            Aggregate("n_amount", "count", column="amount", window=2 * HOUR),
            Aggregate("total", "sum", column="amount", dtype=int, window=5 * HOUR),
            Aggregate("spent", "sum", column="price", window=90 * MINUTE, default=-1.0),
            Aggregate("mean_price", "mean", column="price", window=3 * HOUR),
            Aggregate("low", "min", column="price", window=4 * HOUR),
            Aggregate("high", "max", column="amount", dtype=int, window=2 * HOUR),
            Aggregate("horrors", "count", window=6 * HOUR, where="genre = 'horror'"),
            Aggregate("genres", "count_distinct", column="genre", window=3 * HOUR),
            Aggregate("earliest", "first", column="amount", dtype=int, window=4 * HOUR),
            Aggregate("newest", "last", column="genre", dtype=str, window=3 * HOUR, where="genre is null or amount > 0"),
            Aggregate("recent", "last_n", column="price", n=2, window=5 * HOUR),
        ],
        schedule="@hourly",
        start=T0,
        delay=world.delay,
        ttl=world.ttl(HOUR),
    )
    where: dict[str, Callable[[Row], bool]] = {
        "horrors": lambda row: row["genre"] == "horror",
        "newest": lambda row: row["genre"] is None or (row["amount"] is not None and row["amount"] > 0),
    }
    with store_of(world, view) as store:
        ends = world.compute(store)
        states = {end: aggregate_state(view, world.rows, end, where=where) for end in ends}
        assert_like_brute_force(store, view, world, lambda key, name, at: window_answer(view, ends, states.__getitem__, key, name, at))


@slow
@given(world=worlds)
def test_snapshots_answer_like_brute_force(world: World) -> None:
    """L2, L3, L7, L8, L9: a snapshot is the state of its window, and a key that it leaves out has no value from then on."""
    lookback = 2 * HOUR
    view = FeatureView(
        "profile",
        entity=user,
        sources=[world.source],
        lookback=lookback,
        query="select user_id, count(*) as n, max(amount) as top, max(genre) as genre from watches group by user_id",
        features=[Feature("n", int, default=0), Feature("top", int), Feature("genre", str, default="none")],
        schedule="@hourly",
        start=T0,
        delay=world.delay,
        ttl=world.ttl(HOUR),
    )

    def state_at(end: datetime) -> dict[tuple[Any, ...], dict[str, Any]]:
        known = [r for r in world.rows if not world.is_known_late or r["known_at"] is None or r["known_at"] <= end + world.delay]
        inside = [r for r in known if end - lookback <= r["at"] < end and r["user_id"] is not None]
        state = {}
        for name in {r["user_id"] for r in inside}:
            mine = [r for r in inside if r["user_id"] == name]
            state[(name,)] = {
                "n": len(mine),
                "top": max((r["amount"] for r in mine if r["amount"] is not None), default=None),
                "genre": max((r["genre"] for r in mine if r["genre"] is not None), default=None),
            }
        return state

    with store_of(world, view) as store:
        ends = world.compute(store)
        assert_like_brute_force(store, view, world, lambda key, name, at: window_answer(view, ends, state_at, key, name, at))


def unique_history(world: World) -> list[dict[str, Any]]:
    """Return the rows that an event view keeps: of full ties, the one that is greatest by the remaining columns."""

    def rank(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple((row[name] is not None, row[name] or 0) for name in ("genre", "amount"))

    unique: dict[Any, dict[str, Any]] = {}
    for row in world.rows:
        known_at = row["known_at"] if world.is_known_late else None
        identity = (row["user_id"], row["at"], known_at)
        winner = max([row, unique.get(identity, row)], key=rank)
        unique[identity] = {**winner, "event_timestamp": row["at"], "created_timestamp": known_at}
    return [row for row in unique.values() if row["user_id"] is not None]


@slow
@example(  # a row at its partition's start, asked for at the very microsecond from which it can be used
    world=World(
        rows=[{"user_id": "ann", "at": T0 + 6 * HOUR, "known_at": None, "amount": 1, "price": None, "genre": "drama"}],
        times=[T0 + 8 * HOUR],
        order=[],
        delay=2 * HOUR,
        spare_ttl=None,
        is_known_late=False,
    ),
    schedule="0 */6 * * *",
    as_of="known",
)
@given(world=worlds, schedule=st.sampled_from(["0 */6 * * *", None]), as_of=st.sampled_from(["known", "latest"]))
def test_event_views_answer_like_brute_force(world: World, schedule: str | None, as_of: AsOf) -> None:
    """L2, L3, L4, L8: the newest visible row wins, as a whole, its NULLs too, whatever the order of event and knowledge."""
    created = ", known_at as created_timestamp" if world.is_known_late else ""
    view = FeatureView(
        "last_watch",
        entity=user,
        sources=[world.source],
        query=f'select user_id, "at" as event_timestamp{created}, genre, amount from watches',
        features=[Feature("genre", str, default="none"), Feature("amount", int)],
        schedule=schedule,
        start=T0 if schedule else None,
        delay=world.delay,
        ttl=world.ttl(MINUTE),
    )
    history = unique_history(world)
    with store_of(world, view) as store:
        store.compute(now=T0 + 24 * HOUR)
        for step in range(7):
            world.keep(store, step)
        assert_like_brute_force(store, view, world, lambda key, name, at: event_answer(view, history, key, name, at, as_of=as_of), as_of)
