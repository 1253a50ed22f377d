"""The catalog of footers: it answers like the folder, whoever changed that, and opens no file that it knows."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offline_project import DAY, HOUR, MICROS, NOW, T0, answers, asked, put, store_of, user, watches
from opened_files import opened_files

from feature_platform import Aggregate, Feature, FeatureStore, FeatureView, ParquetSource
from feature_platform.dtypes import to_micros
from feature_platform.offline.catalog import Catalog
from feature_platform.offline.partition import Partition
from feature_platform.offline.store import OfflineStore
from feature_platform.windows import Window


def hourly(**options: object) -> FeatureView:
    """Return an hourly event view."""
    source = ParquetSource("watches", "source/watches.parquet", timestamp="at")
    query = 'select user_id, "at" as event_timestamp, 1 as n from watches'
    arguments: dict[str, object] = {"sources": [source], "query": query, "features": [Feature("n", int)]}
    arguments |= {"entity": user, "schedule": "@hourly", "start": T0}
    return FeatureView("events", **(arguments | options))  # type: ignore[arg-type]


def fill(store: OfflineStore, view: FeatureView, windows: int, *, first: int = 0) -> list[Window]:
    """Write partitions of one row each, as computing would, without computing."""
    folder = store.folder(view)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(first, first + windows):
        window = Window(T0 + number * HOUR, T0 + (number + 1) * HOUR)
        partition = Partition(
            view=view.name,
            start=to_micros(window.start),
            end=to_micros(window.end),
            is_full=False,
            definition=view.definition_hash,
            columns={"n": "int"},
            kind=str(view.kind),
            keys={"user_id": "str"},
            generation=number + 1,
            rows=1,
            max_event_timestamp=to_micros(window.start),
        )
        row = pa.table(
            {"user_id": ["ann"], "event_timestamp": pa.array([window.start.replace(tzinfo=None)], pa.timestamp("us")), "n": [number]}
        )
        pq.write_table(row.replace_schema_metadata({"feature_platform": partition.to_json()}), store.path(view, window))
        made.append(window)
    return made


def settled(folder: Path) -> None:
    """Wait until a change of the folder counts as one that is over."""
    time.sleep(0.06)
    assert folder.is_dir()


def test_two_years_of_hours_are_read_without_opening_those_not_asked_for(tmp_path: Path) -> None:
    """A join over one week opens the files of that week and of the ttl before it, in a process that knows the catalog only."""
    view = hourly(ttl=DAY)
    with store_of(tmp_path, view) as store:
        fill(store.offline, view, 2 * 365 * 24)
        settled(store.offline.folder(view))
        assert len(store.offline.partitions(view)) == 17_520
    week = [T0 + 500 * DAY + hour * HOUR for hour in range(7 * 24)]
    with store_of(tmp_path, view) as store, opened_files(store.offline.folder(view)) as opened:
        assert [value for value, _ in answers(store, ["events:n"], week)] == [500 * 24 + hour for hour in range(7 * 24)]
    # With statuses, what is past its ttl is told from what never was: without them, only a week and a day are read.
    with store_of(tmp_path, view) as store, opened_files(store.offline.folder(view)) as opened:
        joined = store.get_historical_features(asked(week), ["events:n"]).to_arrow()
    assert joined["n"].to_pylist() == [500 * 24 + hour for hour in range(7 * 24)]
    expected = {f"{T0 + 499 * DAY + hour * HOUR:%Y-%m-%dT%H%MZ}.parquet" for hour in range(8 * 24)}
    assert opened <= expected
    assert len(opened) >= 7 * 24


def test_a_catalog_is_as_good_as_the_folder(tmp_path: Path) -> None:
    """Whatever is copied in, deleted, overwritten in place or moved behind its back, listing it again gives what is there."""
    view, noise = hourly(), random.Random(7)
    store = OfflineStore(tmp_path / "data")
    windows = fill(store, view, 30)
    folder, spare = store.folder(view), tmp_path / "spare"
    settled(folder)
    for _ in range(60):
        path = store.path(view, noise.choice(windows))
        match noise.randrange(4):
            case 0:
                path.unlink(missing_ok=True)
            case 1:
                spare.mkdir(exist_ok=True)
                number = noise.randrange(30)
                other = OfflineStore(spare)
                (window,) = fill(other, view, 1, first=number)
                shutil.copy(other.path(view, window), store.path(view, window))
            case 2:
                if path.exists():
                    path.write_bytes(path.read_bytes())  # in place: no name changes
            case _:
                store.catalog(view).close()
        fresh = Catalog(store.folder(view), tmp_path / f"fresh{noise.random()}.sqlite")
        expected = [(one.window, one.generation) for one in fresh.partitions()]
        assert [(one.window, one.generation) for one in store.partitions(view)] == expected
        assert {one.key for one, _ in expected} == {one.stem for one in folder.glob("*.parquet")}


def test_a_known_file_is_not_opened_again(tmp_path: Path) -> None:
    """A new process opens no footer that the catalog has, and one footer where one file is new."""
    view = hourly()
    fill(OfflineStore(tmp_path), view, 40)
    settled(tmp_path / "events")
    assert len(OfflineStore(tmp_path).partitions(view)) == 40
    with opened_files(tmp_path / "events") as opened:
        assert len(OfflineStore(tmp_path).partitions(view)) == 40
        assert OfflineStore(tmp_path).summary(view).partitions == 40
    assert not opened
    fill(OfflineStore(tmp_path), view, 1, first=40)
    with opened_files(tmp_path / "events") as opened:
        assert len(OfflineStore(tmp_path).partitions(view)) == 41
    assert opened == {f"{T0 + 40 * HOUR:%Y-%m-%dT%H%MZ}.parquet"}


def test_a_write_does_not_list_the_folder(tmp_path: Path) -> None:
    """A year of hours is written in the time of its files, not of their square."""
    put(tmp_path, "watches", ("ann", T0), ("ann", T0 + 20 * HOUR))
    source = ParquetSource("watches", "source/*.parquet", timestamp="at")
    view = FeatureView("n", entity=user, sources=[source], features=[Aggregate("n", "count", window=HOUR)], schedule="@hourly", start=T0)
    listed: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, arguments: listed.append(str(arguments[0])) if watching and event == "os.scandir" else None)
    with store_of(tmp_path, view) as store:
        assert len(store.compute(end=T0 + 30 * HOUR, now=NOW)) == 30
        watching.clear()
        assert listed.count(str(store.offline.folder(view))) <= 3


@pytest.mark.parametrize("damage", [b"", b"no database at all, only words" * 100], ids=["emptied", "garbage"])
def test_a_damaged_catalog_is_made_again(tmp_path: Path, damage: bytes) -> None:
    """Nothing is lost with it."""
    view = hourly()
    fill(OfflineStore(tmp_path), view, 5)
    store = OfflineStore(tmp_path)
    assert len(store.partitions(view)) == 5
    store.close()
    path = tmp_path / "_catalog" / "events.sqlite"
    path.write_bytes(damage)
    assert len(OfflineStore(tmp_path).partitions(view)) == 5


def test_a_catalog_that_breaks_while_it_is_open_is_made_again(tmp_path: Path) -> None:
    """So is one whose pages are lost under a process that reads it."""
    view = hourly()
    fill(OfflineStore(tmp_path), view, 300)
    store = OfflineStore(tmp_path)
    assert len(store.partitions(view)) == 300
    path = tmp_path / "_catalog" / "events.sqlite"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    assert len(store.partitions(view)) == 300
    assert store.summary(view).partitions == 300


def test_a_catalog_of_another_version_is_made_again(tmp_path: Path) -> None:
    """An upgrade reads the footers once."""
    view = hourly()
    fill(OfflineStore(tmp_path), view, 5)
    store = OfflineStore(tmp_path)
    assert len(store.partitions(view)) == 5
    store.close()
    with sqlite3.connect(tmp_path / "_catalog" / "events.sqlite") as connection:
        connection.execute("drop view current")
        connection.execute("pragma user_version = 99")
    assert len(OfflineStore(tmp_path).partitions(view)) == 5


def test_where_nothing_can_be_written_it_is_kept_in_memory(tmp_path: Path) -> None:
    """A reader of a read-only folder reads the footers itself."""
    view = hourly()
    fill(OfflineStore(tmp_path), view, 5)
    (tmp_path / "_catalog").write_text("no folder can be made here")
    assert len(OfflineStore(tmp_path).partitions(view)) == 5


def test_threads_and_processes_may_ask_at_once(tmp_path: Path) -> None:
    """Readers and a writer at once: everyone sees whole partitions, and in the end all of them."""
    (tmp_path / "source").mkdir()
    times = pa.array([T0 + minutes * timedelta(minutes=7) for minutes in range(300)], MICROS)
    pq.write_table(pa.table({"user_id": ["ann"] * 300, "at": times}), tmp_path / "source" / "watches.parquet")
    view, wrong = hourly(sources=[watches]), list[object]()
    readers = [OfflineStore(tmp_path / "data/features") for _ in range(2)]
    done = threading.Event()

    def read(store: OfflineStore) -> None:
        seen = 0
        while not done.is_set():
            found = store.partitions(view)
            if len(found) < seen or any(not store.file(view, one).exists() for one in found):
                wrong.append((seen, found))
            seen = len(found)

    threads = [threading.Thread(target=read, args=[store]) for store in (*readers, readers[0])]
    for thread in threads:
        thread.start()
    try:
        with store_of(tmp_path, view) as store:
            store.compute(end=T0 + 30 * HOUR, now=NOW)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(readers[0].partitions(view)) == 30


@pytest.mark.parametrize("meanwhile", ["idle", "writing"])
def test_a_forked_process_opens_the_file_itself(tmp_path: Path, meanwhile: str) -> None:
    """And does without it where it was forked while another thread was writing there: the answers are the same."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import signal; from test_catalog import *
view, store = hourly(), OfflineStore(Path({str(tmp_path)!r}))
fill(store, view, 5)
catalog, inside, leave = store.catalog(view), threading.Event(), threading.Event()
assert len(store.partitions(view)) == 5
ours = catalog._cache.open()

def write():
    with catalog._cache.writing():
        inside.set()
        leave.wait()

thread = threading.Thread(target=catalog._cache.unbroken, args=[write], daemon=True)
if {meanwhile!r} == "writing":
    thread.start()
    inside.wait()
child = os.fork()
if not child:
    signal.alarm(20)  # a lock that nobody holds any more would be waited for without end
    fill(store, view, 1, first=5)
    found, its = len(store.partitions(view)), catalog._cache.open()
    os._exit(100 if its is ours or its.in_transaction else found)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
leave.set()
if thread.ident:
    thread.join()
fill(store, view, 1, first=6)
assert len(store.partitions(view)) == 7
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_files_of_an_earlier_schedule_are_told_apart(tmp_path: Path) -> None:
    """Where windows overlap, the definition of today counts, in every question of time."""
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table({"user_id": ["ann"], "at": pa.array([T0 + HOUR], MICROS)}), tmp_path / "source" / "watches.parquet")
    daily = hourly(schedule="@daily")
    with store_of(tmp_path, daily) as store:
        store.compute(end=T0 + 2 * DAY, now=NOW)
    view = hourly()
    with store_of(tmp_path, view) as store:
        store.compute(start=T0 + 20 * HOUR, end=T0 + 24 * HOUR, now=NOW)
        offline = store.offline
        assert offline.catalog(view).has_overlaps
        # The daily file of the 28th shares instants with four hourly ones of today's definition.
        kept = [one.window.end for one in offline.partitions(view)]
        assert kept == [T0 + 21 * HOUR, T0 + 22 * HOUR, T0 + 23 * HOUR, T0 + 24 * HOUR, T0 + 48 * HOUR]
        assert offline.summary(view).partitions == 5
        assert offline.summary(view, ended_by=to_micros(T0 + 22 * HOUR)).partitions == 2
        assert [one.window.end for one in offline.partitions(view, before=T0 + 10 * HOUR)] == []
    with FeatureStore(store.registry, store.settings) as again:
        (tmp_path / "data/features/events/2026-03-28T0000Z.parquet").unlink()
        assert not again.offline.catalog(view).has_overlaps
    assert os.path.exists(tmp_path / "data/features/_catalog/events.sqlite")  # noqa: PTH110
