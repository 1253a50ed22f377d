"""
What a query may not do: look past its source views, or answer differently the next time.

Knows DuckDB's parsed form of a query. Runs nothing of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from feature_platform.errors import QueryError, suggest
from feature_platform.offline.query import first_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb

__all__ = ["check_select"]

Node: TypeAlias = "dict[str, Any]"

# DuckDB says of its functions which ones change with the moment or the session; these it does not mark, or takes for tables.
_UNSTABLE: Final = frozenset(
    {
        "now",
        "today",
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "current_localtime",
        "current_localtimestamp",
        "ago",
        "current_user",
        "session_user",
        "user",
        "current_role",
        "current_catalog",
        "getenv",
        "version",
        "which_secret",
        "write_log",
        "read_text",
        "read_blob",
        "query",
        "query_table",
        "glob",
        "add_parquet_key",
        "parse_path_secret",
        "nextval",
        "currval",
        "setval",
    }
)
_STABLE_ENOUGH: Final = frozenset(["error", "vector_type"])  # marked volatile, so that the optimizer leaves them where they stand
_COLUMNS_THAT_ARE_FUNCTIONS: Final = frozenset(
    {
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "current_user",
        "user",
        "session_user",
        "current_role",
        "current_catalog",
    }
)
_PURE_TABLE_FUNCTIONS: Final = frozenset(["unnest", "range", "generate_series"])
_PAST_THE_SOURCES: Final = ("read_", "duckdb_", "pragma_", "pg_", "sniff_", "parquet_")
_INSTEAD: Final = "Use $start and $end, the bounds of the window."


def check_select(connection: duckdb.DuckDBPyConnection, sql: str, *, sources: Sequence[str], where: str, instead: str = _INSTEAD) -> None:
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
    unstable = _unstable_functions(connection)
    for node, tables in _nodes(parsed["statements"][0]["node"], frozenset(name.lower() for name in sources)):
        _check_function(node, unstable, where, instead)
        _check_table(node, tables, sources, where)


def _unstable_functions(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Return the names of functions that may not be called; macros of the session's own hide what they call."""
    rows = connection.execute(
        "select distinct lower(function_name) from duckdb_functions() "
        "where stability <> 'CONSISTENT' or (not internal and function_type in ('macro', 'table_macro'))"
    ).fetchall()
    return (_UNSTABLE | {row[0] for row in rows}) - _STABLE_ENOUGH


def _check_function(node: Node, unstable: frozenset[str], where: str, instead: str) -> None:
    function = str(node.get("function_name", "")).lower()
    if function in unstable or function.startswith(_PAST_THE_SOURCES):
        message = (
            f"{where}: the query calls {function}(), which does not answer the same way every time, or reads past its sources.\n{instead}"
        )
        raise QueryError(message)
    if function == "age" and len(node.get("arguments", [])) == 1:
        message = f"{where}: age() with one argument counts from today.\nWrite it with two."
        raise QueryError(message)
    if node.get("type") == "COLUMN_REF":
        names = node.get("column_names", [])
        if len(names) == 1 and str(names[0]).lower() in _COLUMNS_THAT_ARE_FUNCTIONS:
            message = (
                f"{where}: the query uses {names[0]}, which changes with the clock or the session.\n"
                f"{instead} A column of that name is written table.{names[0]}."
            )
            raise QueryError(message)


def _check_table(node: Node, tables: frozenset[str], sources: Sequence[str], where: str) -> None:
    kind = node.get("type")
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in _PURE_TABLE_FUNCTIONS:
            message = f"{where}: the query reads {name}().\nDeclare a ParquetSource and read it by its name."
            raise QueryError(message)
    if kind == "SHOW_REF":
        message = f"{where}: the query reads the session's catalog (describe, show, summarize).\nWrite a SELECT over its sources."
        raise QueryError(message)
    if kind == "BASE_TABLE":
        name = str(node.get("table_name", ""))
        if name.lower() not in tables or node.get("schema_name") or node.get("catalog_name"):
            message = f"{where}: the query reads {name!r}, which is not one of its sources.\n{suggest(name, sources, has='Its sources')}"
            raise QueryError(message)
    if node.get("sample"):
        message = f"{where}: the query samples its rows, differently every time.\nFilter by hash(key) instead."
        raise QueryError(message)


def _nodes(tree: object, tables: frozenset[str]) -> Iterator[tuple[Node, frozenset[str]]]:
    """
    Return every node with the tables that it can name: the sources, and the common table expressions in scope.

    A name counts only where it is in scope: `with "a.parquet" as (from "a.parquet")` reads the file.
    """
    stack = [(tree, tables)]
    while stack:
        one, visible = stack.pop()
        if isinstance(one, list):
            stack += [(child, visible) for child in one]
        if not isinstance(one, dict):
            continue
        own = visible
        for entry in _common_table_expressions(one):
            query = entry.get("value", {})
            is_recursive = _is_recursive(query)
            name = str(entry.get("key", "")).lower()
            stack.append((query, own | {name} if is_recursive else own))
            own |= {name}
        yield one, own
        stack += [(child, own) for name, child in one.items() if name != "cte_map"]


def _common_table_expressions(node: Node) -> list[Node]:
    """Return those of a WITH clause, in order: each sees the ones before it."""
    listed = node.get("cte_map")
    found = listed.get("map", []) if isinstance(listed, dict) else []
    return [one for one in found or [] if isinstance(one, dict)]


def _is_recursive(query: Node) -> bool:
    node = query.get("query_node") or query.get("query", {}).get("node") or {}
    return node.get("type") == "RECURSIVE_CTE_NODE"
