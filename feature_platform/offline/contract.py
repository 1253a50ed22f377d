"""
The contract of computed rows: what a view's query must return, and what a written file must hold.

Knows declarations and described columns. Computes and repairs nothing but full ties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from feature_platform.errors import ContractError, suggest
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.history import partition_rows
from feature_platform.offline.query import first_row, fits, quote, quote_all, timestamp, type_family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from feature_platform.offline.store import OfflineStore
    from feature_platform.windows import Window

__all__ = ["RESULT", "check_columns", "check_rows", "time_columns", "verify_partition"]

RESULT: Final = "feature_platform__result"
"""Name of the temporary table that holds a window's rows; no source can be named so."""


def time_columns(view: FeatureView) -> list[str]:
    """Return the time columns of a view's rows and files."""
    return ["event_timestamp", *(["created_timestamp"] if view.has_created_timestamp else [])]


def check_columns(view: FeatureView, returned: Sequence[str], types: Mapping[str, Any]) -> None:
    """Compare the described query with the declaration, before any row is read."""
    where = f"view {view.name!r}"
    if view.kind is ViewKind.SNAPSHOT and "event_timestamp" in returned:
        message = (
            f"{where}: its query returns event_timestamp, which makes it an event view.\n"
            "Name the column in the outermost SELECT, or leave it out."
        )
        raise ContractError(message)
    times = time_columns(view) if view.kind is ViewKind.EVENT else []
    _check_names([*view.entity.join_keys, *times, *view.feature_by_name], returned, where)
    for name in times:
        if type_family(types[name]) not in {"datetime", "date", "null"}:
            message = f"{where}: {name} is {types[name]}, not a time.\nCast it to timestamp."
            raise ContractError(message)
    declared = {**view.entity.keys, **{name: feature.type for name, feature in view.feature_by_name.items()}}
    for name, dtype in declared.items():
        if not fits(types[name], dtype):
            message = (
                f"{where}: column {name!r} is declared {dtype} and the query returns {types[name]}.\n"
                f"Declare it as that, or write cast({quote(name)} as {dtype.duckdb})."
            )
            raise ContractError(message)


def _check_names(wanted: Sequence[str], returned: Sequence[str], where: str) -> None:
    for name in wanted:
        if name not in returned:
            hint = ", as its source declares created_timestamp: the join filters by it" if name == "created_timestamp" else ""
            message = f"{where}: its query does not return {name!r}{hint}.\n{suggest(name, returned, has='It returns')}"
            raise ContractError(message)
    for name in returned:
        if returned.count(name) > 1:
            message = f"{where}: its query returns {name!r} twice.\nName each column once."
            raise ContractError(message)
        if name not in wanted:
            message = (
                f"{where}: its query returns {name!r}, which is not declared.\n"
                f"Declare Feature({name!r}, ...), or leave it out. {suggest(name, wanted, has='Declared')}"
            )
            raise ContractError(message)


def check_rows(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window) -> None:
    """Check the times of an event view's rows, and that rows are unique: a snapshot's by key, an event view's by key and times."""
    where, keys = f"view {view.name!r}", list(view.entity.join_keys)
    if view.kind is ViewKind.EVENT and view.schedule is not None:
        outside = f"event_timestamp < {timestamp(window.start)} or event_timestamp >= {timestamp(window.end)}"
        row = first_row(connection, f"select count(*), min(event_timestamp), max(event_timestamp) from temp.{RESULT} where {outside}")
        if row[0]:
            message = (
                f"{where}: {row[0]} rows lie outside their window {window}, at {row[1]} to {row[2]}.\n"
                "Each row belongs to the window of its own event_timestamp: take that from the source's time column."
            )
            raise ContractError(message)
    unique = [*keys, *(time_columns(view) if view.kind is ViewKind.EVENT else [])]
    grouped = f"group by {quote_all(unique)} having count(*) > 1" if unique else "having count(*) > 1"
    selected = quote_all(unique) if unique else "count(*)"
    twice = connection.execute(f"select {selected} from temp.{RESULT} {grouped} limit 1").fetchall()
    if not twice:
        return
    if view.kind is ViewKind.SNAPSHOT:
        named = ", ".join(f"{name}={value!r}" for name, value in zip(unique, twice[0], strict=False))
        message = (
            f"{where}: a snapshot has one row a key, and {named or 'the global view'} has several.\n"
            f"Group by {', '.join(keys) or 'nothing'}."
        )
        raise ContractError(message)
    # Full ties: one row stays, the same one every time, whatever the order of the files (law L4).
    order = ", ".join(f"{quote(name)} desc nulls last" for name in view.feature_by_name)
    connection.execute(
        f"create or replace temp table {RESULT} as select * from temp.{RESULT} "
        f"qualify row_number() over (partition by {quote_all(unique)} order by {order}) = 1"
    )


def verify_partition(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window, store: OfflineStore) -> list[str]:
    """
    Read a written file back and return what is wrong with it; empty where the contract holds.

    It must be there, of this definition, with the declared columns and dtypes, one row a key (and time), no NULL in a key
    or time, and as many rows as its footer says.
    """
    partition = store.partition(view, window)
    if partition is None:
        return [f"window {window} has no file"]
    problems: list[str] = []
    if partition.definition != view.definition_hash:
        problems.append(f"window {window} was computed by another definition: run 'fp compute {view.name}' for it")
    path = store.path(view, window)
    table = f"({partition_rows(view, store, partition)})"
    relation = connection.sql(f"select * from {table} limit 0")
    types = dict(zip(relation.columns, relation.types, strict=True))
    declared = {**view.entity.keys, **{name: feature.type for name, feature in view.feature_by_name.items()}}
    problems += [f"{path.name}: column {name!r} is missing" for name in [*declared, "event_timestamp"] if name not in types]
    problems += [
        f"{path.name}: column {name!r} is {types[name]}, not {dtype}"
        for name, dtype in declared.items()
        if name in types and not fits(types[name], dtype)
    ]
    if problems:
        return problems
    unique = [*view.entity.join_keys, *time_columns(view)]
    required = [name for name in unique if name != "created_timestamp"]
    missing = " or ".join(f"{quote(name)} is null" for name in required)
    distinct_rows = f"select count(*) from (select 1 from {table} group by {quote_all(unique)})"
    rows, null_keys, distinct = first_row(connection, f"select count(*), count(*) filter (where {missing}), ({distinct_rows}) from {table}")
    if rows != partition.rows:
        problems.append(f"{path.name}: holds {rows} rows, its footer says {partition.rows}")
    if null_keys:
        problems.append(f"{path.name}: {null_keys} rows have NULL in a key or in event_timestamp")
    if distinct != rows:
        problems.append(f"{path.name}: {rows - distinct} rows are not unique by {', '.join(unique)}")
    return problems
