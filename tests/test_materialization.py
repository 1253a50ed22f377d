"""From Parquet to the online store: newest rows, removals, corrections, rebuilds, and what the reports say."""

# ruff: noqa: E501, FBT001 - tables of cases hold values of every type, one case a line

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from offline_project import DAY, HOUR, MICROS, MINUTE, NOW, T0, history_view, instants, late_watches, store_of, user, watches, write

from feature_platform import Aggregate, Entity, Feature, FeatureStatus, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.errors import NotMaterializedError, OnlineStoreError
from feature_platform.materialization import MaterializationReport
from feature_platform.offline.newest import NewestRows
from feature_platform.online.codec import ViewCodec
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.online.store import WriteCounts

PRESENT, NULL_VALUE = FeatureStatus.PRESENT, FeatureStatus.NULL_VALUE
NOT_FOUND, PAST_TTL = FeatureStatus.NOT_FOUND, FeatureStatus.OUTSIDE_MAX_AGE
LATE = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp", created_timestamp="known_at")


def online(store: FeatureStore, feature: str, *users: str, now: datetime = NOW) -> list[tuple[Any, FeatureStatus]]:
    """Return what an online read answers for some users."""
    found = store.get_online_features([feature], [{"user_id": one} for one in users], now=now)
    name = feature.partition(":")[2]
    return [(row[name].value, row[name].status) for row in found.rows]


def counts(report: MaterializationReport) -> tuple[int, int, int, int]:
    """Return read, written, removed, skipped."""
    return (report.rows_read, report.rows_written, report.rows_removed, report.rows_skipped)


def values(*rows: tuple[str, datetime, int | None], known: list[datetime | None] | None = None) -> pa.Table:
    """Return a history of one value."""
    users, times, numbers = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"user_id": pa.array(users, pa.string()), "event_timestamp": pa.array(times, MICROS), "value": pa.array(numbers, pa.int64())}
    return pa.table(columns | ({"known_at": pa.array(known, MICROS)} if known else {}))


def snapshot(**options: Any) -> FeatureView:
    """Return an hourly count of each hour's own events."""
    query = "select user_id, count(*) as n from watches group by user_id"
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "query": query, "schedule": "@hourly", "start": T0}
    return FeatureView("counts", features=[Feature("n", int)], **(arguments | options))


def test_the_newest_row_of_each_key_is_pushed(tmp_path: Path) -> None:
    """As a whole: a NULL in the newest row is the answer; NULL keys were dropped; what is not visible yet is not pushed."""
    write(tmp_path, values(("ann", T0, 1), ("ann", T0 + HOUR, None), ("bob", T0 + HOUR, 2), ("bob", T0, 9), ("zoe", T0 + DAY, 5)), "values")
    with store_of(tmp_path, history_view(delay=HOUR)) as store:
        store.compute(now=NOW)
        (report,) = store.materialize(now=T0 + 2 * HOUR)
        assert counts(report) == (2, 2, 0, 0)
        assert report.newest_event_timestamp == T0 + HOUR
        assert online(store, "values:value", "ann", "bob", "zoe") == [(None, NULL_VALUE), (2, PRESENT), (None, NOT_FOUND)]
        assert counts(store.materialize(now=NOW)[0]) == (3, 3, 0, 0)
        assert online(store, "values:value", "zoe") == [(5, PRESENT)]


def test_an_earlier_now_does_nothing(tmp_path: Path) -> None:
    """What was pushed last stays, rows and meta."""
    write(tmp_path, values(("ann", T0, 1), ("ann", T0 + DAY, 2)), "values")
    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        before = dict(store.online._values)  # type: ignore[attr-defined]
        (report,) = store.materialize(now=T0 + HOUR)
        assert counts(report) == (0, 0, 0, 0)
        assert store.online._values == before  # type: ignore[attr-defined]
        assert online(store, "values:value", "ann") == [(2, PRESENT)]


def test_materializing_twice_changes_no_answer(tmp_path: Path) -> None:
    """The second push of one moment writes the same values again."""
    write(tmp_path, values(("ann", T0, 1)), "values")
    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        before = dict(store.online._values)  # type: ignore[attr-defined]
        store.materialize(now=NOW)
        assert store.online._values == before  # type: ignore[attr-defined]


def test_a_key_that_leaves_a_snapshot_loses_its_value(tmp_path: Path) -> None:
    """Online as offline: absent from the newest snapshot is NOT_FOUND, not the old count; the report counts it."""
    write(tmp_path, pa.table({"user_id": ["ann", "bob", "bob"], "at": instants(MINUTE, MINUTE, 61 * MINUTE)}))
    with store_of(tmp_path, snapshot()) as store:
        store.compute(end=T0 + 3 * HOUR, now=NOW)
        (report,) = store.materialize(now=T0 + HOUR)
        assert (counts(report), report.as_of) == ((2, 2, 0, 0), T0 + HOUR)
        assert online(store, "counts:n", "ann", "bob") == [(1, PRESENT), (1, PRESENT)]
        (report,) = store.materialize(now=T0 + 2 * HOUR)
        assert (counts(report), report.as_of) == ((1, 1, 1, 0), T0 + 2 * HOUR)
        assert online(store, "counts:n", "ann", "bob") == [(None, NOT_FOUND), (1, PRESENT)]
        (report,) = store.materialize(now=T0 + 3 * HOUR)
        assert counts(report) == (0, 0, 1, 0)
        assert online(store, "counts:n", "ann", "bob") == [(None, NOT_FOUND)] * 2


def test_a_quiet_user_loses_the_old_count(tmp_path: Path) -> None:
    """An aggregate falls back to an empty window's value when its events have left."""
    view = FeatureView(
        "activity", entity=user, sources=[watches], schedule="@hourly", start=T0, features=[Aggregate("n", "count", window=2 * HOUR)]
    )
    write(tmp_path, pa.table({"user_id": ["ann", "ann"], "at": instants(MINUTE, 61 * MINUTE)}))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 5 * HOUR, now=NOW)
        found = []
        for hours in range(1, 6):
            store.materialize(now=T0 + hours * HOUR)
            found += online(store, "activity:n", "ann", now=T0 + hours * HOUR)
        assert found == [(1, PRESENT), (2, PRESENT), (1, PRESENT), (0, NOT_FOUND), (0, NOT_FOUND)]


def test_late_rows_and_corrections_reach_the_store(tmp_path: Path) -> None:
    """A correction may lower a value, move it back in time, or remove it: a later generation replaces whatever is there."""
    view = history_view(source=LATE)
    steps: list[tuple[list[tuple[str, datetime, int]], list[datetime | None], tuple[Any, FeatureStatus], tuple[int, int, int, int]]] = [
        ([("ann", T0 + HOUR, 10)], [T0 + HOUR], (10, PRESENT), (1, 1, 0, 0)),
        ([("ann", T0 + HOUR, 10), ("ann", T0 + HOUR, 3)], [T0 + HOUR, T0 + 2 * HOUR], (3, PRESENT), (1, 1, 0, 0)),
        ([("ann", T0, 7)], [T0], (7, PRESENT), (1, 1, 0, 0)),
        ([("bob", T0, 1)], [T0], (None, NOT_FOUND), (2, 1, 1, 0)),
        ([("ann", T0 - DAY, 5), ("bob", T0, 1)], [NOW, T0], (5, PRESENT), (1, 1, 0, 0)),
    ]
    with store_of(tmp_path, view) as store:
        for rows, known, expected, reported in steps:
            write(tmp_path, values(*rows, known=known), "values")
            store.compute(now=NOW)
            (report,) = store.materialize(now=NOW)
            assert online(store, "values:value", "ann") == [expected]
            assert counts(report) == reported


def test_a_recomputed_window_lowers_a_count(tmp_path: Path) -> None:
    """Rows that disappear from a source disappear from the counts, also where the window's end is the same."""
    write(tmp_path, pa.table({"user_id": ["ann", "ann"], "at": instants(MINUTE, 2 * MINUTE)}))
    with store_of(tmp_path, snapshot()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        assert online(store, "counts:n", "ann") == [(2, PRESENT)]
        write(tmp_path, pa.table({"user_id": ["ann"], "at": instants(MINUTE)}))
        store.compute(start=T0, end=T0 + HOUR, now=NOW)
        store.materialize(now=NOW)
        assert online(store, "counts:n", "ann") == [(1, PRESENT)]


def test_a_view_that_was_never_pushed_is_an_error(tmp_path: Path) -> None:
    """Defaults for everyone would hide it; so would a materialization that found no history."""
    write(tmp_path, values(("ann", T0, 1)), "values")
    with store_of(tmp_path, history_view(), snapshot()) as store:
        with pytest.raises(NotMaterializedError, match="fp materialize values"):
            online(store, "values:value", "ann")
        assert [counts(one) for one in store.materialize(now=NOW)] == [(0, 0, 0, 0)] * 2
        with pytest.raises(NotMaterializedError):
            online(store, "values:value", "ann")


def test_a_view_is_named_by_itself_or_by_its_name(tmp_path: Path) -> None:
    """Compute and materialize take views, their names, or several of either."""
    view = history_view()
    write(tmp_path, {"user_id": ["ann"], "event_timestamp": instants(HOUR), "value": [1]}, "values")
    with store_of(tmp_path, view) as store:
        for views in (view, "values", [view], ["values"]):
            assert [report.view for report in store.compute(views, now=NOW)] == ["values"]
            assert [report.view for report in store.materialize(views, now=NOW)] == ["values"]


def test_an_empty_project_is_no_error(tmp_path: Path) -> None:
    """Nothing declared, nothing done."""
    with store_of(tmp_path) as store:
        assert (store.compute(now=NOW), store.materialize(now=NOW), store.rebuild_online(now=NOW)) == ([], [], [])


def test_a_table_without_rows_is_pushed(tmp_path: Path) -> None:
    """It was computed: nobody has a value, which is an answer."""
    write(tmp_path, values(), "values")
    with store_of(tmp_path, history_view(features=[Feature("value", int, default=4)])) as store:
        store.compute(now=NOW)
        assert counts(store.materialize(now=NOW)[0]) == (0, 0, 0, 0)
        assert online(store, "values:value", "ann") == [(4, NOT_FOUND)]


def filled(root: Path, held: Any = None) -> FeatureStore:
    """Return a store with an event view and a snapshot, materialized."""
    write(root, values(("ann", T0, 1), ("bob", T0, None)), "values")
    write(root, pa.table({"user_id": ["ann", "bob", "bob"], "at": instants(61 * MINUTE, MINUTE, 62 * MINUTE)}))
    store = store_of(root, history_view(), snapshot(), online=held)
    store.compute(end=T0 + 2 * HOUR, now=NOW)
    store.materialize(now=NOW)
    return store


EXPECTED = {
    "values:value": [(1, PRESENT), (None, NULL_VALUE), (None, NOT_FOUND)],
    "counts:n": [(1, PRESENT), (1, PRESENT), (None, NOT_FOUND)],
}


def assert_answers(store: FeatureStore) -> None:
    """Check the answers of `filled`."""
    for feature, expected in EXPECTED.items():
        assert online(store, feature, "ann", "bob", "zoe") == expected


def test_an_emptied_store_is_rebuilt(tmp_path: Path) -> None:
    """Parquet is the truth: from nothing the same answers come back."""
    with filled(tmp_path) as store:
        assert_answers(store)
        store.online._values.clear()  # type: ignore[attr-defined]
        with pytest.raises(NotMaterializedError):
            assert_answers(store)
        assert [report.rows_written for report in store.rebuild_online(now=NOW)] == [2, 2]
        assert_answers(store)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\x00", b"not ours at all, but long enough to be a head of some kind", b"\xdc" + b"\xff" * 60],
    ids=["empty", "short", "long", "like-a-head"],
)
def test_a_broken_meta_is_rebuilt(tmp_path: Path, garbage: bytes) -> None:
    """The error that a reader gets names the command, and the command works."""
    with filled(tmp_path) as store:
        for view in store.registry.views.values():
            store.online._values[ViewCodec("feature_platform", view).meta_key] = garbage  # type: ignore[attr-defined]
        if garbage:
            with pytest.raises(OnlineStoreError, match="fp rebuild-online"):
                online(store, "values:value", "ann")
        store.rebuild_online(now=NOW)
        assert_answers(store)


def test_broken_values_are_rebuilt(tmp_path: Path) -> None:
    """So are values that somebody wrote over."""
    with filled(tmp_path) as store:
        codec = ViewCodec("feature_platform", store.registry.view("values"))
        store.online._values[codec.entity_key({"user_id": "ann"})] = b"somebody else's"  # type: ignore[attr-defined]
        with pytest.raises(OnlineStoreError):
            online(store, "values:value", "ann")
        store.rebuild_online(now=NOW)
        assert_answers(store)


@pytest.mark.parametrize("meta", [True, False], ids=["with-its-meta", "meta-gone"])
def test_a_store_filled_from_another_history_is_refused_and_rebuilt(tmp_path: Path, meta: bool) -> None:
    """A copy of the project elsewhere wrote more generations: materializing says so, a rebuild replaces every value and drops the rest."""
    held = MemoryOnlineStore()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with filled(tmp_path / "there", held) as other:
        write(tmp_path / "there", values(("ann", T0 + DAY, 99), ("zoe", T0 + DAY, 98)), "values")
        for _ in range(30):
            other.compute("values", now=NOW)
        other.offline.raise_generation(other.registry.view("values"), above=other.offline.generation(other.registry.view("values")) + 5)
        other.materialize(now=NOW)
    write(tmp_path / "here", values(("ann", T0, 1), ("bob", T0, None)), "values")
    write(tmp_path / "here", pa.table({"user_id": ["ann", "bob", "bob"], "at": instants(61 * MINUTE, MINUTE, 62 * MINUTE)}))
    with store_of(tmp_path / "here", history_view(), snapshot(), online=held) as store:
        folder = tmp_path / "here/data/features/values"
        folder.mkdir(parents=True)
        (folder / "_generation").write_text("7")
        store.compute(end=T0 + 2 * HOUR, now=NOW)
        if meta:
            with pytest.raises(OnlineStoreError, match="filled from another history"):
                store.materialize("values", now=NOW)
        else:
            for view in store.registry.views.values():
                held._values.pop(ViewCodec("feature_platform", view).meta_key)
        store.rebuild_online(now=NOW)
        assert_answers(store)


def test_a_history_deleted_and_computed_again_is_pushed(tmp_path: Path) -> None:
    """Its generation starts at the clock, above whatever the old one's writes had reached."""
    with filled(tmp_path) as store:
        view = store.registry.view("values")
        for _ in range(20):
            store.compute("values", now=NOW)
        store.materialize(now=NOW)
        shutil.rmtree(store.offline.folder(view))
        write(tmp_path, values(("ann", T0 - DAY, -1)), "values")
        store.compute("values", now=NOW)
        store.materialize("values", now=NOW)
        assert online(store, "values:value", "ann", "bob") == [(-1, PRESENT), (None, NOT_FOUND)]


def test_a_lost_counter_never_falls_behind_its_files(tmp_path: Path) -> None:
    """Without `_generation` the files' footers say what was reached."""
    with filled(tmp_path) as store:
        view = store.registry.view("values")
        high = store.offline.raise_generation(view, above=10**15)
        write(tmp_path, values(("ann", T0, 11)), "values")
        store.compute("values", now=NOW)
        (store.offline.folder(view) / "_generation").unlink()
        write(tmp_path, values(("ann", T0, 12)), "values")
        assert store.compute("values", now=NOW)[0].partition.generation > high


def test_a_column_added_is_not_found_until_it_was_computed(tmp_path: Path) -> None:
    """Readers map by name: old rows lack the new feature, and say so; the old features stay."""
    source = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp")
    arguments: dict[str, Any] = {"entity": user, "sources": [source], "schedule": "@daily", "start": T0}
    old = FeatureView("v", features=[Feature("value", int)], query="select user_id, event_timestamp, value from values", **arguments)
    new = FeatureView("v", features=[Feature("double", int, default=0), Feature("value", int)], query="select user_id, event_timestamp, value, value * 2 as double from values", **arguments)  # fmt: skip
    held = MemoryOnlineStore()
    write(tmp_path, values(("ann", T0, 1), ("bob", T0 + DAY, 2)), "values")
    query = '"values"'
    old, new = (
        FeatureView("v", features=one.features, query=str(one.query).replace("from values", f"from {query}"), **arguments)
        for one in (old, new)
    )
    with store_of(tmp_path, old, online=held) as store:
        store.compute(end=T0 + 2 * DAY, now=NOW)
        store.materialize(now=NOW)
    with store_of(tmp_path, new, online=held) as store:
        both = [(0, NOT_FOUND), (0, NOT_FOUND)]
        assert online(store, "v:double", "ann", "bob") == both
        store.materialize(now=NOW + HOUR)
        assert online(store, "v:double", "ann", "bob") == both
        assert online(store, "v:value", "ann", "bob") == [(1, PRESENT), (2, PRESENT)]
        store.compute(start=T0 + DAY, end=T0 + 2 * DAY, now=NOW)
        store.materialize(now=NOW + 2 * HOUR)
        assert online(store, "v:double", "ann", "bob") == [(0, NOT_FOUND), (4, PRESENT)]
        assert online(store, "v:value", "ann", "bob") == [(1, PRESENT), (2, PRESENT)]


def test_ttl_is_judged_at_the_read_and_expiry_is_later(tmp_path: Path) -> None:
    """A value past its ttl says OUTSIDE_MAX_AGE; the server forgets it after twice the ttl at the earliest, and only in event views."""
    ttls: list[int | None] = []

    class Watching(MemoryOnlineStore):
        def put_many(self, items: Any, *, expire_seconds: int | None = None) -> Any:
            ttls.append(expire_seconds)
            return super().put_many(items, expire_seconds=expire_seconds)

    write(tmp_path, values(("ann", T0, 1)), "values")
    write(tmp_path, pa.table({"user_id": ["ann"], "at": instants(MINUTE)}))
    ttl = timedelta(hours=1, microseconds=1)
    with store_of(tmp_path, history_view(ttl=ttl), snapshot(ttl=2 * HOUR), online=Watching()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        store.materialize(now=T0 + HOUR)
        assert ttls == [2 * 3601, None]
        assert online(store, "values:value", "ann", now=T0 + ttl) == [(1, PRESENT)]
        assert online(store, "values:value", "ann", now=T0 + ttl + timedelta(microseconds=1)) == [(None, PAST_TTL)]
        assert online(store, "counts:n", "ann", now=T0 + 3 * HOUR) == [(1, PRESENT)]
        assert online(store, "counts:n", "ann", now=T0 + 3 * HOUR + timedelta(microseconds=1)) == [(None, PAST_TTL)]


def test_created_timestamp_decides_what_a_moment_knows(tmp_path: Path) -> None:
    """A row is pushed from the moment on at which it was known; aggregates by what each window knew."""
    write(tmp_path, values(("ann", T0, 1), ("ann", T0 + HOUR, 2), known=[T0, T0 + 5 * HOUR]), "values")
    write(tmp_path, pa.table({"user_id": ["ann", "ann"], "at": instants(MINUTE, 2 * MINUTE), "known_at": instants(MINUTE, 90 * MINUTE)}))
    activity = FeatureView(
        "activity", entity=user, sources=[late_watches], schedule="@hourly", start=T0, features=[Aggregate("n", "count", window=DAY)]
    )
    with store_of(tmp_path, history_view(source=LATE), activity) as store:
        store.compute(end=T0 + 5 * HOUR, now=NOW)
        found = []
        for hours in (1, 2, 5):
            store.materialize(now=T0 + hours * HOUR)
            found.append((online(store, "values:value", "ann")[0][0], online(store, "activity:n", "ann")[0][0]))
        assert found == [(1, 1), (1, 2), (2, 2)]


def test_global_and_composite_keys_are_pushed(tmp_path: Path) -> None:
    """A view without keys has one value; keys with commas and backslashes stay apart."""
    pair = history_view("pairs", entity=Entity("pair", join_keys={"a": str, "b": int}))
    everyone = history_view("everyone", entity=Entity("all"), features=[Feature("total", int)])
    at = pa.array([T0] * 3, MICROS)
    write(tmp_path, pa.table({"a": ["x,1", "x", "\\"], "b": [1, 11, 0], "event_timestamp": at, "value": [1, 2, 3]}), "pairs")
    write(tmp_path, pa.table({"event_timestamp": at.slice(0, 1), "total": [9]}), "everyone")
    with store_of(tmp_path, pair, everyone) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        rows = [{"a": "x,1", "b": 1}, {"a": "x", "b": 11}, {"a": "\\", "b": 0}, {"a": "x", "b": 1}]
        found = store.get_online_features(["pairs:value", "everyone:total"], rows, now=NOW).to_dict()
        assert (found["value"], found["total"]) == ([1, 2, 3, None], [9] * 4)


@pytest.mark.parametrize("partitions", [10, 1])
def test_newer_rows_are_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitions: int) -> None:
    """Of a long history: only keys without a newer row are looked for in the older ones; one partition has no older ones."""
    monkeypatch.setattr("feature_platform.offline.newest._FEW_ROWS", 0)
    times = [T0 + hour * HOUR for hour in range(10)]
    write(tmp_path, values(*((f"u{hour % 4}", at, hour) for hour, at in enumerate(times)), ("old", T0, -1)), "values")
    view = history_view(schedule="@hourly" if partitions > 1 else None, start=T0 if partitions > 1 else None)
    with store_of(tmp_path, view) as store:
        store.compute(now=T0 + 10 * HOUR)
        assert len(store.offline.partitions(view)) == partitions
        sql = NewestRows.at(view, store.offline, NOW).rows().sql or ""
        assert ("__newer" in sql) == (partitions > 1)
        found = duckdb.execute(f"select user_id, value from ({sql}) order by all").fetchall()
        assert found == [("old", -1), ("u0", 8), ("u1", 9), ("u2", 6), ("u3", 7)]


def test_progress_is_told(tmp_path: Path) -> None:
    """Rows sent and rows to send, by view; windows done and windows wanted."""
    seen: list[tuple[str, int, int]] = []
    write(tmp_path, values(("ann", T0, 1), ("bob", T0, 2)), "values")
    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW, progress=lambda *told: seen.append(told))
        store.materialize(now=NOW, progress=lambda *told: seen.append(told))
    assert seen == [("values", 1, 1), ("values", 2, 2)]


@pytest.mark.parametrize(("threads", "left"), [(4, 3), (1, 1)])
def test_a_push_leaves_a_core_to_who_reads(tmp_path: Path, threads: int, left: int) -> None:
    """While it runs, DuckDB has one thread less; the store's next connection has them all again."""
    used: list[int] = []

    class Asking(MemoryOnlineStore):
        def put_many(self, items: Iterable[tuple[bytes, bytes]], *, expire_seconds: int | None = None) -> WriteCounts:
            used.append(threads_of(store))
            return super().put_many(items, expire_seconds=expire_seconds)

    def threads_of(store: FeatureStore) -> int:
        assert store._database is not None
        return int(store._database.execute("select current_setting('threads')").fetchall()[0][0])

    write(tmp_path, values(("ann", T0, 1)), "values")
    settings = Settings(project="threads", root=tmp_path, threads=threads)
    with FeatureStore(Registry(views=[history_view()]), settings, online=Asking()) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        store.compute(now=NOW)
        assert (used, threads_of(store)) == ([left], threads)


class Failing(MemoryOnlineStore):
    """A store that fails after some values, once."""

    left: int | None = None
    sent = 0

    def put_many(self, items: Iterable[tuple[bytes, bytes]], *, expire_seconds: int | None = None) -> WriteCounts:
        """Write until it is enough."""
        return super().put_many(self._some(items), expire_seconds=expire_seconds)

    def _some(self, items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for item in items:
            if self.left is not None and self.sent == self.left:
                self.left = None
                message = "the server went away"
                raise OnlineStoreError(message)
            self.sent += 1
            yield item


@pytest.mark.slow
def test_a_large_push_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    """Keys go part by part, each once: what was sent before the fault is not sent again, and nothing is missing."""
    count = 1_200_000
    numbers = pa.array(range(count))
    users = numbers.cast(pa.string())
    write(tmp_path, {"user_id": users, "event_timestamp": pa.array([T0] * count, MICROS), "value": numbers}, "values")
    online = Failing()
    seen: list[tuple[int, int]] = []
    with store_of(tmp_path, history_view(), online=online) as store:
        store.compute(now=NOW)
        online.left = 900_000
        with pytest.raises(OnlineStoreError, match="went away"):
            store.materialize(now=NOW)
        with pytest.raises(NotMaterializedError):
            online_values(store, 1)
        (report,) = store.materialize(now=NOW + HOUR, progress=lambda _, sent, of: seen.append((sent, of)))
        assert report.rows_written == count
        assert report.rows_read < 500_000  # of the parts, those before the fault are not read again
        assert seen == sorted(seen)
        assert seen[-1][0] <= seen[-1][1]
        assert online_values(store, count) == count
        online.sent = 0
        (again,) = store.materialize(now=NOW + 2 * DAY)
        assert (again.is_complete, again.rows_written, online.sent) == (True, count, count)


def online_values(store: FeatureStore, count: int) -> int:
    """Return how many of some users have their own number online."""
    found = store.get_online_features(["values:value"], {"user_id": [str(number) for number in range(count)]}, now=NOW).to_dict()["value"]
    return sum(value == number for number, value in enumerate(found))


@pytest.mark.slow
def test_a_push_that_goes_on_reads_rows_of_its_first_part_right(tmp_path: Path) -> None:
    """Rows that lack a feature lie in the part that was sent before the fault: the meta tells all the same how they are read."""
    count = 300_000
    users = [f"u{number}" for number in range(count)]
    with duckdb.connect() as connection:  # a user of the first of two parts
        first = next(user for user in users if connection.execute("select hash(?) % 2", [user]).fetchall() == [(0,)])
    daily: dict[str, Any] = {
        "schedule": "@daily",
        "start": T0,
        "source": ParquetSource("values", "source/*.parquet", timestamp="event_timestamp"),
    }
    write(tmp_path, {"user_id": [first], "event_timestamp": instants(HOUR), "value": [7], "more": [7]}, "first")
    online = Failing()
    with store_of(tmp_path, history_view(**daily), online=online) as store:
        store.compute(start=T0, end=T0 + DAY, now=NOW)
    others = [user for user in users if user != first]
    times = pa.array([T0 + DAY + HOUR] * len(others), MICROS)
    write(tmp_path, {"user_id": others, "event_timestamp": times, "value": range(len(others)), "more": range(len(others))}, "second")
    with store_of(tmp_path, history_view(features=[Feature("value", int), Feature("more", int)], **daily), online=online) as store:
        store.compute(start=T0 + DAY, end=T0 + 2 * DAY, now=NOW)
        online.left = 200_000
        with pytest.raises(OnlineStoreError, match="went away"):
            store.materialize(now=NOW)
        (report,) = store.materialize(now=NOW)
        assert (report.rows_read < 200_000, report.rows_written) == (True, count)
        found = store.get_online_features(["values:value", "values:more"], [{"user_id": first}], now=NOW).rows[0]
    assert [(found[name].value, found[name].status) for name in ("value", "more")] == [(7, PRESENT), (None, NOT_FOUND)]
