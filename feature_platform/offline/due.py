"""
Which windows of a view have to be computed, and why: not there yet, or computed from files that have changed since.

Knows what is stored and what the sources hold. Computes nothing, and asks nobody for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from feature_platform.dtypes import to_micros
from feature_platform.model import ON_UPDATE, FeatureView
from feature_platform.offline.attempts import Attempt
from feature_platform.offline.inputs import SourceFile, fingerprints
from feature_platform.offline.store import OfflineStore, Partition
from feature_platform.windows import WHOLE, Window, grid_of, utc

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Pending", "due_windows", "pending_windows", "requested_windows"]


@dataclass(frozen=True)
class Pending:
    """
    The closed windows of a view that are not what computing them now would give, oldest first.

    Attributes:
        missing: Not computed yet.
        late: Computed from files that have changed since, within the view's `late_data_horizon`: computed again by themselves.
        waiting: The same beyond it: computed again when somebody asks.
        rejected: Rejected when they were computed last, and neither files, query nor expectations have changed since.
        stale: Computed by another definition of the view, and neither missing nor rejected.
    """

    missing: list[Window]
    late: list[Window]
    waiting: list[Window]
    rejected: list[Window]
    stale: list[Window]

    @property
    def due(self) -> list[Window]:
        """What is to be computed without being asked for."""
        return sorted([*self.missing, *self.late])


def pending_windows(view: FeatureView, store: OfflineStore, files: Sequence[SourceFile], now: datetime) -> Pending:
    """
    Compare what is stored with what the sources hold now.

    Args:
        view: Whose windows.
        store: Its history.
        files: Of its sources.
        now: Windows that are not closed then are left out; the open day of an ON_UPDATE view is in.
    """
    windows = _closed(view, now)
    present, attempts = _present(view, store, windows), store.attempts.of(view)
    current = fingerprints(view, files, windows, now)
    found = Pending([], [], [], [], [])
    for window in windows:
        partition, attempt = present.get(window), attempts.get(window.key)
        if attempt is not None and attempt.outcome == "rejected":
            is_same = attempt.inputs == current[window] and attempt.definition == view.definition_hash
            (found.rejected if is_same and attempt.expectations == view.expectations else found.missing).append(window)
        elif partition is None:
            if view.schedule != ON_UPDATE or window.end <= utc(now) or any(_may_hold(file, window) for file in files):
                found.missing.append(window)
        elif _has_changed(view, partition, attempt, current[window], window):
            (found.late if _is_followed(view, window, now) else found.waiting).append(window)
        elif partition.definition != view.definition_hash:
            found.stale.append(window)
    return found


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
    return view.schedule != ON_UPDATE or _computed_at(partition, store.attempts.get(view, window)) >= to_micros(window.end)


def _computed_at(partition: Partition, attempt: Attempt | None) -> int:
    return max(partition.computed_at or 0, attempt.computed_at if attempt else 0)


def _present(view: FeatureView, store: OfflineStore, windows: Sequence[Window]) -> Mapping[Window, Partition]:
    if view.schedule is None:
        whole = store.partition(view, WHOLE)
        return {WHOLE: whole} if whole else {}
    known = set(windows)
    return {one.window: one for one in store.partitions(view) if one.window in known}


def _has_changed(view: FeatureView, partition: Partition, attempt: Attempt | None, current: str, window: Window) -> bool:
    inputs = attempt.inputs if attempt is not None and attempt.definition == partition.definition else partition.inputs
    if inputs is None:  # written before files were remembered: only an open day says by itself that more may have come
        return view.schedule == ON_UPDATE and _computed_at(partition, attempt) < to_micros(window.end)
    return inputs != current


def _is_followed(view: FeatureView, window: Window, now: datetime) -> bool:
    if view.late_data_horizon is None:
        return view.schedule in {ON_UPDATE, None}
    return window.end >= utc(now) - view.late_data_horizon


def _may_hold(file: SourceFile, window: Window) -> bool:
    return file.spans is None or any(low < window.end and high >= window.start for low, high in file.spans)
