"""Compaction and kept states: fewer files and rows are read, and no answer changes, whatever happens before, meanwhile and after."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from offline_project import DAY, HOUR, MINUTE, NOW, T0, answers, put, store_of, user
from opened_files import opened_files

from feature_platform import Aggregate, Feature, FeatureStore, FeatureView, ParquetSource
from feature_platform.dtypes import to_micros
from feature_platform.errors import ContractError
from feature_platform.offline.catalog import COMPACTED
from feature_platform.offline.kept_states import keep_state, newest_state
from feature_platform.offline.newest import NewestRows
from feature_platform.offline.query import configure

SOURCE = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at")
ENDS = [T0 + hour * HOUR for hour in range(73)]
USERS = ["ann", "bob", "cid"]


def counts(**options: Any) -> FeatureView:
    """Return hourly counts."""
    arguments: dict[str, Any] = {"entity": user, "sources": [SOURCE], "schedule": "@hourly", "start": T0}
    arguments["features"] = [Aggregate("n", "count", window=5 * HOUR)]
    return FeatureView("counts", **(arguments | options))


def events(**options: Any) -> FeatureView:
    """Return hourly rows, some known late."""
    query = 'select user_id, "at" as event_timestamp, known_at as created_timestamp, minute("at") as minute from watches'
    arguments: dict[str, Any] = {"entity": user, "sources": [SOURCE], "schedule": "@hourly", "start": T0, "query": query}
    return FeatureView("events", features=[Feature("minute", int)], **(arguments | options))


def snapshots(**options: Any) -> FeatureView:
    """Return an hourly snapshot."""
    query = "select user_id, count(*) as n from watches group by user_id"
    arguments: dict[str, Any] = {"entity": user, "sources": [SOURCE], "schedule": "@hourly", "start": T0, "query": query}
    return FeatureView("snapshots", features=[Feature("n", int)], lookback=4 * HOUR, **(arguments | options))


def fill(root: Path, *, rows: int = 200, seed: int = 7) -> None:
    """Write watches over three days, every fifth one known some hours late."""
    noise = random.Random(seed)
    made = []
    for _ in range(rows):
        at = T0 + timedelta(minutes=noise.randrange(72 * 60))
        made.append((noise.choice(USERS), at, at + noise.choice([0, 0, 0, 0, 3, 30]) * HOUR))
    put(root, "base", *made)


def everything(store: FeatureStore) -> dict[str, list[Any]]:
    """Return all answers at every hour, and what is newest at some moments."""
    asked_users = [one for _ in ENDS for one in USERS]
    times = [end for end in ENDS for _ in USERS]
    found: dict[str, list[Any]] = {}
    for view in store.registry.views.values():
        names = [f"{view.name}:{name}" for name in view.feature_by_name]
        found[view.name] = answers(store, names, times, asked_users)
        with duckdb.connect() as connection:
            configure(connection)
            for moment in ENDS[::7]:
                newest = NewestRows.at(view, store.offline, moment)
                rows = newest.rows().sql
                found[f"{view.name} {moment}"] = [] if rows is None else sorted(connection.sql(rows).fetchall())
                found[f"{view.name} {moment} times"] = list(newest.newest_times(connection))
    return found


def keep(store: FeatureStore, view: FeatureView, hour: int) -> bool:
    """Keep a state as of an hour."""
    with duckdb.connect() as connection:
        configure(connection)
        return keep_state(connection, view, store.offline, to_micros(T0 + hour * HOUR))


@pytest.mark.parametrize(
    "view", [counts(), events(), snapshots(), events(delay=90 * MINUTE, ttl=9 * HOUR)], ids=["aggregate", "event", "snapshot", "delayed"]
)
def test_no_answer_changes(tmp_path: Path, view: FeatureView) -> None:
    """Before and after, every answer and every newest row is the same, and there are few files."""
    fill(tmp_path)
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 72 * HOUR, now=NOW)
        before = everything(store)
        (report,) = store.compact(now=T0 + 60 * HOUR)
        assert (report.days, report.merged, report.files) == (2, 48, 2 + 24)
        assert everything(store) == before
        (again,) = store.compact(now=T0 + 60 * HOUR)
        assert (again.days, again.merged, again.states, again.deleted) == (0, 0, 0, 0)
        store.compact(now=NOW)
        assert len({one.file for one in store.offline.partitions(view)}) == 3
        assert everything(store) == before
    with store_of(tmp_path, view) as store, opened_files(store.offline.folder(view)) as opened:
        assert everything(store) == before
    assert not opened, "merged files are not read any more"


@pytest.mark.parametrize(
    "view", [counts(late_data_horizon=30 * DAY), events(), snapshots(late_data_horizon=30 * DAY)], ids=["aggregate", "event", "snapshot"]
)
@pytest.mark.parametrize("seed", range(4))
def test_late_rows_are_answered_as_without_it(tmp_path: Path, view: FeatureView, seed: int) -> None:
    """Windows computed again after they were merged, states that stand for a replaced window: brute force is a history never merged."""
    fill(tmp_path, seed=seed)
    noise = random.Random(seed)
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    for root in (plain, kept):
        root.mkdir()
        (root / "source").symlink_to(tmp_path / "source")
    with store_of(plain, view) as one, store_of(kept, view) as other:
        for step in range(4):
            until = T0 + (24 + 16 * step) * HOUR
            for store in (one, other):
                store.compute(end=min(until, T0 + 72 * HOUR), now=NOW)
                store.compute(changed=True, now=NOW, end=until)
            for hour in noise.sample(range(1, 73), 3):
                keep(other, view, hour)
            if step % 2:
                other.compact(now=until)
            assert everything(other) == everything(one)
            at = T0 + noise.randrange(72 * 60) * MINUTE
            put(tmp_path, f"late{step}", (noise.choice(USERS), at, at + noise.choice([0, 2]) * HOUR))
            if step == 2:
                other.offline.path(view, one.offline.partitions(view)[0].window).unlink(missing_ok=True)
                one.offline.path(view, one.offline.partitions(view)[0].window).unlink(missing_ok=True)
                for path in (other.offline.folder(view) / COMPACTED).glob("*.parquet"):
                    assert path.stat().st_size


def test_a_state_that_stands_for_a_replaced_window_counts_no_more(tmp_path: Path) -> None:
    """Of two states, the one before the replaced window still does."""
    put(tmp_path, "base", ("ann", T0 + MINUTE), ("bob", T0 + 30 * HOUR))
    view = events()
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 48 * HOUR, now=NOW)
        assert keep(store, view, 10)
        assert keep(store, view, 40)
        assert not keep(store, view, 40)
        late = to_micros(T0 + 48 * HOUR)
        assert (found := newest_state(view, store.offline, late)) is not None
        assert found.until == to_micros(T0 + 40 * HOUR)
        put(tmp_path, "late", ("ann", T0 + 20 * HOUR))
        store.compute(changed=True, now=NOW)
        assert (found := newest_state(view, store.offline, late)) is not None
        assert found.until == to_micros(T0 + 10 * HOUR)
        with duckdb.connect() as connection:
            configure(connection)
            newest = connection.sql(NewestRows.at(view, store.offline, NOW).rows().sql or "").fetchall()
        assert {row[0]: row[1] for row in newest} == {
            "ann": (T0 + 20 * HOUR).replace(tzinfo=None),
            "bob": (T0 + 30 * HOUR).replace(tzinfo=None),
        }


def test_a_file_written_over_in_place_ends_the_states_that_stand_for_it(tmp_path: Path) -> None:
    """As some tools restore a backup: the folder does not tell, the file does."""
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    view = events()
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 10 * HOUR, now=NOW)
        path = store.offline.path(view, store.offline.partitions(view)[5].window)
        before = path.read_bytes()
        put(tmp_path, "late", ("ann", T0 + 5 * HOUR + MINUTE))
        store.compute(changed=True, now=NOW)
        keep(store, view, 8)
        time.sleep(0.1)
        assert newest_state(view, store.offline, to_micros(NOW)) is not None
        time.sleep(0.1)
        path.write_bytes(before)
        assert newest_state(view, store.offline, to_micros(NOW)) is None
        with duckdb.connect() as connection:
            configure(connection)
            ((_, newest, *_),) = connection.sql(NewestRows.at(view, store.offline, NOW).rows().sql or "").fetchall()
        assert newest == (T0 + MINUTE).replace(tzinfo=None)


def test_what_is_newest_is_read_from_a_state_and_what_came_after(tmp_path: Path) -> None:
    """However long the history is: the state's file and the partitions since, counted as they are opened."""
    fill(tmp_path)
    for view in (events(), counts()):
        with store_of(tmp_path, view) as store:
            store.compute(end=T0 + 72 * HOUR, now=NOW)
            store.offline.partitions(view)
            keep(store, view, 66)
            folder = store.offline.folder(view)
            with opened_files(folder, folder / "_states") as opened:
                store.materialize(now=T0 + 72 * HOUR)
        recent = {f"{T0 + hour * HOUR:%Y-%m-%dT%H%MZ}.parquet" for hour in range(66, 72)}
        assert opened <= recent | {f"{T0 + 66 * HOUR:%Y-%m-%dT%H%MZ}.parquet"}
        assert len(opened) > 1


def test_a_later_definition_is_never_answered_by_an_earlier_state(tmp_path: Path) -> None:
    """A state belongs to the definition that computed its partitions."""
    fill(tmp_path)
    with store_of(tmp_path, counts()) as store:
        store.compute(end=T0 + 30 * HOUR, now=NOW)
        keep(store, counts(), 24)
    changed = counts(features=[Aggregate("n", "count", window=2 * HOUR)])
    with store_of(tmp_path, changed) as store:
        assert newest_state(changed, store.offline, to_micros(NOW)) is None
        store.compute(end=T0 + 30 * HOUR, start=T0, now=NOW)
        before = everything(store)
        assert keep(store, changed, 24)
        assert everything(store) == before


def test_a_reader_that_is_under_way_keeps_its_files(tmp_path: Path) -> None:
    """What was merged is deleted by a later compaction, once a day has passed."""
    fill(tmp_path)
    view = events()
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 48 * HOUR, now=NOW)
        listed = store.offline.partitions(view)
        store.compact(now=NOW)
        assert all(store.offline.file(view, one).exists() for one in listed)
        assert store.compact(now=NOW)[0].deleted == 0
        yesterday = time.time() - 25 * 3600
        for path in (store.offline.folder(view) / COMPACTED).glob("*.parquet"):
            os.utime(path, (yesterday, yesterday))
        before = everything(store)
        assert store.compact(now=NOW)[0].deleted == 48
        assert not list(store.offline.folder(view).glob("*.parquet"))
        assert everything(store) == before
        assert store.compute(now=T0 + 48 * HOUR) == []
        # A window is replaced, and its day merged again: the file of before waits for its day, too.
        put(tmp_path, "late", ("ann", T0 + 10 * HOUR + MINUTE))
        store.compute(changed=True, now=NOW)
        after = everything(store)
        assert after != before
        assert store.compact(now=NOW)[0].days == 1
        assert len(list((store.offline.folder(view) / COMPACTED).glob("*.parquet"))) == 3
        assert everything(store) == after


def test_no_file_is_deleted_for_a_merged_one_that_was_damaged_since(tmp_path: Path) -> None:
    """Nothing but the file itself tells so, and the files that it was merged from are then all there is of its day."""
    fill(tmp_path)
    view = events()
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 48 * HOUR, now=NOW)
        store.compact(now=NOW)
        before = everything(store)
        yesterday = time.time() - 25 * 3600
        merged = sorted((store.offline.folder(view) / COMPACTED).glob("*.parquet"))
        for path in merged:
            os.utime(path, (yesterday, yesterday))
        store.offline.partitions(view)
        time.sleep(0.1)
        store.offline.partitions(view)
        merged[0].write_bytes(merged[0].read_bytes()[:100])
        os.utime(merged[0], (yesterday, yesterday))
        assert store.offline.delete_superseded(view, before=time.time() - 24 * 3600) == 24
        assert everything(store) == before


def test_rows_that_a_footer_does_not_tell_are_not_merged(tmp_path: Path) -> None:
    """A file that lost rows is left as it is, and said."""
    fill(tmp_path)
    view = events()
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 24 * HOUR, now=NOW)
        path = max(store.offline.folder(view).glob("*.parquet"), key=lambda one: pq.read_metadata(one).num_rows)
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path)
        with pytest.raises(ContractError, match="Nothing was merged"):
            store.compact(now=NOW)
        assert not list((store.offline.folder(view) / COMPACTED).glob("*"))


CHILD = """
import os, signal, sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_compaction import *
from feature_platform.offline import catalog, store as stores
calls = 0
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == {at}: os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
Path.replace, Path.unlink, stores.sync, catalog.Catalog.put = map(dying, (Path.replace, Path.unlink, stores.sync, catalog.Catalog.put))
with store_of(Path({root!r}), {view}()) as store:
    store.compact(now=NOW)
"""


@pytest.mark.parametrize("view", [events, counts])
def test_a_crash_at_any_step_changes_no_answer(tmp_path: Path, view: Any) -> None:
    """Killed at the n-th step that writes, replaces or deletes, for every n: the answers stay, and a later run completes it."""
    fill(tmp_path, rows=40)
    with store_of(tmp_path, view()) as store:
        store.compute(end=T0 + 48 * HOUR, now=NOW)
        before = everything(store)
    at, killed = 0, -signal.SIGKILL
    while killed == -signal.SIGKILL:
        at += 1
        root = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "data", root / "data")
        code = CHILD.format(tests=str(Path(__file__).parent), root=str(root), view=view.__name__, at=at)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        killed = done.returncode
        with store_of(root, view()) as store:
            assert everything(store) == before, f"killed at step {at}"
            store.compact(now=NOW)
            assert everything(store) == before, f"killed at step {at}, and run again"
            assert len({one.file for one in store.offline.partitions(view())}) == 2
    assert killed == 0, done.stderr
    assert at > 10
