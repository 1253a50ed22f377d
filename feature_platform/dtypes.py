"""
The dtypes of features and keys: one table for Python, Arrow, DuckDB, Redis and JSON.

Knows Arrow types. Knows no engine: DuckDB types are names here, wire values are what msgpack carries.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from types import GenericAlias
from typing import Any, TypeAlias, get_args, get_origin

import pyarrow as pa

from feature_platform.errors import DtypeError

__all__ = ["MICROSECOND", "Dtype", "DtypeLike", "Value", "from_micros", "resolve", "to_micros"]

DtypeLike: TypeAlias = "type | GenericAlias | pa.DataType | dict[str, Any]"
Value: TypeAlias = object

MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1)

_SCALARS: dict[object, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    date: pa.date32(),
    datetime: pa.timestamp("us", tz="UTC"),
    Decimal: pa.decimal128(38, 9),
}

# Arrow type -> (DuckDB type, family). A query's column fits a declared dtype of the same family (design: lossless families).
_DUCKDB: dict[pa.DataType, tuple[str, str]] = {
    pa.bool_(): ("boolean", "bool"),
    pa.int8(): ("tinyint", "int"),
    pa.int16(): ("smallint", "int"),
    pa.int32(): ("integer", "int"),
    pa.int64(): ("bigint", "int"),
    pa.uint8(): ("utinyint", "int"),
    pa.uint16(): ("usmallint", "int"),
    pa.uint32(): ("uinteger", "int"),
    pa.uint64(): ("ubigint", "int"),
    pa.float32(): ("float", "float"),
    pa.float64(): ("double", "float"),
    pa.string(): ("varchar", "str"),
    pa.binary(): ("blob", "bytes"),
    pa.date32(): ("date", "date"),
    pa.timestamp("us", tz="UTC"): ("timestamp", "datetime"),
}
_ALIASES: dict[pa.DataType, pa.DataType] = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
    pa.timestamp("us"): pa.timestamp("us", tz="UTC"),
}
_SUPPORTED = (
    "bool, int, float, str, bytes, date, datetime, Decimal, list[...] of these, a dict of names to dtypes, or a pyarrow DataType of these"
)
_MAX_DECIMAL_DIGITS = 38
_SURROGATE = re.compile("[\ud800-\udfff]")
_EXACT_IN_FLOAT32, _EXACT_IN_FLOAT64 = 2**24, 2**53


def to_micros(instant: datetime) -> int:
    """Return an instant as UTC microseconds since 1970; a naive one is UTC."""
    aware = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
    return (aware - _EPOCH) // MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the aware UTC datetime of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=micros)


@dataclass(frozen=True, slots=True)
class Dtype:
    """
    One dtype in all its forms; made by `resolve`.

    Attributes:
        arrow: The Arrow type of columns that the platform returns.
        duckdb: The DuckDB type in queries and Parquet files (instants are TIMESTAMP, in UTC).
        family: "bool", "int", "float", "str", "bytes", "date", "datetime", "decimal", "list", "struct" or "map".
        children: Field name and dtype of a struct's fields; of a list or map, the one of its values under the name "item".
    """

    arrow: pa.DataType
    duckdb: str
    family: str
    children: tuple[tuple[str, Dtype], ...] = ()

    def __str__(self) -> str:
        """Return the name that users read: `int`, `list<float>`, `decimal128(38, 9)`."""
        if self.family == "list":
            return f"list<{self.children[0][1]}>"
        if self.family == "map":
            return f"map<str, {self.children[0][1]}>"
        if self.family == "struct":
            return "struct<" + ", ".join(f"{name}: {child}" for name, child in self.children) + ">"
        default = {"int": pa.int64(), "float": pa.float64()}.get(self.family, self.arrow)
        return self.family if self.arrow == default and self.family != "decimal" else str(self.arrow)

    def check(self, value: Value) -> None:
        """
        Refuse a Python value that is not of this dtype; None always is.

        Raises:
            DtypeError: Names the value, its type and the dtype.
        """
        if not _is_of(self, value):
            message = f"{value!r} ({type(value).__name__}) is not of dtype {self}."
            raise DtypeError(message)

    def normal(self, value: Value) -> Value:
        """
        Return a value of this dtype as it would come back after it was stored.

        Instants become UTC, a struct gets all its fields, a float32 and a decimal the digits that they keep.
        """
        if value is None:
            return None
        stored = pa.array([value], self.arrow)[0].as_py()
        to_wire, from_wire = self.to_wire, self.from_wire
        wire = stored if to_wire is None else to_wire(stored)
        return wire if from_wire is None else from_wire(wire)

    @property
    def to_wire(self) -> Callable[[Any], Any] | None:
        """The function from a Python value to what msgpack carries; None where they are the same."""
        return _converter(self, "to_wire")

    @property
    def from_wire(self) -> Callable[[Any], Any] | None:
        """The inverse of `to_wire`."""
        return _converter(self, "from_wire")

    @property
    def to_json(self) -> Callable[[Any], Any] | None:
        """The function from a Python value to what JSON carries: NaN and infinities as strings, bytes in base64, decimals as strings."""
        return _converter(self, "to_json")

    @property
    def from_json(self) -> Callable[[Any], Any] | None:
        """
        The inverse of `to_json`, strict.

        Raises (when called):
            DtypeError: The JSON value is not of this dtype.
        """
        return _converter(self, "from_json")

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of a value, nullable left to the caller."""
        match self.family:
            case "list":
                return {"type": "array", "items": _nullable(self.children[0][1].json_schema)}
            case "map":
                return {"type": "object", "additionalProperties": _nullable(self.children[0][1].json_schema)}
            case "struct":
                return {"type": "object", "properties": {name: _nullable(child.json_schema) for name, child in self.children}}
            case "float":
                return {"anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]}
            case family:
                return dict(_JSON_SCHEMA[family])


def _is_of(dtype: Dtype, value: object) -> bool:
    """Say whether a Python value is None or of a dtype."""
    return value is None or _IS_OF[dtype.family](dtype, value)


def _is_int(dtype: Dtype, value: object) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    bits: int = dtype.arrow.bit_width
    low, high = (0, 1 << bits) if pa.types.is_unsigned_integer(dtype.arrow) else (-1 << (bits - 1), 1 << (bits - 1))
    return low <= value < high


def _is_float(dtype: Dtype, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= (_EXACT_IN_FLOAT32 if dtype.arrow == pa.float32() else _EXACT_IN_FLOAT64)


def _is_decimal(dtype: Dtype, value: object) -> bool:
    if not isinstance(value, (Decimal, int)) or isinstance(value, bool):
        return False
    _, digits, exponent = Decimal(value).as_tuple()
    if not isinstance(exponent, int):  # NaN and infinities have no digits to keep
        return False
    precision: int = dtype.arrow.precision
    scale: int = dtype.arrow.scale
    return -exponent <= scale and len(digits) + exponent <= precision - scale


def _is_struct(dtype: Dtype, value: object) -> bool:
    fields = dict(dtype.children)
    return isinstance(value, dict) and all(name in fields and _is_of(fields[name], one) for name, one in value.items())


def _is_map(dtype: Dtype, value: object) -> bool:
    item = dtype.children[0][1]
    return isinstance(value, dict) and all(isinstance(key, str) and _is_of(item, one) for key, one in value.items())


_IS_OF: dict[str, Callable[[Dtype, object], bool]] = {
    "bool": lambda _, value: isinstance(value, bool),
    "int": _is_int,
    "float": _is_float,
    "str": lambda _, value: isinstance(value, str) and _is_utf8(value),
    "bytes": lambda _, value: isinstance(value, bytes),
    "date": lambda _, value: isinstance(value, date) and not isinstance(value, datetime),
    "datetime": lambda _, value: isinstance(value, datetime),
    "decimal": _is_decimal,
    "list": lambda dtype, value: isinstance(value, (list, tuple)) and all(_is_of(dtype.children[0][1], one) for one in value),
    "map": _is_map,
    "struct": _is_struct,
}

_JSON_SCHEMA: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "str": {"type": "string"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "decimal": {"type": "string", "format": "decimal"},
}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _is_utf8(text: str) -> bool:
    return text.isascii() or not _SURROGATE.search(text)


def _json_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@lru_cache(maxsize=4096)
def _iso(value: datetime) -> str:
    # One snapshot's rows share their time: a request of 100 entities formatted one a thousand times.
    return from_micros(to_micros(value)).isoformat().replace("+00:00", "Z")


def _parse_datetime(text: str) -> datetime:
    return from_micros(to_micros(datetime.fromisoformat(text)))


_TO_WIRE: dict[str, Callable[[Any], Any]] = {
    "date": lambda value: (value - _EPOCH_DAY).days,
    "datetime": to_micros,
    "decimal": str,
    "float": float,
}
_FROM_WIRE: dict[str, Callable[[Any], Any]] = {
    "date": lambda days: _EPOCH_DAY + timedelta(days=days),
    "datetime": from_micros,
    "decimal": Decimal,
}
_TO_JSON: dict[str, Callable[[Any], Any]] = {
    "float": _json_float,
    "bytes": lambda value: base64.b64encode(value).decode("ascii"),
    "date": date.isoformat,
    "datetime": _iso,
    "decimal": lambda value: format(Decimal(value), "f"),
}
_FROM_JSON: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "date": date.fromisoformat,
    "datetime": _parse_datetime,
    "decimal": Decimal,
}


@lru_cache(maxsize=4096)
def _converter(dtype: Dtype, kind: str) -> Callable[[Any], Any] | None:
    """Build the conversion of a dtype; nested ones are built of their children's."""
    if kind == "from_json":
        return _from_json(dtype)
    scalars = {"to_wire": _TO_WIRE, "from_wire": _FROM_WIRE, "to_json": _TO_JSON}[kind]
    if not dtype.children:
        return scalars.get(dtype.family)
    convert = {name: _converter(child, kind) or (lambda value: value) for name, child in dtype.children}
    if dtype.family == "list":
        item = convert["item"]
        return lambda values: [None if one is None else item(one) for one in values]
    if dtype.family == "map":
        item = convert["item"]
        # Arrow hands out a map as pairs.
        return lambda value: {k: None if v is None else item(v) for k, v in (value.items() if isinstance(value, dict) else value)}
    return lambda value: {name: None if value.get(name) is None else one(value[name]) for name, one in convert.items()}


def _from_json(dtype: Dtype) -> Callable[[Any], Any]:
    convert = _json_parser(dtype)

    def parse(value: object) -> object:
        try:
            parsed = convert(value)
            dtype.check(parsed)
        except (ValueError, ArithmeticError) as exc:
            message = f"{value!r} is not of dtype {dtype}."
            raise DtypeError(message) from exc
        return parsed

    return parse


def _json_parser(dtype: Dtype) -> Callable[[Any], Any]:
    """Return the parser of one family; what it does not understand it returns as it is, for `check` to refuse."""
    parts = {name: _from_json(child) for name, child in dtype.children}
    match dtype.family:
        case "float":
            return _parse_float
        case "list":
            return lambda value: [None if one is None else parts["item"](one) for one in value] if isinstance(value, list) else value
        case "map":
            return lambda value: (
                {key: None if one is None else parts["item"](one) for key, one in value.items()} if isinstance(value, dict) else value
            )
        case "struct":
            return lambda value: (
                {name: None if value.get(name) is None else parse(value[name]) for name, parse in parts.items()}
                if isinstance(value, dict) and value.keys() <= parts.keys()
                else value
            )
        case family:
            scalar = _FROM_JSON.get(family)
            return lambda value: value if scalar is None else scalar(value) if isinstance(value, str) else _refuse(value)


def _parse_float(value: object) -> object:
    if isinstance(value, str):
        return float(value) if value in {"NaN", "Infinity", "-Infinity"} else value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _refuse(value: object) -> object:
    message = f"a {type(value).__name__} where JSON has a string"
    raise ValueError(message)


def resolve(declared: object) -> Dtype:
    """
    Return the `Dtype` of a declared one.

    Args:
        declared: A Python type (`int`), `list[float]`, `dict[str, int]`, a dict of names to
            dtypes (`{"lat": float, "lon": float}`), or a pyarrow DataType.

    Raises:
        DtypeError: The platform does not carry it.
    """
    if isinstance(declared, Dtype):
        return declared
    return _from_arrow(_arrow(declared), declared)


def _arrow(declared: object) -> pa.DataType:
    if isinstance(declared, pa.DataType):
        return declared
    if isinstance(declared, type) and declared in _SCALARS and get_origin(declared) is None:
        return _SCALARS[declared]
    if isinstance(declared, dict) and declared and all(isinstance(name, str) for name in declared):
        return pa.struct([(name, _arrow(one)) for name, one in declared.items()])
    origin, args = get_origin(declared), get_args(declared)
    if origin is list and len(args) == 1:
        return pa.list_(_arrow(args[0]))
    if origin is dict and args[:1] == (str,):
        return pa.map_(pa.string(), _arrow(args[1]))
    raise _unsupported(declared)


def _unsupported(declared: object) -> DtypeError:
    name = declared.__name__ if isinstance(declared, type) else repr(declared)
    return DtypeError(f"dtype {name} is not supported.\nUse {_SUPPORTED}.")


def _from_arrow(arrow: pa.DataType, declared: object) -> Dtype:
    arrow = _ALIASES.get(arrow, arrow)
    if pa.types.is_timestamp(arrow) and arrow.unit == "us":
        arrow = pa.timestamp("us", tz="UTC")
    if arrow in _DUCKDB:
        duckdb, family = _DUCKDB[arrow]
        return Dtype(arrow, duckdb, family)
    if pa.types.is_decimal(arrow) and arrow.precision <= _MAX_DECIMAL_DIGITS and 0 <= arrow.scale <= arrow.precision:
        return Dtype(pa.decimal128(arrow.precision, arrow.scale), f"decimal({arrow.precision}, {arrow.scale})", "decimal")
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow):
        item = _from_arrow(arrow.value_type, declared)
        return Dtype(pa.list_(item.arrow), f"{item.duckdb}[]", "list", (("item", item),))
    if pa.types.is_map(arrow) and arrow.key_type == pa.string():
        item = _from_arrow(arrow.item_type, declared)
        return Dtype(pa.map_(pa.string(), item.arrow), f"map(varchar, {item.duckdb})", "map", (("item", item),))
    if pa.types.is_struct(arrow) and arrow.num_fields:
        fields = tuple((field.name, _from_arrow(field.type, declared)) for field in arrow)
        if len({name.lower() for name, _ in fields} - {""}) != len(fields):
            raise DtypeError(f"dtype {declared!r} has fields without a name, or two of one name in SQL.\nGive each its own name.")
        quoted = ", ".join('"' + name.replace('"', '""') + '" ' + child.duckdb for name, child in fields)
        return Dtype(pa.struct([(name, child.arrow) for name, child in fields]), f"struct({quoted})", "struct", fields)
    raise _unsupported(declared)
