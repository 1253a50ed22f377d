"""
The windows of a schedule: half-open ranges of time, from a cron and a time zone.

Knows crons and the calendar. Knows nothing of views' files or of what was computed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from threading import Lock
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from feature_platform.errors import RegistryError, WindowError
from feature_platform.model import ON_UPDATE, Aggregate, FeatureView

__all__ = ["KEY_FORMAT", "WHOLE", "Window", "WindowGrid", "adjacent", "cron_of", "grid_of", "reads_from", "utc"]

KEY_FORMAT = "%Y-%m-%dT%H%MZ"
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_CRON_FIELDS = 5
_LEAST_WINDOWS = 8


def utc(instant: datetime, timezone: str = "UTC") -> datetime:
    """Return an aware UTC datetime; a naive one is read in `timezone`."""
    aware = instant.replace(tzinfo=_zone(timezone)) if instant.tzinfo is None else instant
    return aware.astimezone(UTC)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        message = f"timezone {name!r} is not known.\nUse an IANA name, such as 'UTC' or 'Europe/Berlin'."
        raise RegistryError(message) from exc


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """
    A half-open range of time `[start, end)`, in UTC.

    Half-open: an event at exactly 10:00 belongs to the window that starts then, or two hourly runs would count it twice.
    """

    start: datetime
    end: datetime

    @property
    def key(self) -> str:
        """The name of the window's file and partition: its start in UTC."""
        return "all" if self is WHOLE or self == WHOLE else self.start.strftime(KEY_FORMAT)

    def __str__(self) -> str:
        """Return `[start, end)` as people read it."""
        return "the whole table" if self.key == "all" else f"[{self.start:%Y-%m-%d %H:%M}, {self.end:%Y-%m-%d %H:%M}) UTC"


WHOLE = Window(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
"""The one window of a view that is not partitioned."""


def cron_of(schedule: str) -> str:
    """
    Return the five-field cron of a schedule.

    Raises:
        RegistryError: It is neither an alias nor a valid cron.
    """
    cron = _ALIASES["@daily"] if schedule == ON_UPDATE else _ALIASES.get(schedule, schedule)
    try:
        if len(cron.split()) != _CRON_FIELDS:  # the parser takes seconds too
            raise CronSimError  # noqa: TRY301 - one answer for all that is not a cron
        CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC))
    except CronSimError as exc:
        message = (
            f"schedule {schedule!r} is not a cron.\nWrite five fields (minute hour day month weekday), one of {', '.join(_ALIASES)}, "
            "ON_UPDATE, or None."
        )
        raise RegistryError(message) from exc
    return cron


class WindowGrid:
    """
    The endless row of windows of one schedule, from its first window on.

    Boundaries are kept as they are found: a grid costs one pass of its cron, however often it is asked.
    """

    def __init__(self, cron: str, timezone: str, start: datetime) -> None:
        self._fixed_hour = cron.split()[1].isdigit()
        local = utc(start, timezone).astimezone(_zone(timezone))
        self._ticks = CronSim(cron, local - timedelta(microseconds=1))
        self._bounds: list[datetime] = []
        # Grids are shared; two threads at one cron would leave a boundary out.
        self._lock = Lock()
        self._extend()
        self._extend()

    def _extend(self) -> None:
        tick: datetime = next(self._ticks)
        if self._fixed_hour and tick.replace(fold=1).utcoffset() != tick.replace(fold=0).utcoffset() and tick.hour:
            tick = tick.replace(fold=1)  # a daily time that the clock shows twice: the second one, as Dagster has it
        bound = tick.astimezone(UTC)
        if not self._bounds or bound > self._bounds[-1]:
            self._bounds.append(bound)

    def _reach(self, until: datetime) -> None:
        if self._bounds[-1] <= until:
            with self._lock:
                while self._bounds[-1] <= until:
                    self._extend()

    @property
    def first(self) -> Window:
        """The first window."""
        return Window(self._bounds[0], self._bounds[1])

    @property
    def period(self) -> timedelta:
        """The shortest of the first windows: how old the newest value is at most when all runs as planned."""
        with self._lock:
            while len(self._bounds) <= _LEAST_WINDOWS:
                self._extend()
        return min(b - a for a, b in zip(self._bounds[:-1], self._bounds[1:_LEAST_WINDOWS], strict=False))

    def within(self, start: datetime | None, end: datetime) -> list[Window]:
        """Return the windows that lie wholly in `[start, end)`, oldest first; `start` None is the first window's."""
        self._reach(end)
        low = 0 if start is None else bisect_left(self._bounds, start)
        high = bisect_right(self._bounds, end) - 1
        return [Window(self._bounds[i], self._bounds[i + 1]) for i in range(low, high)]

    def touching(self, start: datetime | None, end: datetime) -> list[Window]:
        """Return the windows that share an instant with `[start, end)`, oldest first."""
        if start is not None and start >= end:
            return []
        self._reach(end)
        low = 0 if start is None else max(bisect_right(self._bounds, start) - 1, 0)
        high = bisect_left(self._bounds, end)
        return [Window(self._bounds[i], self._bounds[i + 1]) for i in range(low, high)]

    def starting(self, start: datetime) -> Window:
        """
        Return the window that starts at an instant.

        Raises:
            WindowError: None does.
        """
        self._reach(start)
        index = bisect_left(self._bounds, start)
        if index >= len(self._bounds) or self._bounds[index] != start:
            which, near = ("nearest before it", self._bounds[index - 1]) if index else ("first one", self._bounds[0])
            message = f"no window starts at {start:%Y-%m-%d %H:%M} UTC.\nThe {which} starts at {near:%Y-%m-%d %H:%M} UTC."
            raise WindowError(message)
        self._reach(self._bounds[index])
        return Window(self._bounds[index], self._bounds[index + 1])

    def before(self, window: Window) -> Window | None:
        """Return the window that ends where this one starts; None before the first."""
        index = bisect_left(self._bounds, window.start)
        return Window(self._bounds[index - 1], self._bounds[index]) if index > 0 else None


def adjacent(windows: Iterable[Window]) -> list[list[Window]]:
    """Return windows as runs without a gap, oldest first."""
    runs: list[list[Window]] = []
    for window in sorted(windows):
        if runs and runs[-1][-1].end == window.start:
            runs[-1].append(window)
        else:
            runs.append([window])
    return runs


@lru_cache(maxsize=4096)
def _grid(cron: str, timezone: str, start: datetime) -> WindowGrid:
    return WindowGrid(cron, timezone, start)


def grid_of(view: FeatureView) -> WindowGrid | None:
    """Return the windows of a view; None for one that is not partitioned."""
    if view.schedule is None or view.start is None:
        return None
    if view.schedule == ON_UPDATE:
        start = utc(view.start, view.timezone)
        return _grid(cron_of(ON_UPDATE), "UTC", start.replace(hour=0, minute=0, second=0, microsecond=0))
    return _grid(cron_of(view.schedule), view.timezone, utc(view.start, view.timezone))


def reads_from(view: FeatureView, window: Window) -> datetime:
    """
    Return the first instant of its sources that computing a window reads; the last one is before the window's end.

    An aggregate view looks back from its window's start: what left since then changes a value too. An event view's lookback
    is for earlier rows, so it begins at the start; a snapshot's is the range that it is about, so it ends at the end.
    """
    if aggregates := [feature.window for feature in view.features if isinstance(feature, Aggregate)]:
        return window.start - max(aggregates)
    if view.lookback is None:
        return window.start
    return (window.end if view.is_window_view else window.start) - view.lookback
