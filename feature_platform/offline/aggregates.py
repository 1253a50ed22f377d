"""
Aggregate views: the values of sliding windows at every change point of a range of windows, in one statement.

A value changes at the first window end after an event (it enters) and at the first end after it has left. Between two
such ends nothing is written: an ASOF join gives exactly the dense answer. Knows SQL. Knows no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_platform.dtypes import MICROSECOND
from feature_platform.errors import ContractError, QueryError, suggest
from feature_platform.model import Aggregate, FeatureView
from feature_platform.offline.query import fits, interval, named_parameters, quote, type_family
from feature_platform.offline.safety import check_select
from feature_platform.offline.store import TOMBSTONE

if TYPE_CHECKING:
    import duckdb
    from duckdb.sqltypes import DuckDBPyType

__all__ = ["aggregates_of", "change_points_sql", "check_aggregates", "known_from"]


def aggregates_of(view: FeatureView) -> list[Aggregate]:
    """Return the aggregates of an aggregate view, in declared order."""
    return [feature for feature in view.features if isinstance(feature, Aggregate)]


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
            where = f"view {view.name!r}: feature {aggregate.name!r}"
            check_select(connection, sql, sources=[source.name], where=where)
            if names := named_parameters(connection, sql):
                message = (
                    f"{where}: its condition names ${min(names)}.\nIt holds for every window alike: leave the window's bounds to `window`."
                )
                raise QueryError(message)
    relation = connection.sql(f"select * from {quote(source.name)} limit 0")
    types = dict(zip(relation.columns, relation.types, strict=True))
    for name, dtype in view.entity.keys.items():
        _has_column(view, f"join key {name!r}", name, types)
        if not fits(types[name], dtype):
            message = (
                f"view {view.name!r}: join key {name!r} is {dtype}, its source has {types[name]}.\nDeclare it, or store it, as the other."
            )
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
            f"view {view.name!r}: feature {aggregate.name!r} is "
            f"{aggregate.function} of {aggregate.column!r} ({column}), declared {dtype}.\n"
            f"Write dtype= what a {column} gives."
        )
        raise ContractError(message)


def known_from(view: FeatureView, alias: str) -> str:
    """Return SQL for the first window end that may count a source row: after its time, and never before it was known."""
    created = view.sources[0].created_timestamp
    after = f"{alias}.{quote(view.sources[0].timestamp or '')} + {interval(MICROSECOND)}"
    if created is None:
        return after
    return f"greatest({after}, coalesce({alias}.{quote(created)} - {interval(view.delay)}, {after}))"


def _value(aggregate: Aggregate, column: DuckDBPyType | None, inside: str, value: str) -> str:
    """Return SQL for an aggregate of the column `value` of the events `e` that are `inside` its window."""
    only = f"filter (where {inside})"
    total = f"sum({value}) {only}"
    if column is not None and type_family(column) == "float":
        # Summing in any order must give one answer: floats are summed with compensation, which turns infinities into NaN.
        total = f"case when isfinite(fsum({value}) {only}) then fsum({value}) {only} else {total} end"
    match aggregate.function:
        case "count":
            result = f"count({'*' if aggregate.column is None else value}) {only}"
        case "count_distinct":
            result = f"count(distinct {value}) {only}"
        case "sum":
            result = f"coalesce({total}, 0)"
        case "mean":
            result = f"cast({total} as double) / nullif(count({value}) {only}, 0)"
        case "last_n":
            listed = f"list({value} order by e.__time desc, {value} desc) filter (where {inside} and {value} is not null)"
            result = f"list_slice({listed}, 1, {aggregate.n})"
        case "first" | "last":
            extreme = "min" if aggregate.function == "first" else "max"
            result = f"({extreme}({{'__at': e.__time, '__value': {value}}}) filter (where {inside} and {value} is not null)).__value"
        case function:
            result = f"{function}({value}) {only}"
    return f"cast({result} as {aggregate.type.duckdb}) as {quote(aggregate.name)}"


def change_points_sql(view: FeatureView, types: dict[str, DuckDBPyType], ends: str, *, first_is_full: bool) -> str:
    """
    Return the SELECT of all rows of a run of windows: join keys, `event_timestamp` (a window's end), the features, a tombstone mark.

    Every name of its own holds `__`, which no source, join key or feature may: a source's columns may be called anything,
    and are read under such names once.

    Args:
        view: An aggregate view; its source view shows `[first end - longest window, last end)`.
        types: The source's columns.
        ends: Table with the column `window_end`: the end before the first window, then every window's.
        first_is_full: Whether the first window holds the complete state, and not only what changed.
    """
    source, aggregates = view.sources[0], aggregates_of(view)
    keys = [f"__key{index}" for index in range(len(view.entity.keys))]
    conditions = [f"({a.where}\n)" if a.where else "true" for a in aggregates]
    columns = [
        f"cast(s.{quote(name)} as {dtype.duckdb}) as {key}" for key, (name, dtype) in zip(keys, view.entity.keys.items(), strict=True)
    ]
    columns += [f"s.{quote(source.timestamp or '')} as __time", f"{known_from(view, 's')} as __known"]
    for index, (aggregate, condition) in enumerate(zip(aggregates, conditions, strict=True)):
        columns += [] if aggregate.column is None else [f"s.{quote(aggregate.column)} as __value{index}"]
        columns.append(f"coalesce({condition}, false) as __counts{index}")
    relevant = "true" if "true" in conditions else " or ".join(conditions)
    not_null = "".join(f"s.{quote(key)} is not null and " for key in view.entity.join_keys)
    inside = [f"e.__time >= p.__end - {interval(a.window)} and e.__counts{index}" for index, a in enumerate(aggregates)]
    values = [_value(a, types.get(a.column or ""), inside[index], f"e.__value{index}") for index, a in enumerate(aggregates)]
    is_empty = " and ".join(f"count(*) filter (where {condition}) = 0" for condition in inside)
    lengths = sorted({aggregate.window for aggregate in aggregates})
    some_keys = "".join(f"{key}, " for key in keys)
    same_keys = "".join(f" and e.{key} = p.{key}" for key in keys)
    e_keys, p_keys = ("".join(f"{alias}.{key}, " for key in keys) for alias in "ep")
    leaving = "\n    union\n".join(
        f"""    select {e_keys}w.window_end
    from __entering as e asof join {ends} as w on e.__time + {interval(length + MICROSECOND)} <= w.window_end
    where e.__end < w.window_end"""
        for length in lengths
    )
    value_list = ",\n    ".join(values)
    first = f"(select min(window_end) from {ends})"
    everyone = f"union\n    select {some_keys}(select min(window_end) from {ends} where window_end > {first}) from __events"
    named = "".join(f"p.{key} as {quote(name)}, " for key, name in zip(keys, view.entity.join_keys, strict=True))
    return f"""
with __events as (
    select {", ".join(columns)}
    from {quote(source.name)} as s
    where {not_null}({relevant})
),
__entering as (
    select {e_keys}e.__time, w.window_end as __end
    from __events as e asof join {ends} as w on e.__known <= w.window_end
),
__points as (
    select {some_keys}__end from __entering
    union
{leaving}
    {everyone if first_is_full else ""}
)
select
    {named}p.__end as event_timestamp,
    {value_list},
    {is_empty} as {quote(TOMBSTONE)}
from (select * from __points where __end > {first}) as p
left join __events as e
    on e.__time < p.__end and e.__time >= p.__end - {interval(max(lengths))} and e.__known <= p.__end{same_keys}
group by {p_keys}p.__end
"""
