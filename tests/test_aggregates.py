"""Sliding aggregates against raw SQL, and the numbers, names and conditions that make them hard."""

# ruff: noqa: E501 - tables of cases hold values of every type, one case a line

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from offline_project import HOUR, MICROS, MINUTE, NOW, T0, answers, instants, store_of, user, watches, write

from feature_platform import Aggregate, Entity, Feature, FeatureStatus, FeatureView, ParquetSource
from feature_platform.errors import ContractError, FeaturePlatformError, QueryError

PRESENT, NULL_VALUE, NOT_FOUND = FeatureStatus.PRESENT, FeatureStatus.NULL_VALUE, FeatureStatus.NOT_FOUND


def activity(*features: Aggregate, **options: Any) -> FeatureView:
    """Return an hourly aggregate view over the watches."""
    arguments: dict[str, Any] = {"entity": user, "sources": [watches], "features": features, "schedule": "@hourly", "start": T0}
    return FeatureView("activity", **(arguments | options))


def one_user(values: list[Any], kind: pa.DataType, *, every: timedelta = MINUTE) -> pa.Table:
    """Return one event a value, from T0 on."""
    return pa.table(
        {"user_id": ["ann"] * len(values), "at": instants(*(every * i for i in range(len(values)))), "x": pa.array(values, kind)}
    )


def test_fifty_thousand_events_agree_with_raw_sql(tmp_path: Path) -> None:
    """Every aggregate at every hour equals the same aggregate over the raw events, whichever runs computed it."""
    noise = random.Random(7)
    rows, hours = 50_000, 24
    table = pa.table(
        {
            "user_id": [f"u{int(noise.paretovariate(1.1)) % 400}" for _ in range(rows)],
            "at": pa.array([T0 - 8 * HOUR + timedelta(microseconds=noise.randrange(32 * 3600 * 10**6)) for _ in range(rows)], MICROS),
            "n": pa.array([noise.choice([None, noise.randrange(-100, 100)]) for _ in range(rows)], pa.int64()),
            "x": [noise.gauss(0, 1e6) for _ in range(rows)],
        }
    )
    write(tmp_path, table)
    six, one = 6 * HOUR, HOUR
    view = activity(
        Aggregate("c", "count", window=six),
        Aggregate("cn", "count", column="n", window=one),
        Aggregate("s", "sum", column="n", dtype=int, window=six),
        Aggregate("f", "sum", column="x", window=six),
        Aggregate("m", "mean", column="n", window=one),
        Aggregate("lo", "min", column="x", window=six),
        Aggregate("hi", "max", column="n", dtype=int, window=one),
        Aggregate("d", "count_distinct", column="n", window=six),
        Aggregate("positive", "count", window=six, where="n > 0"),
        Aggregate("last", "last_n", column="n", n=3, dtype=list[int], window=six),
        Aggregate("earliest", "first", column="n", dtype=int, window=six),
        Aggregate("newest", "last", column="n", dtype=int, window=one),
    )
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 9 * HOUR, now=NOW)
        store.compute(start=T0 + 15 * HOUR, end=T0 + hours * HOUR, now=NOW)
        store.compute(start=T0 + 9 * HOUR, end=T0 + 15 * HOUR, now=NOW)
        users = sorted(set(table["user_id"].to_pylist()))
        asked = pa.table(
            {
                "user_id": users * hours,
                "event_timestamp": pa.array([T0 + (1 + i // len(users)) * HOUR for i in range(len(users) * hours)], MICROS),
            }
        )
        found = store.get_historical_features(asked, [f"activity:{name}" for name in view.feature_by_name]).to_arrow()
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("raw", table)
        connection.register("asked", asked)
        expected = connection.sql("""
            select count(*) filter (six) as c, count(n) filter (one) as cn, coalesce(sum(n) filter (six), 0)::bigint as s,
                coalesce(fsum(x) filter (six), 0) as f, avg(n) filter (one) as m, min(x) filter (six) as lo, max(n) filter (one) as hi,
                count(distinct n) filter (six) as d, count(*) filter (six and n > 0) as positive,
                list_slice(list(n order by "at" desc, n desc) filter (six and n is not null), 1, 3) as last,
                (list(n order by "at", n) filter (six and n is not null))[1] as earliest,
                (list(n order by "at" desc, n desc) filter (one and n is not null))[1] as newest
            from (select a.user_id, a.event_timestamp, e.n, e.x, e."at", "at" is not null as six,
                         coalesce("at" >= a.event_timestamp - interval 1 hour, false) as one
                  from asked as a left join raw as e on a.user_id = e.user_id and "at" < a.event_timestamp
                       and "at" >= a.event_timestamp - interval 6 hour)
            group by user_id, event_timestamp order by event_timestamp, user_id
        """.replace("filter (", "filter (where ")).to_arrow_table()  # fmt: skip
    for name in expected.column_names:
        left, right = found[name].to_pylist(), expected[name].to_pylist()
        if name in "fm":
            assert [one is None for one in left] == [one is None for one in right], name
            assert [one or 0 for one in left] == pytest.approx([one or 0 for one in right], rel=1e-9, abs=1e-6), name
        else:
            assert left == right, name


@pytest.mark.parametrize(
    ("aggregate", "kind", "values", "expected"),
    [
        (Aggregate("v", "sum", column="x", dtype=int, window=HOUR), pa.int64(), [2**53, 1, None], 2**53 + 1),
        (Aggregate("v", "sum", column="x", dtype=int, window=HOUR), pa.int32(), [2**31 - 1] * 3, 3 * (2**31 - 1)),
        (Aggregate("v", "sum", column="x", dtype=pa.uint64(), window=HOUR), pa.uint64(), [2**63, 2**62], 2**63 + 2**62),
        (Aggregate("v", "sum", column="x", dtype=pa.decimal128(20, 2), window=HOUR), pa.decimal128(9, 2), [Decimal("0.10")] * 3, Decimal("0.30")),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float64(), [0.1] * 10, 1.0),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float64(), [1e308, 1e308], math.inf),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float64(), [math.inf, 1.0], math.inf),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float64(), [math.inf, -math.inf], math.nan),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float64(), [math.nan, 1.0], math.nan),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float32(), [0.5, 0.25], 0.75),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.bool_(), [True, False, True], 2.0),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.float64(), [None], 0.0),
        (Aggregate("v", "mean", column="x", window=HOUR), pa.float64(), [math.inf, 1.0], math.inf),
        (Aggregate("v", "mean", column="x", window=HOUR), pa.decimal128(9, 2), [Decimal("0.5"), Decimal("1.0")], 0.75),
        (Aggregate("v", "mean", column="x", window=HOUR), pa.int64(), [None], None),
        (Aggregate("v", "min", column="x", dtype=str, window=HOUR), pa.string(), ["b", "", "é"], ""),
        (Aggregate("v", "max", column="x", dtype=datetime, window=HOUR), MICROS, [T0, T0 + HOUR], T0 + HOUR),
        (Aggregate("v", "max", column="x", dtype=bool, window=HOUR), pa.bool_(), [False, True], True),
        (Aggregate("v", "max", column="x", window=HOUR), pa.float64(), [1.0, math.nan], math.nan),
        (Aggregate("v", "count_distinct", column="x", window=HOUR), pa.string(), ["a", "A", None, "a"], 2),
        (Aggregate("v", "last_n", column="x", n=2, dtype=list[str], window=HOUR), pa.string(), ["a", None, "b", "c"], ["c", "b"]),
        (Aggregate("v", "last_n", column="x", n=2, dtype=list[str], window=HOUR), pa.string(), [None], None),
        (Aggregate("v", "first", column="x", dtype=str, window=HOUR), pa.string(), [None, "b", "a"], "b"),
        (Aggregate("v", "last", column="x", dtype=list[int], window=HOUR), pa.list_(pa.int64()), [[9], [1, 2], None], [1, 2]),
        (Aggregate("v", "last", column="x", window=HOUR), pa.float64(), [1.0, math.nan], math.nan),
        (Aggregate("v", "first", column="x", window=HOUR), pa.float64(), [None], None),
    ],
    ids=["past-2^53", "int32-widens", "uint64", "decimals", "tenths", "overflow-is-inf", "inf", "inf-minus-inf", "nan", "float32", "bools", "only-null",
         "mean-inf", "mean-decimal", "mean-of-nothing", "min-text", "max-time", "max-bool", "max-nan", "distinct", "last-n", "last-n-of-nothing",
         "first-skips-null", "last-list", "last-nan", "first-of-nothing"],
)  # fmt: skip
def test_numbers_at_their_limits(tmp_path: Path, aggregate: Aggregate, kind: pa.DataType, values: list[Any], expected: Any) -> None:
    """Sums keep every digit, infinities and NaN answer like Python's, an empty window answers as declared."""
    write(tmp_path, one_user(values, kind))
    with store_of(tmp_path, activity(aggregate)) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        assert answers(store, ["activity:v"], [T0 + HOUR]) == [
            (pytest.approx(expected, nan_ok=True) if isinstance(expected, float) else expected, NULL_VALUE if expected is None else PRESENT)
        ]


@pytest.mark.parametrize(
    ("aggregate", "kind", "value", "error", "says"),
    [
        (Aggregate("v", "sum", column="x", dtype=int, window=HOUR), pa.int64(), 2**62, ContractError, "a value does not fit"),
        (Aggregate("v", "sum", column="y", window=HOUR), pa.int64(), 1, ContractError, "reads column 'y', which its source lacks"),
        (Aggregate("v", "sum", column="x", dtype=int, window=HOUR), pa.float64(), 1.5, ContractError, "declared int"),
        (Aggregate("v", "sum", column="x", window=HOUR), pa.string(), "1", ContractError, "declared float"),
        (Aggregate("v", "max", column="x", window=HOUR), pa.string(), "1", ContractError, "declared float"),
        (Aggregate("v", "count", window=HOUR, where="x > random()"), pa.int64(), 1, QueryError, r"random\(\)"),
        (Aggregate("v", "count", window=HOUR, where='"at" > now()'), pa.int64(), 1, QueryError, r"now\(\)"),
        (Aggregate("v", "count", window=HOUR, where="x in (select x from 'other.parquet')"), pa.int64(), 1, QueryError, "not one of its sources"),
        (Aggregate("v", "count", window=HOUR, where='"at" > $start'), pa.int64(), 1, QueryError, r"names \$start"),
        (Aggregate("v", "count", window=HOUR, where="z = 1"), pa.int64(), 1, QueryError, "view 'activity'.*\"z\""),
        (Aggregate("v", "count", window=HOUR, where="x = 1) or (true"), pa.int64(), 1, None, ""),
        (Aggregate("v", "count", window=HOUR, where="x = 1; drop view watches"), pa.int64(), 1, QueryError, "not one SELECT"),
        (Aggregate("v", "count", window=HOUR, where="x = 1 -- only ones"), pa.int64(), 1, None, ""),
    ],
    ids=["sum-overflow", "unknown-column", "float-into-int", "text", "max-of-text-into-float", "random", "now", "other-file", "parameter", "unknown-name",
         "parentheses", "two-statements", "comment"],
)  # fmt: skip
def test_what_an_aggregate_cannot_be_is_named(
    tmp_path: Path, aggregate: Aggregate, kind: pa.DataType, value: Any, error: type[Exception] | None, says: str
) -> None:
    """The error names view and feature; nothing is written."""
    write(tmp_path, one_user([value] * 3, kind))
    view = activity(aggregate)
    with store_of(tmp_path, view) as store:
        if error is None:
            assert store.compute(end=T0 + HOUR, now=NOW)[0].partition.rows == 1
            return
        with pytest.raises(error, match=says) as caught:
            store.compute(end=T0 + HOUR, now=NOW)
        assert isinstance(caught.value, FeaturePlatformError)
        assert store.offline.partitions(view) == []


@pytest.mark.parametrize("name", ["seen", "events", "entering", "points", "probes", "select", "w", "e", "p", "s"])
@pytest.mark.parametrize("key", ["user_id", "s", "r", "e", "select", "w"])
def test_sources_and_keys_may_be_called_anything(tmp_path: Path, name: str, key: str) -> None:
    """No name of the statement's own stands in the way of a user's."""
    write(tmp_path, pa.table({key: ["ann", "bob"], "at": instants(MINUTE, MINUTE)}))
    source = ParquetSource(name, "source/watches.parquet", timestamp="at")
    view = activity(Aggregate("group", "count", window=2 * HOUR), sources=[source], entity=Entity("user", join_keys={key: str}))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 4 * HOUR, now=NOW)
        asked = pa.table({key: ["ann"] * 3, "event_timestamp": instants(HOUR, 2 * HOUR, 3 * HOUR)})
        assert store.get_historical_features(asked, ["activity:group"]).to_arrow()["group"].to_pylist() == [1, 1, 0]


@pytest.mark.parametrize(
    "column",
    [
        "known",
        "entered",
        "event_timestamp",
        "window_end",
        "e",
        "p",
        "w",
        "s",
        "__known",
        "__time",
        "__end",
        "__value0",
        "__counts0",
        "__key0",
        'a"b',
        "sele ct",
        "🎬",
        "User_Id",
    ],
)
def test_source_columns_may_be_called_anything(tmp_path: Path, column: str) -> None:
    """A value column with a name of ours, quotes or blanks in it is a value column."""
    table = one_user([1, 2, 4], pa.int64(), every=30 * MINUTE)
    write(tmp_path, table.rename_columns(["user_id", "at", column]))
    quoted = '"' + column.replace('"', '""') + '"'
    if column == "User_Id":  # DuckDB knows one of two names that differ in case under another
        column, quoted = "User_Id_1", '"User_Id_1"'
    view = activity(
        Aggregate("v", "sum", column=column, dtype=int, window=HOUR), Aggregate("big", "count", window=HOUR, where=f"{quoted} > 1")
    )
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 3 * HOUR, now=NOW)
        assert answers(store, ["activity:v", "activity:big"], [T0 + HOUR, T0 + 2 * HOUR, T0 + 3 * HOUR]) == [
            [(3, PRESENT), (1, PRESENT)],
            [(4, PRESENT), (1, PRESENT)],
            [(0, NOT_FOUND), (0, NOT_FOUND)],
        ]


@pytest.mark.parametrize("time", ["event_timestamp", "at", "__time", "window_end", "known"])
def test_time_columns_may_be_called_anything(tmp_path: Path, time: str) -> None:
    """So may the source's time column."""
    write(tmp_path, one_user([1, 2], pa.int64()).rename_columns(["user_id", time, "x"]))
    view = activity(Aggregate("v", "count", window=HOUR), sources=[ParquetSource("watches", "source/watches.parquet", timestamp=time)])
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        assert answers(store, ["activity:v"], [T0 + HOUR]) == [(2, PRESENT)]


def test_the_bounds_of_a_window_are_exact(tmp_path: Path) -> None:
    """Half-open: an event at the window's start counts, one at its end does not; nanoseconds of an event round up."""
    edge = int(T0.timestamp()) * 10**9 + 3600 * 10**9
    at = pa.array([edge - 3600 * 10**9, edge - 1000, edge - 999, edge], pa.timestamp("ns", tz="UTC"))
    write(tmp_path, pa.table({"user_id": ["ann"] * 4, "at": at}))
    with store_of(tmp_path, activity(Aggregate("v", "count", window=HOUR))) as store:
        store.compute(end=T0 + 2 * HOUR, now=NOW)
        assert answers(store, ["activity:v"], [T0 + HOUR, T0 + 2 * HOUR]) == [(2, PRESENT), (2, PRESENT)]


def test_null_keys_are_counted_in_the_window_of_their_row(tmp_path: Path) -> None:
    """Each window's footer says how many of its own rows lacked a key, and the newest source time that it could know."""
    table = pa.table({"user_id": ["ann", None, None, "bob"], "at": instants(MINUTE, 2 * MINUTE, 61 * MINUTE, 130 * MINUTE)})
    write(tmp_path, table)
    with store_of(tmp_path, activity(Aggregate("v", "count", window=9 * HOUR))) as store:
        partitions = [report.partition for report in store.compute(end=T0 + 4 * HOUR, now=NOW)]
        assert [one.dropped for one in partitions] == [1, 1, 0, 0]
        newest = [2 * MINUTE, 61 * MINUTE, 130 * MINUTE, 130 * MINUTE]
        assert [one.newest_source_timestamp for one in partitions] == [int((T0 + one).timestamp()) * 10**6 for one in newest]


def test_a_late_row_is_not_newest_before_it_was_known(tmp_path: Path) -> None:
    """The age of a window's data goes by what the window could know, alone or in a range."""
    source = ParquetSource("watches", "source/watches.parquet", timestamp="at", created_timestamp="known_at")
    write(tmp_path, pa.table({"user_id": ["ann", "ann"], "at": instants(MINUTE, 2 * MINUTE), "known_at": instants(MINUTE, 90 * MINUTE)}))
    view = activity(Aggregate("v", "count", window=9 * HOUR), sources=[source])
    with store_of(tmp_path, view) as store:
        together = [report.partition.newest_source_timestamp for report in store.compute(end=T0 + 2 * HOUR, now=NOW)]
        alone = store.compute(start=T0, end=T0 + HOUR, now=NOW)[0].partition.newest_source_timestamp
        assert alone is not None
        assert together == [alone, alone + 60 * 10**6]


def test_first_and_last_go_by_time_and_ties_by_value(tmp_path: Path) -> None:
    """Of the events of one time, the smaller value is first and the greater one last; what has left the window is neither."""
    table = pa.table(
        {"user_id": ["ann"] * 5, "at": instants(MINUTE, MINUTE, 90 * MINUTE, 90 * MINUTE, 100 * MINUTE), "x": [5, 3, 7, 9, None]}
    )
    write(tmp_path, table)
    features = [Aggregate(name, name, column="x", dtype=int, window=2 * HOUR) for name in ("first", "last")]
    with store_of(tmp_path, activity(*features)) as store:
        store.compute(end=T0 + 5 * HOUR, now=NOW)
        found = answers(store, ["activity:first", "activity:last"], [T0 + hours * HOUR for hours in (1, 2, 3, 4)])
        assert [[value for value, _ in row] for row in found] == [[3, 5], [3, 9], [7, 9], [None, None]]


def test_a_global_aggregate_needs_no_key(tmp_path: Path) -> None:
    """An entity without join keys has one state."""
    write(tmp_path, one_user([1, 2], pa.int64()))
    view = activity(Aggregate("v", "count", window=2 * HOUR), entity=Entity("everyone"))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 4 * HOUR, now=NOW)
        asked = pa.table({"event_timestamp": instants(HOUR, 2 * HOUR, 3 * HOUR)})
        assert store.get_historical_features(asked, ["activity:v"]).to_arrow()["v"].to_pylist() == [2, 2, 0]


def test_a_view_of_features_is_no_view_of_aggregates() -> None:
    """The two are not mixed."""
    with pytest.raises(FeaturePlatformError, match="mixes Feature and Aggregate"):
        store_of(Path(), activity(Aggregate("v", "count", window=HOUR), Feature("x", int)))  # type: ignore[arg-type]
