"""
Compaction: the partitions of each closed day in one file, and kept states at the ends of days.

Nothing that a reader is answered changes, and readers that are under way keep the files that they opened: what was merged is
deleted a day later. Knows files and days. Knows nothing of values.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import pyarrow.parquet as pq

from feature_platform.dtypes import MICROSECOND, from_micros, to_micros
from feature_platform.errors import ContractError
from feature_platform.model import FeatureView
from feature_platform.offline.contract import time_columns
from feature_platform.offline.history import partition_rows
from feature_platform.offline.kept_states import forget_states, keep_state
from feature_platform.offline.partition import SEVERAL_KEY, WINDOW_START, Partition
from feature_platform.offline.query import configure, literal, quote_all
from feature_platform.offline.store import OfflineStore
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import duckdb

__all__ = ["CompactionReport", "compact_view"]

_DAY: Final = timedelta(days=1)
_DAY_MICROS: Final = _DAY // MICROSECOND
_RECENT_STATES: Final = 7


@dataclass(frozen=True, kw_only=True)
class CompactionReport:
    """
    What compacting one view came to.

    Attributes:
        view: Its name.
        days: Days whose partitions were merged.
        merged: Partitions in them.
        deleted: Files deleted that were merged, or merged again, a day ago or earlier.
        states: States that were made.
        files: Files that readers see now.
        seconds: Time it took.
    """

    view: str
    days: int = 0
    merged: int = 0
    deleted: int = 0
    states: int = 0
    files: int = 0
    seconds: float = 0.0


def compact_view(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    *,
    store: OfflineStore,
    now: datetime,
    progress: Callable[[int, int], None] | None = None,
) -> CompactionReport:
    """
    Merge the partitions of each closed day of a view, and keep states; run again, it changes nothing.

    Args:
        connection: Any DuckDB connection; its settings are set.
        view: The view.
        store: Its history.
        now: Days that have not ended by then, the view's delay included, are left alone.
        progress: Called with days done and days to do.

    Raises:
        ContractError: Files hold other rows than they say; nothing was merged.
    """
    started = time.perf_counter()
    configure(connection)
    deleted = store.delete_superseded(view, before=time.time() - _DAY.total_seconds())
    closed = (to_micros(utc(now)) - view.delay // MICROSECOND) // _DAY_MICROS * _DAY_MICROS
    partitions = [one for one in store.partitions(view) if one.end <= closed] if view.schedule is not None else []
    groups = _scattered(partitions)
    for done, (day, group) in enumerate(groups):
        if progress:
            progress(done, len(groups))
        store.merge(view, day, group, partial(_write, connection, view, store, group))
    states = 0
    forget_states(view, store)
    for until in _ends_of_states(partitions, closed):
        states += keep_state(connection, view, store, until)
    forget_states(view, store)
    return CompactionReport(
        view=view.name,
        days=len({day for day, _ in groups}),
        merged=sum(len(group) for _, group in groups),
        deleted=deleted,
        states=states,
        files=len({one.file for one in store.partitions(view)}),
        seconds=time.perf_counter() - started,
    )


def _scattered(partitions: Iterable[Partition]) -> list[tuple[str, list[Partition]]]:
    """Return the partitions of each day and definition that lie in more than one file."""
    groups: defaultdict[tuple[str, str], list[Partition]] = defaultdict(list)
    for one in partitions:
        day = from_micros(one.start).strftime("%Y-%m-%d")
        groups[day, f"{one.definition} {one.columns} {one.has_created_timestamp} {one.accumulators}"].append(one)
    return [(day, its) for (day, _), its in groups.items() if len({one.file for one in its}) > 1]


def _write(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, store: OfflineStore, partitions: Sequence[Partition], path: Path
) -> None:
    selects = [f"select *, make_timestamp({one.start}) as {WINDOW_START} from ({partition_rows(view, store, one)})" for one in partitions]
    order = quote_all([WINDOW_START, *view.entity.join_keys, *time_columns(view)])
    footers = f"[{','.join(one.to_json() for one in partitions)}]"
    connection.execute(
        f"copy (select * from ({' union all by name '.join(selects)}) order by {order}) to {literal(str(path))} "
        f"(format parquet, compression zstd, kv_metadata {{{SEVERAL_KEY}: {literal(footers)}}})"
    )
    rows, expected = pq.read_metadata(path).num_rows, sum(one.rows for one in partitions)
    if rows != expected:
        message = (
            f"view {view.name!r}: the partitions from {partitions[0].window.key} to {partitions[-1].window.key} hold {rows} rows, "
            f"their footers say {expected}.\nNothing was merged: compute these windows again."
        )
        raise ContractError(message)


def _ends_of_states(partitions: Sequence[Partition], closed: int) -> list[int]:
    """Return where states are worth keeping: at the start of each month, for joins, and of each of the last days, for what is newest."""
    if not partitions:
        return []
    first, wanted = from_micros(partitions[0].end), set[datetime]()
    month = datetime(first.year, first.month, 1, tzinfo=UTC)
    while to_micros(month) <= closed:
        wanted.add(month)
        month = (month + timedelta(days=32)).replace(day=1)
    wanted |= {from_micros(closed) - day * _DAY for day in range(_RECENT_STATES)}
    return sorted(end for day in wanted if (end := to_micros(day)) >= partitions[0].end)
