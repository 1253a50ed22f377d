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
from feature_platform.offline.query import literal, quote
from feature_platform.offline.store import TOMBSTONE, OfflineStore, Partition
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

__all__ = ["KNOWN", "History", "WindowStates", "existing", "history_of", "window_states"]

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


def history_of(view: FeatureView, store: OfflineStore, partitions: Sequence[Partition], features: Sequence[str]) -> History:
    """
    Return the rows of some partitions of a view as a SELECT over an explicit list of files.

    Args:
        view: Whose.
        store: Where its files are.
        partitions: Which; a glob over all files was measured 57 times slower than the list of one week.
        features: Columns wanted; a file of an older definition may lack one, or have it with another dtype.
    """
    wanted = {name: str(view.feature_by_name[name].type) for name in features}
    groups: defaultdict[tuple[bool, ...], list[str]] = defaultdict(list)
    for partition in partitions:
        has = (partition.has_created_timestamp, *(partition.columns.get(name) == dtype for name, dtype in wanted.items()))
        groups[has].append(str(store.path(view, partition.window)))
    partial = frozenset(name for index, name in enumerate(wanted, start=1) if any(not has[index] for has in groups))
    selects = [
        _select(view, files, dict(zip(wanted, has[1:], strict=True)), partial, has_created_timestamp=has[0])
        for has, files in groups.items()
    ]
    return History("\nunion all by name\n".join(selects) if selects else None, partial)


def _select(view: FeatureView, files: Sequence[str], has: dict[str, bool], partial: frozenset[str], *, has_created_timestamp: bool) -> str:
    columns = [*(quote(key) for key in view.entity.join_keys), "event_timestamp"]
    if view.has_created_timestamp:
        columns.append("created_timestamp" if has_created_timestamp else "null::timestamp as created_timestamp")
    if view.kind is ViewKind.AGGREGATE:
        columns.append(quote(TOMBSTONE))
    for name, is_there in has.items():
        columns.append(quote(name) if is_there else f"null::{view.feature_by_name[name].type.duckdb} as {quote(name)}")
        if name in partial:
            columns.append(f"{str(is_there).lower()} as {quote(name + KNOWN)}")
    listed = ", ".join(literal(file) for file in files)
    return f"select {', '.join(columns)} from read_parquet([{listed}], union_by_name = false)"


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


def window_states(partitions: Sequence[Partition]) -> WindowStates:
    """Return the ends of partitions (oldest first), each with the newest full one up to it."""
    full_by_end: dict[int, bool] = {}
    for partition in partitions:
        full_by_end[partition.end] = full_by_end.get(partition.end, False) or partition.is_full
    newest: int | None = None
    newest_full: list[int | None] = []
    for end, is_full in full_by_end.items():
        newest = end if is_full else newest
        newest_full.append(newest)
    return WindowStates(list(full_by_end), newest_full)


def existing(view: FeatureView, store: OfflineStore, at: datetime) -> list[Partition]:
    """Return the partitions of a window view whose windows exist at a time: computed, and `end + delay` not after it."""
    limit = to_micros(utc(at)) - view.delay // MICROSECOND
    return [partition for partition in store.partitions(view, before=utc(at)) if partition.end <= limit]
