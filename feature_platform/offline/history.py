"""
The rows of a view's history as one SELECT, whatever definitions wrote its files.

Knows the state model (full and changes) and maps columns by name. Knows neither entity rows nor Redis.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feature_platform.dtypes import MICROSECOND, to_micros
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.catalog import COMPACTED
from feature_platform.offline.partition import TOMBSTONE, WINDOW_START, Partition
from feature_platform.offline.query import parquet, quote
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from feature_platform.offline.kept_states import KeptState
    from feature_platform.offline.store import OfflineStore

__all__ = ["KNOWN", "History", "WindowStates", "existing", "history_of", "partition_rows", "stored_rows", "window_states"]

KNOWN = "__known"
"""Suffix of the column that says whether a file has a feature's column at all."""


@dataclass(frozen=True)
class History:
    """
    The rows of some partitions.

    Attributes:
        sql: A SELECT of the join keys, `event_timestamp`, `created_timestamp` (event views that have one), the tombstone
            mark (aggregate views), and the features asked for; None where there is no partition.
        partial: Features that some file lacks, each with a further column `<feature>__known`.
    """

    sql: str | None
    partial: frozenset[str]


def history_of(
    view: FeatureView, store: OfflineStore, partitions: Sequence[Partition], features: Sequence[str], state: KeptState | None = None
) -> History:
    """
    Return the rows of some partitions of a view as a SELECT over an explicit list of files.

    Args:
        view: Whose.
        store: Where its files are.
        partitions: Which; a glob over all files was measured 57 times slower than the list of one week.
        features: Columns wanted; a file of an older definition may lack one, or have it with another dtype.
        state: Stands for the partitions before it.
    """
    wanted = {name: str(view.feature_by_name[name].type) for name in features}
    has_created, kept = view.has_created_timestamp, [] if state is None else [state]
    groups: defaultdict[tuple[bool, ...], list[str]] = defaultdict(list)
    for has, table in _tables(view, store, partitions):
        groups[(has.has_created_timestamp, *(has.columns.get(name) == dtype for name, dtype in wanted.items()))].append(table)
    for one in kept:
        groups[(has_created, *(True for _ in wanted))].append(parquet([one.path]))
    partial = frozenset(name for index, name in enumerate(wanted, start=1) if any(not has[index] for has in groups))
    selects = [
        _select(view, table, dict(zip(wanted, has[1:], strict=True)), partial, has_created_timestamp=has[0])
        for has, tables in groups.items()
        for table in tables
    ]
    return History("\nunion all by name\n".join(selects) if selects else None, partial)


def partition_rows(view: FeatureView, store: OfflineStore, partition: Partition) -> str:
    """Return the SELECT of all that one partition holds."""
    return f"select * from {_table(view, store, partition.file, [partition])}"


def stored_rows(view: FeatureView, store: OfflineStore, partitions: Sequence[Partition]) -> str:
    """Return the SELECT of all that some partitions of one definition hold, columns that are no features included."""
    return "\nunion all by name\n".join(f"select * from {table}" for _, table in _tables(view, store, partitions))


def _tables(view: FeatureView, store: OfflineStore, partitions: Sequence[Partition]) -> Iterator[tuple[Partition, str]]:
    """Yield the tables that hold partitions, each with one of those, which is like all of them in its columns."""
    alone: defaultdict[str, list[Partition]] = defaultdict(list)
    shared: defaultdict[str, list[Partition]] = defaultdict(list)
    for one in partitions:
        if one.file.startswith(COMPACTED):
            shared[one.file].append(one)
        else:
            alone[f"{one.has_created_timestamp} {one.columns}"].append(one)
    for its in alone.values():
        yield its[0], parquet([store.file(view, one) for one in its])
    whole: defaultdict[str, list[Partition]] = defaultdict(list)
    for file, its in shared.items():
        if len(its) == its[0].windows:
            whole[f"{its[0].has_created_timestamp} {its[0].columns}"].append(its[0])
        else:
            yield its[0], _table(view, store, file, its)
    for its in whole.values():
        yield its[0], f"(select * exclude ({WINDOW_START}) from {parquet([store.file(view, one) for one in its])})"


def _table(view: FeatureView, store: OfflineStore, file: str, partitions: Sequence[Partition]) -> str:
    table = parquet([store.folder(view) / file])
    if not file.startswith(COMPACTED):
        return table
    starts = ", ".join(f"make_timestamp({one.start})" for one in partitions)
    return f"(select * exclude ({WINDOW_START}) from {table} where {WINDOW_START} in ({starts}))"


def _select(view: FeatureView, table: str, has: dict[str, bool], partial: frozenset[str], *, has_created_timestamp: bool) -> str:
    columns = [*(quote(key) for key in view.entity.join_keys), "event_timestamp"]
    if view.has_created_timestamp:
        columns.append("created_timestamp" if has_created_timestamp else "null::timestamp as created_timestamp")
    if view.kind is ViewKind.AGGREGATE:
        columns.append(quote(TOMBSTONE))
    for name, is_there in has.items():
        columns.append(quote(name) if is_there else f"null::{view.feature_by_name[name].type.duckdb} as {quote(name)}")
        if name in partial:
            columns.append(f"{str(is_there).lower()} as {quote(name + KNOWN)}")
    return f"select {', '.join(columns)} from {table}"


@dataclass(frozen=True)
class WindowStates:
    """
    The windows of a window view that exist, for the rule that old rows end at the newest full partition.

    Attributes:
        ends: Every window's end, UTC microseconds, rising.
        newest_full: For each end, the newest full partition's end up to it; None before the first.
    """

    ends: list[int]
    newest_full: list[int | None]


def window_states(partitions: Sequence[Partition], newest_full: int | None = None) -> WindowStates:
    """
    Return the ends of partitions, each with the newest full one up to it.

    Args:
        partitions: Oldest first.
        newest_full: The end of the newest full one before them.
    """
    full_by_end: dict[int, bool] = {}
    for partition in partitions:
        full_by_end[partition.end] = full_by_end.get(partition.end, False) or partition.is_full
    newest = newest_full
    found: list[int | None] = []
    for end, is_full in full_by_end.items():
        newest = end if is_full else newest
        found.append(newest)
    return WindowStates(list(full_by_end), found)


def existing(view: FeatureView, store: OfflineStore, at: datetime) -> list[Partition]:
    """Return the partitions of a window view whose windows exist at a time: computed, and `end + delay` not after it."""
    limit = to_micros(utc(at)) - view.delay // MICROSECOND
    return [partition for partition in store.partitions(view, before=utc(at)) if partition.end <= limit]
