"""From sources to Parquet: the contract of rows, windows, footers, and what is refused."""

# ruff: noqa: E501, FBT001 - tables of cases hold values of every type, one case a line

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offline_project import (
    DAY,
    HOUR,
    MICROS,
    MINUTE,
    NOW,
    T0,
    answers,
    history_view,
    instants,
    late_watches,
    store_of,
    user,
    watches,
    write,
)

from feature_platform import ON_UPDATE, Entity, Feature, FeatureStatus, FeatureStore, FeatureView, ParquetSource
from feature_platform.errors import ContractError, QueryError, SourceNotFoundError, WindowError
from feature_platform.offline.compute import compute_windows, verify_partition
from feature_platform.offline.due import due_windows, requested_windows
from feature_platform.offline.query import configure, to_micros_up
from feature_platform.windows import Window

PRESENT, NOT_FOUND = FeatureStatus.PRESENT, FeatureStatus.NOT_FOUND
EVENTS = {
    "user_id": ["ann", "ann", "bob", None],
    "at": [T0 + 10 * MINUTE, T0 + 70 * MINUTE, T0 + 20 * MINUTE, T0 + 30 * MINUTE],
    "minutes": [5, 7, None, 1],
}


def events() -> pa.Table:
    """Return four rows in the first two hours, one of them without a key."""
    return pa.table({**EVENTS, "at": pa.array(EVENTS["at"], MICROS), "minutes": pa.array(EVENTS["minutes"], pa.int64())})


def snapshot(query: Any, *features: Feature, **options: Any) -> FeatureView:
    """Return an hourly snapshot view over the watches."""
    arguments: dict[str, Any] = {
        "entity": user,
        "sources": [watches],
        "schedule": "@hourly",
        "start": T0,
        "features": features or [Feature("n", int)],
    }
    return FeatureView("counts", query=query, **(arguments | options))


COUNT = "select user_id, count(*) as n from watches group by user_id"


@pytest.mark.parametrize(
    ("query", "error", "says"),
    [
        ("select user_id, count(*) as m from watches group by user_id", ContractError, "does not return 'n'"),
        ("select count(*) as n from watches", ContractError, "does not return 'user_id'"),
        (COUNT.replace(" as n", " as n, 1 as extra"), ContractError, r"returns 'extra', which is not declared.\nDeclare Feature\('extra'"),
        (COUNT.replace(" as n", " as n, 2 as n"), ContractError, "returns 'n' twice"),
        ("select user_id, 'x' as n from watches group by user_id", ContractError, r"declared int and the query returns VARCHAR.*\n.*cast\(\"n\" as bigint\)"),
        ("select user_id, 1.5::double as n from watches group by user_id", ContractError, "declared int and the query returns DOUBLE"),
        ("select 1 as user_id, 1 as n", ContractError, "declared str and the query returns INTEGER"),
        ("select user_id, 170141183460469231731687303715884105727::hugeint as n from watches group by 1", ContractError, "a value does not fit"),
        ("select user_id, 1 as n from watches, range(2)", ContractError, "one row a key, and user_id='ann' has several"),
        ("select user_id, mintes as n from watches", QueryError, "mintes"),
        ("select user_id, sum(user_id) as n from watches group by 1", QueryError, "DuckDB refuses the query"),
        ("select user_id, minutes + 'x'::bigint as n from watches", ContractError, "a value does not fit"),
        ("select user_id, count(*) as n from watches where at > $from group by 1".replace("at >", '"at" >'), QueryError, r"names \$from"),
        ("select user_id, 1 as n from watches where minutes > ? group by 1", QueryError, r"names \$1"),
        ("select user_id, now() as n from watches", QueryError, "now"),
    ],
    ids=[
        "missing-feature", "missing-key", "extra-column", "one-name-twice", "text-for-int", "float-for-int", "int-for-a-str-key",
        "overflow", "duplicate-key", "unknown-column", "impossible-function", "bad-value", "unknown-parameter", "positional-parameter", "clock",
    ],
)  # fmt: skip
def test_a_broken_contract_names_the_view_and_the_fix(tmp_path: Path, query: str, error: type[Exception], says: str) -> None:
    """Nothing is written, and the message says what differs."""
    write(tmp_path, events())
    view = snapshot(query)
    with store_of(tmp_path, view) as store:
        with pytest.raises(error, match=says) as caught:
            store.compute(end=T0 + HOUR, now=NOW)
        assert "view 'counts'" in str(caught.value)
        assert store.offline.partitions(view) == []
        assert not [one for one in (tmp_path / "data/features/counts").glob("*") if one.suffix in {".parquet", ".tmp"}]


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        (int, "1::tinyint", True),
        (int, "1::hugeint", True),
        (int, "sum(minutes)", True),
        (int, "1::decimal(3, 0)", False),
        (int, "true", False),
        (float, "1::integer", True),
        (float, "1::bigint", False),
        (float, "1.5::decimal(9, 2)", True),
        (float, "1.5::float", True),
        (pa.float32(), "1.5::double", False),
        (Decimal, "1.5::decimal(9, 2)", True),
        (pa.decimal128(5, 1), "1.55::decimal(9, 2)", False),
        (str, "'a'::enum_type", True),
        (str, "1", False),
        (bytes, "'a'::blob", True),
        (datetime, "date '2026-01-01'", False),
        (datetime, "timestamp_ns '2026-01-01'", True),
        (list[float], "[1.0::double]", True),
        (list[float], "[1.5]", True),
        (list[int], "['a']", False),
        ({"a": int, "b": str}, "{'a': 1, 'b': 'x'}", True),
        ({"a": int, "b": str}, "{'b': 'x', 'a': 1}", False),
        (pa.map_(pa.string(), pa.int64()), "map {'a': 1}", True),
        (pa.map_(pa.string(), pa.int64()), "map {1: 1}", False),
        (int, "null", True),
        (str, "null", True),
    ],
    ids=str,
)
def test_dtypes_fit_by_lossless_family(tmp_path: Path, dtype: Any, value: str, fits: bool) -> None:
    """A wider column of the same family is taken where no value can change; others are refused before a row is read."""
    write(tmp_path, events())
    value = value.replace("'a'::enum_type", "'a'::enum('a', 'b')")
    view = snapshot(f"select user_id, {value} as n from watches group by user_id", Feature("n", dtype))
    with store_of(tmp_path, view) as store:
        if fits:
            assert store.compute(end=T0 + HOUR, now=NOW)[0].partition.rows == 2
        else:
            with pytest.raises(ContractError, match="is declared"):
                store.compute(end=T0 + HOUR, now=NOW)


def hidden_time(watches: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return a time column whose name does not stand in the source code."""
    return watches.project('user_id, 1 as n, "at" as ' + "event" + "_timestamp")


def test_a_snapshot_may_not_return_event_timestamp(tmp_path: Path) -> None:
    """Where the declaration's text hides that rows have times of their own, describing them finds out."""
    write(tmp_path, events())
    with store_of(tmp_path, snapshot(hidden_time)) as store, pytest.raises(ContractError, match="makes it an event view"):
        store.compute(end=T0 + HOUR, now=NOW)


def event_view(query: str | None = None, **options: Any) -> FeatureView:
    """Return an hourly event view over the watches."""
    query = query or 'select user_id, "at" as event_timestamp, minutes from watches'
    arguments: dict[str, Any] = {
        "entity": user,
        "sources": [watches],
        "schedule": "@hourly",
        "start": T0,
        "features": [Feature("minutes", int)],
    }
    return FeatureView("values", query=query, **(arguments | options))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("""select user_id, "at" + interval 1 hour as event_timestamp, minutes from watches""", "rows lie outside their window"),
        ("""select user_id, "at" - interval 1 hour as event_timestamp, minutes from watches""", "rows lie outside their window"),
        ("""select user_id, minutes as event_timestamp, minutes from watches""", "event_timestamp is BIGINT, not a time"),
        (
            """select user_id, "at" as event_timestamp, minutes, "at" as created_timestamp from watches""",
            "'created_timestamp', which is not declared",
        ),
    ],
    ids=["after-its-window", "before-its-window", "not-a-time", "created-timestamp-undeclared"],
)
def test_rows_of_an_event_view_lie_in_their_window(tmp_path: Path, query: str, says: str) -> None:
    """A row belongs to the window of its own time."""
    write(tmp_path, events())
    with store_of(tmp_path, event_view(query)) as store, pytest.raises(ContractError, match=says):
        store.compute(end=T0 + HOUR, now=NOW)


def test_a_source_with_created_timestamp_wants_it_returned(tmp_path: Path) -> None:
    """The join filters by created_timestamp, so the query must return it."""
    write(tmp_path, events().append_column("known_at", instants(HOUR, HOUR, HOUR, HOUR)))
    with store_of(tmp_path, event_view(sources=[late_watches])) as store, pytest.raises(ContractError, match="the join filters by it"):
        store.compute(end=T0 + HOUR, now=NOW)


def test_lookback_rows_are_read_and_dropped(tmp_path: Path) -> None:
    """An event view with lookback sees earlier rows (for window functions) and writes only those of its window."""
    write(tmp_path, events())
    query = """select user_id, "at" as event_timestamp, sum(minutes) over (partition by user_id order by "at") as minutes from watches"""
    view = event_view(query, lookback=HOUR)
    with store_of(tmp_path, view) as store:
        first, second = store.compute(end=T0 + 2 * HOUR, now=NOW)
        assert (first.partition.rows, first.partition.dropped) == (2, 1)
        assert (second.partition.rows, second.partition.dropped) == (1, 0)
        assert answers(store, ["values:minutes"], [T0 + 70 * MINUTE]) == [(12, PRESENT)]


def test_a_value_of_an_earlier_window_has_to_fit_too(tmp_path: Path) -> None:
    """Rows that lookback brings are held to the contract like the window's own: what is dropped is dropped after the cast."""
    write(tmp_path, events())
    too_large = f"case when \"at\" < timestamp '{T0 + HOUR:%Y-%m-%d %H:%M}' then {2**63}::hugeint else minutes::hugeint end"
    view = event_view(f'select user_id, "at" as event_timestamp, {too_large} as minutes from watches', lookback=HOUR)
    with store_of(tmp_path, view) as store, pytest.raises(ContractError, match="a value does not fit its dtype"):
        store.compute(start=T0 + HOUR, end=T0 + 2 * HOUR, now=NOW)


def test_null_keys_are_dropped_and_counted(tmp_path: Path) -> None:
    """A NULL in a key or in event_timestamp drops the row, and the footer says how many."""
    write(tmp_path, events())
    counts, values = snapshot(COUNT), history_view(source=watches, features=[Feature("minutes", int)])
    with store_of(tmp_path, counts, values) as store:
        first, whole = *store.compute("counts", end=T0 + HOUR, now=NOW), *store.compute("values", now=NOW)
        assert (first.partition.rows, first.partition.dropped) == (2, 1)
        assert (whole.partition.rows, whole.partition.dropped, whole.partition.nulls) == (3, 1, {"minutes": 1})


def test_window_bounds_are_bound_where_they_are_named(tmp_path: Path) -> None:
    """$start and $end are the window's, in UTC; a query that names one of them gets one."""
    write(tmp_path, events())
    query = "select 'ann' as user_id, epoch_us($end) as n"
    views = [snapshot(query), snapshot("select 'ann' as user_id, epoch_us($end) - epoch_us($start) as n")]
    for view, expected in zip(views, (int((T0 + HOUR).timestamp()) * 10**6, 3600 * 10**6), strict=True):
        with store_of(tmp_path, view) as store:
            store.compute(start=T0, end=T0 + HOUR, now=NOW)
            assert answers(store, ["counts:n"], [T0 + HOUR]) == [(expected, PRESENT)]


def test_a_window_sees_what_was_known_when_it_should_have_run(tmp_path: Path) -> None:
    """A row is in a window view only from the first window on that could know it: created_timestamp <= end + delay."""
    table = pa.table(
        {
            "user_id": ["ann"] * 3,
            "at": instants(10 * MINUTE, 20 * MINUTE, 30 * MINUTE),
            "known_at": pa.array([T0 + 70 * MINUTE, T0 + 70 * MINUTE + timedelta(microseconds=1), None], MICROS),
        }
    )
    write(tmp_path, table)
    view = snapshot(COUNT, sources=[late_watches], delay=10 * MINUTE, lookback=5 * HOUR)
    with store_of(tmp_path, view) as store:
        store.compute(now=T0 + 2 * HOUR + 10 * MINUTE)
        assert answers(store, ["counts:n"], [T0 + 70 * MINUTE, T0 + 130 * MINUTE]) == [(2, PRESENT), (3, PRESENT)]


@pytest.mark.parametrize("now", [T0 + 70 * MINUTE - timedelta(microseconds=1), T0 + 70 * MINUTE], ids=["a-microsecond-early", "on-time"])
def test_a_window_is_refused_before_its_end_and_delay(tmp_path: Path, now: datetime) -> None:
    """`compute_windows` refuses a window that could not know all its rows; `compute` leaves it alone."""
    write(tmp_path, events())
    view = snapshot(COUNT, delay=10 * MINUTE)
    window = Window(T0, T0 + HOUR)
    with store_of(tmp_path, view) as store, duckdb.connect() as connection:
        assert len(store.compute(now=now)) == (now >= T0 + 70 * MINUTE)
        if now < T0 + 70 * MINUTE:
            with pytest.raises(WindowError, match="can be computed from 2026-03-28 01:10 UTC on"):
                compute_windows(connection, view, [window], store=store.offline, root=tmp_path, now=now)


def test_an_on_update_day_stays_due_until_it_was_computed_after_its_end(tmp_path: Path) -> None:
    """The open day is recomputed, and once more when it has closed: its last rows came after the last computation."""
    view = event_view(schedule=ON_UPDATE)
    write(tmp_path, pa.table({"user_id": ["ann"], "at": instants(HOUR), "minutes": [1]}))
    with store_of(tmp_path, view) as store:
        assert [report.partition.rows for report in store.compute(now=T0 + 2 * HOUR)] == [1]
        write(tmp_path, pa.table({"user_id": ["ann", "ann"], "at": instants(HOUR, 23 * HOUR), "minutes": [1, 2]}))
        assert [report.partition.rows for report in store.compute(now=T0 + 25 * HOUR)] == [2, 0]
        assert [report.window.start for report in store.compute(now=T0 + 26 * HOUR)] == [T0 + DAY]


def test_a_view_without_schedule_is_one_table(tmp_path: Path) -> None:
    """It is computed whole, always due, and shows its source whole."""
    write(tmp_path, events())
    view = event_view(schedule=None, start=None)
    with store_of(tmp_path, view) as store:
        assert [report.window.key for report in store.compute(now=T0)] == ["all"]
        assert [report.window.key for report in store.compute(now=T0)] == ["all"]
        assert answers(store, ["values:minutes"], [T0 + DAY]) == [(7, PRESENT)]


def test_start_between_two_ticks_begins_at_the_next(tmp_path: Path) -> None:
    """Windows follow the schedule: a start off its ticks means the first one after it."""
    write(tmp_path, events())
    view = snapshot(COUNT, start=T0 + 20 * MINUTE)
    with store_of(tmp_path, view) as store:
        assert store.compute(now=T0 + 3 * HOUR)[0].window == Window(T0 + HOUR, T0 + 2 * HOUR)


@pytest.mark.parametrize(
    ("day", "hours"),
    [(datetime(2026, 3, 29, tzinfo=UTC), 23), (datetime(2026, 10, 25, tzinfo=UTC), 25), (datetime(2026, 6, 1, tzinfo=UTC), 24)],
    ids=["spring-forward", "fall-back", "plain"],
)
def test_days_of_a_time_zone_have_their_own_length(tmp_path: Path, day: datetime, hours: int) -> None:
    """A daily schedule in Berlin has windows from midnight to midnight there, 23 and 25 hours long when clocks change."""
    write(tmp_path, pa.table({"user_id": ["ann"] * 60, "at": pa.array([day - 12 * HOUR + i * HOUR for i in range(60)], MICROS)}))
    start = (day - 3 * DAY).replace(tzinfo=None)
    view = snapshot(COUNT, schedule="@daily", timezone="Europe/Berlin", start=start)
    with store_of(tmp_path, view) as store:
        reports = store.compute(start=day, end=day + HOUR, now=day + 3 * DAY)
        window = reports[0].window
        assert window.end - window.start == hours * HOUR
        assert answers(store, ["counts:n"], [window.end]) == [(hours, PRESENT)]


def test_a_source_without_files_says_where_it_looked(tmp_path: Path) -> None:
    """Whether files exist is found out when computing."""
    with store_of(tmp_path, snapshot(COUNT)) as store, pytest.raises(SourceNotFoundError, match=r"'source/watches\.parquet'"):
        store.compute(now=NOW)


def test_a_project_folder_may_be_called_anything(tmp_path: Path) -> None:
    """Brackets, quotes, blanks and key=value in the path of the project are no patterns."""
    root = tmp_path / "a [1] *b' user_id=zoe"
    root.mkdir()
    write(root, events())
    with store_of(root, snapshot(COUNT)) as store:
        store.compute(now=T0 + 2 * HOUR)
        assert answers(store, ["counts:n"], [T0 + HOUR]) == [(1, PRESENT)]
        assert verify(store, snapshot(COUNT)) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (ParquetSource("watches", "source/watches.parquet", timestamp="seen_at"), "has no column 'seen_at'"),
        (ParquetSource("watches", "source/watches.parquet", timestamp="minutes"), "'minutes' is BIGINT, not a time"),
        (ParquetSource("watches", "source/watches.parquet", timestamp="at", created_timestamp="knwn"), "has no column 'knwn'"),
    ],
    ids=["missing", "not-a-time", "created-missing"],
)
def test_a_sources_time_columns_are_checked(tmp_path: Path, source: ParquetSource, says: str) -> None:
    """A time column that is declared must be there, and be a time."""
    write(tmp_path, events())
    with store_of(tmp_path, snapshot(COUNT, sources=[source])) as store, pytest.raises(ContractError, match=says):
        store.compute(now=NOW)


def test_a_source_without_timestamp_is_seen_whole(tmp_path: Path) -> None:
    """A static dimension is joined as it stands."""
    write(tmp_path, events())
    write(tmp_path, {"minutes": [5, 7], "label": ["short", "long"]}, "labels")
    view = snapshot(
        "select user_id, max(label) as label from watches join labels using (minutes) group by user_id",
        Feature("label", str),
        sources=[watches, ParquetSource("labels", "source/labels.parquet")],
    )
    with store_of(tmp_path, view) as store:
        store.compute(now=T0 + 2 * HOUR)
        assert answers(store, ["counts:label"], [T0 + HOUR, T0 + 2 * HOUR]) == [("short", PRESENT), ("long", PRESENT)]


@pytest.mark.parametrize("name", ["events", "seen", "points", "probes", "entering", "select", "order", "source", "e", "group"])
def test_a_source_may_be_named_like_any_word(tmp_path: Path, name: str) -> None:
    """SQL words and short names are names."""
    write(tmp_path, events())
    view = snapshot(
        f'select user_id, count(*) as n from "{name}" group by user_id',
        sources=[ParquetSource(name, "source/watches.parquet", timestamp="at")],
    )
    with store_of(tmp_path, view) as store:
        store.compute(now=T0 + HOUR)
        assert answers(store, ["counts:n"], [T0 + HOUR]) == [(1, PRESENT)]


# -- Python functions --------------------------------------------------------------------------------------------------


def by_source_name(watches: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Take a relation by its source's name."""
    return watches.aggregate("user_id, count(*) as n", "user_id")


def by_mapping(sources: dict[str, duckdb.DuckDBPyRelation]) -> pa.Table:
    """Take all relations in one mapping, return Arrow."""
    return sources["watches"].aggregate("user_id, count(*) as n", "user_id").to_arrow_table()


def by_keywords(**sources: duckdb.DuckDBPyRelation) -> Any:
    """Take all relations as keywords, return pandas."""
    return sources["watches"].aggregate("user_id, count(*) as n", "user_id").df()


def as_reader(watches: duckdb.DuckDBPyRelation) -> pa.RecordBatchReader:
    """Return a stream."""
    return watches.aggregate("user_id, count(*) as n", "user_id").to_arrow_reader()


def as_polars(watches: duckdb.DuckDBPyRelation, scale: int = 1) -> Any:
    """Return polars; a parameter with a default keeps it."""
    return watches.aggregate(f"user_id, count(*) * {scale} as n", "user_id").pl()


def with_bounds(watches: duckdb.DuckDBPyRelation, start: datetime, end: datetime) -> duckdb.DuckDBPyRelation:
    """Take the window's bounds too."""
    assert end - start == HOUR
    relation = watches.query("w", "select user_id, count(*) as n from w group by user_id")
    assert relation is not None
    return relation


@pytest.mark.parametrize("function", [by_source_name, by_mapping, by_keywords, as_reader, as_polars, with_bounds], ids=lambda f: f.__name__)
def test_a_python_function_may_replace_the_query(tmp_path: Path, function: Any) -> None:
    """It gets relations that hold only what the window may see, and returns a relation or a table."""
    write(tmp_path, events())
    view = snapshot(function)
    with store_of(tmp_path, view) as store:
        store.compute(now=T0 + 2 * HOUR)
        assert answers(store, ["counts:n"], [T0 + HOUR, T0 + 2 * HOUR], ["ann", "bob"]) == [(1, PRESENT), (None, NOT_FOUND)]


def foreign_relation(watches: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return a relation of another database."""
    table = watches.to_arrow_table()
    other = duckdb.connect()
    other.register("t", table)
    return other.sql("select user_id, count(*) as n from t group by 1")


def a_list(watches: duckdb.DuckDBPyRelation) -> list[Any]:
    """Return what is no table."""
    return watches.fetchall()


@pytest.mark.parametrize(
    ("function", "says"),
    [(foreign_relation, "returned a relation that cannot be read here"), (a_list, "returned list")],
    ids=["foreign-connection", "no-table"],
)
def test_what_a_function_may_not_return_is_named(tmp_path: Path, function: Any, says: str) -> None:
    """The error says what to return instead."""
    write(tmp_path, events())
    with store_of(tmp_path, snapshot(function)) as store, pytest.raises(ContractError, match=says):
        store.compute(now=T0 + HOUR)


def test_functions_of_several_threads_do_not_meet(tmp_path: Path) -> None:
    """Two views with functions, computed at once on one store, each write their own rows."""
    write(tmp_path, events())
    functions: list[Any] = [by_source_name, with_bounds]
    views = [FeatureView(f"v{i}", entity=user, sources=[watches], schedule="@hourly", start=T0, query=q, features=[Feature("n", int)])
             for i, q in enumerate(functions)]  # fmt: skip
    with store_of(tmp_path, *views) as store:
        threads = [threading.Thread(target=store.compute, args=(view.name,), kwargs={"now": T0 + 8 * HOUR}) for view in views]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(store.offline.partitions(view)) for view in views] == [8, 8]


# -- files -------------------------------------------------------------------------------------------------------------


def verify(store: FeatureStore, view: FeatureView) -> list[str]:
    """Verify all partitions of a view."""
    with duckdb.connect() as connection:
        return [p for one in store.offline.partitions(view) for p in verify_partition(connection, view, one.window, store.offline)]


def test_the_footer_says_what_a_file_holds(tmp_path: Path) -> None:
    """Rows, nulls, times, definition and generation stand in the file's metadata; the generation rises with every write."""
    write(tmp_path, events())
    view = event_view()
    with store_of(tmp_path, view) as store:
        first, second = (report.partition for report in store.compute(end=T0 + 2 * HOUR, now=NOW))
        assert (first.rows, first.nulls, first.definition, first.is_full) == (2, {"minutes": 1}, view.definition_hash, False)
        assert (first.min_event_timestamp, first.max_event_timestamp) == tuple(int((T0 + m * MINUTE).timestamp()) * 10**6 for m in (10, 20))
        assert second.generation == first.generation + 1 == store.offline.generation(view)
        assert second.newest_source_timestamp == int((T0 + 70 * MINUTE).timestamp()) * 10**6
        footer = pq.read_metadata(tmp_path / "data/features/values/2026-03-28T0000Z.parquet").metadata
        assert b"feature_platform" in footer
        assert verify(store, view) == []


def test_an_empty_window_is_a_file_without_rows(tmp_path: Path) -> None:
    """A window without events was computed too."""
    write(tmp_path, events())
    with store_of(tmp_path, event_view(), snapshot(COUNT)) as store:
        reports = store.compute(start=T0 + 5 * HOUR, end=T0 + 6 * HOUR, now=NOW)
        assert [report.partition.rows for report in reports] == [0, 0]
        assert store.compute("counts", end=T0 + HOUR, now=NOW)[0].partition.rows == 2
        assert answers(store, ["counts:n"], [T0 + 6 * HOUR]) == [(None, NOT_FOUND)]


def test_computing_again_gives_the_same_rows(tmp_path: Path) -> None:
    """Only the generation and the moment of computation move; full ties fall the same way whatever the order of the source."""
    view = event_view()
    tied = pa.table({"user_id": ["ann"] * 3, "at": instants(*[5 * MINUTE] * 3), "minutes": pa.array([1, None, 3], pa.int64())})
    found = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        write(tmp_path, tied.take(order))
        with store_of(tmp_path, view) as store:
            report = store.compute(start=T0, end=T0 + HOUR, now=NOW)[0]
            found.append(pq.read_table(report.path).to_pylist())
    assert found[0] == found[1] == found[2] == [{"user_id": "ann", "event_timestamp": (T0 + 5 * MINUTE).replace(tzinfo=None), "minutes": 3}]


def test_a_changed_schedule_does_not_answer_rows_twice(tmp_path: Path) -> None:
    """Files of the earlier schedule count until a window of the new one covers an instant of theirs."""
    write(tmp_path, pa.table({"user_id": ["ann"] * 3, "at": instants(HOUR, 25 * HOUR, 49 * HOUR), "minutes": [1, 2, 3]}))
    hourly, whole = event_view(schedule="0 */6 * * *"), event_view(schedule=None, start=None)
    daily = event_view('select user_id, "at" as event_timestamp, minutes * 10 as minutes from watches', schedule="@daily")
    for before in (hourly, whole):
        with store_of(tmp_path, before) as store:
            store.compute(now=NOW)
        with store_of(tmp_path, daily) as store:
            assert len(store.compute(end=T0 + DAY, now=NOW)) == 1
            assert answers(store, ["values:minutes"], [T0 + 2 * HOUR]) == [(10, PRESENT)]
            store.compute(now=NOW)
            assert answers(store, ["values:minutes"], [T0 + 26 * HOUR, NOW]) == [(20, PRESENT), (30, PRESENT)]
            assert sum(one.rows for one in store.offline.partitions(daily)) == 3
        for file in (tmp_path / "data/features/values").glob("*.parquet"):
            file.unlink()


def test_files_of_another_kind_or_entity_are_passed_over(tmp_path: Path) -> None:
    """A view whose kind or join keys changed starts its history anew: old rows have no place in it."""
    write(tmp_path, events().append_column("device", pa.array(["tv"] * 4)))
    other = Entity("user", join_keys={"user_id": str, "device": str})
    with store_of(tmp_path, event_view(entity=user)) as store:
        store.compute(now=T0 + 2 * HOUR)
    pair = event_view('select user_id, device, "at" as event_timestamp, minutes from watches', entity=other)
    count = event_view("select user_id, count(*) as minutes from watches group by user_id")
    for view in (pair, count):
        with store_of(tmp_path, view) as store:
            assert store.offline.partitions(view) == []
            assert len(due_windows(view, store.offline, T0 + 2 * HOUR)) == 2


def test_a_source_that_learns_created_timestamp_keeps_its_history(tmp_path: Path) -> None:
    """Rows of files without the column count as known at once."""
    write(tmp_path, events().append_column("known_at", instants(HOUR, 3 * HOUR, HOUR, HOUR)))
    with store_of(tmp_path, event_view()) as store:
        store.compute(end=T0 + HOUR, now=NOW)
    late = event_view(
        'select user_id, "at" as event_timestamp, known_at as created_timestamp, minutes from watches', sources=[late_watches]
    )
    with store_of(tmp_path, late) as store:
        store.compute(start=T0 + HOUR, end=T0 + 2 * HOUR, now=NOW)
        times = [T0 + 10 * MINUTE, T0 + 2 * HOUR, T0 + 3 * HOUR]
        assert answers(store, ["values:minutes"], times) == [(5, PRESENT), (5, PRESENT), (7, PRESENT)]


def test_verification_finds_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    """A file that was written by other hands, or of an earlier definition, is named."""
    write(tmp_path, events())
    view = event_view()
    with store_of(tmp_path, view) as store:
        report = store.compute(end=T0 + HOUR, now=NOW)[0]
        table = pq.read_table(report.path)
        pq.write_table(
            pa.concat_tables([table, table.slice(0, 1)]).replace_schema_metadata(pq.read_metadata(report.path).metadata), report.path
        )
        problems = verify(store, view)
        assert any("its footer says 2" in one for one in problems)
        assert any("not unique" in one for one in problems)
        changed = event_view("""select user_id, "at" as event_timestamp, minutes + 1 as minutes from watches""")
        assert any("another definition" in one for one in verify(store, changed))


@pytest.mark.parametrize(
    ("start", "end", "first", "count"),
    [
        (None, None, T0, 240),
        (T0 + 90 * MINUTE, T0 + 150 * MINUTE, T0 + HOUR, 2),
        (T0 + HOUR, T0 + 2 * HOUR, T0 + HOUR, 1),
        ((T0 + HOUR).replace(tzinfo=None), None, T0 + HOUR, 239),
        (T0 - DAY, T0, None, 0),
    ],
    ids=["all", "touched", "exact", "naive-is-utc", "before-the-start"],
)
def test_a_range_asks_for_the_windows_that_it_touches(start: Any, end: Any, first: Any, count: int) -> None:
    """Closed windows that share an instant with the range."""
    windows = requested_windows(snapshot(COUNT), start, end, NOW)
    assert (windows[0].start if windows else None, len(windows)) == (first, count)


ZONED = ["infinity", "-infinity", "0001-01-01", "1969-12-31 23:59:59.999999", "2026-03-29 01:30:00+01", "294247-01-10 04:00:54.775806"]


def test_a_time_in_a_zone_is_read_as_its_cast() -> None:
    """Without a calendar, which makes a cast three times as slow: infinity, NULL and the ends of time included."""
    times = ", ".join(f"('{value}'::timestamptz)" for value in ZONED)
    with duckdb.connect() as connection:
        configure(connection)
        connection.execute(f"create table times as select * from (values {times}, (null)) as t(moment)")
        read = to_micros_up("moment", "TIMESTAMP WITH TIME ZONE")
        differing = f"select count(*) from times where {read} is distinct from moment::timestamp"
        assert connection.execute(differing).fetchone() == (0,)
