"""The windows of a schedule: every instant in exactly one, across clock changes, and the same ones that Dagster has."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_platform import ON_UPDATE, Entity, Feature, FeatureView, ParquetSource
from feature_platform.errors import RegistryError, WindowError
from feature_platform.windows import WHOLE, Window, WindowGrid, cron_of, grid_of, utc

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VIEW = FeatureView(
    "last_watch",
    entity=Entity("user", {"user_id": str}),
    sources=[ParquetSource("watches", "w.parquet", timestamp="watched_at")],
    features=[Feature("genre", str)],
    query="select user_id, watched_at as event_timestamp, genre from watches",
    schedule="@hourly",
    start=datetime(2026, 1, 1),
)
CRONS = ["0 * * * *", "*/15 * * * *", "0 */6 * * *", "0 0 * * *", "30 1 * * *", "30 2 * * *", "0 0 * * 0", "0 0 1 * *", "15 4 * * 1-5"]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "Asia/Kolkata", "Asia/Beirut"]
# Dagster cuts time differently there (`orchestration.partitions` refuses them while loading): it repeats or drops windows.
UNLIKE_DAGSTER = {
    ("0 * * * *", "Australia/Lord_Howe"),
    ("0 */6 * * *", "Australia/Lord_Howe"),
    ("0 */6 * * *", "America/Havana"),
    ("0 */6 * * *", "Asia/Beirut"),
}
SPRING, AUTUMN = (datetime(2026, 3, 1), datetime(2026, 4, 12)), (datetime(2026, 9, 28), datetime(2026, 11, 8))


def at(month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    """Return an instant of 2026 in UTC."""
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


def grid(schedule: str = "@hourly", timezone: str = "UTC", start: datetime = datetime(2026, 1, 1)) -> WindowGrid:
    """Return the windows of a schedule."""
    found = grid_of(replace(VIEW, schedule=schedule, timezone=timezone, start=start))
    assert found is not None
    return found


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", CRONS)
def test_windows_are_those_that_dagster_has(cron: str, zone: str) -> None:
    """Over both clock changes of a year, window by window; where the two differ, it is known and refused elsewhere."""
    is_like_dagster = True
    for first, last in (SPRING, AUTUMN):
        start, end = first.replace(tzinfo=ZoneInfo(zone)), last.replace(tzinfo=ZoneInfo(zone))
        theirs = dg.TimeWindowPartitionsDefinition(start=start, fmt="%Y-%m-%dT%H%M%z", timezone=zone, cron_schedule=cron)
        with dg.partition_loading_context(effective_dt=end):
            spans = [theirs.time_window_for_partition_key(key) for key in theirs.get_partition_keys()]
        ours = WindowGrid(cron, zone, start).within(None, utc(end))
        assert ours
        is_like_dagster &= [(utc(span.start), utc(span.end)) for span in spans] == [(window.start, window.end) for window in ours]
    assert is_like_dagster == ((cron, zone) not in UNLIKE_DAGSTER)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CRONS), st.sampled_from(ZONES), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), st.integers(1, 60 * 24 * 40)
)
def test_every_instant_is_in_exactly_one_window(cron: str, zone: str, start: datetime, minutes: int) -> None:
    """Windows follow each other without gap or overlap, in order, none of them empty, whatever the clock does."""
    windows = WindowGrid(cron, zone, start).touching(None, utc(start, zone) + timedelta(minutes=minutes))
    assert all(window.start < window.end for window in windows)
    assert all(before.end == after.start for before, after in pairwise(windows))
    assert all(window.start >= utc(start, zone) for window in windows)


@pytest.mark.parametrize(
    ("schedule", "zone", "day", "hours"),
    [
        ("@daily", "Europe/Berlin", datetime(2026, 3, 29), 23),
        ("@daily", "Europe/Berlin", datetime(2026, 10, 25), 25),
        ("@daily", "Australia/Lord_Howe", datetime(2026, 10, 4), 23.5),
        ("@daily", "Australia/Lord_Howe", datetime(2026, 4, 5), 24.5),
        ("@daily", "America/Havana", datetime(2026, 3, 8), 23),
        ("@daily", "America/Havana", datetime(2026, 11, 1), 25),
        ("@daily", "Asia/Kolkata", datetime(2026, 3, 29), 24),
        ("@daily", "UTC", datetime(2026, 3, 29), 24),
    ],
    ids=["berlin-spring", "berlin-autumn", "half-hour-spring", "half-hour-autumn", "no-midnight", "two-midnights", "no-change", "utc"],
)
def test_a_day_is_as_long_as_the_clock_makes_it(schedule: str, zone: str, day: datetime, hours: float) -> None:
    """One window a day; in Havana a day has no midnight, and another has two."""
    days = grid(schedule, zone, datetime(2026, 1, 1)).within(utc(day, zone) - 2 * HOUR, utc(day, zone) + 50 * HOUR)
    first = next(window for window in days if window.start.astimezone(ZoneInfo(zone)).date() == day.date())
    assert (first.end - first.start) / HOUR == hours
    assert len({window.start.astimezone(ZoneInfo(zone)).date() for window in days}) == len(days)


def test_the_hour_that_comes_twice_is_two_windows() -> None:
    """Hourly windows are an hour long in every zone, and their UTC keys differ."""
    windows = grid("@hourly", "Europe/Berlin").within(at(10, 24, 22), at(10, 25, 23))
    assert {window.end - window.start for window in windows} == {HOUR}
    assert len({window.key for window in windows}) == len(windows) == 25


@pytest.mark.parametrize(
    ("start", "timezone", "first"),
    [
        (datetime(2026, 1, 1), "UTC", at(1, 1)),
        (datetime(2026, 1, 1, 0, 0, 0, 1), "UTC", at(1, 2)),
        (datetime(2026, 1, 1, 10, 30), "UTC", at(1, 2)),
        (datetime(2026, 1, 2), "Europe/Berlin", at(1, 1, 23)),
        (datetime(2026, 1, 1, 23, tzinfo=UTC), "Europe/Berlin", at(1, 1, 23)),
        (datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Kolkata")), "UTC", at(1, 1)),
    ],
    ids=["on-boundary", "a-microsecond-late", "between", "naive-is-local", "aware-stays", "aware-of-another-zone"],
)
def test_the_first_window_begins_at_the_first_boundary_from_start_on(start: datetime, timezone: str, first: datetime) -> None:
    """A start between boundaries waits for the next one; a naive start is in the view's own zone."""
    assert grid("@daily", timezone, start).first == Window(first, first + DAY)


def test_within_holds_whole_windows_only() -> None:
    """A window that sticks out on either side is left out; without a start it is all from the first on."""
    hours = grid()
    assert hours.within(at(1, 1, 1), at(1, 1, 3)) == [Window(at(1, 1, 1), at(1, 1, 2)), Window(at(1, 1, 2), at(1, 1, 3))]
    assert hours.within(at(1, 1, 1, 1), at(1, 1, 3)) == [Window(at(1, 1, 2), at(1, 1, 3))]
    assert hours.within(at(1, 1, 1), at(1, 1, 2, 59)) == [Window(at(1, 1, 1), at(1, 1, 2))]
    assert hours.within(None, at(1, 1, 1)) == [hours.first]
    assert hours.within(at(1, 1, 3), at(1, 1, 3)) == hours.within(at(1, 1, 3), at(1, 1, 1)) == []
    assert hours.within(None, at(1, 1) - DAY) == hours.within(at(1, 1) - DAY, at(1, 1)) == []


def test_touching_holds_every_window_with_an_instant_of_the_range() -> None:
    """An end at a boundary touches nothing after it: ranges are half-open."""
    hours = grid()
    assert hours.touching(at(1, 1, 1, 1), at(1, 1, 2, 1)) == hours.within(at(1, 1, 1), at(1, 1, 3))
    assert hours.touching(at(1, 1, 1), at(1, 1, 2)) == [Window(at(1, 1, 1), at(1, 1, 2))]
    assert hours.touching(None, at(1, 1) + timedelta(microseconds=1)) == [hours.first]
    assert hours.touching(None, at(1, 1)) == hours.touching(at(1, 1) - DAY, at(1, 1)) == []
    assert hours.touching(at(1, 1, 1, 30), at(1, 1, 1, 30)) == []


def test_a_window_is_found_by_its_start() -> None:
    """An instant between boundaries, or before the first, is an error that names the nearest."""
    hours = grid()
    assert hours.starting(at(6, 1, 5)) == Window(at(6, 1, 5), at(6, 1, 6))
    with pytest.raises(WindowError, match=r"no window starts at 2026-06-01 05:30 UTC.\nThe nearest before it starts at 2026-06-01 05:00"):
        hours.starting(at(6, 1, 5, 30))
    with pytest.raises(WindowError, match=r"no window starts at 2025-12-31 .*\nThe first one starts at 2026-01-01 00:00"):
        hours.starting(at(1, 1) - DAY)


def test_the_window_before_ends_where_this_one_starts() -> None:
    """The first one has none."""
    hours = grid()
    assert hours.before(hours.starting(at(1, 1, 1))) == hours.first
    assert hours.before(hours.first) is None


@pytest.mark.parametrize(
    ("schedule", "period"),
    [("@hourly", HOUR), ("@daily", DAY), ("@weekly", 7 * DAY), ("@monthly", 28 * DAY), ("15 4 * * 1-5", DAY), ("0 0 29 2 *", 1461 * DAY)],
    ids=["hourly", "daily", "weekly", "shortest-month", "working-days", "leap-days"],
)
def test_the_period_is_the_shortest_window(schedule: str, period: timedelta) -> None:
    """A ttl below it would leave nothing PRESENT even when all runs as planned."""
    assert grid(schedule).period == period


def test_on_update_has_utc_days_from_the_day_of_start_on() -> None:
    """Whatever the zone, and the day of `start` whole."""
    days = grid(ON_UPDATE, "Asia/Kolkata", datetime(2026, 1, 2, 3))
    assert days.first == Window(at(1, 1), at(1, 2))
    assert days.touching(at(3, 29, 12), at(3, 30, 12)) == [Window(at(3, 29), at(3, 30)), Window(at(3, 30), at(3, 31))]


def test_a_view_without_schedule_has_one_window() -> None:
    """It has no grid; its file is `all`."""
    assert grid_of(replace(VIEW, schedule=None, start=None)) is None
    assert (WHOLE.key, str(WHOLE)) == ("all", "the whole table")


def test_a_key_is_the_start_in_utc() -> None:
    """It is safe in a file name, sorts by time, and says its zone."""
    window = Window(at(10, 25, 1, 30), at(10, 25, 2))
    assert window.key == "2026-10-25T0130Z"
    assert str(window) == "[2026-10-25 01:30, 2026-10-25 02:00) UTC"
    keys = [one.key for one in grid("*/15 * * * *").within(None, at(2, 1))]
    assert sorted(set(keys)) == keys


@pytest.mark.parametrize(
    ("schedule", "cron"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        (ON_UPDATE, "0 0 * * *"),
        ("5 4 * * mon", "5 4 * * mon"),
    ],
    ids=str,
)
def test_a_schedule_is_a_cron(schedule: str, cron: str) -> None:
    """Aliases stand for crons; a cron stands for itself."""
    assert cron_of(schedule) == cron


@pytest.mark.parametrize("schedule", ["", "@never", "* * * *", "* * * * * *", "60 * * * *", "0 0 30 2 *", "a b c d e"], ids=repr)
def test_what_is_no_cron_is_refused(schedule: str) -> None:
    """With the ones that are."""
    with pytest.raises(RegistryError, match=r"is not a cron.\nWrite five fields"):
        cron_of(schedule)


def test_threads_that_share_a_grid_lose_no_boundary() -> None:
    """Views of one schedule share a grid, and Dagster and the API ask it from many threads."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            shared = WindowGrid("*/5 * * * *", "UTC", at(1, 1))
            with ThreadPoolExecutor(8) as threads:
                found = list(threads.map(lambda day, shared=shared: shared.within(None, at(1, 1) + day * DAY), range(1, 9)))
            assert [len(windows) for windows in found] == [288 * day for day in range(1, 9)]
    finally:
        sys.setswitchinterval(interval)
