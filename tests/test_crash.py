"""Processes killed in the middle: the old file or the new one, key by key the old value or the new one, and a re-run completes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offline_project import HOUR, MICROS, NOW, T0, history_view, store_of, user, watches, write

from feature_platform import Aggregate, Feature, FeatureStore, FeatureView
from feature_platform.online.embedded import EmbeddedOnlineStore, stop_server

CHILD = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_crash import *
root = Path({root!r})
{body}
"""


def views() -> list[FeatureView]:
    """Return one big table computed as one, and hourly counts."""
    counts = FeatureView(
        "counts", entity=user, sources=[watches], schedule="@hourly", start=T0, features=[Aggregate("n", "count", window=3 * HOUR)]
    )
    return [history_view(features=[Feature("value", int)]), counts]


def write_values(root: Path, number: int, rows: int) -> None:
    """Write a source in which every user has one value."""
    users = pa.array([f"u{i}" for i in range(rows)])
    times = pa.array([T0] * rows, MICROS)
    write(root, pa.table({"user_id": users, "event_timestamp": times, "value": pa.array([number] * rows, pa.int64())}), "values")


def child(root: Path, body: str) -> subprocess.Popen[str]:
    """Start a process that runs some lines over the project."""
    code = CHILD.format(tests=str(Path(__file__).parent), root=str(root), body=body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a child; return its exit code and what it wrote."""
    out, errors = process.communicate(timeout=120)
    return process.returncode, out + errors


def kill_at(point: str, times: int = 1) -> str:
    """Return lines that kill the process with SIGKILL at the n-th call of a function of os or Path, before it acts."""
    return f"""
import os, signal
calls = 0
def killed(*arguments, **options):
    global calls
    calls += 1
    if calls == {times}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
"""+ {
        "fsync": "real, os.fsync = os.fsync, killed",
        "replace": "real, Path.replace = Path.replace, killed",
    }[point]  # fmt: skip


POINTS = {
    "after-the-changed-keys-are-written": ("fsync", 1),
    "before-the-changed-keys-are-renamed": ("replace", 1),
    "after-the-file-is-written": ("fsync", 2),
    "before-the-counter-is-synced": ("fsync", 3),
    "before-the-counter-is-renamed": ("replace", 2),
    "before-the-file-is-renamed": ("replace", 3),
    "after-the-file-is-renamed": ("fsync", 4),
}


def assert_whole(store: FeatureStore, view: FeatureView) -> set[int]:
    """Check that every file can be read, and no generation is ahead of the counter; return the values that stand there."""
    found: set[int] = set()
    for partition in store.offline.partitions(view):
        table = pq.read_table(store.offline.path(view, partition.window))
        assert table.num_rows == partition.rows
        assert partition.generation <= store.offline.generation(view)
        found |= set(table["value"].to_pylist())
    return found


@pytest.mark.parametrize(("point", "times"), POINTS.values(), ids=POINTS)
def test_killed_at_any_step_of_a_write_the_file_is_old_or_new(tmp_path: Path, point: str, times: int) -> None:
    """Never half; the generation never falls; the next write clears what was left and completes."""
    view = views()[0]
    write_values(tmp_path, 1, 1_000)
    with store_of(tmp_path, view) as store:
        before = store.compute(now=NOW)[0].partition.generation
        write_values(tmp_path, 2, 1_000)
        code, output = finish(child(tmp_path, kill_at(point, times) + "\nstore_of(root, views()[0]).compute(now=NOW)"))
        assert code == -signal.SIGKILL, output
        assert assert_whole(store, view) == {2 if (point, times) == POINTS["after-the-file-is-renamed"] else 1}
        assert store.offline.generation(view) >= before
        after = store.compute(now=NOW)[0].partition.generation
        assert after > before
        assert assert_whole(store, view) == {2}
        write_values(tmp_path, 3, 1_000)
        store.compute(now=NOW)
        assert not list(store.offline.folder(view).rglob(".*.tmp"))
        assert store.offline.changes(view, after=store.offline.generation(view), until=10**18) == {}


@pytest.mark.slow
def test_killed_at_random_a_big_write_leaves_old_or_new(tmp_path: Path) -> None:
    """Round after round: whatever the moment, readers see one whole file, and a new store finds it."""
    view = views()[0]
    noise = random.Random(time.time_ns())
    last = 0
    for number in range(5):
        write_values(tmp_path, number, 50_000)
        process = child(tmp_path, "print('ready', flush=True)\nstore_of(root, views()[0]).compute(now=NOW)")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(noise.uniform(0, 0.25))
        process.kill()
        process.communicate()
        with store_of(tmp_path, view) as store:
            assert assert_whole(store, view) <= set(range(number + 1))
            generation = store.offline.generation(view)
            assert generation >= last
            (report,) = store.compute(now=NOW)
            last = report.partition.generation
            assert last > generation or generation == 0 or report.outcome == "unchanged"
            assert assert_whole(store, view) == {number}


def test_two_processes_computing_one_view_lose_nothing(tmp_path: Path) -> None:
    """Overlapping ranges at once: every window is there, every generation is used once, the answers are those of one process."""
    times = pa.array([T0 + i * timedelta(minutes=7) for i in range(200)], MICROS)
    write(tmp_path, pa.table({"user_id": [f"u{i % 5}" for i in range(200)], "at": times}))
    body = "store_of(root, views()[1]).compute('counts', start=T0 + {} * HOUR, end=T0 + {} * HOUR, now=NOW)"
    processes = [child(tmp_path, body.format(low, high)) for low, high in ((0, 16), (8, 24))]
    assert [finish(one)[0] for one in processes] == [0, 0]
    view = views()[1]
    entity_df = pa.table(
        {"user_id": [f"u{i % 5}" for i in range(120)], "event_timestamp": pa.array([T0 + (1 + i // 5) * HOUR for i in range(120)], MICROS)}
    )
    with store_of(tmp_path, view) as store:
        partitions = store.offline.partitions(view)
        assert len(partitions) == 24
        assert len({one.generation for one in partitions}) == 24
        together = store.get_historical_features(entity_df, ["counts:n"]).to_arrow()
        store.compute(start=T0, end=T0 + 24 * HOUR, now=NOW)
        assert store.get_historical_features(entity_df, ["counts:n"]).to_arrow().equals(together)


# -- materialization -----------------------------------------------------------------------------------------------------


@pytest.fixture
def online(tmp_path: Path) -> Iterator[EmbeddedOnlineStore]:
    """Start the project's embedded server, and stop it afterwards."""
    store = EmbeddedOnlineStore(tmp_path / "data/online")
    yield store
    store.close()
    stop_server(tmp_path / "data/online")


MATERIALIZE = (
    "store = FeatureStore(Registry([views()[0]]), Settings(root=root))\nprint('ready', flush=True)\nstore.materialize(now=NOW + HOUR)"
)
IMPORTS = "from feature_platform import Registry, Settings\n"


def test_killed_in_a_materialization_each_key_is_old_or_new(tmp_path: Path, online: EmbeddedOnlineStore) -> None:
    """The meta moves last: until then nothing vanishes; running it again completes."""
    view = views()[0]
    rows = 25_000
    noise = random.Random(time.time_ns())
    write_values(tmp_path, 0, rows)
    asked = [{"user_id": f"u{i}"} for i in range(0, rows, 97)]
    with store_of(tmp_path, view, online=online) as store:
        store.compute(now=NOW)
        store.materialize(now=NOW)
        for number in range(1, 4):
            write_values(tmp_path, number, rows)
            store.compute(now=NOW)
            process = child(tmp_path, IMPORTS + MATERIALIZE)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(noise.uniform(0.05, 0.35))
            process.kill()
            process.communicate()
            during = store.get_online_features(["values:value"], asked, now=NOW).to_dict()["value"]
            assert set(during) <= {number - 1, number}
            (report,) = store.materialize(now=NOW + HOUR)
            # Nothing is left to do where the child had come to its end before it was killed.
            assert report.rows_written + report.rows_unchanged == (0 if set(during) == {number} and not report.rows_read else rows)
            assert set(store.get_online_features(["values:value"], asked, now=NOW).to_dict()["value"]) == {number}


def test_two_materializers_at_once_are_like_one(tmp_path: Path, online: EmbeddedOnlineStore) -> None:
    """They take turns; both succeed, and the answers are those of the history."""
    view = views()[0]
    write_values(tmp_path, 7, 20_000)
    with store_of(tmp_path, view, online=online) as store:
        store.compute(now=NOW)
        processes = [child(tmp_path, IMPORTS + MATERIALIZE) for _ in range(2)]
        assert [finish(one)[0] for one in processes] == [0, 0]
        asked = [{"user_id": f"u{i}"} for i in range(0, 20_000, 53)]
        assert set(store.get_online_features(["values:value"], asked, now=NOW).to_dict()["value"]) == {7}


def test_a_write_waits_for_no_reader(tmp_path: Path) -> None:
    """A file that is being read can be replaced: the reader keeps the old one whole."""
    view = views()[0]
    write_values(tmp_path, 1, 10_000)
    with store_of(tmp_path, view) as store:
        path = store.compute(now=NOW)[0].path
        with pq.ParquetFile(path) as reader:
            write_values(tmp_path, 2, 10_000)
            store.compute(now=NOW)
            assert set(reader.read()["value"].to_pylist()) == {1}
        assert assert_whole(store, view) == {2}
        assert not list(path.parent.glob(".*.tmp"))
