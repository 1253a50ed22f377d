"""The gate between computing and promoting: what breaks an expectation is kept aside, and readers see what they saw before."""

# ruff: noqa: E501, FBT003 - tables of cases, one a line

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline_project import HOUR, MICROS, MINUTE, NOW, T0, answers, store_of, user, watches, write

from feature_platform import (
    Aggregate,
    Feature,
    FeatureStatus,
    FeatureStore,
    FeatureView,
    ParquetSource,
    Registry,
    between,
    not_null,
    one_of,
    unique,
)
from feature_platform.errors import ExpectationError, RegistryError
from feature_platform.expectations import Expectation
from feature_platform.offline.due import pending_windows
from feature_platform.offline.gate import failed_expectations
from feature_platform.offline.inputs import source_files
from feature_platform.offline.writer import PartitionReport

PRESENT, NOT_FOUND = FeatureStatus.PRESENT, FeatureStatus.NOT_FOUND
values = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp")


def view_of(dtype: Any, *expect: Expectation) -> FeatureView:
    """Return a view of one feature."""
    return FeatureView("values", entity=user, sources=[values], features=[Feature("value", dtype, expect=expect)])


def failed(view: FeatureView, sql_values: str) -> dict[str, tuple[int, int, int]]:
    """Ask a view's expectations of some rows; return rows, failed rows and sample rows of each that fails."""
    rows = f"select 'u' || row_number() over () as user_id, timestamp '2026-01-01' as event_timestamp, value from (values {sql_values}) as t(value)"
    with duckdb.connect() as connection:
        found = failed_expectations(connection, view, rows)
    return {one.expectation: (one.rows, one.failed, len(one.sample)) for one in found}


CASES: dict[str, tuple[FeatureView, str, dict[str, tuple[int, int, int]]]] = {
    "no NULL": (view_of(int, not_null()), "(1), (2)", {}),
    "one NULL": (view_of(int, not_null()), "(1), (null)", {"not_null": (2, 1, 1)}),
    "one NULL in a hundred": (view_of(int, not_null(0.99)), ", ".join(["(1)"] * 99 + ["(null)"]), {}),
    "two NULLs in a hundred": (view_of(int, not_null(0.99)), ", ".join(["(1)"] * 98 + ["(null)"] * 2), {"not_null": (100, 2, 2)}),
    "bounds are inside": (view_of(int, between(1, 3)), "(1), (3), (null)", {}),
    "just outside": (view_of(int, between(1, 3)), "(0), (4), (2)", {"between": (3, 2, 2)}),
    "NaN is between nothing": (view_of(float, between(0.0, 1.0)), "('nan'::double), (0.5::double)", {"between": (2, 1, 1)}),
    "decimals": (view_of(Decimal, between(Decimal("0.1"), Decimal(1))), "(0.05::decimal(38,9)), (0.1::decimal(38,9))", {"between": (2, 1, 1)}),
    "dates": (view_of(date, between(date(2026, 1, 1), date(2026, 1, 2))), "(date '2026-01-03')", {"between": (1, 1, 1)}),
    "instants": (view_of(datetime, between(T0, T0 + HOUR)), f"(timestamp '{T0:%Y-%m-%d} 00:30:00'), (timestamp '{T0:%Y-%m-%d} 01:00:01')", {"between": (2, 1, 1)}),
    "words in order": (view_of(str, between("a", "m")), "('b'), ('z')", {"between": (2, 1, 1)}),
    "one of": (view_of(str, one_of("a", "it's")), "('a'), ('it''s'), (null), ('b')", {"one_of": (4, 1, 1)}),
    "one of two booleans": (view_of(bool, one_of(True)), "(true), (false)", {"one_of": (2, 1, 1)}),
    "unique": (view_of(int, unique()), "(1), (2), (null), (null)", {}),
    "twice": (view_of(int, unique()), "(1), (1), (1), (2)", {"unique": (4, 2, 3)}),
    "all of them": (view_of(int, not_null(), between(0, 5), one_of(1, 2), unique()), "(1), (1), (null), (9)", {"not_null": (4, 1, 1), "between": (4, 1, 1), "one_of": (4, 1, 1), "unique": (4, 1, 2)}),
}  # fmt: skip


@pytest.mark.parametrize(("view", "rows", "expected"), CASES.values(), ids=CASES)
def test_what_breaks_an_expectation(view: FeatureView, rows: str, expected: dict[str, tuple[int, int, int]]) -> None:
    """Counts and samples are of the rows that break it; NULL is a matter of not_null alone."""
    assert Registry([view]).views
    assert failed(view, rows) == expected


@given(
    rows=st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=12),
    low=st.integers(-3, 3),
    span=st.integers(0, 3),
    share=st.sampled_from([0.5, 0.9, 1.0]),
    listed=st.lists(st.integers(-3, 3), min_size=1, max_size=3, unique=True),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_expectations_count_like_python(*, rows: list[int | None], low: int, span: int, share: float, listed: list[int]) -> None:
    """All four kinds, in one pass, say of any rows what ten lines of Python say."""
    there = [one for one in rows if one is not None]
    nulls = len(rows) - len(there)
    expected = {
        "not_null": nulls if nulls > len(rows) * (1 - share) + 1e-9 else 0,
        "between": sum(not low <= one <= low + span for one in there),
        "one_of": sum(one not in listed for one in there),
        "unique": len(there) - len(set(there)),
    }
    view = view_of(int, not_null(share), between(low, low + span), one_of(*listed), unique())
    listing = ", ".join(f"({'null' if one is None else one})" for one in rows) or "(null::int)"
    found = {name: counts[1] for name, counts in failed(view, listing).items()} if rows else {}
    assert found == {name: count for name, count in expected.items() if count}


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "bounds in the wrong order": (int, between(5, 1), "write the lesser bound first"),
    "a bound of another dtype": (int, between(0, "a"), "write values of dtype int"),
    "no order": (list[int], between(1, 2), "values of dtype list<int> have no order"),
    "nothing listed": (str, one_of(), "no value is listed"),
    "NULL listed": (str, one_of("a", None), "cannot be compared"),
    "a share of two": (int, not_null(2), "is no share of the rows"),
    "a share of nothing": (int, not_null(0), "is no share of the rows"),
    "unique structs": (dict[str, int], unique(), "are not compared"),
    "no expectation": (int, "not_null", "each one is a"),
}


@pytest.mark.parametrize(("dtype", "expected", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused_while_declaring(dtype: Any, expected: Any, message: str) -> None:
    """With what to write instead."""
    with pytest.raises(RegistryError, match=f"(?is)feature 'value'.*{message}"):
        Registry([view_of(dtype, expected)])


def test_a_kind_is_expected_once() -> None:
    """Two bounds on one feature would be one check in Dagster."""
    with pytest.raises(RegistryError, match="expects between twice"):
        Registry([view_of(int, between(0, 1), between(0, 2))])


def counts(maximum: int = 2, **options: Any) -> FeatureView:
    """Return an hourly snapshot that expects few watches of a user."""
    query = "select user_id, count(*) as n from watches group by user_id"
    feature = Feature("n", int, expect=[between(1, maximum)])
    return FeatureView("counts", entity=user, sources=[watches], query=query, features=[feature], schedule="@hourly", start=T0, **options)


def sums(maximum: int = 2) -> FeatureView:
    """Return the same as an aggregate over two hours."""
    feature = Aggregate("n", "count", window=2 * HOUR, expect=[between(1, maximum)])
    return FeatureView("counts", entity=user, sources=[watches], features=[feature], schedule="@hourly", start=T0)


def watched(*minutes: int) -> pa.Table:
    """Return watches of ann at some minutes, and one of bob in every hour."""
    times = [T0 + minute * MINUTE for minute in minutes] + [T0 + hour * HOUR for hour in range(6)]
    return pa.table({"user_id": ["ann"] * len(minutes) + ["bob"] * 6, "at": pa.array(times, MICROS)})


def rejected(store: FeatureStore, **options: Any) -> list[PartitionReport]:
    """Compute, expecting a rejection; return the reports of all windows."""
    with pytest.raises(ExpectationError) as caught:
        store.compute(now=NOW, **options)
    return list(caught.value.reports)  # type: ignore[arg-type]


def test_a_rejected_window_is_kept_aside_and_the_others_are_promoted(tmp_path: Path) -> None:
    """Neither training sets nor the online store see its rows; they lie beside the history, with the reason."""
    write(tmp_path, watched(10, 70, 71, 72, 130))
    with store_of(tmp_path, counts()) as store:
        reports = rejected(store, end=T0 + 3 * HOUR)
        assert [report.outcome for report in reports] == ["written", "rejected", "written"]
        (failure,) = reports[1].failures
        assert (failure.failed, failure.rows, failure.sample[0]["user_id"], failure.sample[0]["n"]) == (1, 2, "ann", 3)
        assert pq.read_table(reports[1].path).num_rows == 2
        assert answers(store, ["n"], [T0 + HOUR, T0 + 2 * HOUR, T0 + 3 * HOUR]) == [(1, PRESENT)] * 3
        store.materialize(now=T0 + 2 * HOUR)
        assert store.get_online_features(["n"], [{"user_id": "ann"}], now=T0 + 2 * HOUR).to_dict()["n"] == [1]


def test_a_rejected_correction_leaves_the_values_of_before(tmp_path: Path) -> None:
    """A window computed again to rows that are refused keeps its file, online and offline."""
    write(tmp_path, watched(10))
    with store_of(tmp_path, counts()) as store:
        store.compute(now=NOW, end=T0 + HOUR)
        store.materialize(now=NOW)
        write(tmp_path, watched(10, 11, 12, 13))
        assert [report.outcome for report in rejected(store, start=T0, end=T0 + HOUR)] == ["rejected"]
        store.materialize(now=NOW)
        assert answers(store, ["n"], [T0 + HOUR]) == [(1, PRESENT)]
        assert store.get_online_features(["n"], [{"user_id": "ann"}], now=NOW).to_dict()["n"] == [1]


def test_what_was_rejected_waits_until_something_changes(tmp_path: Path) -> None:
    """It is not tried again with every tick, but when its files, the query or the expectation are others; then nothing is left aside."""
    write(tmp_path, watched(10, 11, 12))
    view = counts()

    def look(view: FeatureView) -> tuple[int, int]:
        with store_of(tmp_path, view) as store:
            pending = pending_windows(view, store.offline, source_files(view, tmp_path, store.offline.source_footers), T0 + HOUR)
            return len(pending.due), len(pending.rejected)

    with store_of(tmp_path, view) as store:
        rejected(store, end=T0 + HOUR)
    assert look(view) == (0, 1)
    assert look(counts(3)) == (1, 0)
    write(tmp_path, watched(10, 11))
    assert look(view) == (1, 0)
    with store_of(tmp_path, view) as store:
        (report,) = store.compute(end=T0 + HOUR, now=NOW)
        assert report.outcome == "written"
        assert not store.offline.attempts.rejected_path(view, report.window).exists()
        assert store.offline.attempts.of(view) == {}
    assert look(view) == (0, 0)


@pytest.mark.parametrize("together", [True, False], ids=["in-one-run", "one-by-one"])
def test_the_window_after_a_rejected_one_holds_the_complete_state(tmp_path: Path, *, together: bool) -> None:
    """An aggregate's changes would build on what is not there: the next window is full, and every answer is the true one."""
    write(tmp_path, watched(10, 70, 71, 72, 250))
    with store_of(tmp_path, sums(3)) as store:
        outcomes = []
        for first, last in [(0, 6)] if together else [(hour, hour + 1) for hour in range(6)]:
            try:
                reports = store.compute(start=T0 + first * HOUR, end=T0 + last * HOUR, now=NOW)
            except ExpectationError as error:
                reports = list(error.reports)  # type: ignore[arg-type]
            outcomes += [(report.outcome, report.kind) for report in reports]
        assert outcomes == [
            ("written", "full"),
            ("rejected", "changes"),  # four watches in [0:00, 2:00)
            ("written", "full"),
            ("written", "changes"),
            ("written", "changes"),
            ("written", "changes"),
        ]
        found = answers(store, ["n"], [T0 + hour * HOUR for hour in (1, 2, 3, 4, 5, 6)])
        assert found == [(1, PRESENT), (1, PRESENT), (3, PRESENT), (0, NOT_FOUND), (1, PRESENT), (1, PRESENT)]


def test_a_key_without_state_breaks_nothing(tmp_path: Path) -> None:
    """A tombstone's zero is no value: between(1, ...) is not about it."""
    write(tmp_path, watched(10))
    with store_of(tmp_path, sums()) as store:
        reports = store.compute(end=T0 + 6 * HOUR, now=NOW)
        assert sum(report.partition.tombstones for report in reports) == 1


def test_the_error_says_what_where_and_the_next_step(tmp_path: Path) -> None:
    """Feature, expectation, counts, a row, the window, where the rows are, and what to do."""
    write(tmp_path, watched(10, 11, 12))
    with store_of(tmp_path, counts()) as store, pytest.raises(ExpectationError) as caught:
        store.compute(end=T0 + HOUR, now=NOW)
    message = str(caught.value)
    for part in (
        "1 of 1 windows were rejected; readers see what they saw before.",
        "view 'counts', window [2026-03-28 00:00, 2026-03-28 01:00) UTC: n: between(1, 2) fails for 1 of 2 rows, such as user_id='ann'",
        "_rejected/2026-03-28T0000Z.parquet",
        "Correct the source, the query or the expectation",
    ):
        assert part in message


def test_expectations_are_asked_in_one_pass() -> None:
    """However many features and expectations: one SELECT while they hold."""
    features = [Feature(f"n{index}", int, expect=[not_null(), between(0, 9), one_of(1, 2), unique()]) for index in range(5)]
    view = FeatureView("values", entity=user, sources=[values], features=features)
    columns = ", ".join(f"{1} as n{index}" for index in range(5))
    seen: list[str] = []

    class Counting:
        def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
            self._connection = connection

        def execute(self, sql: str, parameters: object = None) -> duckdb.DuckDBPyConnection:
            seen.append(sql)
            return self._connection.execute(sql, parameters)

    with duckdb.connect() as connection:
        counting: Any = Counting(connection)
        assert failed_expectations(counting, view, f"select 'a' as user_id, timestamp '2026-01-01' as event_timestamp, {columns}") == ()
    assert len(seen) == 1


def test_expectations_are_no_part_of_the_definition() -> None:
    """Changing one recomputes nothing that was promoted."""
    assert counts(2).definition_hash == counts(3).definition_hash
    assert counts(2).expectations == "n: between(1, 2)"
