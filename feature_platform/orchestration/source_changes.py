"""
Sensors of views that follow their data: what to compute again when source files change.

Knows files and the time range in their footers. Knows nothing of what a query makes of them.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.dtypes import to_micros
from feature_platform.model import FeatureView, ParquetSource
from feature_platform.offline.compute import due_windows, requested_windows
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.automation import run_requests
from feature_platform.settings import Settings
from feature_platform.windows import WHOLE, Window

__all__ = ["SourceFile", "changed_windows", "source_files", "update_sensor"]

_SECONDS = 30


@dataclass(frozen=True)
class SourceFile:
    """
    One file of a source.

    Attributes:
        identity: Path, size and times of change: another one means other content.
        changed_at: When it was last written or moved here, UTC microseconds.
        span: Least and greatest time of its rows; None where the footer does not say.
        is_static: Whether its rows have no time at all.
    """

    identity: tuple[str, int, int, int]
    changed_at: int
    span: tuple[datetime, datetime] | None
    is_static: bool

    def touches(self, view: FeatureView, window: Window, now: datetime) -> bool:
        """
        Say whether a window reads some of its rows, as far as the footer says.

        A static dimension counts for the open window only: it has no history, so the closed ones keep the values that they had.
        """
        if window == WHOLE:
            return True
        if self.is_static:
            return window.end > now
        if self.span is None:
            return True
        reads_from = window.start if view.lookback is None else window.start - view.lookback
        return self.span[0] < window.end and self.span[1] >= reads_from


def update_sensor(view: FeatureView, job: dg.UnresolvedAssetJobDefinition, settings: Settings) -> dg.SensorDefinition:
    """Return the sensor of an ON_UPDATE view, or of one without a schedule: it asks for the windows whose source files changed."""
    store = OfflineStore(settings.offline_root)  # of the code server's life: it remembers the footers that it read

    @dg.sensor(
        name=f"{view.name}_on_update",
        job=job,
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.run_schedules else dg.DefaultSensorStatus.STOPPED,
        description=f"Computes the windows of {view.name} whose source files changed.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        due, seen = changed_windows(view, store, source_files(view, settings.root), context.cursor, now)
        # The hour: a stretch whose run failed is asked for again, but not with every look.
        newest = max((seen_at for _, seen_at in seen.values()), default=0)
        found = run_requests(context.instance, view, due, tick=f"{newest}/{now:%Y-%m-%dT%H}")
        cursor = json.dumps(seen, separators=(",", ":"))
        if isinstance(found, dg.SkipReason):
            return dg.SensorResult(skip_reason=found, cursor=cursor)
        return dg.SensorResult(run_requests=found, cursor=cursor)

    return look


def changed_windows(
    view: FeatureView, store: OfflineStore, files: Iterable[SourceFile], cursor: str | None, now: datetime
) -> tuple[list[Window], dict[str, tuple[str, int]]]:
    """
    Return the windows to compute, and what was seen, for the next look.

    A window is due if it has no file, or if that was computed before its source files were last seen to change. So a run that
    fails leaves its windows due.

    Args:
        view: Follows its data.
        store: Its history.
        files: Of its sources.
        cursor: What the look before saw, as JSON; None for the first.
        now: The open window is the one that holds it.
    """
    before: dict[str, Any] = json.loads(cursor) if cursor else {}
    known, seen = list(files), dict[str, tuple[str, int]]()
    missing = set(due_windows(view, store, now))
    due: list[Window] = []
    for window in requested_windows(view, None, None, now):
        own = [file for file in known if file.touches(view, window, now)]
        fingerprint = hashlib.sha256(repr(sorted(file.identity for file in own)).encode()).hexdigest()[:16]
        last = before.get(window.key)
        if last is None:
            changed_at = max((file.changed_at for file in own), default=0)
        else:
            # The clock, and not a file's time: a file that is gone has none.
            changed_at = last[1] if last[0] == fingerprint else to_micros(now)
        seen[window.key] = (fingerprint, changed_at)
        partition = store.partition(view, window)
        computed_at = None if partition is None else partition.computed_at
        if (partition is None and window in missing) or (computed_at is not None and computed_at < changed_at):
            due.append(window)
    return due, seen


def source_files(view: FeatureView, root: Path) -> list[SourceFile]:
    """Return the files of a view's sources that exist now."""
    found: list[SourceFile] = []
    for source in view.sources:
        for path in sorted(glob.glob(str(root / source.path), recursive=True)):
            try:
                stat = Path(path).stat()
                # A file that is moved here keeps its mtime; its ctime is the move's.
                found.append(_file(source, path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
            except (OSError, pa.ArrowInvalid):
                continue  # gone, or being written: the next look sees it
    return found


@lru_cache(maxsize=100_000)
def _file(source: ParquetSource, path: str, size: int, mtime_ns: int, ctime_ns: int) -> SourceFile:
    changed_at = -(-max(mtime_ns, ctime_ns) // 1000)
    return SourceFile((path, size, mtime_ns, ctime_ns), changed_at, _span(source, path), source.timestamp is None)


def _span(source: ParquetSource, path: str) -> tuple[datetime, datetime] | None:
    """Return the least and greatest time in a footer's statistics; None where a row group has none."""
    if source.timestamp is None:
        return None
    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    if source.timestamp not in names or not metadata.num_row_groups:
        return None
    column = names.index(source.timestamp)
    groups = [metadata.row_group(index).column(column).statistics for index in range(metadata.num_row_groups)]
    if any(group is None or not group.has_min_max for group in groups):
        return None
    low, high = min(group.min for group in groups), max(group.max for group in groups)
    if not isinstance(low, datetime) or not isinstance(high, datetime):
        return None
    return _utc(low), _utc(high)


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
