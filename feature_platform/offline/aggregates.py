"""
What an aggregate view may ask of its source: columns, conditions and dtypes that go together, and from when on a row counts.

Knows declarations and described columns. Computes no value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_platform.dtypes import MICROSECOND
from feature_platform.errors import ContractError, QueryError, suggest
from feature_platform.model import Aggregate, FeatureView
from feature_platform.offline.query import fits, interval, named_parameters, quote, type_family
from feature_platform.offline.safety import check_select

if TYPE_CHECKING:
    import duckdb
    from duckdb.sqltypes import DuckDBPyType

__all__ = ["aggregates_of", "check_aggregates", "known_from"]


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
