"""A window that builds on its predecessor's running totals: the values of a computation from nothing, to the last bit."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline_project import HOUR, MICROS, MINUTE, NOW, T0, answers, instants, put, store_of, user, watches, write

from feature_platform import Aggregate, Entity, FeatureStatus, FeatureStore, FeatureView, ParquetSource, between
from feature_platform.errors import ExpectationError
from feature_platform.offline.compute import compute_windows

HOURS = 10
USERS = ["ann", "bob", "çem"]
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("at", MICROS),
        ("known_at", MICROS),
        ("whole", pa.int64()),
        ("price", pa.float64()),
        ("cost", pa.decimal128(9, 2)),
        ("genre", pa.string()),
    ]
)
NASTY = [0.1, -0.1, 1e16, -1e16, 1e-30, 1e300, -1e300, 5e-324, math.inf, -math.inf, math.nan, 2.0**71, -0.0]
plain, nasty = st.floats(-1e6, 1e6), st.sampled_from(NASTY)
rows = st.builds(
    lambda who, minute, lag, whole, price, cost, genre: {
        "user_id": who,
        "at": T0 + minute * MINUTE,
        "known_at": None if lag is None else T0 + (minute + lag) * MINUTE,
        "whole": whole,
        "price": price,
        "cost": cost,
        "genre": genre,
    },
    st.sampled_from([*USERS, *USERS, None]),
    st.one_of(st.integers(-240, HOURS * 60), st.integers(-4, HOURS).map(lambda hour: hour * 60)),
    st.sampled_from([None, 0, 0, 1, 59, 60, 61, 150, 300]),
    st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**62, -(2**62)])),
    st.one_of(st.none(), plain, plain, plain, nasty),
    st.one_of(st.none(), st.decimals(-1000, 1000, places=2)),
    st.sampled_from(["drama", "horror", None]),
)


@dataclass(frozen=True)
class Step:
    """What happens to a project: a file comes or goes, windows are computed or lost, a definition or an expectation changes."""

    what: str
    file: int = 0
    rows: Sequence[dict[str, Any]] = ()
    first: int = 0
    length: int = 1


steps = st.lists(
    st.one_of(
        st.builds(Step, st.just("write"), st.integers(0, 3), st.lists(rows, min_size=1, max_size=6)),
        st.builds(Step, st.just("remove"), st.integers(0, 3)),
        st.builds(Step, st.just("compute"), first=st.integers(0, HOURS - 1), length=st.integers(1, HOURS)),
        st.builds(Step, st.just("compute"), first=st.integers(0, HOURS - 1), length=st.integers(1, 4)),
        st.builds(Step, st.just("expect"), first=st.integers(0, HOURS - 1), length=st.integers(1, 4)),
        st.builds(Step, st.just("lose"), first=st.integers(0, HOURS - 1)),
        st.builds(Step, st.just("redefine"), first=st.integers(0, HOURS - 1), length=st.integers(1, 4)),
    ),
    min_size=2,
    max_size=9,
)


def view_of(*, is_known_late: bool, delay: timedelta, expect: bool = False, redefined: bool = False) -> FeatureView:
    """Return a view with every function, over windows of four lengths."""
    source = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at" if is_known_late else None)
    limit: list[Any] = [between(0, 2)] if expect else []
    features = [
        Aggregate("n", "count", window=3 * HOUR, expect=limit),
        Aggregate("n_price", "count", column="price", window=2 * HOUR),
        Aggregate("total", "sum", column="whole", dtype=pa.decimal128(38, 0), window=3 * HOUR, where="genre is null"),
        Aggregate("spent", "sum", column="price", window=2 * HOUR),
        Aggregate("mean_price", "mean", column="price", window=90 * MINUTE),
        Aggregate("cost", "sum", column="cost", dtype=pa.decimal128(20, 2), window=4 * HOUR),
        Aggregate("mean_cost", "mean", column="cost", window=4 * HOUR, where="genre = 'drama'"),
        Aggregate("low", "min", column="price", window=3 * HOUR),
        Aggregate("high", "max", column="whole", dtype=int, window=HOUR),
        Aggregate("earliest", "first", column="price", window=2 * HOUR),
        Aggregate("newest", "last", column="genre", dtype=str, window=2 * HOUR),
        Aggregate("recent", "last_n", column="whole", n=2, dtype=list[int], window=4 * HOUR),
        Aggregate("genres", "count_distinct", column="genre", window=2 * HOUR),
    ]
    if redefined:
        features[0] = replace(features[0], window=HOUR)
    return FeatureView("activity", entity=user, sources=[source], features=features, schedule="@hourly", start=T0, delay=delay)


@dataclass
class Project:
    """A folder, what was done to it, and the view as it is declared."""

    root: Path
    view: FeatureView
    files: set[int] = field(default_factory=set)

    def put(self, file: int, content: Sequence[dict[str, Any]]) -> None:
        """Write a file under a new inode, as whoever replaces files does."""
        (self.root / "source").mkdir(exist_ok=True)
        path = self.root / "source" / f"{file}.parquet"
        path.unlink(missing_ok=True)
        pq.write_table(pa.Table.from_pylist(list(content), schema=SCHEMA), path)

    def compute(self, view: FeatureView, first: int, length: int) -> list[tuple[datetime, str]]:
        """Compute some windows; return their ends and what came of them."""
        with store_of(self.root, view) as store:
            reports = compute_all(store, first, length)
        return [(report.window.end, report.outcome) for report in reports]

    def values(self, view: FeatureView, ends: Sequence[datetime]) -> list[str]:
        """Return what everybody's features are at some ends, to the last bit."""
        with store_of(self.root, view) as store:
            times = [end + view.delay for end in ends for _ in USERS]
            return [repr(row) for row in answers(store, [f"activity:{name}" for name in view.feature_by_name], times, USERS * len(ends))]


def compute_all(store: FeatureStore, first: int, length: int) -> list[Any]:
    """Compute windows; those that are rejected are reported, too."""
    try:
        return store.compute(start=T0 + first * HOUR, end=T0 + min(first + length, HOURS) * HOUR, now=NOW)
    except ExpectationError as error:
        return list(error.reports)


@pytest.mark.timeout(1200)  # five minutes on a slow day
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    history=steps,
    last=st.tuples(st.integers(0, HOURS - 1), st.integers(1, 5)),
    is_known_late=st.booleans(),
    delay=st.sampled_from([timedelta(0), 30 * MINUTE]),
    expect=st.booleans(),
)
def test_whatever_happened_before_a_window_holds_what_computing_from_nothing_gives(
    *, history: list[Step], last: tuple[int, int], is_known_late: bool, delay: timedelta, expect: bool
) -> None:
    """Late files, lost partitions, rejections, other definitions: windows computed now have today's values, and again change nothing."""
    usual, strict = (view_of(is_known_late=is_known_late, delay=delay, expect=one) for one in (False, True))
    other = view_of(is_known_late=is_known_late, delay=delay, redefined=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as empty:
        project, fresh = Project(Path(folder), usual), Project(Path(empty), usual)
        project.put(9, [])
        for step in history:
            path = project.root / "source" / f"{step.file}.parquet"
            match step.what:
                case "write":
                    project.put(step.file, step.rows)
                case "remove":
                    path.unlink(missing_ok=True)
                case "lose":
                    name = (T0 + step.first * HOUR).strftime("%Y-%m-%dT%H%MZ")
                    (project.root / "data" / "features" / "activity" / f"{name}.parquet").unlink(missing_ok=True)
                case what:
                    project.compute({"compute": usual, "expect": strict, "redefine": other}[what], step.first, step.length)
        outcomes = project.compute(strict if expect else usual, *last)
        ends = [end for end, outcome in outcomes if outcome != "rejected"]
        (fresh.root / "source").symlink_to(project.root / "source")
        fresh.compute(usual, 0, HOURS)
        assert project.values(usual, ends) == fresh.values(usual, ends)
        again = project.compute(strict if expect else usual, *last)
        assert {outcome for _, outcome in again} <= {"unchanged", "rejected"}


@pytest.mark.parametrize("entity", [user, Entity("everyone")], ids=["by-user", "global"])
def test_windows_computed_alone_and_together_write_the_same_files(tmp_path: Path, entity: Entity) -> None:
    """One window at a time, each from what enters and leaves, gives file by file the rows of one run: hidden totals, too."""
    table = {
        "user_id": ["ann", "bob", "ann", "ann"],
        "at": instants(MINUTE, 2 * MINUTE, 61 * MINUTE, 400 * MINUTE),
        "x": [0.1, 1e300, 0.2, 0.3],
    }
    features = [Aggregate("v", "sum", column="x", window=2 * HOUR), Aggregate("n", "count", window=3 * HOUR)]
    files: list[list[list[dict[str, Any]]]] = []
    for step in (1, HOURS):
        root = tmp_path / str(step)
        root.mkdir()
        write(root, table)
        view = FeatureView("activity", entity=entity, sources=[watches], features=features, schedule="@hourly", start=T0)
        with store_of(root, view) as store:
            reports = [one for first in range(0, HOURS, step) for one in compute_all(store, first, step)]
        assert [report.kind for report in reports] == ["full", *["changes"] * (HOURS - 1)]
        files.append([pq.read_table(report.path).to_pylist() for report in reports])
    assert files[0] == files[1]


def test_a_window_is_not_built_on_a_file_that_was_rejected_since(tmp_path: Path) -> None:
    """Its file is there from before the late rows, and the rows that they gave were rejected: the next window counts them."""
    view = FeatureView(
        "counts",
        entity=user,
        sources=[ParquetSource("watches", "source/*.parquet", timestamp="at")],
        features=[Aggregate("n", "count", window=9 * HOUR), Aggregate("recent", "count", window=HOUR, expect=[between(0, 3)])],
        schedule="@hourly",
        start=T0,
    )
    put(tmp_path, "base", ("ann", T0 + MINUTE), ("ann", T0 + 61 * MINUTE))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 2 * HOUR, now=NOW)
        put(tmp_path, "late", *[("ann", T0 + (62 + number) * MINUTE) for number in range(4)])
        with pytest.raises(ExpectationError):
            store.compute(start=T0 + HOUR, end=T0 + 2 * HOUR, now=NOW)
        (report,) = store.compute(start=T0 + 2 * HOUR, end=T0 + 3 * HOUR, now=NOW)
        assert report.partition.is_full
        assert answers(store, ["counts:n"], [T0 + 3 * HOUR]) == [(6, FeatureStatus.PRESENT)]


def test_a_window_is_not_built_on_another_definition_of_the_same_columns(tmp_path: Path) -> None:
    """A longer delay lets rows in that were known late: what was counted before it lacks them."""
    source = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at")

    def view(delay: timedelta) -> FeatureView:
        features = [Aggregate("n", "count", window=9 * HOUR)]
        return FeatureView("counts", entity=user, sources=[source], features=features, schedule="@hourly", start=T0, delay=delay)

    put(tmp_path, "base", ("ann", T0 + MINUTE), ("ann", T0 + 2 * MINUTE, T0 + 4 * HOUR))
    with store_of(tmp_path, view(timedelta(0))) as store:
        store.compute(end=T0 + 2 * HOUR, now=NOW)
    with store_of(tmp_path, view(2 * HOUR)) as store:
        (report,) = store.compute(start=T0 + 2 * HOUR, end=T0 + 3 * HOUR, now=NOW)
        assert report.partition.is_full
        assert answers(store, ["counts:n"], [T0 + 5 * HOUR]) == [(2, FeatureStatus.PRESENT)]


def put_codes(root: Path, name: str, kind: pa.DataType, *rows: tuple[timedelta, Any]) -> None:
    """Write a file of ann's watches: time after T0, and a code of some type."""
    (root / "source").mkdir(exist_ok=True)
    times, codes = zip(*rows, strict=True)
    table = {"user_id": ["ann"] * len(rows), "at": instants(*times), "code": pa.array(codes, kind)}
    pq.write_table(pa.table(table), root / "source" / f"{name}.parquet")


def test_a_window_is_not_built_on_totals_of_a_column_that_was_read_as_another_type(tmp_path: Path) -> None:
    """10 is more than 9 and '10' is less than '9': what entered as a number would not leave as text, and be counted for ever."""
    source = ParquetSource("watches", "source/*.parquet", timestamp="at")
    features = [Aggregate("n", "count", window=2 * HOUR, where="code > '9'")]
    view = FeatureView("activity", entity=user, sources=[source], features=features, schedule="@hourly", start=T0)
    put_codes(tmp_path, "numbers", pa.int64(), (MINUTE, 10))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        assert answers(store, ["activity:n"], [T0 + HOUR]) == [(1, FeatureStatus.PRESENT)]
        put_codes(tmp_path, "texts", pa.string(), (61 * MINUTE, "1"))
        store.compute(start=T0 + HOUR, end=T0 + 4 * HOUR, now=NOW)
        found = answers(store, ["activity:n"], [T0 + 2 * HOUR, T0 + 3 * HOUR, T0 + 4 * HOUR])
        assert [value for value, _ in found] == [0, 0, 0]


def test_a_middle_is_not_read_where_a_column_has_another_type_today(tmp_path: Path) -> None:
    """The rest of the window's events would not go together with it: the next windows failed until the block's end."""
    source = ParquetSource("watches", "source/*.parquet", timestamp="at")
    features = [Aggregate("n", "count_distinct", column="code", window=9 * HOUR)]
    view = FeatureView("activity", entity=user, sources=[source], features=features, schedule="@hourly", start=T0)
    put_codes(tmp_path, "numbers", pa.int64(), (MINUTE, 10), (2 * MINUTE, 11))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 5 * HOUR, now=NOW)
        assert list((store.offline.folder(view) / "_middles").glob("*.parquet"))
        put_codes(tmp_path, "texts", pa.string(), (5 * HOUR + MINUTE, "10"), (5 * HOUR + MINUTE, "a"))
        store.compute(start=T0 + 5 * HOUR, end=T0 + 6 * HOUR, now=NOW)
        assert answers(store, ["activity:n"], [T0 + 6 * HOUR]) == [(3, FeatureStatus.PRESENT)]


def kept_middle(store: FeatureStore, view: FeatureView) -> Path:
    """Compute five windows, and return the middle that they leave for the sixth."""
    store.compute(end=T0 + 5 * HOUR, now=NOW)
    (path,) = (store.offline.folder(view) / "_middles").glob("*.parquet")
    return path


def longest_ago() -> FeatureView:
    """Return a view that keeps middles."""
    source = ParquetSource("watches", "source/*.parquet", timestamp="at")
    features = [Aggregate("first", "min", column="known_at", dtype=datetime, window=9 * HOUR)]
    return FeatureView("activity", entity=user, sources=[source], features=features, schedule="@hourly", start=T0)


def test_a_middle_with_damaged_rows_is_made_anew(tmp_path: Path) -> None:
    """Of a disk that lost some of it: its footer is whole, and says what it stands for."""
    view = longest_ago()
    put(tmp_path, "base", *((name, T0 + MINUTE) for name in USERS))
    with store_of(tmp_path, view) as store:
        path = kept_middle(store, view)
        whole = path.read_bytes()
        rows = len(whole) - pq.read_metadata(path).serialized_size - 12
        path.write_bytes(whole[:4] + bytes(rows) + whole[4 + rows :])
        put(tmp_path, "new", ("ann", T0 + 5 * HOUR + MINUTE))
        store.compute(start=T0 + 5 * HOUR, end=T0 + 6 * HOUR, now=NOW)
        assert answers(store, ["activity:first"], [T0 + 6 * HOUR]) == [(T0 + MINUTE, FeatureStatus.PRESENT)]


def test_a_middle_that_another_run_forgot_meanwhile_stops_nobody(tmp_path: Path) -> None:
    """Each run deletes all but the newest, and two may be at it: a listed file need not be there any more."""
    view = longest_ago()
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    with store_of(tmp_path, view) as store:
        folder = kept_middle(store, view).parent
        (folder / "0.1.parquet").symlink_to(folder / "gone")  # listed, and nothing is there
        store.compute(start=T0 + 6 * HOUR, end=T0 + 7 * HOUR, now=NOW)
        assert answers(store, ["activity:first"], [T0 + 7 * HOUR]) == [(T0 + MINUTE, FeatureStatus.PRESENT)]


class Meanwhile:
    """A connection before whose first statement that reads a file something else happens."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, happens: Callable[[], object]) -> None:
        self._connection, self._path, self._happens = connection, str(path), [happens]

    def __getattr__(self, name: str) -> Any:
        """Be the connection."""
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: Any) -> duckdb.DuckDBPyConnection:
        """Run a statement."""
        if self._path in sql and self._happens:
            self._happens.pop()()
        return self._connection.execute(sql, *parameters)


def test_a_middle_that_another_run_replaces_while_it_is_read_is_not_believed(tmp_path: Path) -> None:
    """A run that listed the source files earlier puts in what they held, between the look at a middle's footer and its rows."""
    view = longest_ago()
    put(tmp_path, "base", ("ann", T0 + MINUTE))
    with store_of(tmp_path, view) as store, duckdb.connect() as connection:
        path = kept_middle(store, view)
        old = path.read_bytes()
        (tmp_path / "source" / "base.parquet").unlink()
        put(tmp_path, "base", ("ann", T0 + 2 * HOUR))
        store.compute(start=T0 + 5 * HOUR, end=T0 + 6 * HOUR, now=NOW)
        assert path.read_bytes() != old
        window = store.offline.partitions(view)[-1].window
        both: Any = Meanwhile(connection, path, lambda: path.write_bytes(old))
        compute_windows(both, view, [window], store=store.offline, root=tmp_path, now=NOW)
        assert answers(store, ["activity:first"], [T0 + 6 * HOUR]) == [(T0 + 2 * HOUR, FeatureStatus.PRESENT)]


LATE = {
    # the time of a row, when it was known, the ends before which it counts for nobody, and from which it does
    "before-the-run-and-in-no-range": (MINUTE, 90 * MINUTE, 1, 2),
    "in-the-middle-known-in-the-block": (HOUR, 4 * HOUR + 30 * MINUTE, 4, 5),
    "in-the-middle-known-at-the-block's-start": (HOUR, 3 * HOUR, 2, 3),
    "in-the-middle-known-just-after-it": (HOUR, 3 * HOUR + timedelta(microseconds=1), 3, 4),
    "in-the-head": (-3 * HOUR - MINUTE, 4 * HOUR + 30 * MINUTE, 4, 5),
    "in-the-tail": (3 * HOUR, 5 * HOUR + MINUTE, 5, 6),
}


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "together"])
@pytest.mark.parametrize(("at", "known_at", "without", "with_it"), LATE.values(), ids=LATE)
def test_a_late_row_counts_from_the_first_end_that_knows_it(
    tmp_path: Path, at: timedelta, known_at: timedelta, without: int, with_it: int, *, is_alone: bool
) -> None:
    """In a running total, and beside a block's middle that was made without it: of nine hours' ends, those of (3, 6] share one."""
    source = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at")
    features = [
        Aggregate("n", "count", window=9 * HOUR),
        Aggregate("times", "count_distinct", column="at", window=9 * HOUR),
        Aggregate("newest", "max", column="known_at", dtype=datetime, window=9 * HOUR),
    ]
    view = FeatureView("activity", entity=user, sources=[source], features=features, schedule="@hourly", start=T0)
    put(tmp_path, "base", ("ann", T0 - 2 * HOUR), ("ann", T0 + at, T0 + known_at))
    with store_of(tmp_path, view) as store:
        for first in range(6) if is_alone else [0]:
            compute_all(store, first, 1 if is_alone else 6)
        found = answers(store, [f"activity:{name}" for name in view.feature_by_name], [T0 + without * HOUR, T0 + with_it * HOUR])
    assert [[value for value, _ in row] for row in found] == [[1, 1, T0 - 2 * HOUR], [2, 2, T0 + known_at]]


def test_a_middle_is_made_anew_when_a_file_came_late(tmp_path: Path) -> None:
    """It stands for the source's files that it was made of, and no others."""
    view = longest_ago()
    put(tmp_path, "base", ("ann", T0 + 2 * HOUR))
    with store_of(tmp_path, view) as store:
        path = kept_middle(store, view)
        before = path.stat().st_ino
        put(tmp_path, "late", ("ann", T0 + MINUTE))
        store.compute(start=T0 + 5 * HOUR, end=T0 + 6 * HOUR, now=NOW)
        assert answers(store, ["activity:first"], [T0 + 6 * HOUR]) == [(T0 + MINUTE, FeatureStatus.PRESENT)]
        assert path.stat().st_ino != before
