"""
Aggregate views: the values of sliding windows at every change point of a range of windows, in one statement.

A value changes at the first window end after an event (it enters) and at the first end after it has left. Between two
such ends nothing is written: an ASOF join gives exactly the dense answer. Knows SQL. Knows no files.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from feature_platform.dtypes import MICROSECOND
from feature_platform.errors import ContractError, suggest
from feature_platform.model import Aggregate, FeatureView
from feature_platform.offline.query import check_select, fits, interval, quote, quote_all, type_family
from feature_platform.offline.store import TOMBSTONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb
    from duckdb.sqltypes import DuckDBPyType

__all__ = ["aggregates_of", "change_points_sql", "check_aggregates", "longest_window"]


def aggregates_of(view: FeatureView) -> list[Aggregate]:
    """Return the aggregates of an aggregate view, in declared order."""
    return [feature for feature in view.features if isinstance(feature, Aggregate)]


def longest_window(view: FeatureView) -> timedelta:
    """Return how far before a window's end its values read."""
    return max(aggregate.window for aggregate in aggregates_of(view))


def check_aggregates(connection: duckdb.DuckDBPyConnection, view: FeatureView) -> dict[str, DuckDBPyType]:
    """
    Check the columns, conditions and dtypes of an aggregate view against its source.

    Returns:
        The source's columns with their types.

    Raises:
        ContractError: A column is missing, or its type does not give the declared dtype.
        QueryError: A `where` could see past the source.
    """
    source = view.sources[0]
    for aggregate in aggregates_of(view):
        if aggregate.where:
            sql = f"select * from {quote(source.name)} where ({aggregate.where}\n)"
            check_select(connection, sql, sources=[source.name], where=f"view {view.name!r}: feature {aggregate.name!r}")
    relation = connection.sql(f"select * from {quote(source.name)} limit 0")
    types = dict(zip(relation.columns, relation.types, strict=True))
    for name, dtype in view.entity.keys.items():
        _has_column(view, f"join key {name!r}", name, types)
        if not fits(types[name], dtype):
            message = f"view {view.name!r}: join key {name!r} is {dtype}, its source has {types[name]}.\nDeclare it, or store it, as the other."
            raise ContractError(message)
    for aggregate in aggregates_of(view):
        if aggregate.column is not None:
            _has_column(view, f"feature {aggregate.name!r}", aggregate.column, types)
            _check_dtype(view, aggregate, types[aggregate.column])
    return types


def _has_column(view: FeatureView, label: str, column: str, types: dict[str, DuckDBPyType]) -> None:
    if column not in types:
        message = f"view {view.name!r}: {label} reads column {column!r}, which its source lacks.\n{suggest(column, types, has='It has')}"
        raise ContractError(message)


def _check_dtype(view: FeatureView, aggregate: Aggregate, column: DuckDBPyType) -> None:
    family, dtype = type_family(column), aggregate.type
    if aggregate.function in {"count", "count_distinct"}:
        return
    if aggregate.function in {"sum", "mean"}:
        is_number = family in {"int", "float", "decimal", "bool"}
        fine = is_number and (dtype.family == "float" or (dtype.family == "decimal" and family != "float") or family == dtype.family)
    else:
        wanted = dtype.children[0][1] if aggregate.function == "last_n" else dtype
        fine = fits(column, wanted) or (wanted.family == "float" and family in {"int", "decimal"})
    if not fine:
        message = (
            f"view {view.name!r}: feature {aggregate.name!r} is {aggregate.function} of {aggregate.column!r} ({column}), declared {dtype}.\n"
            f"Write dtype= what a {column} gives."
        )
        raise ContractError(message)


def _known(view: FeatureView, alias: str) -> str:
    """Return SQL for the first instant at which a window end may count an event: never before it was known."""
    created = view.sources[0].created_timestamp
    after = f"{alias}.{quote(view.sources[0].timestamp or '')} + {interval(MICROSECOND)}"
    if created is None:
        return after
    return f"greatest({after}, coalesce({alias}.{quote(created)} - {interval(view.delay)}, {after}))"


def _value(aggregate: Aggregate, column: DuckDBPyType | None, inside: str, time: str) -> str:
    name = None if aggregate.column is None else f"e.{quote(aggregate.column)}"
    only = f"filter (where {inside})"
    is_float = column is not None and type_family(column) == "float"
    # Summing in any order must give one answer: floats are summed with compensation, which infinities and NaN cannot bear.
    total = f"sum({name}) {only}"
    if is_float:
        total = f"case when bool_and(isfinite({name})) {only} is false then sum({name}) {only} else fsum({name}) {only} end"
    match aggregate.function:
        case "count":
            value = f"count({name or '*'}) {only}"
        case "count_distinct":
            value = f"count(distinct {name}) {only}"
        case "sum":
            value = f"coalesce({total}, 0)"
        case "mean":
            value = f"cast({total} as double) / nullif(count({name}) {only}, 0)"
        case "last_n":
            listed = f"list({name} order by {time} desc, {name} desc) filter (where {inside} and {name} is not null)"
            value = f"list_slice({listed}, 1, {aggregate.n})"
        case function:
            value = f"{function}({name}) {only}"
    return f"cast({value} as {aggregate.type.duckdb}) as {quote(aggregate.name)}"


def change_points_sql(view: FeatureView, types: dict[str, DuckDBPyType], ends: str, *, first_is_full: bool, windows: Sequence[timedelta]) -> str:
    """
    Return the SELECT of all rows of a run of windows: join keys, `event_timestamp` (a window's end), the features, a tombstone mark.

    Args:
        view: An aggregate view; its source view shows `[first end - longest window, last end)`.
        types: The source's columns.
        ends: Table with the column `window_end`: the end before the first window, then every window's.
        first_is_full: Whether the first window holds the complete state, and not only what changed.
        windows: The distinct window lengths.
    """
    source, keys = view.sources[0], list(view.entity.join_keys)
    time = f"e.{quote(source.timestamp or '')}"
    not_null = " and ".join(f"{quote(key)} is not null" for key in keys) or "true"
    counts = [f"({a.where}\n)" if a.where else "true" for a in aggregates_of(view)]
    relevant = "true" if "true" in counts else " or ".join(counts)
    leaving = "\nunion all\n".join(
        f"""select {quote_all(keys, of="e") + ", " if keys else ""}w.window_end
            from entering as e asof join {ends} as w on {time} + {interval(window + MICROSECOND)} <= w.window_end
            where e.__entered < w.window_end"""
        for window in windows
    )
    key_list = quote_all(keys) + ", " if keys else ""
    on_keys = "".join(f" and e.{quote(key)} = p.{quote(key)}" for key in keys)
    longest = max(windows)
    inside = {a.name: f"{time} >= p.event_timestamp - {interval(a.window)} and e.{quote('__' + a.name)}" for a in aggregates_of(view)}
    values = ",\n".join(_value(a, types.get(a.column or ""), inside[a.name], time) for a in aggregates_of(view))
    is_empty = " and ".join(f"count(*) filter (where {condition}) = 0" for condition in inside.values())
    flags = ",\n".join(f"coalesce({condition}, false) as {quote('__' + a.name)}" for a, condition in zip(aggregates_of(view), counts, strict=True))
    state_of_first = f"union select {key_list}(select min(window_end) from {ends} where window_end > (select min(window_end) from {ends})) from events as e"
    return f"""
with seen as (
    select *, {flags}
    from {quote(source.name)}
    where {not_null} and ({relevant})
),
events as (
    select e.*, {_known(view, "e")} as __known from seen as e
),
entering as (
    select e.*, w.window_end as __entered
    from events as e asof join {ends} as w on e.__known <= w.window_end
),
points as (
    select {key_list}__entered as event_timestamp from entering
    union
    select {key_list}window_end from ({leaving})
    {state_of_first if first_is_full else ""}
),
probes as (
    select * from points where event_timestamp > (select min(window_end) from {ends})
)
select
    {quote_all(keys, of="p") + "," if keys else ""}
    p.event_timestamp,
    {values},
    {is_empty} as {quote(TOMBSTONE)}
from probes as p
left join events as e
    on {time} < p.event_timestamp and {time} >= p.event_timestamp - {interval(longest)} and e.__known <= p.event_timestamp{on_keys}
group by {quote_all(keys, of="p") + ", " if keys else ""}p.event_timestamp
"""
