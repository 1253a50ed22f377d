"""`FeatureStore.compute` of hours whose predecessors are there, together or one by one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.measuring import Run, peak_rss_mb
from benchmarks.subjects.windows_raw import checksum, state
from benchmarks.windows import Events


def run(*, events: dict[str, Any], root: str, base: str, hours: int, of: int, step: int, checked: int, is_alone: bool = False) -> Run:
    """
    Compute the first hours after the predecessors.

    Args:
        events: As of `Events`.
        root: The project folder.
        base: Holds the predecessors.
        hours: How many are computed.
        of: How many they stand for.
        step: How many at once.
        is_alone: Whether the predecessors are left out, so that everything is computed from the events.
        checked: After how many of the first ones the state is compared; that after the last of all is compared with the raw query.
    """
    shape, features = Events(**events), Path(root) / "data" / "features"
    shutil.rmtree(features, ignore_errors=True)
    if not is_alone:
        shutil.copytree(base, features, copy_function=_link)
    with shape.store(Path(root)) as store:
        started = time.perf_counter()
        for first in range(0, hours, step):
            store.compute(start=shape.hour(first), end=shape.hour(first + step), now=shape.hour(of))
        seconds, peak = (time.perf_counter() - started) / hours * of, peak_rss_mb()
    files = [str(path) for path in sorted(features.glob("activity/*.parquet"))]
    built_on = len(files) - hours
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        found = checksum(connection, shape, [_newest(shape, files[: built_on + number]) for number in range(1, checked + 1)])
        if hours == of:
            last = checksum(connection, shape, [_newest(shape, files)])
            found += "" if last == checksum(connection, shape, [f"from ({state(shape, root, of)})"]) else " and the last hour differs"
    shutil.rmtree(features)
    return Run(seconds=seconds, rate=of / seconds, peak_rss_mb=peak, checksum=found)


def _link(source: str, target: str) -> None:
    """Put a file where the platform finds it; history as the same file, so that the catalog knows it, as it does in a project."""
    if source.endswith(".parquet"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _newest(shape: Events, files: list[str]) -> str:
    """Return the newest row of every user in a row of partitions, as the rest of a SELECT."""
    columns = ", ".join(["user_id", "event_timestamp", *shape.functions, "__tombstone"])
    every = f"select {columns} from read_parquet({files})"
    newest = f"select user_id, max(event_timestamp) as event_timestamp from ({every}) group by user_id"
    return f"from (({every}) semi join ({newest}) using (user_id, event_timestamp)) where not __tombstone"
