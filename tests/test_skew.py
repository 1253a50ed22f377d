"""Skew: green whatever the history was, red where a served value is not the history's, and never red for what is only under way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offline_project import DAY, HOUR, MICROS, MINUTE, NOW, T0, history_view, instants, store_of, user, watches, write
from test_laws_of_time import HOURS, World, slow, worlds
from test_laws_of_time import store_of as store_of_world

from feature_platform import Aggregate, Entity, Feature, FeatureStatus, FeatureStore, FeatureView, ParquetSource
from feature_platform.online.codec import ViewCodec, ViewMeta
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.online.store import WriteCounts
from feature_platform.skew import SkewReport, measure_skew

PRESENT, NOT_FOUND = FeatureStatus.PRESENT, FeatureStatus.NOT_FOUND
PROJECT = "feature_platform"
few = settings(slow, max_examples=15)


def skew(store: FeatureStore, view: FeatureView | None = None, *, now: datetime | None = None, sample: int = 200) -> SkewReport:
    """Measure a view of a store, by default its one view."""
    view = view or next(iter(store.registry.views.values()))
    with store._connect() as connection:
        return measure_skew(connection, view, store=store.offline, online=store.online, project=PROJECT, sample=sample, now=now)


def put(store: FeatureStore, *, keys: dict[str, Any], features: dict[str, Any], at: datetime) -> None:
    """Write one value online that no push wrote, of the generation that was pushed."""
    (view,) = store.registry.views.values()
    codec = ViewCodec(PROJECT, view)
    (meta,) = store.online.get_many([codec.meta_key])
    assert meta is not None
    columns = {name: pa.array([value], view.entity.keys[name].arrow) for name, value in keys.items()}
    columns |= {"event_timestamp": pa.array([at], MICROS)}
    columns |= {name: pa.array([value], view.feature_by_name[name].type.arrow) for name, value in features.items()}
    store.online.put_many(codec.encode_rows(pa.table(columns), ViewMeta.from_bytes(meta).generation))


def values(**columns: Any) -> pa.Table:
    """Return a history of values: users, hours and one column a feature."""
    hours = columns.pop("hours")
    users = pa.array(columns.pop("users"), pa.string())
    return pa.table({"user_id": users, "event_timestamp": instants(*(hour * HOUR for hour in hours)), **columns})


def counts_view(**options: Any) -> FeatureView:
    """Return an hourly snapshot of each hour's own events."""
    query = "select user_id, count(*) as n, max(genre) as genre from watches group by user_id"
    features = [Feature("n", int, default=0), Feature("genre", str)]
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "query": query, "features": features}
    return FeatureView("counts", **({**arguments, "schedule": "@hourly", "start": T0} | options))


def write_watches(root: Path, *minutes: int, users: tuple[str, ...] = ("ann", "bob"), genre: str = "drama") -> None:
    """Write one event of each user at some minutes."""
    times = [minute * MINUTE for minute in minutes for _ in users]
    write(root, pa.table({"user_id": [*users] * len(minutes), "at": instants(*times), "genre": [genre] * len(times)}))


class BreakingStore(MemoryOnlineStore):
    """A store that stops taking values after some."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None

    def put_many(self, items: Iterable[tuple[bytes, bytes]], *, expire_seconds: int | None = None) -> WriteCounts:
        """Take as many values as are left to take, then break off."""
        for item in items:
            if self.left == 0:
                raise ConnectionError
            self.left = None if self.left is None else self.left - 1
            super().put_many([item], expire_seconds=expire_seconds)
        return WriteCounts()


def view_of(world: World, kind: str) -> FeatureView:
    """Return a view of a kind over a world's source."""
    common: dict[str, Any] = {"entity": user, "sources": [world.source], "start": T0, "delay": world.delay}
    if kind == "event":
        created = ", known_at as created_timestamp" if world.is_known_late else ""
        return FeatureView(
            "last_watch",
            query=f'select user_id, "at" as event_timestamp{created}, genre, price from watches',
            features=[Feature("genre", str, default="none"), Feature("price", float)],
            schedule="0 */6 * * *",
            ttl=world.ttl(MINUTE),
            **common,
        )
    if kind == "snapshot":
        return FeatureView(
            "profile",
            lookback=2 * HOUR,
            query="select user_id, count(*) as n, max(genre) as genre from watches group by user_id",
            features=[Feature("n", int, default=0), Feature("genre", str, default="none")],
            schedule="@hourly",
            ttl=world.ttl(HOUR),
            **common,
        )
    features = [
        Aggregate("n", "count", window=3 * HOUR),
        Aggregate("spent", "sum", column="price", window=90 * MINUTE, default=-1.0),
        Aggregate("high", "max", column="amount", dtype=int, window=2 * HOUR),
    ]
    return FeatureView("activity", features=features, schedule="@hourly", ttl=world.ttl(HOUR), **common)


@pytest.mark.law
@pytest.mark.parametrize("kind", ["event", "snapshot", "aggregate"])
def test_whatever_was_computed_and_pushed_has_no_skew(kind: str) -> None:
    """L6: after any push of any history, computed in any order, every key of either side is compared and none differs."""

    @few
    @given(world=worlds)
    def holds(world: World) -> None:
        view = view_of(world, kind)
        with store_of_world(world, view) as store:
            world.compute(store)
            for moment in sorted(world.times[:4]):
                store.materialize(now=moment)
                report = skew(store, view, now=moment)
                if report.watermark is None:
                    assert report.not_comparable is not None
                    continue
                keys = {key for key in store.online._values if b"{" in key}  # type: ignore[attr-defined]
                assert (report.watermark, report.not_comparable, report.unsettled) == (moment, None, 0)
                assert not report.has_skew, report.examples
                assert report.keys >= len(keys)
                assert list(report.mismatches) == list(view.feature_by_name)

    holds()


@pytest.mark.law
@pytest.mark.parametrize("kind", ["event", "snapshot", "aggregate"])
def test_what_is_under_way_is_never_called_skew(kind: str) -> None:
    """Partitions written after a push, and pushes that broke off after any number of values, are no skew."""

    @few
    @given(world=worlds, taken=st.integers(0, 6))
    def holds(world: World, taken: int) -> None:
        view, end = view_of(world, kind), T0 + (HOURS + 6) * HOUR
        with store_of_world(world, view) as given_store:
            online = BreakingStore()
            store = FeatureStore(given_store.registry, given_store.settings, online=online)
            stretches = [*world.order, *world.order]
            for moment, (first, length) in zip(sorted(world.times[:4]), stretches, strict=False):
                store.compute(start=T0 + first * HOUR, end=T0 + (first + length) * HOUR, now=end)
                assert not skew(store, view, now=moment).has_skew
                online.left = taken
                with contextlib.suppress(ConnectionError):
                    store.materialize(now=moment)
                for at in (moment, end):
                    report = skew(store, view, now=at)
                    assert not report.has_skew, report.examples
                online.left = None
                store.materialize(now=moment)
                assert not skew(store, view, now=moment).has_skew

    holds()


def test_one_corrupted_value_is_red_and_its_feature_named(tmp_path: Path) -> None:
    """Of two features of two keys, the one that differs is counted, with both answers."""
    write_watches(tmp_path, 1, 2)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        assert not skew(store, now=NOW).has_skew
        put(store, keys={"user_id": "bob"}, features={"n": 3, "genre": "drama"}, at=T0 + HOUR)
        report = skew(store)
    assert report.has_skew
    assert (report.keys, report.mismatches) == (2, {"n": 1, "genre": 0})
    (example,) = report.examples
    assert (example.join_keys, example.feature) == ({"user_id": "bob"}, "n")
    assert (example.online.value, example.online.status) == (3, PRESENT)
    assert (example.offline.value, example.offline.status) == (2, PRESENT)
    assert report.watermark == NOW


def test_a_deleted_key_is_red_in_every_feature(tmp_path: Path) -> None:
    """A key that the history has and nobody is served differs in value and status, or in status alone where the default is the value."""
    write_watches(tmp_path, 1)
    with store_of(tmp_path, counts_view(features=[Feature("n", int, default=1), Feature("genre", str)])) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        del store.online._values[b"feature_platform:{user:ann}:counts"]  # type: ignore[attr-defined]
        report = skew(store)
    assert report.mismatches == {"n": 1, "genre": 1}
    assert [(one.online.value, one.online.status, one.offline.value) for one in report.examples] == [
        (1, NOT_FOUND, 1),
        (None, NOT_FOUND, "drama"),
    ]


def test_an_orphan_is_red(tmp_path: Path) -> None:
    """A key that is served and that the history does not have is found from the served side."""
    write_watches(tmp_path, 1)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        put(store, keys={"user_id": "nobody, \\really"}, features={"n": 7, "genre": None}, at=T0 + HOUR)
        report = skew(store)
    assert (report.keys, report.mismatches) == (3, {"n": 1, "genre": 1})
    assert report.examples[0].join_keys == {"user_id": "nobody, \\really"}
    assert (report.examples[0].offline.value, report.examples[0].offline.status) == (0, NOT_FOUND)


def test_keys_that_nobody_can_ask_for_are_passed_over(tmp_path: Path) -> None:
    """What another program left under a key of no entity's spelling is served to nobody."""
    write_watches(tmp_path, 1)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        store.online.put_many([(b"feature_platform:{user:a,b}:counts", b"?"), (b"feature_platform:{user:\xff}:counts", b"?")])
        report = skew(store)
    assert (report.keys, report.has_skew) == (2, False)


def test_a_newer_partition_that_is_not_pushed_is_no_skew_and_hides_none(tmp_path: Path) -> None:
    """The watermark does not see it: all keys are compared, and a corrupted one is still found."""
    write_watches(tmp_path, 1, 61)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=T0 + HOUR)
        store.compute(start=T0 + HOUR, end=T0 + 2 * HOUR, now=NOW)
        report = skew(store)
        assert (report.not_comparable, report.keys, report.has_skew) == (None, 2, False)
        put(store, keys={"user_id": "bob"}, features={"n": 1, "genre": "horror"}, at=T0 + HOUR)
        assert skew(store).mismatches == {"n": 0, "genre": 1}


def test_a_value_from_after_the_watermark_is_left_out(tmp_path: Path) -> None:
    """It may be what a push that broke off wrote; the next whole push settles it."""
    write_watches(tmp_path, 1, 61, 62)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=T0 + HOUR)
        store.compute(start=T0 + HOUR, end=T0 + 2 * HOUR, now=NOW)
        put(store, keys={"user_id": "bob"}, features={"n": 5, "genre": "drama"}, at=T0 + 2 * HOUR)
        report = skew(store)
        assert (report.keys, report.unsettled, report.has_skew) == (1, 1, False)
        store.materialize(now=T0 + 2 * HOUR)
        report = skew(store)
        assert (report.keys, report.unsettled, report.has_skew) == (2, 0, False)


def test_a_history_written_again_is_not_comparable_until_it_is_pushed(tmp_path: Path) -> None:
    """A corrected partition differs from what was pushed, rightly."""
    write_watches(tmp_path, 1)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        write_watches(tmp_path, 1, 2)
        store.compute(start=T0, end=T0 + HOUR, now=NOW)
        report = skew(store)
        assert (report.keys, report.has_skew, report.watermark) == (0, False, NOW)
        assert "written again" in str(report.not_comparable)
        store.materialize(now=NOW)
        assert (skew(store).keys, skew(store).has_skew) == (2, False)


def test_partitions_that_decide_nothing_may_be_written_again(tmp_path: Path) -> None:
    """A backfill of what an older snapshot said changes no answer at the watermark, and holds up no check."""
    write_watches(tmp_path, 1, 61)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + 2 * HOUR, now=NOW)
        store.materialize(now=NOW)
        store.compute(start=T0, end=T0 + HOUR, now=NOW)
        assert (skew(store).keys, skew(store).not_comparable) == (2, None)


def test_a_changed_definition_and_a_view_never_pushed_are_not_comparable(tmp_path: Path) -> None:
    """Both say what makes them comparable."""
    write_watches(tmp_path, 1)
    with store_of(tmp_path, counts_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        never = skew(store)
        assert never.watermark is None
        assert "online/counts" in str(never.not_comparable)
        store.materialize(now=NOW)
        assert "definition" in str(skew(store, counts_view(delay=MINUTE)).not_comparable)


@pytest.mark.parametrize("read", [2, 3], ids=["before-the-values", "after-the-values"])
def test_a_push_in_the_middle_of_measuring_is_measured_instead(tmp_path: Path, read: int) -> None:
    """Where the watermark moves between the first question and the last, all are asked again."""

    class Pushing(MemoryOnlineStore):
        reads_left: int | None = None

        def get_many(self, keys: Sequence[bytes], *, patient: bool = False) -> list[bytes | None]:
            if self.reads_left is not None:
                self.reads_left -= 1
                if self.reads_left == 0:
                    self.reads_left = None
                    store.materialize(now=T0 + 2 * HOUR)
            return super().get_many(keys, patient=patient)

    write_watches(tmp_path, 1, 61, 62)
    store = store_of(tmp_path, counts_view(), online=(online := Pushing()))
    store.compute(end=T0 + 2 * HOUR, now=NOW)
    store.materialize(now=T0 + HOUR)
    assert skew(store, now=T0 + HOUR).watermark == T0 + HOUR
    online.reads_left = read
    report = skew(store, now=NOW)
    assert (report.watermark, report.keys, report.has_skew) == (T0 + 2 * HOUR, 2, False)


def test_a_view_that_never_rests_is_not_comparable(tmp_path: Path) -> None:
    """After some attempts the report says so, and accuses nobody."""

    class Restless(MemoryOnlineStore):
        is_measured = False

        def get_many(self, keys: Sequence[bytes], *, patient: bool = False) -> list[bytes | None]:
            if self.is_measured and len(keys) > 1:
                minutes.append(len(minutes) + 1)
                write_watches(tmp_path, *minutes)
                store.compute(start=T0, end=T0 + HOUR, now=NOW)
                self.is_measured = False
                store.materialize(now=NOW)
                self.is_measured = True
            return super().get_many(keys, patient=patient)

    minutes = [1]
    write_watches(tmp_path, *minutes)
    store = store_of(tmp_path, counts_view(), online=(online := Restless()))
    store.compute(end=T0 + HOUR, now=NOW)
    store.materialize(now=NOW)
    online.is_measured = True
    report = skew(store)
    assert (report.keys, report.has_skew) == (0, False)
    assert "3 times" in str(report.not_comparable)


def test_values_that_the_server_dropped_after_their_ttl_are_no_skew(tmp_path: Path) -> None:
    """Servers drop an event view's values long past their ttl, where the default answers either way; before that it is skew."""
    write(tmp_path, values(users=["ann", "bob"], hours=[0, 5], value=[1, 2]), "values")
    with store_of(tmp_path, history_view(ttl=2 * HOUR)) as store:
        store.compute(now=NOW)
        store.materialize(now=T0 + 6 * HOUR)
        online: Any = store.online
        del online._values[b"feature_platform:{user:ann}:values"]  # OUTSIDE_MAX_AGE at the watermark
        assert not skew(store, now=T0 + 6 * HOUR).has_skew
        del online._values[b"feature_platform:{user:bob}:values"]  # PRESENT at the watermark
        assert skew(store, now=T0 + 6 * HOUR).mismatches == {"value": 1}
        assert not skew(store, now=T0 + 8 * HOUR + MINUTE).has_skew


DTYPES: dict[str, tuple[Any, list[Any]]] = {
    "bool": (bool, [True, False, None]),
    "int": (int, [2**53 + 1, -(2**63), None]),
    "float": (float, [math.nan, math.inf, -0.0]),
    "float32": (pa.float32(), [0.1, math.nan, None]),
    "str": (str, ["", "ü🙂\\,", None]),
    "bytes": (bytes, [b"", b"\xff\x00", None]),
    "date": (date, [date(1, 1, 1), date(9999, 12, 31), None]),
    "datetime": (datetime, [T0, datetime(1969, 1, 1, tzinfo=UTC), None]),
    "decimal": (Decimal, [Decimal("1.100000000"), Decimal(-7), None]),
    "list": (list[float], [[math.nan, 1.5], [], None]),
    "struct": ({"lat": float, "name": str}, [{"lat": math.nan, "name": "x"}, {"lat": None, "name": None}, None]),
    "map": (dict[str, int], [{"b": 1, "a": None}, {}, None]),
}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_compared_exactly(tmp_path: Path, name: str) -> None:
    """What was pushed is equal, NaN to NaN; another value of the same dtype is not."""
    dtype, (first, second, third) = DTYPES[name]
    feature = Feature("value", dtype)
    column = pa.array([first, second, third], feature.type.arrow)
    write(tmp_path, values(users=["a", "b", "c"], hours=[0, 0, 0], value=column), "values")
    with store_of(tmp_path, history_view(features=[feature])) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        report = skew(store)
        assert (report.keys, report.mismatches) == (3, {"value": 0}), report.examples
        put(store, keys={"user_id": "a"}, features={"value": second}, at=T0)
        assert skew(store).mismatches == {"value": 1}


def test_composite_keys_of_every_dtype_are_sampled_from_both_sides(tmp_path: Path) -> None:
    """Keys of several columns are read back from the served side as they were written."""
    keys: dict[str, Any] = {"s": str, "i": int, "b": bool, "y": bytes, "d": date, "t": datetime, "m": Decimal}
    one = {"s": "a,\\b", "i": -1, "b": True, "y": b"\x00,", "d": date(2026, 1, 1), "t": T0, "m": Decimal("1.5")}
    entity = Entity("all", join_keys=keys)
    columns = {name: pa.array([value], entity.keys[name].arrow) for name, value in one.items()}
    write(tmp_path, pa.table({**columns, "event_timestamp": instants(HOUR), "value": [1]}), "values")
    with store_of(tmp_path, history_view(entity=entity)) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        assert (skew(store).keys, skew(store).has_skew) == (1, False)
        put(store, keys={**one, "s": ",", "i": 2**62}, features={"value": 5}, at=T0 + HOUR)
        report = skew(store)
    assert (report.keys, report.mismatches) == (2, {"value": 1})
    assert report.examples[0].join_keys == {**one, "s": ",", "i": 2**62}


def test_a_global_view_has_one_key(tmp_path: Path) -> None:
    """It is compared, found corrupted, and found missing."""
    write(tmp_path, pa.table({"event_timestamp": instants(HOUR), "value": [1]}), "values")
    with store_of(tmp_path, history_view(entity=Entity("everyone"))) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        assert (skew(store).keys, skew(store).has_skew) == (1, False)
        put(store, keys={}, features={"value": 2}, at=T0 + HOUR)
        assert skew(store).mismatches == {"value": 1}
        store.online.sweep(PROJECT, "everyone", "values", below_generation=2**62)
        assert skew(store).mismatches == {"value": 1}


def test_what_was_known_late_is_left_out_until_it_is_pushed(tmp_path: Path) -> None:
    """A correction whose own time lies before the watermark, half pushed, is no skew; without one, the same value is."""
    source = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp", created_timestamp="known_at")
    for entity, keys in ((user, {"user_id": "ann"}), (Entity("everyone"), {})):
        table = values(users=["ann", "ann"], hours=[1, 2], value=[1, 2]).append_column("known_at", instants(HOUR, 5 * HOUR))
        write(tmp_path, table, "values")
        with store_of(tmp_path, history_view(entity.name, entity=entity, source=source)) as store:
            store.compute(now=NOW)
            store.materialize(now=T0 + 4 * HOUR)
            put(store, keys=keys, features={"value": 2}, at=T0 + 2 * HOUR)
            assert (skew(store).unsettled, skew(store).has_skew) == (1, False)
            assert skew(store, now=T0 + 4 * HOUR + MINUTE).mismatches == {"value": 1}
            store.materialize(now=T0 + 5 * HOUR)
            assert (skew(store).keys, skew(store).has_skew) == (1, False)


def test_samples_are_bounded_repeatable_and_other_ones_after_each_push(tmp_path: Path) -> None:
    """One corrupted key among a hundred is found by some later check, though each looks at few."""
    users = [f"user {number}" for number in range(100)]
    write(tmp_path, values(users=users, hours=[0] * 100, value=[1] * 100), "values")
    found: list[bool] = []
    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW)
        for minute in range(60):
            at = NOW + minute * MINUTE
            store.materialize(now=at)
            put(store, keys={"user_id": "user 42"}, features={"value": 2}, at=T0)
            report = skew(store, sample=5, now=at)
            assert 5 <= report.keys <= 10
            assert report == skew(store, sample=5, now=at)
            found.append(report.has_skew)
    assert 0 < sum(found) < 30


def test_a_history_that_is_gone_is_red(tmp_path: Path) -> None:
    """Values are served that nothing stands behind any more."""
    write(tmp_path, values(users=["ann"], hours=[0], value=[1]), "values")
    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        for file in store.offline.folder(store.registry.view("values")).glob("*.parquet"):
            file.unlink()
        assert skew(store).mismatches == {"value": 1}


def test_the_ttl_is_judged_at_the_watermark_on_both_sides(tmp_path: Path) -> None:
    """However late the check runs, a value that was fresh when it was pushed is compared as a fresh one."""
    write_watches(tmp_path, 1)
    view = counts_view(ttl=timedelta(hours=1))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=T0 + HOUR)
        for at in (T0 + HOUR, NOW + DAY):
            report = skew(store, now=at)
            assert (report.keys, report.has_skew) == (2, False)
        put(store, keys={"user_id": "ann"}, features={"n": 9, "genre": "drama"}, at=T0 + HOUR)
        assert skew(store, now=NOW + DAY).mismatches == {"n": 1, "genre": 0}
        assert skew(store, replace(view, ttl=None), now=NOW + DAY).mismatches == {"n": 1, "genre": 0}
