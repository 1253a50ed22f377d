"""
SQL as text, built by pure functions.

Knows DuckDB's dialect, its types and its errors. Knows no files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb

from feature_platform.dtypes import MICROSECOND, Dtype
from feature_platform.errors import ContractError, QueryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from duckdb.sqltypes import DuckDBPyType

__all__ = [
    "configure",
    "explaining",
    "first_row",
    "fits",
    "floor_micros",
    "interval",
    "literal",
    "named_parameters",
    "parquet",
    "quote",
    "quote_all",
    "spill_directory",
    "timestamp",
    "to_micros_up",
    "type_family",
]

_EXACT_IN_DOUBLE: Final = frozenset(["tinyint", "smallint", "integer", "utinyint", "usmallint", "uinteger"])
_FAMILIES: Final = {
    **dict.fromkeys(
        ["tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"], "int"
    ),
    **dict.fromkeys(["float", "double"], "float"),
    **dict.fromkeys(["varchar", "enum"], "str"),
    **dict.fromkeys(["timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone", "timestamptz_ns"], "datetime"),
    "array": "list",
    "blob": "bytes",
    "boolean": "bool",
    '"null"': "null",
    "sqlnull": "null",
}
_FIRST: Final = "timestamp '0001-01-01'"
_LAST: Final = "timestamp '9999-12-31 23:59:59.999999'"


def quote(identifier: str) -> str:
    """Return an identifier as SQL, whatever it holds."""
    return '"' + identifier.replace('"', '""') + '"'


def quote_all(identifiers: Iterable[str], *, of: str = "") -> str:
    """Return identifiers as a SQL list, each with the table alias `of` where one is given."""
    prefix = f"{of}." if of else ""
    return ", ".join(prefix + quote(one) for one in identifiers)


def literal(text: str) -> str:
    """Return a string literal, for the few places where DuckDB takes no parameter (paths in views and COPY)."""
    return "'" + text.replace("'", "''") + "'"


def parquet(paths: Iterable[str | os.PathLike[str]], *, union_by_name: bool = False) -> str:
    """Return the table that some Parquet files make, all read as the first one's columns; the one place where files are opened."""
    listed = ", ".join(literal(os.fspath(path)) for path in paths)
    return f"read_parquet([{listed}], union_by_name = {str(union_by_name).lower()}, hive_partitioning = false)"


def timestamp(instant: datetime) -> str:
    """Return an instant as a TIMESTAMP literal in UTC."""
    return f"timestamp '{instant.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}'"


def interval(span: timedelta) -> str:
    """Return elapsed time as an INTERVAL of microseconds (30 days are 720 hours, daylight saving or not)."""
    return f"to_microseconds({span // MICROSECOND})"


def to_micros_up(column: str, duckdb_type: str) -> str:
    """
    Return SQL for a time column as TIMESTAMP in UTC microseconds, finer units rounded up.

    Casting truncates, so a value 400 ns in the future would be seen (law L5).
    """
    kind = duckdb_type.lower()
    if "_ns" in kind:
        return f"make_timestamp(epoch_ns({column}) // 1000 + (epoch_ns({column}) % 1000 > 0)::integer)"
    return _in_utc(column, kind)


def _in_utc(column: str, kind: str) -> str:
    """Return SQL for a time column as TIMESTAMP in UTC, in a session of that zone."""
    if kind == "timestamp":
        return column
    if kind == "timestamp with time zone":
        # A cast asks the calendar about each row, at three times the cost; only of infinity has it more to say.
        return f"coalesce(make_timestamp(epoch_us({column})), cast({column} as timestamp))"
    return f"cast({column} as timestamp)"


def floor_micros(column: str, duckdb_type: str) -> str:
    """
    Return SQL for an entity row's time as TIMESTAMP in UTC microseconds, finer units rounded down (law L5).

    One that no datetime reaches, infinity among them, is the nearest that one does: DuckDB has no microseconds of infinity, and
    no interval to add to the last of its own times.
    """
    time = floored = _in_utc(column, duckdb_type.lower())
    if "_ns" in duckdb_type.lower():
        time = f"{column}::timestamptz::timestamp"  # rounded, and the one way for both of DuckDB's types of nanoseconds
        floored = f"make_timestamp(epoch_ns({column}) // 1000 - (epoch_ns({column}) % 1000 < 0)::integer)"
    return f"case when {time} > {_LAST} then {_LAST} when {time} < {_FIRST} then {_FIRST} else {floored} end"


def configure(connection: duckdb.DuckDBPyConnection, *, memory_limit: str | None = None, threads: int | None = None) -> None:
    """
    Set what every statement of ours relies on.

    The session's zone, or casts between TIMESTAMP and TIMESTAMPTZ shift; and no nested-loop ASOF join, which DuckDB plans
    wherever it estimates 64 left rows or fewer, and which was measured 37 to 240 times slower.
    """
    connection.execute("set TimeZone = 'UTC'")
    connection.execute("set asof_loop_join_threshold = 0")
    connection.execute("set enable_progress_bar = false")
    if memory_limit:
        connection.execute("set memory_limit = ?", [memory_limit])
    if threads:
        connection.execute("set threads = ?", [threads])


def spill_directory() -> str:
    """
    Return where a database may put what does not fit into memory: a folder of its own below the system's (`TMPDIR`).

    DuckDB makes it when it has to, and removes it when the database is closed; its default is the working directory.
    """
    return str(Path(tempfile.gettempdir()) / f"feature_platform_spill_{os.getpid()}_{secrets.token_hex(4)}")


def type_family(duckdb_type: DuckDBPyType) -> str:
    """Return the dtype family of a DuckDB type, or its own name where the platform carries none."""
    name = str(duckdb_type.id)
    if name == "decimal":
        return "decimal"
    return _FAMILIES.get(name, _FAMILIES.get(str(duckdb_type).lower(), name))


def fits(duckdb_type: DuckDBPyType, dtype: Dtype) -> bool:
    """
    Say whether every value of a query's column is kept by a declared dtype, or is refused when it is cast.

    Any integer fits int (overflow is an error); decimals and integers that a double holds exactly fit float; decimals fit a
    decimal that keeps all their digits after the point.
    """
    family = type_family(duckdb_type)
    if family == "null":
        return True
    if dtype.family == "float":
        if family == "float":
            return str(duckdb_type.id) == "float" or dtype.duckdb == "double"
        return family == "decimal" or str(duckdb_type.id) in _EXACT_IN_DOUBLE
    if dtype.family == "decimal":
        return family == "int" or (family == "decimal" and dict(duckdb_type.children)["scale"] <= dtype.arrow.scale)
    if family != dtype.family:
        return False
    if family not in {"list", "map", "struct"}:
        return True
    parts: dict[str, Any] = dict(duckdb_type.children)
    if family == "list":
        return fits(parts["child"], dtype.children[0][1])
    if family == "map":
        return type_family(parts["key"]) == "str" and fits(parts["value"], dtype.children[0][1])
    declared = dict(dtype.children)
    return list(parts) == list(declared) and all(fits(parts[name], child) for name, child in declared.items())


def first_row(connection: duckdb.DuckDBPyConnection, sql: str, parameters: object = None) -> tuple[Any, ...]:
    """Return the one row of a SELECT; all of it is fetched, since DuckDB refuses further work on a connection with an open result."""
    rows: list[tuple[Any, ...]] = connection.execute(sql, parameters).fetchall()
    return rows[0]


def named_parameters(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """Return the names of a statement's parameters; DuckDB refuses values for others."""
    return set(connection.extract_statements(sql)[0].named_parameters)


@contextlib.contextmanager
def explaining(where: str) -> Iterator[None]:
    """
    Turn DuckDB's refusals of a query, and of a value, into errors that say whose they are.

    Raises:
        QueryError: The query names what is not there, or what DuckDB cannot do.
        ContractError: A value does not fit its dtype.
    """
    try:
        yield
    except duckdb.DataError as exc:
        message = f"{where}: a value does not fit its dtype: {exc}\nDeclare a wider dtype, or filter such rows out."
        raise ContractError(message) from exc
    except (duckdb.ProgrammingError, duckdb.NotSupportedError) as exc:
        message = f"{where}: DuckDB refuses the query: {exc}"
        raise QueryError(message) from exc
