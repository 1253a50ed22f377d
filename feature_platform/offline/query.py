"""
SQL as text, built by pure functions, and what DuckDB says of a query before it runs.

Knows DuckDB's dialect, its types and its parser. Knows no files.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import duckdb

from feature_platform.dtypes import MICROSECOND, Dtype
from feature_platform.errors import QueryError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from duckdb.sqltypes import DuckDBPyType

__all__ = [
    "check_select",
    "configure",
    "first_row",
    "fits",
    "floor_micros",
    "interval",
    "literal",
    "named_parameters",
    "quote",
    "quote_all",
    "timestamp",
    "to_micros_up",
    "type_family",
]

# What a query may not call: its answer would depend on when or where it runs, or it would read past the source views.
_UNSTABLE: Final = frozenset(
    """now today current_date current_time current_timestamp localtime localtimestamp get_current_time get_current_timestamp
    transaction_timestamp random setseed uuid gen_random_uuid uuidv4 uuidv7 nextval currval getvariable getenv current_setting
    current_user current_database current_schema current_schemas current_query txid_current pg_postmaster_start_time version
    read_text read_blob query query_table glob which_secret add_parquet_key write_log parse_path_secret""".split()
)
_COLUMNS_THAT_ARE_FUNCTIONS: Final = frozenset(
    ["current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_user", "user", "session_user"]
)
_PURE_TABLE_FUNCTIONS: Final = frozenset(["unnest", "range", "generate_series"])
_EXACT_IN_DOUBLE: Final = frozenset(["tinyint", "smallint", "integer", "utinyint", "usmallint", "uinteger"])
_FAMILIES: Final = {
    **dict.fromkeys(["tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"], "int"),
    **dict.fromkeys(["float", "double"], "float"),
    **dict.fromkeys(["varchar", "enum"], "str"),
    **dict.fromkeys(["timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone", "timestamptz_ns"], "datetime"),
    "array": "list",
    "blob": "bytes",
    "boolean": "bool",
    '"null"': "null",
    "sqlnull": "null",
}


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
    return column if kind == "timestamp" else f"cast({column} as timestamp)"


def floor_micros(column: str, duckdb_type: str) -> str:
    """Return SQL for an entity row's time as TIMESTAMP in UTC microseconds, finer units rounded down (law L5)."""
    kind = duckdb_type.lower()
    if "_ns" in kind:
        return f"make_timestamp(epoch_ns({column}) // 1000 - (epoch_ns({column}) % 1000 < 0)::integer)"
    return column if kind == "timestamp" else f"cast({column} as timestamp)"


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
    if family == "list":
        return fits(dict(duckdb_type.children)["child"], dtype.children[0][1])
    if family == "map":
        parts = dict(duckdb_type.children)
        return type_family(parts["key"]) == "str" and fits(parts["value"], dtype.children[0][1])
    if family == "struct":
        parts, declared = dict(duckdb_type.children), dict(dtype.children)
        return list(parts) == list(declared) and all(fits(parts[name], child) for name, child in declared.items())
    return True


def first_row(connection: duckdb.DuckDBPyConnection, sql: str, parameters: object = None) -> tuple[Any, ...]:
    """Return the one row of a SELECT; all of it is fetched, since DuckDB refuses further work on a connection with an open result."""
    rows: list[tuple[Any, ...]] = connection.execute(sql, parameters).fetchall()
    return rows[0]


def named_parameters(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """Return the names of a statement's parameters; DuckDB refuses values for others."""
    return set(connection.extract_statements(sql)[0].named_parameters)


def check_select(connection: duckdb.DuckDBPyConnection, sql: str, *, sources: Sequence[str], where: str) -> None:
    """
    Refuse a query that is not one SELECT over its sources, or that could see past them.

    Source views hold only what a window may see. `now()`, `random()`, `read_parquet()` and other tables would slip past
    them; they are found in the parsed query, not in its text.

    Raises:
        QueryError: Names what was found and what to write instead.
    """
    text = first_row(connection, "select json_serialize_sql(?::varchar)", [sql])[0]
    parsed = json.loads(text)
    if parsed.get("error"):
        message = f"{where}: the query is not one SELECT that DuckDB can parse: {parsed.get('error_message')}"
        raise QueryError(message)
    if len(parsed["statements"]) != 1:
        message = f"{where}: the query holds {len(parsed['statements'])} statements.\nWrite one SELECT."
        raise QueryError(message)
    nodes = list(_nodes(parsed["statements"][0]["node"]))
    tables = {name.lower() for name in sources}
    tables |= {str(one["key"]).lower() for node in nodes for one in _list(node.get("cte_map"), "map")}
    for node in nodes:
        _check_node(node, tables, sources, where)


def _check_node(node: dict[str, Any], tables: set[str], sources: Sequence[str], where: str) -> None:
    instead = "Use $start and $end, the bounds of the window."
    function = str(node.get("function_name", "")).lower()
    if function in _UNSTABLE or function.startswith(("read_", "duckdb_", "pragma_", "pg_", "sniff_", "parquet_")):
        message = f"{where}: the query calls {function}(), which does not answer the same way every time, or reads past its sources.\n{instead}"
        raise QueryError(message)
    if function == "age" and len(node.get("arguments", [])) == 1:
        message = f"{where}: age() with one argument counts from today.\nWrite age($end, column)."
        raise QueryError(message)
    if node.get("type") == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in _PURE_TABLE_FUNCTIONS:
            message = f"{where}: the query reads {name}().\nDeclare a ParquetSource and read it by its name."
            raise QueryError(message)
    if node.get("type") == "COLUMN_REF":
        names = node.get("column_names", [])
        if len(names) == 1 and str(names[0]).lower() in _COLUMNS_THAT_ARE_FUNCTIONS:
            message = f"{where}: the query uses {names[0]}, which changes with the clock or the session.\n{instead}"
            raise QueryError(message)
    if node.get("type") == "BASE_TABLE":
        name = str(node.get("table_name", ""))
        if name.lower() not in tables or node.get("schema_name") or node.get("catalog_name"):
            message = f"{where}: the query reads {name!r}, which is not one of its sources.\n{suggest(name, sources, has='Its sources')}"
            raise QueryError(message)
    if node.get("sample"):
        message = f"{where}: the query samples its rows, differently every time.\nFilter by hash(key) instead."
        raise QueryError(message)


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield one
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)


def _list(holder: object, name: str) -> list[dict[str, Any]]:
    found = holder.get(name, []) if isinstance(holder, dict) else []
    return [one for one in found if isinstance(one, dict)]
