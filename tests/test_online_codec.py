"""The codec of one view: keys without ambiguity, values that come back exactly, definitions that change."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from feature_platform.dtypes import resolve, to_micros
from feature_platform.errors import ContractError, OnlineStoreError
from feature_platform.model import Entity, Feature, FeatureView, ParquetSource
from feature_platform.online.codec import TOMBSTONE, ViewCodec
from feature_platform.online.layout import HEAD_SIZE, pack_head, read_head
from feature_platform.online.meta import ViewMeta

MOMENT = datetime(2026, 1, 1, 10, 30, 0, 123456, tzinfo=UTC)
SOURCE = ParquetSource("events", "events.parquet", timestamp="event_timestamp")
INSTANTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INT64 = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**20), max_value=10**20)

VALUES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "bool": (bool, st.booleans()),
    "int": (int, INT64),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float": (float, st.floats()),
    "float32": (pa.float32(), st.floats(width=32)),
    "str": (str, TEXT),
    "bytes": (bytes, st.binary()),
    "date": (date, st.dates()),
    "datetime": (datetime, INSTANTS),
    "decimal": (Decimal, DECIMALS),
    "list of int": (list[int], st.lists(st.none() | INT64)),
    "list of datetime": (list[datetime], st.lists(st.none() | INSTANTS)),
    "list of lists": (list[list[float]], st.lists(st.lists(st.floats()))),
    "map": (dict[str, int], st.dictionaries(TEXT, st.none() | INT64)),
    "struct": (
        {"lat": float, "seen": date, "deep": {"price": Decimal, "tags": list[str]}},
        st.fixed_dictionaries(
            {
                "lat": st.none() | st.floats(),
                "seen": st.none() | st.dates(),
                "deep": st.none() | st.fixed_dictionaries({"price": st.none() | DECIMALS, "tags": st.lists(TEXT)}),
            }
        ),
    ),
}
KEYS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    name: VALUES[name] for name in ("bool", "int", "uint64", "str", "bytes", "date", "datetime", "decimal")
}


def codec_of(features: dict[str, Any], keys: dict[str, Any] | None = None) -> ViewCodec:
    """Return the codec of a view with these features and join keys."""
    entity = Entity("user", {"user_id": str} if keys is None else keys)
    view = FeatureView("profile", entity=entity, sources=[SOURCE], features=[Feature(name, dtype) for name, dtype in features.items()])
    return ViewCodec("shop", view)


def rows_of(codec: ViewCodec, rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as an Arrow table; times that are not given are `MOMENT`."""
    dtypes = {name: dtype.arrow for name, dtype in (codec.view.entity.keys | codec.dtypes).items()}
    columns = {name: pa.array([row.get(name) for row in rows], arrow) for name, arrow in dtypes.items()}
    times = pa.array([row.get("event_timestamp", MOMENT) for row in rows], pa.timestamp("us", tz="UTC"))
    return pa.table(columns | {"event_timestamp": times})


def same(one: Any, other: Any) -> bool:
    """Say whether two values are one, NaN and the sign of zero included."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_every_dtype_comes_back_exactly(name: str, data: st.DataObject) -> None:
    """What is read is what was written, to the last bit, among other features and null."""
    dtype, strategy = VALUES[name]
    codec = codec_of({"first": int, "value": dtype, "last": str})
    value = data.draw(st.none() | strategy)
    row = {"user_id": "8a2f", "first": None, "value": value, "last": "🎬"}
    [(key, stored)] = codec.encode_rows(rows_of(codec, [row]), 7)
    read = codec.decode(stored)
    assert key == b"shop:{user:8a2f}:profile"
    assert same(read.values, {"first": None, "value": value, "last": "🎬"})
    assert (read.generation, read.event_timestamp, read.definition) == (7, to_micros(MOMENT), codec.definition)
    assert not read.is_tombstone


@given(micros=st.integers(-(2**63), 2**63 - 1), generation=st.integers(0, 2**64 - 1), gone=st.booleans())
def test_heads_come_back(micros: int, generation: int, gone: bool) -> None:  # noqa: FBT001 - Hypothesis passes by name
    """A head holds any generation and time, has one size, and is plain msgpack."""
    head = pack_head(0, generation, micros, "0123456789abcdef", is_tombstone=gone)
    assert len(head) == HEAD_SIZE == 39
    assert read_head(head) == (generation, micros, gone)
    assert msgspec.msgpack.decode(head) == [generation, micros, "0123456789abcdef", gone]


@pytest.mark.parametrize("foreign", [b"", b"x", b"\x90", b"{}" * 30], ids=["empty", "short", "other-msgpack", "long"])
def test_foreign_bytes_have_no_head(foreign: bytes) -> None:
    """Bytes that are not ours have no head, and decoding them is an error of ours."""
    assert read_head(foreign) is None
    with pytest.raises(OnlineStoreError, match="rebuild-online"):
        codec_of({"value": int}).decode(foreign)


@pytest.mark.parametrize("width", [1, 15, 16, 300])
def test_views_of_any_width_are_one_array(width: int) -> None:
    """Few and many features come back in order, though msgpack spells their array in two ways."""
    codec = codec_of({f"f{index}": int for index in range(width)})
    row = {"user_id": "a"} | {f"f{index}": index for index in range(width)}
    [(_, stored)] = codec.encode_rows(rows_of(codec, [row]), 1)
    assert len(msgspec.msgpack.decode(stored)) == 4 + width
    assert list(codec.decode(stored).values.values()) == list(range(width))


@pytest.mark.fuzz
@fuzz
@given(data=st.data())
def test_keys_are_spelled_alike_one_by_one_and_in_columns(data: st.DataObject) -> None:
    """The key that a reader spells is the one that a writer spelled, for any dtypes and values."""
    names = data.draw(st.lists(st.sampled_from(list(KEYS)), max_size=3))
    keys = {f"key{index}": KEYS[name][0] for index, name in enumerate(names)}
    codec = codec_of({"value": int}, keys)
    rows = [data.draw(st.fixed_dictionaries({f"key{index}": KEYS[name][1] for index, name in enumerate(names)})) for _ in range(2)]
    written = [key for key, _ in codec.encode_rows(rows_of(codec, rows), 1)]
    assert written == [codec.entity_key(row) for row in rows] == [codec.entity_key([row[name] for name in keys]) for row in rows]
    assert (written[0] == written[1]) == (rows[0] == rows[1])
    assert [codec.join_keys(key) for key in written] == rows


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a,b", "c"), ("a", "b,c")), (("a\\", "b"), ("a", "\\b")), (("a\\,", "b"), ("a\\", ",b")), (("", ","), (",", ""))],
)
def test_composite_keys_are_never_mixed_up(one: tuple[str, str], other: tuple[str, str]) -> None:
    """A comma or backslash within a key is not the comma between two."""
    codec = codec_of({"value": int}, {"shop": str, "item": str})
    assert codec.entity_key(one) != codec.entity_key(other)


def test_escaped_keys_are_spelled_alike_one_by_one_and_in_columns() -> None:
    """Commas and backslashes, which random text seldom has, are escaped the same way by writers and readers."""
    codec = codec_of({"value": int})
    rows = [{"user_id": text} for text in ("plain", "a,b", "a\\b", "\\,", ",\\", "", "ü,\\🎬")]
    assert [key for key, _ in codec.encode_rows(rows_of(codec, rows), 1)] == [codec.entity_key(row) for row in rows]
    assert codec.entity_key(["a,b\\"]) == b"shop:{user:a\\,b\\\\}:profile"
    assert [codec.join_keys(codec.entity_key(row)) for row in rows] == rows


@pytest.mark.parametrize(
    "key",
    [
        b"shop:{user:1,2}:profile",
        b"shop:{user:01,a}:profile",
        b"shop:{user:9223372036854775808,a}:profile",
        b"shop:{user:x,a}:profile",
        b"shop:{user:1}:profile",
        b"shop:{user:1,a\\}:profile",
        b"shop:{user:1,a\\b}:profile",
        b"shop:{user:1,\xff}:profile",
        b"shop:{user:1,a}:other",
        b"shop:{member:1,a}:profile",
    ],
)
def test_a_key_that_no_entity_has_has_no_join_keys(key: bytes) -> None:
    """Other spellings, numbers, views and entities, and bytes that are no text: nobody asks for those."""
    codec = codec_of({"value": int}, {"number": int, "text": str})
    assert codec.join_keys(b"shop:{user:1,a}:profile") == {"number": 1, "text": "a"}
    found = codec.join_keys(key)
    assert found is None or codec.entity_key(found) == key
    assert (found is None) == (key != b"shop:{user:1,2}:profile")


def test_equal_keys_have_one_spelling() -> None:
    """Instants in any zone and decimals with any zeros are the key that they equal."""
    codec = codec_of({"value": int}, {"at": datetime, "price": Decimal})
    there = MOMENT.astimezone(timezone(timedelta(hours=5)))
    assert codec.entity_key([MOMENT, Decimal("1.10")]) == codec.entity_key([there, Decimal("1.1000")])
    assert codec.entity_key([MOMENT, Decimal("-0")]) == codec.entity_key([MOMENT.replace(tzinfo=None), Decimal("0.00")])
    assert codec.entity_key([MOMENT, Decimal(100)]) == codec.entity_key([MOMENT, Decimal("1e2")])


def test_an_entity_without_keys_has_one_key() -> None:
    """A global view's key is empty, and its rows all go there."""
    codec = codec_of({"value": int}, {})
    [(key, _)] = codec.encode_rows(rows_of(codec, [{"value": 1}]), 1)
    assert key == codec.entity_key({}) == b"shop:{user:}:profile"


def test_tombstones_have_a_head_and_nothing_else() -> None:
    """Rows that are marked lose their value; the others keep it."""
    codec = codec_of({"value": int})
    rows = rows_of(codec, [{"user_id": "a", "value": 1}, {"user_id": "b", "value": 2}, {"user_id": "c", "value": 3}])
    rows = rows.append_column(TOMBSTONE, pa.array([False, True, None]))
    read = [codec.decode(value) for _, value in codec.encode_rows(rows, 5)]
    assert [row.is_tombstone for row in read] == [False, True, False]
    assert [row.values for row in read] == [{"value": 1}, {}, {"value": 3}]
    assert {row.event_timestamp for row in read} == {to_micros(MOMENT)}


def test_columns_of_other_widths_and_naive_times_fit() -> None:
    """Narrow ints, large strings, dictionaries, chunks and naive times are what queries return; they are taken for what they are."""
    codec = codec_of({"count": int, "name": str})
    rows = pa.table(
        {
            "user_id": pa.chunked_array([pa.array(["a"]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]),
            "event_timestamp": pa.array([MOMENT.replace(tzinfo=None)] * 2, pa.timestamp("us")),
            "name": pa.array(["x", None], pa.large_string()),
            "count": pa.array([1, 2], pa.int16()),
            "more": pa.array([0, 0]),
        }
    )
    items = list(codec.encode_rows(rows, 1))
    assert [key for key, _ in items] == [codec.entity_key(["a"]), codec.entity_key(["b"])]
    assert [codec.decode(value).values for _, value in items] == [{"count": 1, "name": "x"}, {"count": 2, "name": None}]
    assert list(codec.encode_rows(rows.to_batches()[0], 1)) == items[:1]
    assert list(codec.encode_rows(rows.slice(0, 0), 1)) == []


@pytest.mark.parametrize(
    ("column", "values", "what"),
    [
        ("count", None, "is missing"),
        ("count", pa.array(["one"]), "does not fit int64"),
        ("user_id", pa.array([None], pa.string()), "1 nulls"),
        ("event_timestamp", pa.array([None], pa.timestamp("us")), "1 nulls"),
    ],
    ids=["missing", "other-dtype", "null-key", "null-time"],
)
def test_rows_that_break_the_contract_are_refused(column: str, values: pa.Array | None, what: str) -> None:
    """A column that is missing, null where it may not be, or of another dtype is an error that names view and column."""
    codec = codec_of({"count": int})
    rows = rows_of(codec, [{"user_id": "a", "count": 1}]).drop_columns([column])
    rows = rows if values is None else rows.append_column(column, values)
    with pytest.raises(ContractError, match=f"(?s)'profile': column '{column}'.*{what}"):
        list(codec.encode_rows(rows, 1))


def test_columns_map_by_name_after_a_change_of_definition() -> None:
    """Rows of an earlier definition give the features that it had under the same name and dtype, and no others."""
    old = codec_of({"gone": int, "kept": int, "retyped": int, "moved": str})
    new = codec_of({"moved": str, "added": float, "kept": int, "retyped": str})
    [(_, stored)] = old.encode_rows(rows_of(old, [{"user_id": "a", "gone": 1, "kept": 2, "retyped": 3, "moved": "x"}]), 1)
    assert old.definition != new.definition
    assert new.decode(stored).values == {}
    assert new.decode(stored, {old.definition: old.schema}).values == {"moved": "x", "kept": 2}


def test_metas_come_back_and_pass_over_what_later_versions_add() -> None:
    """A meta is read as it was written; fields that are not known yet are left out, those that an earlier version lacks have defaults."""
    codec = codec_of({"value": list[float]})
    meta = ViewMeta(
        generation=3,
        materialized_at=to_micros(MOMENT),
        definition=codec.definition,
        as_of=2**62,
        newest_full=-5,
        full_generation=2,
        rows=10,
        removed=1,
        newest_source_timestamp=None,
        schemas={codec.definition: codec.schema},
        run_id="run",
        partition="2026-01-01T0000Z",
    )
    stored = meta.to_bytes()
    again = ViewMeta.from_bytes(stored)
    assert again.to_bytes() == stored
    assert {name: [tuple(one) for one in columns] for name, columns in again.schemas.items()} == meta.schemas
    assert read_head(stored) == (3, to_micros(MOMENT), False)
    items = msgspec.msgpack.decode(stored)
    later = msgspec.msgpack.encode([*items[:4], items[4] | {"invented": 1}, "more"])
    assert ViewMeta.from_bytes(later) == again
    assert ViewMeta.from_bytes(msgspec.msgpack.encode([*items[:4], {}])).rows == 0


@pytest.mark.parametrize("foreign", [b"", b"x" * 50, msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode([1, 2, "h", False, 5])])
def test_foreign_metas_are_our_error(foreign: bytes) -> None:
    """A meta that is none says how to write it again."""
    with pytest.raises(OnlineStoreError, match="rebuild-online"):
        ViewMeta.from_bytes(foreign)


def test_the_schema_names_dtypes_as_the_platform_does() -> None:
    """The schema in a meta is the names and dtypes in declared order."""
    codec = codec_of({"b": int, "a": list[float]})
    assert codec.schema == [("b", str(resolve(int))), ("a", str(resolve(list[float])))]
