"""
A join in buckets of the entity key, so that no step holds more than one of them.

`shuffle` and `join_bucket` are plain functions of plain values and paths: each call may run in another process, or on another
machine that sees the folder. Knows DuckDB and files. Knows nothing of who runs it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb

from feature_platform.offline.asof import drop_spine, join_views
from feature_platform.offline.query import configure, literal, parquet, quote_all
from feature_platform.offline.question import ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from feature_platform.offline.join_plan import ViewPlan

__all__ = ["Buckets", "join_bucket", "join_in_buckets", "shuffle"]

_BUCKET: Final = "__bucket"
_RANGE: Final = "__range"
_RANGE_ROWS: Final = 1_000_000
_SPINE: Final = "spine"
_ANSWERS: Final = "answers"


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """
    What a join in buckets is made of.

    Attributes:
        folder: Holds what is shuffled and joined; whoever made it deletes it.
        count: How many buckets.
        memory_limit: DuckDB's, for each step.
        threads: The same.
    """

    folder: str
    count: int
    memory_limit: str | None = None
    threads: int | None = None


def shuffle(buckets: Buckets, rows: str, keys: Sequence[str], name: str, *, connection: duckdb.DuckDBPyConnection | None = None) -> None:
    """
    Write rows into a folder a bucket, by the hash of their keys.

    Args:
        buckets: Where to, and how many.
        rows: A SELECT.
        keys: Columns of it; equal keys of one type come into one bucket.
        name: Of the folder.
        connection: Where `rows` can be run, where that is not everywhere.
    """
    with contextlib.nullcontext(connection) if connection else _connect(buckets) as runs:
        bucket = f"hash({quote_all(keys)}) % {buckets.count}"
        _write_partitioned(runs, f"select *, {bucket} as {_BUCKET} from ({rows})", Path(buckets.folder) / name, _BUCKET)


def join_bucket(buckets: Buckets, plans: Sequence[ViewPlan], group: str, bucket: int) -> None:
    """
    Join one bucket of the spine to the same bucket of every view; write the answers into a folder for each range of row numbers.

    Args:
        buckets: Where what was shuffled lies.
        plans: Of views of the same join keys, whose histories were shuffled under their index.
        group: Name of the folder of these views.
        bucket: Which one.
    """
    folder = Path(buckets.folder)
    spine_files = _files(folder / group / _SPINE, _BUCKET, bucket)
    if not spine_files:
        return
    with _connect(buckets) as connection:
        connection.execute(f"create temp table {_SPINE} as select * from {parquet(spine_files)}")
        own = []
        for index, plan in enumerate(plans):
            files = _files(folder / group / str(index), _BUCKET, bucket)
            # A view without keys has one row for everybody: it is read whole.
            history = plan.history if not plan.join_keys else f"select * from {parquet(files)}" if files else None
            own.append(replace(plan, history=history, files=tuple(files) or plan.files, rows=plan.rows // buckets.count))
        sql = join_views(connection, own, _SPINE)
        ranged = f"select *, {ROW} // {_RANGE_ROWS} as {_RANGE} from ({sql})"
        _write_partitioned(connection, ranged, folder / group / _ANSWERS, _RANGE, prefix=f"{bucket}_")
        drop_spine(connection, own, _SPINE)


def join_in_buckets(
    connection: duckdb.DuckDBPyConnection,
    buckets: Buckets,
    plans: Sequence[ViewPlan],
    spine: str,
    rows: int,
    columns: Sequence[str],
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[str]:
    """
    Shuffle, join bucket by bucket, and yield the SELECT of the result columns for each range of rows, in the spine's order.

    Args:
        connection: Holds the spine, which is dropped once it is shuffled.
        buckets: Where, and how many.
        plans: Of all views.
        spine: Table of row numbers, join keys and times.
        rows: Of the spine.
        columns: Of the result.
        progress: Told of the buckets.
    """
    by_keys = sorted(plans, key=lambda plan: plan.join_keys)
    groups = {f"group_{index}": list(its) for index, (_, its) in enumerate(groupby(by_keys, key=lambda plan: plan.join_keys))}
    steps = len(groups) * buckets.count
    for name, its in groups.items():
        shuffle(buckets, f"select * from {spine}", its[0].join_keys or [ROW], f"{name}/{_SPINE}", connection=connection)
    connection.execute(f"drop table {spine}")
    for done, (name, its) in enumerate(groups.items()):
        for index, plan in enumerate(its):
            if plan.history is not None and plan.join_keys:
                if progress:
                    progress(f"shuffling {plan.view}", done * buckets.count, steps)
                shuffle(buckets, plan.history, plan.join_keys, f"{name}/{index}")
        for bucket in range(buckets.count):
            if progress:
                progress("joining", done * buckets.count + bucket, steps)
            join_bucket(buckets, its, name, bucket)
    selected = quote_all(columns)
    for number in range(-(-rows // _RANGE_ROWS)):
        tables = [f"(select * from {parquet(_files(Path(buckets.folder) / name / _ANSWERS, _RANGE, number))})" for name in groups]
        joined = tables[0] + "".join(f" join {table} using ({ROW})" for table in tables[1:])
        yield f"select {selected} from {joined} order by {ROW}"


@contextlib.contextmanager
def _connect(buckets: Buckets) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config={"temp_directory": str(Path(buckets.folder) / "spill")}) as connection:
        configure(connection, memory_limit=buckets.memory_limit, threads=buckets.threads)
        connection.execute("set preserve_insertion_order = false")
        yield connection


def _files(folder: Path, column: str, value: int) -> list[str]:
    return sorted(str(path) for path in (folder / f"{column}={value}").glob("*.parquet"))


def _write_partitioned(connection: duckdb.DuckDBPyConnection, rows: str, folder: Path, column: str, *, prefix: str = "") -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(
        # Without dictionaries, which each of the many small row groups would begin anew: an eighth of the time.
        f"copy ({rows}) to {literal(os.fspath(folder))} (format parquet, compression lz4_raw, dictionary_size_limit 1, "
        f"partition_by ({column}), "
        f"filename_pattern {literal(prefix + '{i}')}, overwrite_or_ignore)"
    )
