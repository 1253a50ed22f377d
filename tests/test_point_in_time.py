"""Point-in-time answers against independent implementations, and on data that breaks naive joins."""

# ruff: noqa: E501 - tables of cases hold values of every type, one case a line

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from offline_project import DAY, HOUR, MICROS, MINUTE, NOW, T0, answers, asked, history_view, instants, store_of, user, watches, write

from feature_platform import Aggregate, Entity, Feature, FeatureService, FeatureStatus, FeatureStore, FeatureView, ParquetSource
from feature_platform.errors import EntityRowsError, NameClashError, RegistryError
from feature_platform.offline.asof import view_parts
from feature_platform.offline.join_plan import plan_views
from feature_platform.offline.question import Question, load_spine

PRESENT, NULL_VALUE = FeatureStatus.PRESENT, FeatureStatus.NULL_VALUE
NOT_FOUND, PAST_TTL = FeatureStatus.NOT_FOUND, FeatureStatus.OUTSIDE_MAX_AGE
US = timedelta(microseconds=1)


def computed(root: Path, table: pa.Table | dict[str, Any], view: FeatureView | None = None, **options: Any) -> FeatureStore:
    """Write a history of values, compute its view, and return the store."""
    view = view or history_view(**options)
    write(root, table, view.sources[0].name)
    store = store_of(root, view)
    store.compute(now=NOW)
    return store


def history(times: list[datetime], values: list[Any], kind: pa.DataType | None = None, users: list[Any] | None = None) -> pa.Table:
    """Return a history of one value."""
    return pa.table(
        {
            "user_id": users or ["ann"] * len(times),
            "event_timestamp": pa.array(times, MICROS),
            "value": pa.array(values, kind or pa.int64()),
        }
    )


# -- against independent implementations -------------------------------------------------------------------------------


def random_history(seed: int) -> tuple[pa.Table, pa.Table]:
    """Return a history on a coarse grid of times (many ties between keys and questions) and entity rows."""
    noise = random.Random(seed)
    rows = {(f"u{noise.randrange(40)}", T0 + noise.randrange(200) * MINUTE) for _ in range(2_000)}
    users, times = zip(*noise.sample(sorted(rows), len(rows)), strict=True)
    values = [noise.choice([None, noise.randrange(-(2**62), 2**62)]) for _ in users]
    questions = 3_000
    entity_df = pa.table(
        {
            "label": list(range(questions)),
            "user_id": [f"u{noise.randrange(45)}" for _ in range(questions)],
            "event_timestamp": pa.array([T0 + noise.randrange(-10, 220) * MINUTE for _ in range(questions)], MICROS),
        }
    )
    return history(list(times), values, users=list(users)), entity_df


@pytest.mark.parametrize("ttl", [None, 30 * MINUTE], ids=["for-ever", "ttl"])
@pytest.mark.parametrize("seed", range(3))
def test_pandas_polars_and_plain_python_agree(tmp_path: Path, seed: int, ttl: timedelta | None) -> None:
    """The same answers as pandas.merge_asof, polars.join_asof and a loop over dicts."""
    table, entity_df = random_history(seed)
    with computed(tmp_path, table, ttl=ttl) as store:
        ours = store.get_historical_features(entity_df, ["values:value"]).to_arrow()["value"].to_pylist()
    by_user: dict[str, list[tuple[datetime, Any]]] = {}
    for row in table.to_pylist():
        by_user.setdefault(row["user_id"], []).append((row["event_timestamp"], row["value"]))
    loop = []
    for row in entity_df.to_pylist():
        at = row["event_timestamp"]
        seen = [one for one in by_user.get(row["user_id"], []) if one[0] <= at and (ttl is None or one[0] >= at - ttl)]
        loop.append(max(seen, key=lambda one: one[0])[1] if seen else None)
    assert ours == loop
    right = pl.DataFrame(table).sort("event_timestamp")
    joined = pl.DataFrame(entity_df).sort("event_timestamp").join_asof(right, on="event_timestamp", by="user_id", tolerance=ttl)
    assert ours == joined.sort("label")["value"].to_list()
    exact = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get).sort_values("event_timestamp")
    left = entity_df.to_pandas().sort_values("event_timestamp")
    merged = pd.merge_asof(left, exact, on="event_timestamp", by="user_id", tolerance=ttl and pd.Timedelta(ttl)).sort_values("label")
    assert ours == [None if one is pd.NA else int(one) for one in merged["value"]]


def test_a_hundred_thousand_shuffled_rows_keep_their_order(tmp_path: Path) -> None:
    """Row i of the answer is row i of the question, through every thread and batch."""
    rows = 100_000
    order = list(range(rows))
    random.Random(3).shuffle(order)
    table = history([T0 + i * MINUTE for i in range(500)], list(range(500)), users=[f"u{i}" for i in range(500)])
    entity_df = pa.table({"n": order, "user_id": [f"u{i % 500}" for i in order], "event_timestamp": pa.array([NOW] * rows, MICROS)})
    with computed(tmp_path, table) as store:
        answer = store.get_historical_features(entity_df, ["values:value"])
        found = answer.to_arrow()
        assert found["n"].to_pylist() == order
        assert found["value"].to_pylist() == [i % 500 for i in order]
        assert answer.to_parquet(tmp_path / "out" / "train.parquet") == rows
        assert pa.parquet.read_table(tmp_path / "out" / "train.parquet").equals(found)
        assert [one.name for one in (tmp_path / "out").iterdir()] == ["train.parquet"]


# -- ties, NULL, ttl, units of time ------------------------------------------------------------------------------------


def test_a_null_wins_over_an_older_value(tmp_path: Path) -> None:
    """The newest row is the answer as a whole, its NULL too; a tie of everything falls the same way every time."""
    with computed(tmp_path, history([T0, T0 + HOUR, T0 + 2 * HOUR, T0 + 2 * HOUR], [1, None, 5, 7])) as store:
        times = [T0 - US, T0, T0 + HOUR - US, T0 + HOUR, T0 + 2 * HOUR]
        expected = [(None, NOT_FOUND), (1, PRESENT), (1, PRESENT), (None, NULL_VALUE), (7, PRESENT)]
        assert answers(store, ["values:value"], times) == expected


@pytest.mark.parametrize("delay", [timedelta(0), 10 * MINUTE], ids=["no-delay", "delay"])
def test_ttl_of_an_event_view_is_inclusive_to_the_microsecond(tmp_path: Path, delay: timedelta) -> None:
    """A value is used from event_timestamp + delay on, up to exactly ttl after its event_timestamp."""
    with computed(tmp_path, history([T0], [1]), ttl=HOUR, delay=delay, features=[Feature("value", int, default=-1)]) as store:
        times = [T0 + delay - US, T0 + delay, T0 + HOUR, T0 + HOUR + US]
        expected = [(-1, NOT_FOUND), (1, PRESENT), (1, PRESENT), (-1, PAST_TTL)]
        assert answers(store, ["values:value"], times) == expected
        plain = store.get_historical_features(asked(times), ["values:value"]).to_arrow()
        assert plain["value"].to_pylist() == [-1, 1, 1, -1]


def test_ttl_of_a_window_view_goes_by_the_last_window(tmp_path: Path) -> None:
    """An unchanged count is as fresh as the last window that confirmed it."""
    view = FeatureView(
        "activity",
        entity=user,
        sources=[watches],
        schedule="@hourly",
        start=T0,
        ttl=2 * HOUR,
        features=[Aggregate("n", "count", window=DAY)],
    )
    write(tmp_path, pa.table({"user_id": ["ann"], "at": instants(MINUTE)}))
    with store_of(tmp_path, view) as store:
        store.compute(end=T0 + 3 * HOUR, now=NOW)
        times = [T0 + HOUR - US, T0 + HOUR, T0 + 5 * HOUR, T0 + 5 * HOUR + US]
        assert answers(store, ["activity:n"], times) == [(0, NOT_FOUND), (1, PRESENT), (1, PRESENT), (0, PAST_TTL)]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"], ids=["naive", "utc", "new-york"])
@pytest.mark.parametrize("base", [1_800_000_000_000_000_000, -1_000_000_000_000_000_000], ids=["after-1970", "before-1970"])
def test_nanoseconds_never_leak(tmp_path: Path, zone: str | None, base: int) -> None:
    """An entity time rounds down and a feature time up: a value 1 ns in the future is not seen."""
    features = pa.array([base, base + 10_001], pa.timestamp("ns", tz=zone))
    times = pa.array([base - 1, base, base + 10_001, base + 10_999, base + 11_000, base + 11_999], pa.timestamp("ns", tz=zone))
    with computed(tmp_path, pa.table({"user_id": ["ann"] * 2, "event_timestamp": features, "value": [1, 2]})) as store:
        entity_df = pa.table({"user_id": ["ann"] * 6, "event_timestamp": times})
        pa.parquet.write_table(entity_df, tmp_path / "asked.parquet")
        for form in (entity_df, entity_df.to_pandas(), pl.DataFrame(entity_df), tmp_path / "asked.parquet"):
            found = store.get_historical_features(form, ["values:value"]).to_arrow()
            assert found["value"].to_pylist() == [None, 1, 1, 1, 2, 2]
            assert found["event_timestamp"].type.unit == "ns"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata"])
def test_daylight_saving_moves_no_instant(tmp_path: Path, zone: str, unit: str) -> None:
    """Zone-aware times are instants; the hour that a clock shows twice is two hours."""
    autumn = datetime(2025, 10, 26, tzinfo=UTC)  # Berlin shows 02:00-03:00 twice; New York a week later
    times = [autumn + i * 30 * MINUTE for i in range(-4, 8)]
    with computed(tmp_path, history(times, list(range(12)))) as store:
        aware = pa.array(times, pa.timestamp(unit, tz="UTC")).cast(pa.timestamp(unit, tz=zone))
        entity_df = pa.table({"user_id": ["ann"] * 12, "event_timestamp": aware})
        for form in (entity_df, entity_df.to_pandas(), pl.DataFrame(entity_df)):
            answer = store.get_historical_features(form, ["values:value"])
            assert answer.to_arrow()["value"].to_pylist() == list(range(12))
        naive = pa.table(
            {"user_id": ["ann"] * 12, "event_timestamp": pa.array([t.replace(tzinfo=None) for t in times], pa.timestamp(unit))}
        )
        assert store.get_historical_features(naive, ["values:value"]).to_arrow()["value"].to_pylist() == list(range(12))


def test_the_zone_of_the_process_does_not_matter(tmp_path: Path) -> None:
    """Naive means UTC under any TZ: the same project, asked in another process, answers the same."""
    with computed(tmp_path, history([T0, T0 + HOUR], [1, 2])) as store:
        expected = store.get_historical_features(asked([T0 + MINUTE, T0 + HOUR]), ["values:value"]).to_arrow()["value"].to_pylist()
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path; import pandas as pd; from offline_project import *
with store_of(Path({str(tmp_path)!r}), history_view()) as store:
    store.compute(now=NOW)
    frame = pd.DataFrame({{"user_id": ["ann"] * 2, "event_timestamp": [(T0 + MINUTE).replace(tzinfo=None), (T0 + HOUR).replace(tzinfo=None)]}})
    print(store.get_historical_features(frame, ["values:value"]).to_pandas()["value"].tolist())
"""
    for zone in ("Asia/Kolkata", "America/New_York"):
        run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == str(expected)


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_a_date_is_its_midnight(tmp_path: Path, kind: pa.DataType) -> None:
    """A date as event_timestamp, of entity rows and of features, is its first instant in UTC."""
    days = pa.array([date(2026, 3, 28), date(2026, 3, 29)], kind)
    with computed(tmp_path, pa.table({"user_id": ["ann"] * 2, "event_timestamp": days, "value": [1, 2]})) as store:
        assert answers(store, ["values:value"], [T0 - US, T0, T0 + DAY]) == [(None, NOT_FOUND), (1, PRESENT), (2, PRESENT)]
        entity_df = pa.table({"user_id": ["ann"] * 2, "event_timestamp": days})
        assert store.get_historical_features(entity_df, ["values:value"]).to_arrow()["value"].to_pylist() == [1, 2]


@pytest.mark.parametrize("year", [1, 2, 900, 1677, 1969, 2262, 9999], ids=str)
def test_far_off_times_are_answered(tmp_path: Path, year: int) -> None:
    """'For ever' and 'never' are asked about in practice; they are times like others."""
    at = datetime(year, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    whole = history_view(ttl=30_000 * DAY)
    daily = history_view("days", schedule="@daily", start=T0, delay=HOUR)
    write(tmp_path, history([T0], [1]), "values")
    write(tmp_path, history([T0], [1]), "days")
    with store_of(tmp_path, whole, daily) as store:
        store.compute(now=T0 + 2 * DAY)
        expected = {True: [(None, NOT_FOUND)] * 2, False: [(1, PRESENT)] * 2}[year < 2026]
        if year in {2262, 9999}:
            expected = [(None, PAST_TTL), (1, PRESENT)]  # more than 30,000 days later
        assert answers(store, ["values:value", "days:value"], [at], full_feature_names=True)[0] == expected


LAST_MICROS = 2**63 - 1  # as DuckDB, Postgres and Java write infinity
ENDLESS = {
    "infinity": (pa.timestamp("us"), LAST_MICROS, 1),
    "minus-infinity": (pa.timestamp("us"), -LAST_MICROS, None),
    "just-before-infinity": (pa.timestamp("us"), LAST_MICROS - 1, 1),
    "just-after-minus-infinity": (pa.timestamp("us"), 1 - LAST_MICROS, None),
    "infinity-in-a-zone": (pa.timestamp("us", tz="Asia/Kolkata"), LAST_MICROS, 1),
    "infinity-in-nanoseconds-in-a-zone": (pa.timestamp("ns", tz="UTC"), LAST_MICROS, 1),
    "infinity-in-nanoseconds": (pa.timestamp("ns"), LAST_MICROS, 1),
    "minus-infinity-in-nanoseconds": (pa.timestamp("ns"), -LAST_MICROS, None),
}


@pytest.mark.parametrize(("kind", "endless", "expected"), ENDLESS.values(), ids=ENDLESS)
def test_a_row_at_the_end_of_time_takes_nothing_from_the_others(
    tmp_path: Path, kind: pa.DataType, endless: int, expected: int | None
) -> None:
    """Infinity is after everything and its opposite before; the rows beside it are answered, and explained, as without it."""
    whole, aging = history_view(), history_view("aging", ttl=DAY, delay=HOUR)
    daily = history_view("days", schedule="@daily", start=T0, delay=HOUR)
    for view in (whole, aging, daily):
        write(tmp_path, history([T0], [1]), view.name)
    usual = pa.array([T0 + 2 * HOUR], MICROS).cast(pa.timestamp(kind.unit, tz=kind.tz)).cast(pa.int64())[0].as_py()
    entity_df = pa.table({"user_id": ["ann"] * 2, "event_timestamp": pa.array([endless, usual], pa.int64()).cast(kind)})
    with store_of(tmp_path, whole, aging, daily) as store:
        store.compute(now=T0 + 2 * DAY)
        names = ["values:value", "aging:value", "days:value"]
        joined = store.get_historical_features(entity_df, names, full_feature_names=True, labels=["days:value"], label_delay=HOUR)
        assert joined.features.to_pydict() == {
            "values__value": [expected, 1],
            "aging__value": [None, 1],
            "days__value": [expected, 1],
            "label_days__value": [None, 1],
        }
        assert [one.rows for one in joined.explain().views] == [1, 1, 1, 1]


def test_a_null_key_or_time_finds_nothing(tmp_path: Path) -> None:
    """NULL matches nothing, not even NULL; the row stays."""
    with computed(tmp_path, history([T0, T0], [1, 2], users=["ann", None])) as store:
        entity_df = pa.table({"user_id": ["ann", None, "ann"], "event_timestamp": pa.array([NOW, NOW, None], MICROS)})
        found = store.get_historical_features(entity_df, ["values:value"], statuses=True).to_arrow()
        assert found["value"].to_pylist() == [1, None, None]
        assert found["value__status"].to_pylist() == [PRESENT, NOT_FOUND, NOT_FOUND]
        nothing = pa.table({"user_id": pa.nulls(2, pa.string()), "event_timestamp": pa.nulls(2)})
        assert store.get_historical_features(nothing, ["values:value"]).to_arrow()["value"].to_pylist() == [None, None]


# -- dtypes ------------------------------------------------------------------------------------------------------------

BIG = 2**53 + 1
VALUES: dict[str, tuple[Any, pa.DataType, list[Any], Any]] = {
    "int": (int, pa.int64(), [BIG, None, -BIG, 2**63 - 1], 3),
    "uint64": (pa.uint64(), pa.uint64(), [2**64 - 1, None, 0], 3),
    "int8": (pa.int8(), pa.int8(), [-128, None, 127], 3),
    "float": (float, pa.float64(), [float("inf"), None, -0.0, 5e-324], 0.5),
    "float32": (pa.float32(), pa.float32(), [0.5, None], 0.25),
    "bool": (bool, pa.bool_(), [True, None, False], True),
    "str": (str, pa.string(), ["", None, "🎬 naïve", "a\0b", "'\"\\"], "new"),
    "bytes": (bytes, pa.binary(), [b"", None, b"\0\xff"], b"\1"),
    "date": (date, pa.date32(), [date(1, 1, 1), None, date(9999, 12, 31)], date(2026, 1, 1)),
    "datetime": (datetime, MICROS, [T0, None, datetime(1969, 1, 1, tzinfo=UTC)], T0),
    "decimal": (Decimal, pa.decimal128(38, 9), [Decimal("12345678901234567890123456789.123456789"), None], Decimal(1)),
    "decimal-narrow": (pa.decimal128(5, 2), pa.decimal128(5, 2), [Decimal("1.10"), None], Decimal("2.5")),
    "list": (list[float], pa.list_(pa.float64()), [[1.5, None], None, []], [0.0]),
    "list-of-datetimes": (list[datetime], pa.list_(MICROS), [[T0, None], None, []], [T0]),
    "list-of-lists": (list[list[int]], pa.list_(pa.list_(pa.int64())), [[[BIG], None, []], None], [[1]]),
    "struct": ({"a": int, "when": datetime}, pa.struct([("a", pa.int64()), ("when", MICROS)]), [{"a": BIG, "when": T0}, None, {"a": None, "when": None}], {"a": 1, "when": T0}),
    "map": (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.int64()), [[("a", BIG), ("é", None)], None, []], {"d": 1}),
    "map-of-datetimes": (pa.map_(pa.string(), MICROS), pa.map_(pa.string(), MICROS), [[("a", T0)], None], {"d": T0}),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "kind", "values", "default"), VALUES.values(), ids=VALUES)
def test_every_dtype_comes_out_as_it_went_in(tmp_path: Path, dtype: Any, kind: pa.DataType, values: list[Any], default: Any) -> None:
    """Values, NULLs and defaults of every dtype survive Parquet and the join, in every form of answer."""
    times = [T0 + i * HOUR for i in range(len(values))]
    view = history_view(features=[Feature("value", dtype, default=default)])
    with computed(tmp_path, history(times, values, kind), view) as store:
        answer = store.get_historical_features(asked([*times, T0 - HOUR]), ["values:value"], statuses=True)
        table = answer.to_arrow()
        assert table.schema.field("value").type == view.features[0].type.arrow
        shown = list(default.items()) if isinstance(default, dict) and pa.types.is_map(kind) else default
        assert table["value"].to_pylist() == [*values, shown]
        assert table["value__status"].to_pylist() == [NULL_VALUE if one is None else PRESENT for one in values] + [NOT_FOUND]
        answer.to_parquet(tmp_path / "out.parquet")
        assert pa.parquet.read_table(tmp_path / "out.parquet")["value"].to_pylist() == table["value"].to_pylist()
        frame = answer.to_pandas()
        assert frame["value"].isna().tolist()[:2] == [False, True]
        if kind == pa.int64():
            assert (frame["value"].dtype, frame["value"].tolist()[0]) == (pd.Int64Dtype(), BIG)
        if not pa.types.is_map(kind):  # polars has no maps
            assert answer.to_polars()["value"].to_list()[:2] == values[:2]


def test_nan_is_a_value(tmp_path: Path) -> None:
    """NaN is PRESENT, and no NULL."""
    with computed(tmp_path, history([T0], [float("nan")], pa.float64()), dtype=float) as store:
        ((value, status),) = answers(store, ["values:value"], [T0])
        assert value != value  # noqa: PLR0124 - only NaN is
        assert status == PRESENT


# -- names -------------------------------------------------------------------------------------------------------------

ODD_NAMES = ["select", 'a"b', "__row", "__time", "row", "s", "r", "w", "spine", "value__known", "Value", "USER_ID", "EVENT_TIMESTAMP", "🎬", " ", "a;b", "order", "found", "fresh"]  # fmt: skip


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_label_columns_may_be_called_anything(tmp_path: Path, name: str, place: str) -> None:
    """An input column passes through untouched, whatever its name, also if it differs from a key or feature only in case."""
    with computed(tmp_path, history([T0], [1])) as store:
        plain = asked([NOW, T0 - DAY])
        table = plain.append_column(name, pa.array(["x", None])) if place == "after" else plain.add_column(0, name, pa.array(["x", None]))
        pa.parquet.write_table(table, tmp_path / "asked.parquet")
        for form in (table, table.to_pandas(), pl.DataFrame(table), tmp_path / "asked.parquet"):
            answer = store.get_historical_features(form, ["values:value"], statuses=True)
            found = answer.to_arrow()
            assert found.column_names == [*table.column_names, "value", "value__status"]
            assert found[name].to_pylist() == ["x", None]
            assert found["value"].to_pylist() == [1, None]
            assert answer.to_pandas().columns.tolist() == found.column_names
            assert answer.to_polars().columns == found.column_names
            answer.to_parquet(tmp_path / "out.parquet")
            assert pa.parquet.read_table(tmp_path / "out.parquet").column_names == found.column_names


@pytest.mark.parametrize(
    "feature", ["select", "order", "group", "row", "s", "r", "w", "found", "fresh", "spine", "known", "window_end", "visible_from"]
)
def test_features_may_be_sql_words(tmp_path: Path, feature: str) -> None:
    """Names are quoted wherever they stand, in all three kinds of view."""
    table = pa.table({"user_id": ["ann"], "at": instants(MINUTE), feature: [7]})
    write(tmp_path, table)
    write(tmp_path, table.append_column("known_at", instants(HOUR)), "late")
    query = f'select user_id, max("{feature}") as "{feature}" from watches group by user_id'
    views = [
        FeatureView("a", entity=user, sources=[watches], query=query, features=[Feature(feature, int)], schedule="@hourly", start=T0),
        FeatureView("b", entity=user, sources=[watches], features=[Aggregate(feature, "sum", column=feature, dtype=int, window=HOUR)], schedule="@hourly", start=T0),
        FeatureView("c", entity=user, sources=[ParquetSource("late", "source/late.parquet", timestamp="at", created_timestamp="known_at")], features=[Feature(feature, int)]),
    ]  # fmt: skip
    with store_of(tmp_path, *views) as store:
        store.compute(end=T0 + HOUR, now=NOW)
        names = [f"{view}:{feature}" for view in "abc"]
        for as_of in ("known", "latest"):
            assert answers(store, names, [T0 + HOUR], full_feature_names=True, as_of=as_of) == [[(7, PRESENT)] * 3]


def test_clashing_names_are_refused_with_advice(tmp_path: Path) -> None:
    """Two features of one name, or a feature and an input column, need full names."""
    other = history_view("others")
    write(tmp_path, history([T0], [2]), "others")
    write(tmp_path, history([T0], [1]), "values")
    service = FeatureService("both", [history_view(), other], full_feature_names=True)
    with store_of(tmp_path, history_view(), other, services=[service]) as store:
        store.compute(now=NOW)
        entity_df = asked([NOW])
        with pytest.raises(NameClashError, match="full_feature_names=True"):
            store.get_historical_features(entity_df, ["values:value", "others:value"])
        with pytest.raises(RegistryError, match="'values:value' or 'others:value'"):
            store.get_historical_features(entity_df, ["value"])
        labelled = entity_df.append_column("value", pa.array([9]))
        with pytest.raises(NameClashError, match="has a column 'value' already"):
            store.get_historical_features(labelled, ["values:value"])
        with pytest.raises(NameClashError, match="value__status"):
            store.get_historical_features(entity_df.append_column("value__status", pa.array([9])), ["values:value"], statuses=True)
        full = store.get_historical_features(labelled, ["values:value", "others:value"], full_feature_names=True).to_arrow()
        assert full.to_pylist()[0] | {"event_timestamp": None} == {
            "user_id": "ann", "event_timestamp": None, "value": 9, "values__value": 1, "others__value": 2,
        }  # fmt: skip
        assert store.get_historical_features(entity_df, "both").to_arrow().column_names[2:] == ["values__value", "others__value"]
        with pytest.raises(RegistryError, match="'known' or 'latest'"):
            store.get_historical_features(entity_df, ["values:value"], as_of="newest")  # type: ignore[arg-type]


# -- keys --------------------------------------------------------------------------------------------------------------


def keyed(root: Path, dtype: Any, keys: pa.Array) -> FeatureStore:
    """Return the store of a view with one key of a dtype; the value is the key's place."""
    view = history_view(entity=Entity("thing", join_keys={"key": dtype}))
    return computed(
        root, pa.table({"key": keys, "event_timestamp": pa.array([T0] * len(keys), MICROS), "value": list(range(len(keys)))}), view
    )


WIDENED: dict[str, tuple[Any, pa.Array, Any]] = {
    "int32": (int, pa.array([1, 2]), pa.array([2, 1, 3], pa.int32())),
    "uint8": (int, pa.array([1, 2]), pa.array([2, 1, 3], pa.uint8())),
    "uint64": (int, pa.array([1, 2]), pa.array([2, 1, 3], pa.uint64())),
    "large-string": (str, pa.array(["a", "b"]), pa.array(["b", "a", "c"], pa.large_string())),
    "string-view": (str, pa.array(["a", "b"]), pa.array(["b", "a", "c"], pa.string_view())),
    "dictionary": (str, pa.array(["a", "b"]), pa.array(["b", "a", "c"]).dictionary_encode()),
    "dictionary-of-ints": (int, pa.array([1, 2]), pa.array([2, 1, 3]).dictionary_encode()),
    "bool": (bool, pa.array([False, True]), pa.array([True, False, None])),
    "bytes": (bytes, pa.array([b"a", b"\0"]), pa.array([b"\0", b"a", b""])),
    "date": (date, pa.array([date(2026, 1, 1), date(2026, 1, 2)]), pa.array([date(2026, 1, 2), date(2026, 1, 1), None])),
    "datetime": (datetime, pa.array([T0, T0 + US], MICROS), pa.array([T0 + US, T0, T0 + HOUR], MICROS)),
    "decimal": (pa.decimal128(9, 2), pa.array([Decimal("1.10"), Decimal("1.20")]), pa.array([Decimal("1.2"), Decimal("1.1"), None])),
    "unicode": (str, pa.array(["é", "🎬"]), pa.array(["🎬", "é", "e\u0301"])),
    "blanks": (str, pa.array(["2", "2 "]), pa.array(["2 ", "2", " 2"])),
    "case": (str, pa.array(["a", "A"]), pa.array(["A", "a", "ä"])),
}


@pytest.mark.parametrize(("dtype", "keys", "asked_keys"), WIDENED.values(), ids=WIDENED)
def test_keys_match_by_value(tmp_path: Path, dtype: Any, keys: pa.Array, asked_keys: pa.Array) -> None:
    """Narrower integers and other encodings of text match; nothing else is equal."""
    with keyed(tmp_path, dtype, keys) as store:
        entity_df = pa.table({"key": asked_keys, "event_timestamp": pa.array([NOW] * 3, MICROS)})
        assert store.get_historical_features(entity_df, ["values:value"]).to_arrow()["value"].to_pylist() == [1, 0, None]


@pytest.mark.parametrize(
    ("dtype", "column"),
    [
        (str, pa.array([2])),
        (int, pa.array(["2"])),
        (int, pa.array([2.0])),
        (int, pa.array([True])),
        (bool, pa.array([1])),
        (str, pa.array([b"2"])),
        (date, pa.array([T0])),
    ],
    ids=["int-for-str", "str-for-int", "float-for-int", "bool-for-int", "int-for-bool", "bytes-for-str", "datetime-for-date"],
)
def test_a_key_of_another_type_is_refused(tmp_path: Path, dtype: Any, column: pa.Array) -> None:
    """DuckDB would cast in silence, and '2 ' would match 2."""
    with keyed(tmp_path, dtype, pa.array([None], pa.string()).cast(store_type(dtype))) as store:
        entity_df = pa.table({"key": column, "event_timestamp": pa.array([NOW], MICROS)})
        with pytest.raises(EntityRowsError, match="nothing is cast in silence") as caught:
            store.get_historical_features(entity_df, ["values:value"]).to_arrow()
        assert caught.value.field == "key"


def store_type(dtype: Any) -> pa.DataType:
    """Return the Arrow type of a Python one."""
    return {str: pa.string(), int: pa.int64(), bool: pa.bool_(), date: pa.date32()}[dtype]


def test_a_key_beyond_its_dtype_is_an_error_that_says_so(tmp_path: Path) -> None:
    """2**63 is no int64; DuckDB's own message would not name entity_df."""
    entity_df = pa.table({"key": pa.array([2**63], pa.uint64()), "event_timestamp": pa.array([NOW], MICROS)})
    with keyed(tmp_path, int, pa.array([1])) as store, pytest.raises(EntityRowsError, match="does not fit its declared dtype"):
        store.get_historical_features(entity_df, ["values:value"]).to_arrow()


@pytest.mark.parametrize(
    "make",
    [lambda keys: pd.Series(keys, dtype="category"), lambda keys: pd.Series(keys, dtype=object), pd.Series],
    ids=["category", "object", "str"],
)
def test_pandas_columns_of_text_match(tmp_path: Path, make: Any) -> None:
    """Categories, objects and pandas' own strings are text."""
    with keyed(tmp_path, str, pa.array(["a", "b"])) as store:
        frame = pd.DataFrame({"key": make(["b", "a", "c"]), "event_timestamp": [NOW] * 3})
        assert store.get_historical_features(frame, ["values:value"]).to_pandas()["value"].tolist() == [1, 0, pd.NA]


def test_composite_keys_and_several_entities_meet_in_one_question(tmp_path: Path) -> None:
    """Rows carry the union of the keys; a view uses its own, one without keys none."""
    pair = Entity("pair", join_keys={"user_id": str, "order": int})
    views = [
        history_view("pairs", entity=pair, features=[Feature("of_pair", int)]),
        history_view("users", features=[Feature("of_user", int)]),
        history_view("all", entity=Entity("everyone"), features=[Feature("of_all", int)]),
    ]
    at = pa.array([T0] * 4, MICROS)
    write(
        tmp_path,
        pa.table({"user_id": ["é", "é", "a,1", "a"], "order": [1, 2, 1, 11], "event_timestamp": at, "of_pair": [1, 2, 3, 4]}),
        "pairs",
    )
    write(tmp_path, pa.table({"user_id": ["é", "a,1", "a", "x"], "event_timestamp": at, "of_user": [10, 20, 30, 40]}), "users")
    write(tmp_path, pa.table({"event_timestamp": instants(timedelta(0), HOUR), "of_all": [100, 200]}), "all")
    with store_of(tmp_path, *views, services=[FeatureService("everything", views)]) as store:
        store.compute(now=NOW)
        rows = [("é", 2, NOW), ("a,1", 1, T0), ("a", 1, NOW), ("é", None, NOW)]
        entity_df = pa.table(
            {"order": [r[1] for r in rows], "user_id": [r[0] for r in rows], "event_timestamp": pa.array([r[2] for r in rows], MICROS)}
        )
        found = store.get_historical_features(entity_df, "everything").to_arrow()
        assert found["of_pair"].to_pylist() == [2, 3, None, None]
        assert found["of_user"].to_pylist() == [10, 20, 30, 10]
        assert found["of_all"].to_pylist() == [200, 100, 200, 200]
        for name in ("of_pair", "of_user", "of_all"):
            alone = store.get_historical_features(entity_df, [name]).to_arrow()
            assert alone[name].equals(found[name]), "several views in one question answer like each alone"


# -- a view's life -----------------------------------------------------------------------------------------------------


def test_a_view_never_computed_answers_not_found(tmp_path: Path) -> None:
    """No history is no error: every row gets the default."""
    views = [history_view(features=[Feature("value", int, default=3)]), FeatureView("n", entity=user, sources=[watches], features=[Aggregate("c", "count", window=HOUR)], schedule="@hourly", start=T0)]  # fmt: skip
    with store_of(tmp_path, *views) as store:
        assert answers(store, ["values:value", "n:c"], [NOW]) == [[(3, NOT_FOUND), (0, NOT_FOUND)]]


@pytest.mark.parametrize("kind", ["event", "snapshot"])
def test_a_view_may_change_its_columns(tmp_path: Path, kind: str) -> None:
    """A feature added, or of another dtype, is NOT_FOUND before it was computed; one that was removed disappears."""

    def view(select: str, *features: Feature) -> FeatureView:
        time = ', "at" as event_timestamp' if kind == "event" else ""
        return FeatureView("v", entity=user, sources=[watches], query=f"select user_id{time}, {select} from watches", features=features, schedule="@hourly", start=T0)  # fmt: skip

    write(tmp_path, pa.table({"user_id": ["ann", "ann"], "at": instants(MINUTE, 61 * MINUTE), "x": [1, 2]}))
    with store_of(tmp_path, view("x as a, x as b", Feature("a", int), Feature("b", int))) as store:
        store.compute(end=T0 + HOUR, now=NOW)
    changed = view("x as a, x::varchar as b, x * 10 as c", Feature("a", int), Feature("b", str, default="?"), Feature("c", int))
    times = [T0 + HOUR, T0 + 2 * HOUR]
    with store_of(tmp_path, changed) as store:
        store.compute(start=T0 + HOUR, end=T0 + 2 * HOUR, now=NOW)
        names = ["v:a", "v:b", "v:c"]
        assert answers(store, names, times) == [
            [(1, PRESENT), ("?", NOT_FOUND), (None, NOT_FOUND)],
            [(2, PRESENT), ("2", PRESENT), (20, PRESENT)],
        ]
        store.compute(start=T0, end=T0 + HOUR, now=NOW)
        assert answers(store, names, times[:1]) == [[(1, PRESENT), ("1", PRESENT), (10, PRESENT)]]
    with store_of(tmp_path, view("x as a", Feature("a", int))) as store:
        assert answers(store, ["v:a"], times) == [(1, PRESENT), (2, PRESENT)]


def test_known_and_latest_differ_by_what_was_known(tmp_path: Path) -> None:
    """A correction that came later is seen from when it was known; bulk-loaded history can be asked as of its events."""
    source = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp", created_timestamp="known_at")
    table = history([T0, T0, T0 - HOUR], [1, 2, 3]).append_column("known_at", instants(timedelta(0), 5 * HOUR, 9 * HOUR))
    with computed(tmp_path, table, source=source) as store:
        times = [T0 - HOUR, T0, T0 + 5 * HOUR - US, T0 + 5 * HOUR, T0 + 9 * HOUR]
        known = [(None, NOT_FOUND), (1, PRESENT), (1, PRESENT), (2, PRESENT), (2, PRESENT)]
        latest = [(3, PRESENT), (2, PRESENT), (2, PRESENT), (2, PRESENT), (2, PRESENT)]
        assert answers(store, ["values:value"], times) == known
        assert answers(store, ["values:value"], times, as_of="latest") == latest


@pytest.mark.parametrize("as_of", ["known", "latest"])
def test_a_value_since_ever_wins_over_no_later_one(tmp_path: Path, as_of: Any) -> None:
    """A row of minus infinity is the oldest of its key, however late it came to be known."""
    source = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp", created_timestamp="known_at")
    at = pa.array([-LAST_MICROS, int(T0.timestamp() * 1_000_000)], pa.int64()).cast(pa.timestamp("us"))
    table = pa.table({"user_id": ["ann"] * 2, "event_timestamp": at, "value": [1, 2], "known_at": instants(2 * HOUR, timedelta(0))})
    with computed(tmp_path, table, source=source) as store:
        assert answers(store, ["value"], [T0, T0 + 3 * HOUR], as_of=as_of) == [(2, PRESENT), (2, PRESENT)]


@pytest.mark.parametrize("rows", [1, 63, 1000])
def test_no_nested_loop_is_planned(tmp_path: Path, rows: int) -> None:
    """DuckDB plans a nested-loop ASOF join where it expects 64 rows or fewer: 37 to 240 times slower."""
    table = history([T0 + i * US for i in range(5_000)], list(range(5_000)))
    with computed(tmp_path, table) as store, store._connect() as connection:
        question = Question(tuple(store.registry.resolve(["values:value"])))
        spine = load_spine(connection, connection.from_arrow(asked([NOW] * rows)), question.join_keys, given="test")
        (planned,) = plan_views(store.offline, question, (0, 2 * 10**15))
        ((sql, _),) = view_parts(connection, planned, spine, f"{spine}_0", rows)
        plan = str(connection.execute(f"explain {sql}").fetchall())
        assert "Asof Join" in plan
        connection.execute("reset asof_loop_join_threshold")
        by_default = str(connection.execute(f"explain {sql}").fetchall())
        assert ("Asof Join" in by_default) == (rows > 63), "what the setting is for"
