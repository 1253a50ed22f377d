"""Defects that were found in review, each red before it was mended: orders of events, races, odd values, torn files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offline_project import DAY, HOUR, MICROS, MINUTE, T0, answers, put, store_of, user
from orchestration_project import START, Project, activity, key, open_project, profile, write_day

from feature_platform import (
    ON_UPDATE,
    Aggregate,
    Feature,
    FeatureStatus,
    FeatureStore,
    FeatureView,
    ParquetSource,
    Registry,
    Settings,
    between,
)
from feature_platform.errors import ExpectationError
from feature_platform.offline.attempts import Attempt, Attempts
from feature_platform.offline.card import read_card
from feature_platform.offline.due import Pending, pending_windows
from feature_platform.offline.inputs import source_files
from feature_platform.online.codec import ViewCodec
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.orchestration import feature_key, online_key
from feature_platform.windows import WHOLE, Window

PRESENT, NOT_FOUND = FeatureStatus.PRESENT, FeatureStatus.NOT_FOUND
watches = ParquetSource("watches", "source/*.parquet", timestamp="at")
known_watches = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at")


def sums(**options: Any) -> FeatureView:
    """Return an hourly count over three hours, as an aggregate."""
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "schedule": "@hourly", "start": T0}
    features = [Aggregate("n", "count", window=3 * HOUR, expect=options.pop("expect", ()))]
    return FeatureView("counts", features=features, **(arguments | options))


def events(**options: Any) -> FeatureView:
    """Return each hour's watches as events: the minute within the day."""
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "schedule": "@hourly", "start": T0}
    arguments["query"] = 'select user_id, "at" as event_timestamp, hour("at") as n from watches'
    return FeatureView("counts", features=[Feature("n", int)], **(arguments | options))


def look(store: FeatureStore, now: datetime) -> Pending:
    """Return what is pending of the one view."""
    view = store.registry.view("counts")
    return pending_windows(view, store.offline, source_files(view, store.settings.root, store.offline.source_footers), now)


def hours(windows: list[Window]) -> list[int]:
    """Return the hours after T0 at which windows end."""
    return [(window.end - T0) // HOUR for window in windows]


def online(store: FeatureStore, name: str, now: datetime) -> tuple[object, FeatureStatus]:
    """Return what is served for one user."""
    found = store.get_online_features(["n"], [{"user_id": name}], now=now).rows[0]["n"]
    return found.value, found.status


@pytest.mark.parametrize("is_known_late", [False, True], ids=["delay", "created_timestamp"])
def test_a_key_that_lost_its_value_is_served_again_when_its_next_row_becomes_visible(tmp_path: Path, *, is_known_late: bool) -> None:
    """L6: a tombstone has the time of the push, so the older event time of a row that turns visible later must not lose to it."""
    late = {"sources": [known_watches]} if is_known_late else {"delay": HOUR}
    created = ", known_at as created_timestamp" if is_known_late else ""
    view = events(query=f'select user_id, "at" as event_timestamp{created}, hour("at") as n from watches', schedule=ON_UPDATE, **late)
    first, second = ("ann", T0 + 9 * HOUR), ("ann", T0 + 11 * HOUR + 30 * MINUTE, T0 + 12 * HOUR + 30 * MINUTE)
    with store_of(tmp_path, view) as store:
        put(tmp_path, "base", first, ("bob", T0 + HOUR))
        store.compute(now=T0 + 11 * HOUR)
        store.materialize(now=T0 + 11 * HOUR)
        put(tmp_path, "base", second, ("bob", T0 + HOUR))  # ann's first row was wrong
        store.compute(now=T0 + 12 * HOUR)
        store.materialize(now=T0 + 12 * HOUR)
        assert online(store, "ann", T0 + 12 * HOUR) == answers(store, ["n"], [T0 + 12 * HOUR])[0] == (None, NOT_FOUND)
        store.materialize(now=T0 + 13 * HOUR)
        assert answers(store, ["n"], [T0 + 13 * HOUR]) == [(11, PRESENT)]
        assert online(store, "ann", T0 + 13 * HOUR) == (11, PRESENT)


def test_a_push_of_all_keys_that_was_due_anyway_sees_that_a_file_is_gone(tmp_path: Path) -> None:
    """L6: where an event view's ttl makes a push complete, rows of a file that vanished since must not be served on."""
    put(tmp_path, "base", ("ann", T0 + 9 * HOUR + MINUTE))
    with store_of(tmp_path, events(ttl=3 * HOUR)) as store:
        store.compute(end=T0 + 10 * HOUR, now=T0 + 10 * HOUR)
        store.materialize(now=T0 + 10 * HOUR)
        put(tmp_path, "more", ("zoe", T0 + 11 * HOUR + 30 * MINUTE))
        store.compute(now=T0 + 12 * HOUR)
        store.materialize(now=T0 + 12 * HOUR)
        assert online(store, "zoe", T0 + 12 * HOUR) == (11, PRESENT)
        store.offline.path(store.registry.view("counts"), Window(T0 + 11 * HOUR, T0 + 12 * HOUR)).unlink()
        store.materialize(now=T0 + 13 * HOUR)
        assert online(store, "zoe", T0 + 13 * HOUR) == answers(store, ["n"], [T0 + 13 * HOUR], ["zoe"])[0] == (None, NOT_FOUND)


@pytest.mark.slow
def test_a_longer_ttl_reaches_keys_that_were_pushed_under_the_shorter_one(tmp_path: Path) -> None:
    """L6: the expiry of a key is the ttl's of its push; where the declaration changes to a longer one, nothing may vanish early."""
    put(tmp_path, "base", ("ann", T0))
    held = MemoryOnlineStore()
    now = T0 + HOUR
    with store_of(tmp_path, events(ttl=timedelta(seconds=1)), online=held) as store:
        store.compute(now=now)
        store.materialize(now=now)
    with store_of(tmp_path, events(ttl=2 * DAY), online=held) as store:
        store.materialize(now=now + MINUTE)
        assert online(store, "ann", now + MINUTE) == (0, PRESENT)
        time.sleep(2.5)  # the server's own clock: twice the ttl of the first push
        store.materialize(now=now + 2 * MINUTE)
        assert online(store, "ann", now + 2 * MINUTE) == answers(store, ["n"], [now + 2 * MINUTE])[0] == (0, PRESENT)


def test_windows_repaired_within_the_horizon_hold_the_late_row(tmp_path: Path) -> None:
    """L7: a late row enters an aggregate before the horizon; the windows that are computed again by themselves must count it."""
    put(tmp_path, "base", ("ann", T0 + MINUTE), ("ann", T0 + 3 * HOUR + MINUTE))
    now = T0 + 6 * HOUR
    with store_of(tmp_path, sums(late_data_horizon=HOUR)) as store:
        store.compute(now=now)
        store.materialize(now=now)
        put(tmp_path, "late", ("ann", T0 + 3 * HOUR + 2 * MINUTE))
        pending = look(store, now)
        assert (hours(pending.waiting), hours(pending.late)) == ([4], [5, 6])
        store.compute(start=pending.late[0].start, end=pending.late[-1].end, now=now)  # what the late_data sensor asks for
        assert hours(look(store, now).late) == []
        assert answers(store, ["n"], [now]) == [(2, PRESENT)]


def test_the_order_of_a_rejection_and_its_neighbour_does_not_matter(tmp_path: Path) -> None:
    """L7: the window after a rejected one is right whether it is computed after the rejection or before it."""
    view = sums(expect=[between(1, 1)])
    put(tmp_path, "base", ("ann", T0 + 3 * HOUR + MINUTE))
    now = T0 + 7 * HOUR
    with store_of(tmp_path, view) as store:
        store.compute(now=now)
        # Bob's two are both counted at hour 4 alone: it is rejected, hours 5 and 6 are fine.
        put(tmp_path, "late", ("bob", T0 + 3 * HOUR + MINUTE), ("bob", T0 + HOUR + MINUTE), ("zoe", T0 + 3 * HOUR + 2 * MINUTE))
        for hour in (6, 5, 4, 3, 2, 1):
            try:
                store.compute(start=T0 + (hour - 1) * HOUR, end=T0 + hour * HOUR, now=now)
            except ExpectationError:
                assert hour == 4
        pending = look(store, now)
        assert (hours(pending.rejected), hours(pending.due), hours(pending.waiting)) == ([4], [], [7])
        assert answers(store, ["n"], [T0 + 5 * HOUR, T0 + 6 * HOUR], ["zoe", "zoe"]) == [(1, PRESENT), (1, PRESENT)]


def test_a_rejected_correction_is_computed_again_when_its_source_was_corrected(tmp_path: Path) -> None:
    """What the error says to do next: correct the source, and compute again. The window is there, and its files have changed."""
    view = sums(expect=[between(1, 2)])
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    now = T0 + HOUR
    with store_of(tmp_path, view) as store:
        store.compute(now=now)
        put(tmp_path, "base", *[("ann", T0 + minute * MINUTE) for minute in (1, 2, 3)])
        with pytest.raises(ExpectationError):
            store.compute(now=now, changed=True)
        put(tmp_path, "base", *[("ann", T0 + minute * MINUTE) for minute in (1, 2)])
        store.compute(now=now)
        store.compute(now=now, changed=True)
        assert answers(store, ["n"], [now]) == [(2, PRESENT)]


SENTINELS = {
    "the last microsecond": (datetime.max.replace(tzinfo=UTC), datetime(2026, 1, 1)),
    "beyond Python's years": (20_000 * 365 * 86_400 * 1_000_000, datetime(2026, 1, 1)),
    "before Python's years": (-2_500 * 365 * 86_400 * 1_000_000, datetime(2026, 1, 1)),
    "known since the year one": (T0.replace(tzinfo=None), datetime(1, 1, 1)),
}


@pytest.mark.parametrize(("at", "known_at"), SENTINELS.values(), ids=SENTINELS)
def test_one_row_of_an_impossible_time_does_not_stop_a_view(tmp_path: Path, at: Any, known_at: Any) -> None:
    """The row lies in no window (or is known at once); all others are computed as before footers were read."""
    (tmp_path / "source").mkdir()
    micros = pa.timestamp("us")
    good = T0.replace(tzinfo=None) + MINUTE
    table = {"user_id": ["ann", "bob"], "at": pa.array([good, at], micros), "known_at": pa.array([good, known_at], micros)}
    pq.write_table(pa.table(table), tmp_path / "source" / "a.parquet")
    with store_of(tmp_path, sums(sources=[known_watches], delay=MINUTE)) as store:
        store.compute(now=T0 + HOUR + MINUTE)
        assert answers(store, ["n"], [T0 + HOUR + MINUTE]) == [(1, PRESENT)]


def test_an_emptied_history_is_not_served_on(tmp_path: Path) -> None:
    """L6: where the only file of a view vanished, the join answers NOT_FOUND, and so does the store after a push, or a rebuild."""
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    with store_of(tmp_path, events(schedule=None, start=None)) as store:
        store.compute(now=T0 + HOUR)
        store.materialize(now=T0 + HOUR)
        store.offline.path(store.registry.view("counts"), WHOLE).unlink()
        store.materialize(now=T0 + HOUR)
        store.rebuild_online(now=T0 + HOUR)
        assert online(store, "ann", T0 + HOUR) == answers(store, ["n"], [T0 + HOUR])[0] == (None, NOT_FOUND)


def test_a_key_that_the_server_lost_comes_back_with_a_push(tmp_path: Path) -> None:
    """L6: an evicted key, or one of a node that came back empty, is served again after a day at most, when a push is complete."""
    put(tmp_path, "base", ("ann", T0 + MINUTE), ("bob", T0 + MINUTE))
    held = MemoryOnlineStore()
    with store_of(tmp_path, events(), online=held) as store:
        store.compute(now=T0 + HOUR)
        store.materialize(now=T0 + HOUR)
        held._forget(ViewCodec("feature_platform", store.registry.view("counts")).entity_key(["ann"]))  # the server's doing
        store.materialize(now=T0 + HOUR + DAY)
        assert online(store, "ann", T0 + HOUR + DAY) == (0, PRESENT)


def test_a_feature_may_be_named_status(tmp_path: Path) -> None:
    """Under its full name it ends like a column of statuses; it keeps its dtype, and the card counts its NULLs."""
    source = ParquetSource("orders", "source/orders.parquet", timestamp="event_timestamp")
    view = FeatureView("orders", entity=user, sources=[source], features=[Feature("status", int)])
    (tmp_path / "source").mkdir()
    rows = {"user_id": ["ann", "bob"], "event_timestamp": pa.array([T0, T0], MICROS), "status": pa.array([7, None], pa.int64())}
    pq.write_table(pa.table(rows), tmp_path / "source" / "orders.parquet")
    entity_df = pa.table({"user_id": ["ann", "bob"], "event_timestamp": pa.array([T0, T0], MICROS)})
    with store_of(tmp_path, view) as store:
        store.compute(now=T0)
        asked = store.get_historical_features(entity_df, ["status"], full_feature_names=True, statuses=True)
        assert asked.to_arrow().column("orders__status").to_pylist() == [7, None]
        asked.to_parquet(tmp_path / "training.parquet", card=True)
    assert [feature.nulls for feature in read_card(tmp_path / "training.parquet").features] == [1]


def test_a_second_project_over_one_history_writes_only_what_changed(tmp_path: Path) -> None:
    """The first project's push deletes the lists of changed keys; the second one still pushes one key, and raises no generation."""
    put(tmp_path, "base", ("ann", T0 + MINUTE), ("bob", T0 + MINUTE))
    view, held = sums(), MemoryOnlineStore()
    projects = [FeatureStore(Registry([view]), Settings(root=tmp_path, project=name), online=held) for name in ("first", "second")]
    with projects[0] as first, projects[1] as second:
        first.compute(now=T0 + HOUR)
        for store in projects:
            store.materialize(now=T0 + HOUR)
        put(tmp_path, "late", ("ann", T0 + 2 * MINUTE))
        first.compute(now=T0 + HOUR, changed=True)
        generation = first.offline.generation(view)
        reports = [store.materialize(now=T0 + HOUR)[0] for store in (first, second)]
        assert [(report.is_complete, report.rows_written) for report in reports] == [(False, 1), (False, 1)]
        assert first.offline.generation(view) == generation


@pytest.mark.parametrize("folder", ["_attempts", "_changes"])
def test_a_side_file_that_a_power_cut_left_empty_stops_nothing(tmp_path: Path, folder: str) -> None:
    """Side files are renamed without being synced: an empty one counts as none, and what it would have told is found out anew."""
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    now = T0 + HOUR
    with store_of(tmp_path, sums()) as store:
        store.compute(now=now)
        store.materialize(now=now)
        put(tmp_path, "base", ("ann", T0 + MINUTE), *([("ann", T0 + 2 * MINUTE)] if folder == "_changes" else []))
        store.compute(now=now, changed=True)
        (side,) = (store.offline.folder(store.registry.view("counts")) / folder).iterdir()
        side.write_bytes(b"")
        store.compute(now=now, changed=True)
        store.materialize(now=now)
        assert online(store, "ann", now) == answers(store, ["n"], [now])[0]


HAS_READ, MAY_WRITE = threading.Event(), threading.Event()


def counted(watches: duckdb.DuckDBPyRelation) -> pa.Table:
    """Count a window's watches; in the thread that is called slow, take time between reading and writing."""
    rows = watches.aggregate("user_id, count(*) as n", "user_id").to_arrow_table()
    if threading.current_thread().name == "slow":
        HAS_READ.set()
        assert MAY_WRITE.wait(60)
    return rows


class Overtaken(Attempts):
    """Attempts of a store whose process is overtaken by another one between finding a window unchanged and saying so."""

    other: threading.Thread

    def keep(self, view: FeatureView, window: Window, attempt: Attempt) -> None:
        """Let the other process write first, if nothing holds it up."""
        MAY_WRITE.set()
        self.other.join(1)
        super().keep(view, window, attempt)


def test_a_window_found_unchanged_says_so_of_the_file_that_it_was_compared_with(tmp_path: Path) -> None:
    """Two processes at one window: where the one with older rows writes last, its file is pending, whatever the other one found."""
    view = FeatureView(
        "counts", entity=user, sources=[watches], query=counted, features=[Feature("n", int)], schedule="@hourly", start=T0, lookback=HOUR
    )
    now = T0 + HOUR
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    with store_of(tmp_path, view) as store, store_of(tmp_path, view) as other:
        store.compute(now=now)
        put(tmp_path, "base", ("ann", T0 + MINUTE), ("bob", T0 + MINUTE))
        slow = threading.Thread(target=lambda: other.compute(start=T0, end=now, now=now), name="slow")
        slow.start()
        assert HAS_READ.wait(60)
        put(tmp_path, "base", ("ann", T0 + MINUTE))
        store.offline.attempts = Overtaken(store.offline.root)
        store.offline.attempts.other = slow
        (report,) = store.compute(start=T0, end=now, now=now)
        assert report.outcome == "unchanged"
        slow.join(60)
        assert answers(store, ["n"], [now], ["bob"]) == [(1, PRESENT)]
        assert hours(look(store, now).waiting) == [1]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Return a project with five days of plays; its online store is stopped in the end."""
    with open_project(tmp_path, [few, activity]) as project:
        yield project


few = replace(profile, features=[Feature("plays", int, expect=[between(0, 24)]), Feature("last_title", str)])


def evaluate(project: Project, name: str, cursor: str | None) -> dg.SensorExecutionData:
    """Evaluate a sensor once."""
    definitions = project.definitions
    repository = definitions.get_repository_def()
    resources = {"online_store": (definitions.resources or {})["online_store"]}
    with dg.build_sensor_context(instance=project.instance, repository_def=repository, cursor=cursor, resources=resources) as context:
        return definitions.resolve_sensor_def(name).evaluate_tick(context)


ALIEN = {"views": {"profile": {"late": []}}, "sources": [], "profile": 1}
CURSORS = {"no JSON": "garbage", "a list": "[]", "another version's": json.dumps(ALIEN)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["late_data", "freshness"])
@pytest.mark.parametrize("cursor", CURSORS.values(), ids=CURSORS)
def test_a_sensor_begins_anew_where_its_cursor_cannot_be_read(project: Project, name: str, cursor: str) -> None:
    """A cursor that fails would fail with every tick, for ever: only a person at the database could help."""
    assert project.run(*(feature_key(few, feature) for feature in few.feature_by_name), online_key(few), first=key(0)).success
    found = evaluate(project, name, cursor)
    assert found.asset_events
    assert evaluate(project, name, found.cursor).asset_events == []


HOOKS: list[Callable[[], None]] = []


def hooked(plays: duckdb.DuckDBPyRelation) -> pa.Table:
    """Count plays; what happens meanwhile happens after they were read."""
    rows = plays.aggregate("user_id, count(*) as n", "user_id").to_arrow_table()
    while HOOKS:
        HOOKS.pop()()
    return rows


@pytest.mark.slow
def test_a_file_that_changes_while_its_window_is_computed_is_marked_later(project: Project) -> None:
    """The sensor may look between change and write, when there is no window to mark; it must look again after it was written."""
    view = FeatureView(
        "hooked", entity=user, sources=few.sources, query=hooked, features=[Feature("n", int)], schedule="@daily", start=START
    )
    project.registry = Registry([view])
    cursors: list[str | None] = []

    def meanwhile() -> None:
        write_day(project.settings.root, START, users=("ann", "bob", "zoe"))
        cursors.append(evaluate(project, "late_data", None).cursor)

    HOOKS.append(meanwhile)
    now = START + DAY
    with FeatureStore(project.registry, project.settings) as store:
        store.compute(start=START, end=now, now=now)
    pending = pending_windows(view, project.store, source_files(view, project.settings.root, project.store.source_footers), now)
    assert [window.start for window in pending.waiting] == [START]
    marks = json.loads(evaluate(project, "late_data", cursors[0]).cursor or "{}")["views"]["hooked"]
    assert marks["waiting"] == 1


@pytest.mark.slow
def test_a_rejected_window_whose_first_run_died_unreported_is_not_asked_for_with_every_tick(project: Project) -> None:
    """It waits until something changes, like every rejected window."""
    assert project.run(*(feature_key(few, feature) for feature in few.feature_by_name), first=key(0)).success
    for feature in few.feature_by_name:
        project.instance.wipe_assets([feature_key(few, feature)])  # as if the run had been killed between its file and its report
    write_day(project.settings.root, START, users=("ann", "bob", "ann"))
    assert not project.run(*(feature_key(few, feature) for feature in few.feature_by_name), first=key(0)).success
    pending = pending_windows(few, project.store, source_files(few, project.settings.root, project.store.source_footers), START + DAY)
    assert (len(pending.rejected), pending.due) == (1, [])
    assert project.tick(few, START + DAY) == []


@pytest.mark.slow
def test_a_rejection_of_an_old_window_does_not_hold_up_a_newer_good_one(project: Project) -> None:
    """What was promoted is good and is to be pushed; rejected rows are in no history, so a push cannot show them."""
    features = [feature_key(few, feature) for feature in few.feature_by_name]
    project.pushes()
    assert project.run(*features, first=key(1)).success
    write_day(project.settings.root, START, users=("ann", "bob", "ann"))
    assert not project.run(*features, first=key(0)).success
    assert "profile" in project.pushes()
