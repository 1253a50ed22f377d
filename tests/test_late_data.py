"""Source files that change after their windows were computed: exactly what reads them runs again, and only changed answers are pushed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline_project import DAY, HOUR, MINUTE, NOW, T0, answers, put, store_of, user

from feature_platform import ON_UPDATE, Aggregate, Feature, FeatureStatus, FeatureStore, FeatureView, ParquetSource
from feature_platform.offline.compute import compute_windows
from feature_platform.offline.due import Pending, pending_windows
from feature_platform.offline.inputs import source_files
from feature_platform.offline.writer import PartitionReport
from feature_platform.online.codec import ViewCodec
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.testing import aggregate_state, event_answer, window_answer
from feature_platform.windows import Window

PRESENT = FeatureStatus.PRESENT
watches = ParquetSource("watches", "source/*.parquet", timestamp="at")
known_watches = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at")


def snapshot(**options: Any) -> FeatureView:
    """Return an hourly count over three hours."""
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "lookback": 3 * HOUR, "schedule": "@hourly", "start": T0}
    query = "select user_id, count(*) as n from watches group by user_id"
    return FeatureView("counts", query=query, features=[Feature("n", int)], **(arguments | options))


def aggregate(**options: Any) -> FeatureView:
    """Return the same as an aggregate."""
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "schedule": "@hourly", "start": T0}
    return FeatureView("counts", features=[Aggregate("n", "count", window=3 * HOUR)], **(arguments | options))


def event(**options: Any) -> FeatureView:
    """Return each hour's watches as events."""
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "schedule": "@hourly", "start": T0}
    arguments["query"] = 'select user_id, "at" as event_timestamp, hour("at") as n from watches'
    return FeatureView("counts", features=[Feature("n", int)], **(arguments | options))


def look(store: FeatureStore, now: datetime = NOW) -> Pending:
    """Return what is pending of the one view."""
    view = store.registry.view("counts")
    return pending_windows(view, store.offline, source_files(view, store.settings.root, store.offline.source_footers), now)


def run(store: FeatureStore, windows: Sequence[Window], now: datetime = NOW) -> list[PartitionReport]:
    """Compute some windows."""
    view = store.registry.view("counts")
    with duckdb.connect() as connection:
        return compute_windows(connection, view, windows, store=store.offline, root=store.settings.root, now=now)


def hours(windows: Sequence[Window]) -> list[int]:
    """Return the hours after T0 at which windows end."""
    return [(window.end - T0) // HOUR for window in windows]


def files(store: FeatureStore) -> dict[str, tuple[int, int]]:
    """Return inode and time of the last write of every partition."""
    folder = store.offline.folder(store.registry.view("counts"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


BASE = [("ann", T0 + MINUTE), ("bob", T0 + 5 * HOUR + MINUTE), ("ann", T0 + 9 * HOUR + MINUTE)]

# A late row at hour 4: what reads it. An aggregate's row also leaves, at the first end after its window.
AFFECTED = {"snapshot": (snapshot(), [5, 6, 7]), "aggregate": (aggregate(), [5, 6, 7, 8]), "event": (event(), [5])}


@pytest.mark.parametrize(("view", "ends"), AFFECTED.values(), ids=AFFECTED)
def test_a_late_file_makes_exactly_the_windows_run_that_read_it(tmp_path: Path, view: FeatureView, ends: list[int]) -> None:
    """Those windows are pending and no others; computed again they are not, and the other files were not touched."""
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 12 * HOUR, now=T0 + 12 * HOUR)
        assert look(store, T0 + 12 * HOUR).due == []
        before = files(store)
        put(tmp_path, "late", ("zoe", T0 + 4 * HOUR + MINUTE))
        pending = look(store, T0 + 12 * HOUR)
        assert (hours(pending.waiting), pending.due) == (ends, [])
        reports = run(store, pending.waiting)
        changed = {f"{report.window.key}.parquet" for report in reports if report.outcome == "written"}
        assert {name for name, identity in files(store).items() if identity != before[name]} == changed
        # An aggregate is stored by its changes: the row enters at 5 and has left at 8.
        assert hours([report.window for report in reports if report.outcome == "written"]) == ([5, 8] if len(ends) == 4 else ends)
        pending = look(store, T0 + 12 * HOUR)
        assert (pending.due, pending.waiting) == ([], [])


def test_an_answer_is_repaired_and_only_its_key_is_pushed(tmp_path: Path) -> None:
    """A late row of ann changes ann's answer alone: one key is written, and the other keys are not even read."""
    put(tmp_path, "base", *BASE, *((f"user{index}", T0 + 10 * HOUR + MINUTE) for index in range(50)))
    with store_of(tmp_path, aggregate()) as store:
        store.compute(end=T0 + 11 * HOUR, now=T0 + 11 * HOUR)
        (report,) = store.materialize(now=T0 + 11 * HOUR)
        assert (report.is_complete, report.rows_written) == (True, 51)
        put(tmp_path, "late", ("ann", T0 + 8 * HOUR + 30 * MINUTE))
        run(store, look(store, T0 + 11 * HOUR).waiting, T0 + 11 * HOUR)
        (report,) = store.materialize(now=T0 + 11 * HOUR)
        assert (report.is_complete, report.rows_read, report.rows_written, report.rows_removed) == (False, 1, 1, 0)
        assert store.get_online_features(["n"], [{"user_id": "ann"}], now=T0 + 11 * HOUR).to_dict()["n"] == [2]
        assert answers(store, ["n"], [T0 + 11 * HOUR]) == [(2, PRESENT)]


def test_an_older_late_event_is_stored_and_not_pushed(tmp_path: Path) -> None:
    """A late row of an event view that is not the newest of its key changes history, and no answer."""
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, event()) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        put(tmp_path, "late", ("ann", T0 + 4 * HOUR))
        assert [report.outcome for report in run(store, look(store).waiting)] == ["written"]
        (report,) = store.materialize(now=NOW)
        assert (report.rows_read, report.rows_written, report.rows_unchanged) == (1, 0, 1)
        assert answers(store, ["n"], [T0 + 5 * HOUR, NOW]) == [(4, PRESENT), (9, PRESENT)]


def test_a_rewritten_file_of_the_same_rows_changes_nothing(tmp_path: Path) -> None:
    """What reads it is looked at once more, comes out the same, and is left alone: file, generation and online values."""
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, aggregate()) as store:
        view = store.registry.view("counts")
        store.compute(end=T0 + 12 * HOUR, now=NOW)
        store.materialize(now=NOW)
        before, generation = files(store), store.offline.generation(view)
        put(tmp_path, "base", *BASE)
        waiting = look(store, T0 + 12 * HOUR).waiting
        assert hours(waiting) == list(range(1, 13))
        assert {report.outcome for report in run(store, waiting)} == {"unchanged"}
        assert (files(store), store.offline.generation(view)) == (before, generation)
        assert look(store, T0 + 12 * HOUR).waiting == []
        (report,) = store.materialize(now=NOW + HOUR)
        assert (report.is_complete, report.rows_read, report.rows_written) == (False, 0, 0)


def test_what_was_known_keeps_closed_windows_as_they_are(tmp_path: Path) -> None:
    """With created_timestamp, a late file is read by no window that ended before it was known: training sets show what was known."""
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, aggregate(sources=[known_watches], delay=10 * MINUTE)) as store:
        store.compute(end=T0 + 12 * HOUR, now=T0 + 12 * HOUR + 10 * MINUTE)
        put(tmp_path, "late", ("ann", T0 + 8 * HOUR + MINUTE, T0 + 10 * HOUR + 10 * MINUTE))
        waiting = look(store, T0 + 12 * HOUR + 10 * MINUTE).waiting
        assert hours(waiting) == [10, 11, 12]
        run(store, waiting)
        asked = [T0 + end * HOUR + 10 * MINUTE for end in (9, 10, 11)]
        assert answers(store, ["n"], asked) == [(0, FeatureStatus.NOT_FOUND), (2, PRESENT), (2, PRESENT)]


def test_the_declared_horizon_parts_automatic_from_asked_for(tmp_path: Path) -> None:
    """Windows that ended within it are due; older ones wait."""
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, aggregate(late_data_horizon=5 * HOUR)) as store:
        now = T0 + 12 * HOUR
        store.compute(end=now, now=now)
        put(tmp_path, "late", ("ann", T0 + 5 * HOUR + MINUTE))
        pending = look(store, now)
        assert (hours(pending.late), hours(pending.waiting)) == ([7, 8, 9], [6])


def test_an_open_day_follows_its_files(tmp_path: Path) -> None:
    """An ON_UPDATE view's open day is due with each new file, whatever its age; a day without data is not due before it ends."""
    view = event(schedule=ON_UPDATE)
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, view) as store:
        now = T0 + 10 * HOUR
        assert len(look(store, now).missing) == 1
        run(store, look(store, now).due, now)
        assert look(store, now).due == []
        put(tmp_path, "more", ("ann", T0 + 9 * HOUR + 30 * MINUTE))
        assert len(look(store, now).late) == 1
        run(store, look(store, now).due, now)
        assert look(store, now + 4 * HOUR).due == look(store, now + DAY - 11 * HOUR).due == []
        assert [window.start for window in look(store, T0 + 2 * DAY).missing] == [T0 + DAY]


def test_a_deleted_file_is_a_change_too(tmp_path: Path) -> None:
    """The windows that had read it are pending, and its rows' keys lose what they gave them, online too."""
    put(tmp_path, "base", *BASE)
    put(tmp_path, "more", ("zoe", T0 + 10 * HOUR + MINUTE))
    with store_of(tmp_path, aggregate()) as store:
        now = T0 + 12 * HOUR
        store.compute(end=now, now=now)
        store.materialize(now=now)
        (tmp_path / "source/more.parquet").unlink()
        pending = look(store, now)
        assert hours(pending.waiting) == [11, 12]
        run(store, pending.waiting, now)
        (report,) = store.materialize(now=now)
        assert (report.is_complete, report.rows_read, report.rows_removed) == (False, 1, 1)
        row = store.get_online_features(["n"], [{"user_id": "zoe"}], now=now).rows[0]["n"]
        assert (row.value, row.status) == (0, FeatureStatus.NOT_FOUND)


def test_a_partition_file_that_vanished_makes_the_next_push_complete(tmp_path: Path) -> None:
    """What nobody wrote down cannot be told key by key: everything is pushed, and the answer is the history's."""
    put(tmp_path, "base", *BASE)
    with store_of(tmp_path, event()) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        view = store.registry.view("counts")
        store.offline.path(view, Window(T0 + 9 * HOUR, T0 + 10 * HOUR)).unlink()
        (report,) = store.materialize(now=NOW)
        assert report.is_complete
        assert store.get_online_features(["n"], [{"user_id": "ann"}], now=NOW).to_dict()["n"] == [0]


rows = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "zoe"]), st.integers(0, 9 * 60), st.sampled_from([0, 0, 30, 90, 400])), min_size=0, max_size=6
)
# Each step writes (or, with no rows, empties) one of three files; whether all pending windows are computed then, or some later.
steps = st.lists(st.tuples(st.integers(0, 2), rows, st.booleans(), st.integers(6, 13)), min_size=1, max_size=6)
KINDS = {"snapshot": snapshot, "aggregate": aggregate, "event": event}


@pytest.mark.law
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=steps, is_known_late=st.booleans(), delay=st.sampled_from([timedelta(0), 40 * MINUTE]))
def test_whatever_changes_answers_are_repaired_and_only_changed_keys_pushed(
    *, kind: str, steps: list[Any], is_known_late: bool, delay: timedelta
) -> None:
    """L6, L7, L9: after pending windows are computed, history is what brute force says of today's files, and so is the online store."""
    created = ", known_at as created_timestamp" if is_known_late else ""
    options: dict[str, Any] = {"sources": [known_watches if is_known_late else watches], "delay": delay}
    if kind == "event":
        options["query"] = f'select user_id, "at" as event_timestamp{created}, hour("at") as n from watches'
    view, held = KINDS[kind](**options), MemoryOnlineStore()
    contents: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, store_of(Path(folder), view, online=held) as store:
        now = T0
        for number, some, is_computed, hour in steps:
            now = max(now, T0 + hour * HOUR)
            contents[number] = [
                {"user_id": name, "at": T0 + minute * MINUTE, "known_at": T0 + (minute + lag) * MINUTE} for name, minute, lag in some
            ]
            put(Path(folder), str(number), *((row["user_id"], row["at"], row["known_at"]) for row in contents[number]))
            if not is_computed:
                continue
            pending = look(store, now)
            run(store, [*pending.due, *pending.waiting], now)
            again = look(store, now)
            assert (again.due, again.waiting) == ([], [])
            assert_pushes_what_changed(store, view, held, now)
            all_rows = [row for some_rows in contents.values() for row in some_rows]
            assert_history_is_todays(store, view, all_rows, now, is_known_late=is_known_late)


def assert_history_is_todays(
    store: FeatureStore, view: FeatureView, rows: list[dict[str, Any]], now: datetime, *, is_known_late: bool
) -> None:
    """Hold the newest answers to brute force over what the files hold now."""
    keys = ["ann", "bob", "zoe"]
    found = answers(store, ["n"], [now] * 3, keys)
    ends = [one.window.end for one in store.offline.partitions(view)]
    if view.kind == "event":
        times = [{**row, "event_timestamp": row["at"], "n": row["at"].hour} for row in rows]
        history = [{**row, "created_timestamp": row["known_at"]} for row in times] if is_known_late else times
        computed = [row for row in history if any(one.start <= _micros(row["at"]) < one.end for one in store.offline.partitions(view))]
        expected = [event_answer(view, computed, (key,), "n", now) for key in keys]
    else:
        as_aggregate = aggregate(sources=view.sources, delay=view.delay)

        def state_at(end: datetime) -> Any:
            return aggregate_state(as_aggregate, rows, end)

        expected = [window_answer(view, ends, state_at, (key,), "n", now) for key in keys]
    assert found == [(answer.value, answer.status) for answer in expected]


def _micros(instant: datetime) -> int:
    return int(instant.timestamp()) * 10**6


def assert_pushes_what_changed(store: FeatureStore, view: FeatureView, held: MemoryOnlineStore, now: datetime) -> None:
    """Materialize; online is offline, and a push that is not complete wrote exactly the keys whose readable answer changed."""
    keys = [{"user_id": name} for name in ("ann", "bob", "zoe")]
    meta_key = ViewCodec("feature_platform", view).meta_key

    def readable() -> list[Any]:
        if not held.get_many([meta_key])[0]:
            return [None] * 3
        found = store.get_online_features(["n"], keys, now=now).rows
        return [None if row["n"].status == FeatureStatus.NOT_FOUND else (row["n"].value, row["n"].event_timestamp) for row in found]

    before = readable()
    (report,) = store.materialize(now=now)
    after = readable()
    if not report.is_complete:
        assert report.rows_written + report.rows_removed == sum(old != new for old, new in zip(before, after, strict=True))
    offline = answers(store, ["n"], [now] * 3, [key["user_id"] for key in keys])
    if held.get_many([meta_key])[0]:
        online = store.get_online_features(["n"], keys, now=now).rows
        assert [(row["n"].value, row["n"].status) for row in online] == offline
