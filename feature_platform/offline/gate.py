"""
The gate between computing a partition and promoting it: its features' expectations, asked in one pass.

Knows the SQL of each kind of expectation. Knows nothing of files: what becomes of a partition that fails is the writer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from feature_platform.expectations import Between, Expectation, NotNull, OneOf, Unique
from feature_platform.model import Aggregate, Feature, FeatureView, ViewKind
from feature_platform.offline.contract import time_columns
from feature_platform.offline.query import first_row, quote, quote_all
from feature_platform.offline.store import TOMBSTONE

if TYPE_CHECKING:
    import duckdb

__all__ = ["ExpectationFailure", "failed_expectations"]

_SAMPLE_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class ExpectationFailure:
    """
    One expectation that a partition breaks.

    Attributes:
        feature: Whose values.
        expectation: Its kind: not_null, between, one_of or unique.
        declared: As declared: `between(0, 10000)`.
        rows: Rows that were looked at; a key that lost its state is none of them.
        failed: Rows that break it.
        sample: A few of those: join keys, times and the value, by column.
    """

    feature: str
    expectation: str
    declared: str
    rows: int
    failed: int
    sample: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        """Say what is wrong in one line."""
        row = self.sample[0].items() if self.sample else ()
        shown = ", ".join(f"{name}={value if isinstance(value, datetime) else repr(value)}" for name, value in row)
        return f"{self.feature}: {self.declared} fails for {self.failed:,} of {self.rows:,} rows{f', such as {shown}' if shown else ''}"


def failed_expectations(connection: duckdb.DuckDBPyConnection, view: FeatureView, rows: str) -> tuple[ExpectationFailure, ...]:
    """
    Return what a partition's rows break of the view's expectations; empty where they hold, and where there are no rows.

    Args:
        connection: Where the rows are.
        view: Declares the expectations.
        rows: A SELECT of the partition's rows; read once, and once more for each expectation that fails.
    """
    declared = [(feature, expected) for feature in view.features for expected in feature.expect]
    if not declared:
        return ()
    alive = f"select * from ({rows})" + (f" where not {quote(TOMBSTONE)}" if view.kind is ViewKind.AGGREGATE else "")
    asked, parameters = [], dict[str, object]()
    for index, (feature, expected) in enumerate(declared):
        if isinstance(expected, Unique):
            asked.append(f"count({quote(feature.name)}) - count(distinct {quote(feature.name)})")
        else:
            condition, bound = _breaks(feature, expected, f"p{index}")
            asked.append(f"count(*) filter (where {condition})")
            parameters |= bound
    total, *failed = first_row(connection, f"select count(*), {', '.join(asked)} from ({alive})", parameters)
    return tuple(
        ExpectationFailure(
            feature=feature.name,
            expectation=expected.name,
            declared=str(expected),
            rows=total,
            failed=count,
            sample=_sample(connection, view, feature, expected, alive),
        )
        for (feature, expected), count in zip(declared, failed, strict=True)
        if _is_broken(expected, count, total)
    )


def _is_broken(expected: Expectation, failed: int, total: int) -> bool:
    if isinstance(expected, NotNull):
        return failed > total * (1 - expected.at_least) + 1e-9  # 1 - 0.99 is a little more than 0.01
    return failed > 0


def _breaks(feature: Feature | Aggregate, expected: Expectation, prefix: str) -> tuple[str, dict[str, object]]:
    """Return the condition of a row that breaks an expectation, and the values that it binds."""
    column, sql_type = quote(feature.name), feature.type.duckdb
    match expected:
        case NotNull():
            return f"{column} is null", {}
        case Between(low, high):
            bounds = {f"{prefix}_low": _bindable(feature, low), f"{prefix}_high": _bindable(feature, high)}
            return f"not ({column} between cast(${prefix}_low as {sql_type}) and cast(${prefix}_high as {sql_type}))", bounds
        case OneOf(values):
            listed = {f"{prefix}_{index}": _bindable(feature, value) for index, value in enumerate(values)}
            return f"{column} not in ({', '.join(f'cast(${name} as {sql_type})' for name in listed)})", listed
        case Unique():
            return f"{column} is not null and count(*) over (partition by {column}) > 1", {}


def _bindable(feature: Feature | Aggregate, value: object) -> object:
    """Return a declared value as it would be stored; an instant without its zone, which is UTC, as DuckDB's TIMESTAMP has none."""
    stored = feature.type.normal(value)
    return stored.replace(tzinfo=None) if feature.type.family == "datetime" else stored  # type: ignore[attr-defined]


def _sample(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, feature: Feature | Aggregate, expected: Expectation, alive: str
) -> tuple[dict[str, Any], ...]:
    condition, parameters = _breaks(feature, expected, "p")
    columns = [*view.entity.join_keys, *time_columns(view), feature.name]
    clause = "qualify" if isinstance(expected, Unique) else "where"
    sql = f"select {quote_all(columns)} from ({alive}) {clause} {condition} order by {quote_all(columns)} limit {_SAMPLE_ROWS}"
    return tuple(dict(zip(columns, row, strict=True)) for row in connection.execute(sql, parameters or None).fetchall())
