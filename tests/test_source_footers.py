"""The files of a source: each is opened when a window needs it, and its footer is read once for all processes."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline_project import HOUR, MICROS, MINUTE, NOW, T0, answers, put, store_of, user
from opened_files import opened_files

from feature_platform import Aggregate, Feature, FeatureView, ParquetSource
from feature_platform.offline.source_footers import SourceFooters, paths_of

FILES = 40
watches = ParquetSource("watches", "source/*.parquet", timestamp="at")


def counts() -> FeatureView:
    """Return an aggregate of three hours, hourly."""
    features = [Aggregate("n", "count", window=3 * HOUR), Aggregate("newest", "max", column="known_at", dtype=datetime, window=3 * HOUR)]
    return FeatureView("counts", entity=user, sources=[watches], features=features, schedule="@hourly", start=T0)


def events() -> FeatureView:
    """Return an event view, hourly."""
    query = 'select user_id, "at" as event_timestamp, known_at from watches'
    features = [Feature("known_at", datetime)]
    return FeatureView("events", entity=user, sources=[watches], query=query, features=features, schedule="@hourly", start=T0)


def name(hour: int) -> str:
    """Return the file of an hour."""
    return f"{hour:02}"


def fill(root: Path) -> None:
    """Write a file an hour."""
    for hour in range(FILES):
        put(root, name(hour), ("ann", T0 + hour * HOUR + MINUTE))


@pytest.mark.parametrize(("view", "hours"), [(events(), [0, 20]), (counts(), [0, 16, 17, 18, 19, 20])], ids=["event", "aggregate"])
def test_a_window_opens_the_files_that_hold_its_rows(tmp_path: Path, view: FeatureView, hours: list[int]) -> None:
    """However many there are; and the first one, which tells the source's columns."""
    fill(tmp_path)
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 20 * HOUR, now=NOW)
    with store_of(tmp_path, view) as store, opened_files(tmp_path / "source") as opened:
        (report,) = store.compute(start=T0 + 20 * HOUR, end=T0 + 21 * HOUR, now=NOW)
    assert report.partition.rows == 1
    assert opened <= {f"{name(hour)}.parquet" for hour in hours}
    assert f"{name(20)}.parquet" in opened


def test_a_footer_is_read_once(tmp_path: Path) -> None:
    """By whichever process came first, until the file is another."""
    fill(tmp_path)
    path = tmp_path / "footers.sqlite"
    first = SourceFooters(path).files(watches, tmp_path)
    assert len(first) == FILES
    with opened_files(tmp_path / "source") as opened:
        assert SourceFooters(path).files(watches, tmp_path) == first
    assert not opened
    put(tmp_path, name(3), ("bob", T0), ("bob", T0 + HOUR))
    (tmp_path / "source" / f"{name(4)}.parquet").unlink()
    with opened_files(tmp_path / "source") as opened:
        then = SourceFooters(path).files(watches, tmp_path)
    assert opened == {f"{name(3)}.parquet"}
    assert len(then) == FILES - 1
    assert then[3] != first[3]


@pytest.mark.parametrize("damage", [b"", b"no database at all, only words" * 100], ids=["emptied", "garbage"])
def test_damaged_footers_are_read_again(tmp_path: Path, damage: bytes) -> None:
    """Nothing is lost with the file that remembers them."""
    fill(tmp_path)
    path = tmp_path / "footers.sqlite"
    first = SourceFooters(path)
    found = first.files(watches, tmp_path)
    first.close()
    path.write_bytes(damage)
    assert SourceFooters(path).files(watches, tmp_path) == found


def test_columns_that_other_files_have_are_there_in_every_window(tmp_path: Path) -> None:
    """A window whose own files lack a column, or hold a narrower type, reads the source as a whole has them."""
    (tmp_path / "source").mkdir()
    old = {"user_id": ["ann"], "at": pa.array([T0 + MINUTE], MICROS), "n": pa.array([1], pa.int32())}
    new = {"user_id": ["ann"], "at": pa.array([T0 + 5 * HOUR], MICROS), "n": pa.array([2**40], pa.int64()), "genre": ["drama"]}
    pq.write_table(pa.table(old), tmp_path / "source" / "old.parquet")
    pq.write_table(pa.table(new), tmp_path / "source" / "new.parquet")
    query = 'select user_id, "at" as event_timestamp, n, typeof(n) as kind, genre from watches'
    features = [Feature("n", int), Feature("kind", str), Feature("genre", str)]
    view = FeatureView("events", entity=user, sources=[watches], query=query, features=features, schedule="@hourly", start=T0)
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 6 * HOUR, now=NOW)
        rows = [
            row
            for hour in (0, 5)
            for row in pq.read_table(store.offline.path(view, store.offline.partitions(view)[hour].window)).to_pylist()
        ]
    assert [(row["n"], row["kind"], row["genre"]) for row in rows] == [(1, "BIGINT", None), (2**40, "BIGINT", "drama")]


UNITS = [
    pa.timestamp("us", tz="UTC"),
    pa.timestamp("us"),
    pa.timestamp("ms"),
    pa.timestamp("ns"),
    pa.timestamp("s", tz="Asia/Kolkata"),
    pa.date32(),
]


@given(
    unit=st.sampled_from(UNITS),
    seconds=st.lists(st.integers(-(2**32), 2**32), min_size=1, max_size=5),
    nanoseconds=st.integers(0, 999_999_999),
)
def test_a_footer_tells_the_times_of_any_unit(
    tmp_path_factory: pytest.TempPathFactory, unit: pa.DataType, seconds: list[int], nanoseconds: int
) -> None:
    """The range that it tells holds each time, rounded up to a microsecond as it is read (law L5)."""
    root = tmp_path_factory.mktemp("source")
    exact = pa.array([second * 10**9 + nanoseconds for second in seconds], pa.timestamp("ns"))
    times = exact.cast(unit, safe=False) if not pa.types.is_date(unit) else exact.cast(pa.timestamp("s"), safe=False).cast(unit, safe=False)
    (root / "source").mkdir()
    pq.write_table(pa.table({"at": times}), root / "source" / "a.parquet")
    (file,) = SourceFooters(None).files(watches, root)
    assert file.spans is not None
    ((low, high),) = file.spans
    micros = times.cast(pa.timestamp("ns"), safe=False).cast(pa.int64())
    up = [-(-value // 1000) for value in micros.to_pylist()]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert all((low - epoch).total_seconds() * 1e6 - 1 <= one <= (high - epoch).total_seconds() * 1e6 + 1 for one in up)


def test_a_field_of_a_struct_is_no_column(tmp_path: Path) -> None:
    """The field b of a column a and a column 'a.b' have one path in a footer: it does not say which times the column holds."""
    (tmp_path / "source").mkdir()
    for number in range(3):
        field = pa.array([{"b": T0 - 99 * HOUR + number * MINUTE}], pa.struct([("b", MICROS)]))
        table = {"user_id": ["ann"], "a": field, "a.b": pa.array([T0 + number * MINUTE], MICROS)}
        pq.write_table(pa.table(table), tmp_path / "source" / f"{name(number)}.parquet")
    source = ParquetSource("watches", "source/*.parquet", timestamp="a.b")
    features = [Aggregate("n", "count", window=3 * HOUR)]
    view = FeatureView("counts", entity=user, sources=[source], features=features, schedule="@hourly", start=T0)
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        assert [value for value, _ in answers(store, ["counts:n"], [T0 + HOUR])] == [3]


def test_a_file_that_a_pattern_matches_in_two_ways_is_read_once(tmp_path: Path) -> None:
    """Two stars of folders divide the folders above a file between them as often as there are some."""
    (tmp_path / "source").mkdir()
    put(tmp_path / "source", "a", ("ann", T0 + MINUTE))
    assert paths_of(ParquetSource("watches", "source/**/**/*.parquet", timestamp="at"), tmp_path) == [
        str(tmp_path / "source" / "source" / "a.parquet")
    ]


@pytest.mark.parametrize("is_made_again", [False, True], ids=["gone", "made-by-another-process"])
def test_footers_that_were_deleted_while_they_were_open_are_read_again(tmp_path: Path, *, is_made_again: bool) -> None:
    """A server goes on when somebody clears the folder to start afresh."""
    fill(tmp_path)
    path = tmp_path / "cache" / "footers.sqlite"
    footers = SourceFooters(path)
    assert len(footers.files(watches, tmp_path)) == FILES
    shutil.rmtree(path.parent)
    if is_made_again:
        SourceFooters(path).files(watches, tmp_path)
    put(tmp_path, name(FILES), ("ann", T0 + FILES * HOUR))
    found = footers.files(watches, tmp_path)
    assert len(found) == FILES + 1
    with opened_files(tmp_path / "source") as opened:
        assert footers.files(watches, tmp_path) == found
    assert not opened
