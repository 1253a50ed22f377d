"""The sample's promises: the same rows every time, pinned users whose numbers never move, and nothing from the future."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_platform.errors import SettingsError
from feature_platform.sample import FOLDER, LATE_EXAMPLE, PINNED_USERS, SampleReport, find, generate

if TYPE_CHECKING:
    from pathlib import Path

END = datetime(2026, 3, 10, 14, tzinfo=UTC)
ENDS = [
    pytest.param(END, id="in-the-afternoon"),
    pytest.param(datetime(2026, 3, 10, tzinfo=UTC), id="at-midnight"),
    pytest.param(datetime(2026, 3, 10, 23, tzinfo=UTC), id="at-23"),
    pytest.param(datetime(2026, 3, 10, 1, tzinfo=UTC), id="at-01"),
    pytest.param(datetime(2026, 3, 10, 14, 20, 30, 5, tzinfo=UTC), id="between-hours"),
]
MONTH = timedelta(days=30)


def sample(root: Path, *, end: datetime | None = END, events: int = 5_000, users: int = 100, days: int = 60, seed: int = 7) -> SampleReport:
    """Generate a small sample."""
    return generate(root, users=users, events=events, days=days, end=end, seed=seed)


def rows(root: Path) -> pa.Table:
    """Read every day file in order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((root / FOLDER).glob("*.parquet"))])


def history(root: Path, user_id: str) -> list[dict[str, Any]]:
    """Read one user's rows in order."""
    own: list[dict[str, Any]] = rows(root).filter(pc.field("user_id") == user_id).to_pylist()
    return own


def count(root: Path, user_id: str, end: datetime) -> int:
    """Count a user's rows in the 30 days before `end`, one by one."""
    return sum(1 for row in history(root, user_id) if end - MONTH <= row["watched_at"] < end)


@pytest.mark.parametrize("end", ENDS)
def test_the_pinned_users_have_their_numbers_on_the_newest_windows(tmp_path: Path, end: datetime) -> None:
    """Whatever the hour of the end, `8a2f` is a power user with 47 and `b13c` a casual one with 5."""
    sample(tmp_path, end=end)
    midnight = end.replace(hour=0, minute=0, second=0, microsecond=0)

    assert [count(tmp_path, user, end) for user in PINNED_USERS] == [47, 5]
    assert count(tmp_path, "8a2f", midnight) >= 30
    assert 1 <= count(tmp_path, "b13c", midnight) < 10
    assert [history(tmp_path, user)[-1]["genre"] for user in PINNED_USERS] == ["documentary", "thriller"]


@pytest.mark.parametrize("hours", [-6, -1, 0, 3, 6])
def test_the_pinned_counts_hold_for_windows_near_the_end(tmp_path: Path, hours: int) -> None:
    """A window that ends up to six hours before or after the sample counts the same."""
    sample(tmp_path)

    assert [count(tmp_path, user, END + timedelta(hours=hours)) for user in PINNED_USERS] == [47, 5]


@pytest.mark.parametrize(("days", "events"), [(32, 200), (45, 3_000), (90, 3_000)], ids=["shortest", "shorter", "longer"])
def test_the_pinned_users_do_not_depend_on_the_size(tmp_path: Path, days: int, events: int) -> None:
    """The smallest sample and a long one pin the same month."""
    report = sample(tmp_path, days=days, events=events, users=5, seed=days)

    assert rows(tmp_path).num_rows == report.events == events
    assert [count(tmp_path, user, END) for user in PINNED_USERS] == [47, 5]


def test_a_pinned_user_was_less_active_a_month_ago(tmp_path: Path) -> None:
    """`8a2f` comes from `regular`, so that its history shows a change."""
    sample(tmp_path)

    assert 10 <= count(tmp_path, "8a2f", END - MONTH) < 30


def test_the_late_example_is_known_20_hours_after_it_happened(tmp_path: Path) -> None:
    """Within its lag, the value that was known is the genre before."""
    sample(tmp_path)
    own = history(tmp_path, LATE_EXAMPLE.user_id)
    happened = END - LATE_EXAMPLE.before_end
    index = next(index for index, row in enumerate(own) if row["watched_at"] == happened)

    assert own[index]["genre"] == LATE_EXAMPLE.genre
    assert own[index]["ingested_at"] == happened + LATE_EXAMPLE.lag
    assert own[index - 1]["genre"] == LATE_EXAMPLE.genre_before
    assert own[index + 1]["watched_at"] > happened + LATE_EXAMPLE.lag


def test_pinned_rows_are_ingested_promptly_and_before_the_end(tmp_path: Path) -> None:
    """Only the late example waits; the rest is known within seconds, ten minutes or more before the end."""
    sample(tmp_path)
    table = rows(tmp_path).filter(pc.field("user_id").isin(PINNED_USERS))
    lags = Counter(known - at for known, at in zip(table["ingested_at"].to_pylist(), table["watched_at"].to_pylist(), strict=True))

    assert lags.pop(LATE_EXAMPLE.lag) == 1
    assert max(lags) < timedelta(seconds=10)
    assert max(table["watched_at"].to_pylist()) <= END - timedelta(minutes=10)


def test_the_same_seed_and_end_give_the_same_bytes(tmp_path: Path) -> None:
    """Two folders, one sample."""
    sample(tmp_path / "a")
    sample(tmp_path / "b")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name / FOLDER).glob("*.parquet")} for name in "ab")

    assert first == second


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    """A seed that changed nothing would be no seed."""
    sample(tmp_path / "a")
    sample(tmp_path / "b", seed=8)

    assert not rows(tmp_path / "a").equals(rows(tmp_path / "b"))


def test_two_percent_of_the_rows_are_late_by_up_to_two_days(tmp_path: Path) -> None:
    """Late means more than a minute; nothing is ingested before it happened or after the end."""
    sample(tmp_path, events=50_000)
    table = rows(tmp_path)
    watched, ingested = table["watched_at"].cast(pa.int64()).to_numpy(), table["ingested_at"].cast(pa.int64()).to_numpy()
    lag = (ingested - watched) / 1e6

    assert 0.017 < (lag > 60).mean() < 0.023
    assert lag.min() >= 0
    assert 86_400 < lag.max() <= 2 * 86_400
    assert ingested.max() <= END.timestamp() * 1e6


def test_traffic_is_skewed_and_some_users_go_quiet(tmp_path: Path) -> None:
    """A tenth of the users makes a third of the events or more; one in ten has been silent for two weeks."""
    sample(tmp_path, events=50_000, users=500)
    table = rows(tmp_path)
    per_user = sorted(Counter(table["user_id"].to_pylist()).values(), reverse=True)
    newest = table.group_by("user_id").aggregate([("watched_at", "max")])["watched_at_max"].to_pylist()

    assert sum(per_user[:50]) > 50_000 / 3
    assert sum(1 for at in newest if at < END - timedelta(days=14)) > 50


@pytest.mark.law
def test_a_day_file_holds_the_rows_of_its_utc_day_in_order(tmp_path: Path) -> None:
    """The name is the UTC day, wherever the machine stands."""
    report = sample(tmp_path)

    for path in (tmp_path / FOLDER).glob("*.parquet"):
        watched = pq.read_table(path)["watched_at"].to_pylist()
        assert {f"{at.astimezone(UTC):%Y-%m-%d}" for at in watched} == {path.stem}
        assert watched == sorted(watched)
    assert report.start <= rows(tmp_path)["watched_at"][0].as_py()
    assert rows(tmp_path)["watched_at"][-1].as_py() < report.end


def test_the_columns_are_those_that_the_example_declares(tmp_path: Path) -> None:
    """Names and types are a contract with `features/streaming.py`."""
    sample(tmp_path)
    instant = pa.timestamp("us", tz="UTC")

    assert rows(tmp_path).schema.equals(
        pa.schema(
            {
                "user_id": pa.string(),
                "title_id": pa.string(),
                "genre": pa.string(),
                "minutes": pa.int64(),
                "watched_at": instant,
                "ingested_at": instant,
            }
        )
    )
    assert pc.min(rows(tmp_path)["minutes"]).as_py() >= 1


def test_the_same_sample_is_not_written_twice(tmp_path: Path) -> None:
    """A second run with the same parameters leaves the files alone, and says so."""
    first = sample(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).glob("*.parquet")}
    second = sample(tmp_path)

    assert (first.skipped, second.skipped) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).glob("*.parquet")} == before
    assert (second.events, second.files, second.start, second.end) == (first.events, first.files, first.start, first.end)


def test_a_missing_day_is_written_again(tmp_path: Path) -> None:
    """The marker alone is no sample."""
    sample(tmp_path)
    victim = min((tmp_path / FOLDER).glob("*.parquet"))
    victim.unlink()

    assert sample(tmp_path).skipped is False
    assert victim.exists()


def test_files_of_an_earlier_sample_go(tmp_path: Path) -> None:
    """A shorter sample leaves no day of the longer one, or its rows would be counted."""
    sample(tmp_path, days=60)
    report = sample(tmp_path, days=32)

    assert len(list((tmp_path / FOLDER).glob("*.parquet"))) == report.files == 33
    assert rows(tmp_path).num_rows == 5_000


def test_a_sample_that_died_half_way_is_replaced(tmp_path: Path) -> None:
    """Files that an interrupted run left behind are the sample's own, and no complete sample."""

    def stop(_written: int, _events: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, users=100, events=5_000, end=END, progress=stop)

    assert find(tmp_path) is None
    assert sample(tmp_path, days=32).skipped is False
    assert rows(tmp_path).num_rows == 5_000


def test_files_of_somebody_else_are_refused(tmp_path: Path) -> None:
    """Real events in the folder are neither mixed with samples nor deleted."""
    (tmp_path / FOLDER).mkdir(parents=True)
    theirs = tmp_path / FOLDER / "2026-01-01.parquet"
    theirs.write_bytes(b"real")

    with pytest.raises(SettingsError, match="no sample wrote"):
        sample(tmp_path)
    assert theirs.read_bytes() == b"real"


@pytest.mark.parametrize(
    ("users", "events", "days", "field"),
    [(2, 5_000, 60, "users"), (100, 10, 60, "events"), (100, 5_000, 31, "days")],
    ids=["no-users", "no-room-for-the-pinned", "shorter-than-the-windows"],
)
def test_sizes_too_small_for_the_pinned_users_are_refused(tmp_path: Path, users: int, events: int, days: int, field: str) -> None:
    """The error names the size to change."""
    with pytest.raises(SettingsError, match=field) as caught:
        sample(tmp_path, users=users, events=events, days=days)
    assert caught.value.field == field


def test_the_sample_ends_at_the_last_full_hour(tmp_path: Path) -> None:
    """Without `end`, the clock decides; a naive one is UTC."""
    report = generate(tmp_path, users=100, events=500, now=datetime(2026, 3, 10, 14, 59, 59))

    assert report.end == END
    assert find(tmp_path) is not None


def test_progress_counts_up_to_all_rows(tmp_path: Path) -> None:
    """The last call says that everything is there."""
    calls: list[tuple[int, int]] = []
    generate(tmp_path, users=100, events=500, end=END, progress=lambda written, events: calls.append((written, events)))

    assert calls == sorted(calls)
    assert calls[-1] == (500, 500)


@pytest.mark.parametrize("users", [100, 70_000], ids=["four-digits", "eight-digits"])
def test_user_ids_are_distinct(tmp_path: Path, users: int) -> None:
    """No drawn user takes a pinned id, whatever the width of the ids."""
    sample(tmp_path, users=users, events=200_000 if users > 65_536 else 5_000)
    drawn = set(rows(tmp_path)["user_id"].to_pylist())

    assert len(drawn) <= users
    assert [len(history(tmp_path, user)) for user in PINNED_USERS] == [61, 8]
