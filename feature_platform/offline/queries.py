"""
A view's query, or the Python function in its place, run for one window.

Knows which parameters and relations a query gets. What its rows must be like is the contract's.
"""

from __future__ import annotations

import contextlib
import inspect
import secrets
import time
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from feature_platform.errors import ContractError, QueryError, suggest
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.contract import RESULT, check_columns, check_rows, time_columns
from feature_platform.offline.query import explaining, first_row, named_parameters, quote, quote_all, timestamp, to_micros_up
from feature_platform.offline.safety import check_select
from feature_platform.offline.sources import SourceViews, utc_naive
from feature_platform.windows import reads_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duckdb.sqltypes import DuckDBPyType

    from feature_platform.dtypes import Dtype
    from feature_platform.offline.writer import PartitionReport, PartitionWriter
    from feature_platform.windows import Window

__all__ = ["query_windows"]


def query_windows(writer: PartitionWriter, sources: SourceViews, windows: Sequence[Window]) -> Iterator[PartitionReport]:
    """Run the view's query once a window: what it returns may depend on all that its window shows."""
    view, connection = writer.view, writer.connection
    where = f"view {view.name!r}"
    query = None if callable(view.query) else _checked(connection, view)
    for window in windows:
        started = time.perf_counter()
        sources.show(reads_from(view, window), window.end)
        with explaining(where), _runnable(connection, view, query, window) as (sql, parameters):
            dropped = _run(connection, view, window, sql, parameters)
            check_rows(connection, view, window)
            newest = sources.newest()
        yield writer.write(
            window,
            f"select * from temp.{RESULT}",
            is_full=view.kind is ViewKind.SNAPSHOT,
            dropped=dropped,
            newest=newest,
            seconds=time.perf_counter() - started,
        )
        connection.execute(f"drop table temp.{RESULT}")


def _run(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window, sql: str, parameters: Mapping[str, object]) -> int:
    """Leave the query's rows, cast to the declared dtypes, in a table; return how many lacked a key or a time."""
    described = connection.execute(f"describe {sql}", parameters).fetchall()
    relation = connection.sql(f"select * from ({sql}\n) limit 0", params=parameters or None)
    types = dict(zip(relation.columns, relation.types, strict=True))
    check_columns(view, [str(row[0]) for row in described], types)
    columns = [f"cast({quote(name)} as {dtype.duckdb}) as {quote(name)}" for name, dtype in view.entity.keys.items()]
    needed = list(view.entity.join_keys)
    if view.kind is ViewKind.EVENT:
        columns += [f"{to_micros_up(quote(name), str(types[name]))} as {quote(name)}" for name in time_columns(view)]
        needed.append("event_timestamp")
    else:
        columns.append(f"{timestamp(window.end)} as event_timestamp")
    columns += [f"{_cast(quote(name), types[name], feature.type)} as {quote(name)}" for name, feature in view.feature_by_name.items()]
    own = "true"
    if view.kind is ViewKind.EVENT and view.schedule is not None and view.lookback is not None:
        own = f"coalesce(event_timestamp >= {timestamp(window.start)}, true)"
    lacking = " or ".join(f"{quote(name)} is null" for name in needed) or "false"
    # All rows are cast, those of earlier windows too: a filter would let values pass that do not fit.
    connection.execute(f"create or replace temp table {RESULT} as select {', '.join(columns)} from ({sql}\n)", parameters)
    counted = f"select count(*) filter (where ({lacking}) and {own}), count(*) filter (where ({lacking}) or not {own}) from temp.{RESULT}"
    dropped, others = first_row(connection, counted)
    if others:
        connection.execute(f"delete from temp.{RESULT} where ({lacking}) or not {own}")
    return int(dropped)


def _cast(column: str, duckdb_type: DuckDBPyType, dtype: Dtype) -> str:
    """Cast to the declared dtype; a time of a finer unit rounds up, like all times of features."""
    if dtype.family == "datetime":
        return to_micros_up(column, str(duckdb_type))
    return f"cast({column} as {dtype.duckdb})"


def _checked(connection: duckdb.DuckDBPyConnection, view: FeatureView) -> tuple[str, set[str]]:
    """Return the view's SELECT, safe to run, and the parameters that it names."""
    if view.query is None:
        return _history(view), set()
    where, sql = f"view {view.name!r}", str(view.query).strip().rstrip(";")
    check_select(connection, sql, sources=[source.name for source in view.sources], where=where)
    names = named_parameters(connection, sql)
    known = set() if view.schedule is None else {"start", "end"}
    for name in names - known:
        message = f"{where}: the query names ${name}.\n{suggest(name, known, has='It may use')}"
        raise QueryError(message)
    return sql, names


@contextlib.contextmanager
def _runnable(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, query: tuple[str, set[str]] | None, window: Window
) -> Iterator[tuple[str, dict[str, object]]]:
    """Hand out the SELECT of one window with its parameters; for a Python function, the SELECT of what it returned."""
    if query is not None:
        start, end = utc_naive(window)
        known = {"start": start, "end": end}
        yield query[0], {name: known[name] for name in query[1]}  # DuckDB refuses values for parameters that a query does not name
        return
    name = f"feature_platform__{secrets.token_hex(4)}"
    try:
        _register(connection, view, name, _invoke(connection, view, window))
        yield f"select * from {name}", {}
    finally:
        connection.unregister(name)
        connection.execute(f"drop view if exists {name}")


def _history(view: FeatureView) -> str:
    """Return the SELECT of an event view whose source holds the history of values already."""
    source = view.sources[0]
    times = f"{quote(source.timestamp or '')} as event_timestamp"
    if source.created_timestamp:
        times += f", {quote(source.created_timestamp)} as created_timestamp"
    keys = "".join(quote(key) + ", " for key in view.entity.join_keys)
    return f"select {keys}{times}, {quote_all(view.feature_by_name)} from {quote(source.name)}"


def _register(connection: duckdb.DuckDBPyConnection, view: FeatureView, name: str, result: object) -> None:
    """Make what the view's function returned readable under a name."""
    where = f"view {view.name!r}"
    if isinstance(result, duckdb.DuckDBPyRelation):
        try:
            result.create_view(name)
            connection.sql(f"select * from {name} limit 0")
        except duckdb.Error as exc:
            message = (
                f"{where}: its function returned a relation that cannot be read here: {exc}\n"
                "Build it from the relations that the function gets, or return relation.to_arrow_table()."
            )
            raise ContractError(message) from exc
        return
    if not hasattr(result, "__arrow_c_stream__"):
        message = (
            f"{where}: its function returned {type(result).__name__}.\n"
            "Return a DuckDB relation, an Arrow table, or a pandas or polars DataFrame."
        )
        raise ContractError(message)
    try:
        connection.register(name, pa.table(result))
    except pa.ArrowException as exc:
        message = f"{where}: its function returned a {type(result).__name__} that is no Arrow table: {exc}"
        raise ContractError(message) from exc


def _invoke(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window) -> object:
    """Call the view's function with the parameters that it names; one of another name gets all relations, by source name."""
    assert callable(view.query)  # noqa: S101 - the caller asked
    relations: dict[str, object] = {source.name: connection.view(source.name) for source in view.sources}
    by_name = {"start": window.start, "end": window.end, **relations}
    parameters = inspect.signature(view.query).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return view.query(**relations)
    if all(p.name in by_name or p.default is not inspect.Parameter.empty for p in parameters):
        return view.query(**{p.name: by_name[p.name] for p in parameters if p.name in by_name})
    return view.query(relations)
