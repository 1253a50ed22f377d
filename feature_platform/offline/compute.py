"""
Compute one view for some of its windows: from its sources to Parquet.

Knows who computes which kind of view. Which windows are due is `due`'s; paths and locks are the store's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from feature_platform.dtypes import to_micros
from feature_platform.errors import WindowError
from feature_platform.model import ON_UPDATE, FeatureView, ViewKind
from feature_platform.offline.aggregate_runs import aggregate_windows
from feature_platform.offline.contract import verify_partition
from feature_platform.offline.inputs import fingerprints, source_files
from feature_platform.offline.queries import query_windows
from feature_platform.offline.query import configure
from feature_platform.offline.sources import source_views
from feature_platform.offline.store import OfflineStore
from feature_platform.offline.writer import PartitionReport, PartitionWriter
from feature_platform.windows import Window, grid_of, utc

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

__all__ = ["PartitionReport", "Progress", "compute_windows", "verify_partition"]

Progress: TypeAlias = Callable[[int, int], None]


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
        One report a window, oldest first. Rows that break an expectation are kept aside (outcome "rejected"): readers of history
        see what they saw before.

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
    # Before any row is read: files that change meanwhile are another fingerprint, and the next look sees it.
    files = source_files(view, root, store.source_footers)
    inputs = fingerprints(view, files, _with_predecessors(view, ordered), now)
    writer = PartitionWriter(connection, view, store, to_micros(now), run_id, inputs)
    compute = aggregate_windows if view.kind is ViewKind.AGGREGATE else query_windows
    reports: list[PartitionReport] = []
    with source_views(connection, view, root, files) as sources:
        for report in compute(writer, sources, ordered):
            reports.append(report)
            if progress:
                progress(len(reports), len(ordered))
    return reports


def _with_predecessors(view: FeatureView, windows: Sequence[Window]) -> list[Window]:
    """Return windows and those just before them: changes build on what those hold."""
    grid = grid_of(view) if view.kind is ViewKind.AGGREGATE else None
    before = [grid.before(window) for window in windows] if grid else []
    return sorted({*windows, *(window for window in before if window)})
