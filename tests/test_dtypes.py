"""Dtypes: every value comes back exactly from Arrow, DuckDB, Parquet, the wire and JSON; what is not of a dtype is refused."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_platform.dtypes import Dtype, from_micros, resolve, to_micros
from feature_platform.errors import DtypeError, RegistryError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# DuckDB takes the last microseconds of its TIMESTAMP for infinity; years 1 to 9999 are far inside.
INSTANTS = st.datetimes(timezones=st.just(UTC))
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**28), max_value=10**28)
MONEY = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-99_999_999, max_value=99_999_999)


def integers(bits: int, *, signed: bool = True) -> st.SearchStrategy[int]:
    """Return all integers of a width, its edges often."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.sampled_from([low, high]) | st.integers(low, high)


def lists(item: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Return short lists with gaps."""
    return st.lists(st.none() | item, max_size=4)


VALUES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "bool": (bool, st.booleans()),
    "int": (int, integers(64)),
    "int8": (pa.int8(), integers(8)),
    "int16": (pa.int16(), integers(16)),
    "int32": (pa.int32(), integers(32)),
    "uint8": (pa.uint8(), integers(8, signed=False)),
    "uint16": (pa.uint16(), integers(16, signed=False)),
    "uint32": (pa.uint32(), integers(32, signed=False)),
    "uint64": (pa.uint64(), integers(64, signed=False)),
    "float": (float, st.floats()),
    "float32": (pa.float32(), st.floats(width=32)),
    "str": (str, TEXT | st.sampled_from(["", "\0", "👩‍💻", "é", '"', "\\", "NaN", "null"])),
    "bytes": (bytes, st.binary()),
    "date": (date, st.dates()),
    "datetime": (datetime, INSTANTS),
    "decimal": (Decimal, DECIMALS),
    "decimal(10, 2)": (pa.decimal128(10, 2), MONEY),
    "list of bool": (list[bool], lists(st.booleans())),
    "list of int": (list[int], lists(integers(64))),
    "list of float": (list[float], lists(st.floats())),
    "list of str": (list[str], lists(TEXT)),
    "list of bytes": (list[bytes], lists(st.binary())),
    "list of date": (list[date], lists(st.dates())),
    "list of datetime": (list[datetime], lists(INSTANTS)),
    "list of decimal": (list[Decimal], lists(DECIMALS)),
    "list of lists": (list[list[int]], lists(lists(integers(64)))),
    "fixed-size embedding": (pa.list_(pa.float32(), 3), st.lists(st.floats(width=32), min_size=3, max_size=3)),
    "map": (dict[str, int], st.dictionaries(TEXT, st.none() | integers(64), max_size=4)),
    "map of lists": (dict[str, list[float]], st.dictionaries(TEXT, st.none() | lists(st.floats()), max_size=3)),
    "struct": (
        {"lat": float, "seen at": datetime, 'a "b"': {"price": Decimal, "tags": list[str], "raw": bytes}},
        st.fixed_dictionaries(
            {
                "lat": st.none() | st.floats(),
                "seen at": st.none() | INSTANTS,
                'a "b"': st.none()
                | st.fixed_dictionaries({"price": st.none() | DECIMALS, "tags": st.none() | lists(TEXT), "raw": st.none() | st.binary()}),
            }
        ),
    ),
    "list of structs": (
        pa.list_(pa.struct([("on", pa.date32()), ("n", pa.int64())])),
        lists(st.fixed_dictionaries({"on": st.none() | st.dates(), "n": st.none() | integers(64)})),
    ),
}
SLOW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def same(one: Any, other: Any) -> bool:
    """Compare exactly: type by type, NaN equal to NaN, and -0.0 not to 0.0."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def python(dtype: Dtype, stored: Any) -> Any:
    """Return what Arrow hands out as the platform does: through the wire form and back, JSON-like bytes between them."""
    if stored is None:
        return None
    packed = msgspec.msgpack.encode(dtype.to_wire(stored) if dtype.to_wire else stored)
    wire = msgspec.msgpack.decode(packed)
    return dtype.from_wire(wire) if dtype.from_wire else wire


@pytest.fixture(scope="module")
def connection() -> Any:
    """Return one connection, in UTC."""
    with duckdb.connect() as one:
        one.execute("set TimeZone = 'UTC'")
        yield one


@pytest.mark.parametrize(("declared", "values"), VALUES.values(), ids=VALUES.keys())
@SLOW
@given(data=st.data())
def test_a_value_comes_back_exactly_from_wire_and_json(declared: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    """Python to msgpack and back, and to JSON text and back, changes nothing; `check` accepts what comes back."""
    dtype, value = resolve(declared), data.draw(values)
    dtype.check(value)
    assert same(python(dtype, value), value)
    text = json.dumps(dtype.to_json(value) if dtype.to_json else value, allow_nan=False)
    parsed = dtype.from_json(json.loads(text)) if dtype.from_json else json.loads(text)
    assert same(parsed, value)
    assert same(dtype.normal(value), value)


@pytest.mark.parametrize(("declared", "values"), VALUES.values(), ids=VALUES.keys())
@SLOW
@given(data=st.data())
def test_a_value_comes_back_exactly_from_arrow_duckdb_and_parquet(
    declared: Any, values: st.SearchStrategy[Any], data: st.DataObject, connection: duckdb.DuckDBPyConnection
) -> None:
    """A column of values and gaps goes through Arrow, a DuckDB column of the named type, and a Parquet file."""
    dtype, column = resolve(declared), [None, *data.draw(st.lists(values, min_size=1, max_size=3))]
    table = pa.table({"value": pa.array(column, dtype.arrow)})
    assert all(map(same, [python(dtype, one) for one in table["value"].to_pylist()], column))
    relation = connection.from_arrow(table).project(f"cast(value as {dtype.duckdb}) as value")
    stored = relation.to_arrow_table()["value"].cast(dtype.arrow)
    assert all(map(same, [python(dtype, one) for one in stored.to_pylist()], column))
    file = io.BytesIO()
    pq.write_table(pa.table({"value": stored}), file)
    read = pq.read_table(file)["value"]
    assert read.type == dtype.arrow
    assert all(map(same, [python(dtype, one) for one in read.to_pylist()], column))


@pytest.mark.parametrize(("declared", "values"), VALUES.values(), ids=VALUES.keys())
def test_none_is_of_every_dtype_and_objects_of_none(declared: Any, values: st.SearchStrategy[Any]) -> None:
    """Every dtype is nullable; an object is refused with its type and the dtype named."""
    dtype = resolve(declared)
    assert values is not None
    dtype.check(None)
    assert dtype.normal(None) is None
    with pytest.raises(DtypeError, match="is not of dtype") as refusal:
        dtype.check(object())
    assert "(object)" in str(refusal.value)
    assert str(dtype) in str(refusal.value)


REFUSED: dict[str, tuple[Any, Any]] = {
    "bool for int": (int, True),
    "int for bool": (bool, 1),
    "float for int": (int, 1.0),
    "text for int": (int, "1"),
    "128 for int8": (pa.int8(), 128),
    "-129 for int8": (pa.int8(), -129),
    "2**63 for int": (int, 2**63),
    "2**64 for uint64": (pa.uint64(), 2**64),
    "-1 for uint64": (pa.uint64(), -1),
    "bool for float": (float, True),
    "an int that no float holds": (float, 2**53 + 1),
    "an int beyond all floats": (float, 10**400),
    "an int that no float32 holds": (pa.float32(), 2**24 + 1),
    "text for float": (float, "NaN"),
    "bytes for str": (str, b"a"),
    "a lone surrogate": (str, "\ud800"),
    "str for bytes": (bytes, "a"),
    "datetime for date": (date, datetime(2026, 1, 1)),
    "date for datetime": (datetime, date(2026, 1, 1)),
    "float for decimal": (Decimal, 1.5),
    "NaN for decimal": (Decimal, Decimal("NaN")),
    "infinity for decimal": (Decimal, Decimal("Infinity")),
    "ten places for decimal": (Decimal, Decimal("0.0000000001")),
    "thirty digits for decimal": (Decimal, Decimal(10) ** 29),
    "three places for decimal(10, 2)": (pa.decimal128(10, 2), Decimal("1.005")),
    "a str as list of str": (list[str], "abc"),
    "an item of another dtype": (list[int], [1, "2"]),
    "a map's key of another dtype": (dict[str, int], {1: 1}),
    "a map's value of another dtype": (dict[str, int], {"a": "1"}),
    "a field that is not declared": ({"a": int}, {"a": 1, "b": 2}),
    "a list for a struct": ({"a": int}, [1]),
}


@pytest.mark.parametrize(("declared", "value"), REFUSED.values(), ids=REFUSED.keys())
def test_check_refuses_what_would_be_changed(declared: Any, value: Any) -> None:
    """No value is cast in silence."""
    with pytest.raises(DtypeError, match="is not of dtype"):
        resolve(declared).check(value)


@pytest.mark.parametrize(
    ("declared", "value", "stored"),
    [
        (float, 3, 3.0),
        (float, 2**53, float(2**53)),
        (pa.float32(), 0.1, 0.10000000149011612),
        (Decimal, 5, Decimal("5.000000000")),
        (Decimal, Decimal("1.5"), Decimal("1.500000000")),
        (datetime, datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2025, 12, 31, 22, tzinfo=UTC)),
        ({"a": int, "b": list[datetime]}, {"b": [datetime(2026, 1, 1)]}, {"a": None, "b": [datetime(2026, 1, 1, tzinfo=UTC)]}),
        (list[float], (1, 2), [1.0, 2.0]),
        (dict[str, int], {"a": 1}, {"a": 1}),
    ],
    ids=["int-in-float", "big-int-in-float", "float32", "int-in-decimal", "decimal", "naive", "zoned", "struct", "tuple", "map"],
)
def test_normal_is_the_value_that_a_store_would_give_back(declared: Any, value: Any, stored: Any) -> None:
    """A default answers in the same form offline and online, as if it had been stored."""
    dtype = resolve(declared)
    assert same(dtype.normal(value), stored)
    assert same(python(dtype, pa.array([value], dtype.arrow)[0].as_py()), stored)


@pytest.mark.parametrize(
    ("declared", "value", "text"),
    [
        (float, math.nan, '"NaN"'),
        (float, math.inf, '"Infinity"'),
        (float, -math.inf, '"-Infinity"'),
        (int, 2**63 - 1, "9223372036854775807"),
        (bytes, b"\0\xff", '"AP8="'),
        (Decimal, Decimal("0E-9"), '"0.000000000"'),
        (Decimal, Decimal("1E-9"), '"0.000000001"'),
        (Decimal, Decimal("1E+5"), '"100000"'),
        (Decimal, 5, '"5"'),
        (date, date(2026, 1, 2), '"2026-01-02"'),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, UTC), '"2026-01-02T03:04:05.000006Z"'),
        (datetime, datetime(2026, 1, 2), '"2026-01-02T00:00:00Z"'),
        ({"a": float}, {"a": math.nan}, '{"a": "NaN"}'),
    ],
    ids=["nan", "inf", "-inf", "int64", "bytes", "zero", "tiny", "exponent", "int-decimal", "date", "instant", "naive", "nested"],
)
def test_json_spells_values_as_documented(declared: Any, value: Any, text: str) -> None:
    """JSON has no NaN, no bytes, no decimals and no instants: these are strings that a person can read."""
    to_json = resolve(declared).to_json
    assert json.dumps(to_json(value) if to_json else value) == text


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (int, "1"),
        (int, 1.0),
        (int, True),
        (int, 2**63),
        (float, "nan"),
        (float, "1.5"),
        (float, 10**400),
        (str, 5),
        (str, "\ud800"),
        (bytes, "no base64!"),
        (bytes, "é"),
        (bytes, 5),
        (date, "2026-02-30"),
        (date, 20260101),
        (datetime, "yesterday"),
        (datetime, "0001-01-01T00:00:00+23:59"),
        (datetime, 0),
        (Decimal, 1.5),
        (Decimal, "NaN"),
        (Decimal, "one"),
        (Decimal, "1E+999999"),
        (list[int], "abc"),
        (list[int], {"a": 1}),
        (list[int], [[1]]),
        (dict[str, int], [["a", 1]]),
        ({"a": int}, {"b": 1}),
        ({"a": {"b": date}}, {"a": {"b": "x"}}),
    ],
    ids=repr,
)
def test_json_of_another_dtype_is_refused(declared: Any, value: Any) -> None:
    """What a client sends is parsed strictly, and only a DtypeError comes out."""
    with pytest.raises(DtypeError):
        parser(declared)(value)


def parser(declared: Any) -> Callable[[Any], Any]:
    """Return the parser of JSON values."""
    parse = resolve(declared).from_json
    assert parse is not None
    return parse


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from(["lat", "a"]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([declared for declared, _ in VALUES.values()]), ANY_JSON)
def test_any_json_parses_to_a_value_of_the_dtype_or_is_a_dtype_error(declared: Any, value: Any) -> None:
    """No JSON gets anything else out of a parser."""
    try:
        parsed = parser(declared)(value) if value is not None else None
    except DtypeError:
        return
    resolve(declared).check(parsed)


@pytest.mark.parametrize(
    ("declared", "schema"),
    [
        (bool, {"type": "boolean"}),
        (int, {"type": "integer"}),
        (float, {"anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]}),
        (str, {"type": "string"}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (date, {"type": "string", "format": "date"}),
        (datetime, {"type": "string", "format": "date-time"}),
        (Decimal, {"type": "string", "format": "decimal"}),
        (list[int], {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}),
        ({"a": int}, {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}),
    ],
    ids=["bool", "int", "float", "str", "bytes", "date", "datetime", "decimal", "list", "map", "struct"],
)
def test_json_schema_says_what_json_carries(declared: Any, schema: dict[str, Any]) -> None:
    """OpenAPI gets the same answer as the values do; a schema handed out cannot change the table."""
    handed_out = resolve(declared).json_schema
    assert handed_out == schema
    handed_out.clear()
    assert resolve(declared).json_schema == schema


@pytest.mark.parametrize(
    ("declared", "name", "duckdb_type"),
    [
        (int, "int", "bigint"),
        (pa.int16(), "int16", "smallint"),
        (float, "float", "double"),
        (datetime, "datetime", "timestamp"),
        (Decimal, "decimal128(38, 9)", "decimal(38, 9)"),
        (list[list[str]], "list<list<str>>", "varchar[][]"),
        (dict[str, int], "map<str, int>", "map(varchar, bigint)"),
        ({"a": int, "b": list[float]}, "struct<a: int, b: list<float>>", 'struct("a" bigint, "b" double[])'),
    ],
    ids=["int", "int16", "float", "datetime", "decimal", "nested-list", "map", "struct"],
)
def test_a_dtype_has_a_name_for_people_and_one_for_duckdb(declared: Any, name: str, duckdb_type: str) -> None:
    """Messages and DDL read well."""
    assert (str(resolve(declared)), resolve(declared).duckdb) == (name, duckdb_type)


@pytest.mark.parametrize(
    ("arrow", "declared"),
    [
        (pa.large_string(), str),
        (pa.string_view(), str),
        (pa.large_binary(), bytes),
        (pa.date64(), date),
        (pa.timestamp("us"), datetime),
        (pa.timestamp("us", tz="Europe/Berlin"), datetime),
        (pa.large_list(pa.int64()), list[int]),
        (pa.list_(pa.int64(), 3), list[int]),
        (pa.decimal256(38, 9), Decimal),
        (pa.struct([("a", pa.large_string())]), {"a": str}),
    ],
    ids=str,
)
def test_arrow_types_of_one_meaning_are_one_dtype(arrow: pa.DataType, declared: Any) -> None:
    """Variants of Arrow's layout are the same dtype, and a dtype resolves to itself."""
    assert resolve(arrow) == resolve(declared) == resolve(resolve(declared))


@pytest.mark.parametrize(
    "declared",
    [
        object,
        None,
        "int",
        5,
        list,
        dict,
        tuple[int],
        list[object],
        dict[int, str],
        {},
        {1: int},
        {"": int},
        {"a": int, "A": str},
        {"a": object},
        int | None,
        [int],
        pa.null(),
        pa.timestamp("ns"),
        pa.duration("us"),
        pa.time64("us"),
        pa.float16(),
        pa.decimal256(50, 2),
        pa.decimal128(5, -2),
        pa.dictionary(pa.int32(), pa.string()),
        pa.map_(pa.int64(), pa.int64()),
        pa.struct([]),
        pa.struct([("a", pa.int64()), ("a", pa.int64())]),
    ],
    ids=repr,
)
def test_what_the_platform_does_not_carry_is_refused(declared: Any) -> None:
    """The error says what there is instead; it is a RegistryError, since it is found while declaring."""
    with pytest.raises(DtypeError, match=r"\n(Use bool, int, float|Give each its own name)") as refusal:
        resolve(declared)
    assert isinstance(refusal.value, RegistryError)


@given(INSTANTS)
def test_instants_are_whole_microseconds_in_utc(instant: datetime) -> None:
    """Naive means UTC, and no microsecond is lost on the way (law L5)."""
    assert from_micros(to_micros(instant)) == instant
    assert to_micros(instant.replace(tzinfo=None)) == to_micros(instant)
    assert from_micros(to_micros(instant)).tzinfo is UTC
