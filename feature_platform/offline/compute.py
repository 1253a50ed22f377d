"""
Compute one view for some of its windows: from its sources to Parquet.

Knows which windows are due, and who computes which kind of view. Paths and locks are the store's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from feature_platform.dtypes import to_micros
from feature_platform.errors import WindowError
from feature_platform.model import ON_UPDATE, FeatureView, ViewKind
from feature_platform.offline.aggregate_runs import aggregate_windows
from feature_platform.offline.contract import verify_partition
from feature_platform.offline.queries import query_windows
from feature_platform.offline.query import configure
from feature_platform.offline.sources import source_views
from feature_platform.offline.store import OfflineStore
from feature_platform.offline.writer import PartitionReport, PartitionWriter
from feature_platform.windows import WHOLE, Window, grid_of, utc

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

__all__ = ["PartitionReport", "Progress", "compute_windows", "due_windows", "requested_windows", "verify_partition"]

Progress: TypeAlias = Callable[[int, int], None]


def due_windows(view: FeatureView, store: OfflineStore, now: datetime) -> list[Window]:
    """
    Return the closed windows that are not computed yet, oldest first.

    An ON_UPDATE view's day is due until it was computed after its end: before that, data may have arrived. So is always the
    one table of a view without a schedule.
    """
    return [w for w in _closed(view, now) if view.schedule is None or not _is_done(view, store, w)]


def requested_windows(view: FeatureView, start: datetime | None, end: datetime | None, now: datetime) -> list[Window]:
    """Return the closed windows that share an instant with `[start, end)`, computed or not; naive bounds are UTC."""
    low, high = (None if start is None else utc(start)), (None if end is None else utc(end))
    return [w for w in _closed(view, now) if (low is None or w.end > low) and (high is None or w.start < high)]


def _closed(view: FeatureView, now: datetime) -> list[Window]:
    grid, now = grid_of(view), utc(now)
    if grid is None:
        return [WHOLE]
    if view.schedule == ON_UPDATE:
        return grid.touching(None, now + timedelta(microseconds=1))
    return grid.within(None, now - view.delay)


def _is_done(view: FeatureView, store: OfflineStore, window: Window) -> bool:
    partition = store.partition(view, window)
    if partition is None:
        return False
    return view.schedule != ON_UPDATE or (partition.computed_at is not None and partition.computed_at >= to_micros(window.end))


def compute_windows(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    windows: Sequence[Window],
    *,
    store: OfflineStore,
    root: Path,
    now: datetime,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> list[PartitionReport]:
    """
    Compute and write some windows of a view; repeated, in any order or in parallel, the answers are the same.

    Args:
        connection: Any DuckDB connection; its settings are set.
        view: The view.
        windows: Windows of the view's grid.
        store: Where the files go.
        root: The project folder, which the sources' paths hang off.
        now: A window is refused before `end + delay`: it could not know all its rows.
        run_id: Kept in the files' footers.
        progress: Called with windows done and windows wanted.

    Returns:
        One report a window, oldest first.

    Raises:
        WindowError: A window is not closed at `now`.
        SourceNotFoundError: A source has no files.
        QueryError: The query is unsafe.
        ContractError: The rows differ from what the view declares; nothing of their window is written.
    """
    ordered = sorted(set(windows))
    for window in ordered:
        opens = window.start if view.schedule == ON_UPDATE else window.end + view.delay
        if view.schedule is not None and opens > utc(now):
            message = (
                f"view {view.name!r}: window {window} can be computed from {opens:%Y-%m-%d %H:%M} UTC on, "
                f"and it is {utc(now):%Y-%m-%d %H:%M}."
            )
            raise WindowError(message)
    configure(connection)
    writer = PartitionWriter(connection, view, store, to_micros(now), run_id)
    compute = aggregate_windows if view.kind is ViewKind.AGGREGATE else query_windows
    reports: list[PartitionReport] = []
    with source_views(connection, view, root) as sources:
        for report in compute(writer, sources, ordered):
            reports.append(report)
            if progress:
                progress(len(reports), len(ordered))
    return reports
