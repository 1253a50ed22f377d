"""
Windows as Dagster partitions: the same instants under Dagster's keys.

Knows both calendars and where they differ. Knows nothing of assets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import dagster as dg

from feature_platform.errors import RegistryError
from feature_platform.model import ON_UPDATE, FeatureView
from feature_platform.windows import KEY_FORMAT, WHOLE, Window, WindowGrid, cron_of, grid_of, utc

__all__ = ["key_of", "partitions_def", "range_tags", "span_of_tags", "window_of"]

_ONE, _FIRST, _LAST = "dagster/partition", "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"

# Elsewhere than in UTC an hour can come twice in a day: without the offset two windows would have one key.
_ZONED_FORMAT = "%Y-%m-%dT%H%M%z"
_CHECKED = timedelta(days=800)
_AROUND = timedelta(days=3)


def partitions_def(view: FeatureView) -> dg.TimeWindowPartitionsDefinition | None:
    """
    Return the windows of a view as Dagster's partitions; None for one that is not partitioned.

    In UTC a key is the window's start, as far as its cron needs it. The open day of an ON_UPDATE view is a partition too.

    Raises:
        RegistryError: Dagster would cut time into other windows than we do.
    """
    grid = grid_of(view)
    if grid is None or view.schedule is None:
        return None
    zone, cron = _zone(view), cron_of(view.schedule)
    start = grid.first.start.astimezone(ZoneInfo(zone))
    if zone != "UTC" and (differs := _first_difference(cron, zone, start.replace(hour=0, minute=0, second=0, microsecond=0))):
        message = (
            f"view {view.name!r}: around {differs:%Y-%m-%d}, when the clock of {zone} changes, Dagster cuts time differently than the "
            f"schedule {view.schedule!r} does.\nLeave timezone out (UTC), or write a daily schedule."
        )
        raise RegistryError(message)
    return dg.TimeWindowPartitionsDefinition(
        start=start, fmt=_format(view), timezone=zone, cron_schedule=cron, end_offset=1 if view.schedule == ON_UPDATE else 0
    )


def key_of(view: FeatureView, window: Window) -> str:
    """Return the partition key of a window; of the whole table, its window key."""
    if view.schedule is None:
        return window.key
    if _zone(view) == "UTC":
        return window.start.strftime(_format(view))
    definition = partitions_def(view)
    assert definition is not None  # noqa: S101 - tells mypy that a schedule has windows
    # Dagster's own: where midnight does not exist it names the window after the midnight, and not after the hour that is.
    return definition.get_partition_key_for_timestamp(window.start.timestamp())


def window_of(view: FeatureView, key: str | None) -> Window:
    """
    Return the window of a partition key; of None, the whole table.

    Raises:
        WindowError: No window of the view starts there.
    """
    grid = grid_of(view)
    if grid is None or key is None:
        return WHOLE
    return grid.starting(utc(datetime.strptime(key, _format(view))))  # noqa: DTZ007 - the other format has no %z: it is UTC


def range_tags(view: FeatureView, windows: Sequence[Window]) -> dict[str, str]:
    """Return the tags of one run over adjacent windows, as a single-run backfill has them."""
    return {_FIRST: key_of(view, windows[0]), _LAST: key_of(view, windows[-1])}


def span_of_tags(view: FeatureView, tags: Mapping[str, str]) -> tuple[datetime, datetime]:
    """Return the range of time that a run with these tags computes; all time, for a run that names no partition."""
    first, last = tags.get(_FIRST, tags.get(_ONE)), tags.get(_LAST, tags.get(_ONE))
    return window_of(view, first).start, window_of(view, last).end


def _zone(view: FeatureView) -> str:
    return "UTC" if view.schedule in {ON_UPDATE, None} else view.timezone


def _format(view: FeatureView) -> str:
    if _zone(view) != "UTC":
        return _ZONED_FORMAT
    # As short as they can be: on the page of an asset a key stands beside others.
    minute, hour, *_ = cron_of(view.schedule or ON_UPDATE).split()
    if (minute, hour) == ("0", "0"):
        return "%Y-%m-%d"
    return "%Y-%m-%dT%H" if minute == "0" else KEY_FORMAT


@lru_cache(maxsize=1024)
def _first_difference(cron: str, zone: str, start: datetime) -> datetime | None:
    """
    Return a time around which Dagster's windows are not ours, looking where the clock changes in the first two years.

    Measured: an hourly cron in a zone that shifts by half an hour, a six-hourly one in a zone that shifts at midnight.
    """
    days = [start + timedelta(days=day) for day in range(_CHECKED // timedelta(days=1))]
    for before, after in pairwise(days):
        if before.utcoffset() == after.utcoffset():
            continue
        low, high = before - _AROUND, after + _AROUND
        theirs = dg.TimeWindowPartitionsDefinition(start=low, fmt=_ZONED_FORMAT, timezone=zone, cron_schedule=cron)
        with dg.partition_loading_context(effective_dt=high):
            spans = [theirs.time_window_for_partition_key(key) for key in theirs.get_partition_keys()]
        ours = WindowGrid(cron, zone, low).within(None, high.astimezone(UTC))
        if [(utc(span.start), utc(span.end)) for span in spans] != [(window.start, window.end) for window in ours]:
            return before
    return None
