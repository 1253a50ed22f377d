"""
What a point-in-time join is asked: features of entity rows, and the narrow table that stands for those rows in it.

Knows names, types and times of entity rows. Knows nothing of histories.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import duckdb

from feature_platform.errors import EntityRowsError, NameClashError, suggest
from feature_platform.offline.query import fits, floor_micros, quote, type_family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_platform.dtypes import Dtype
    from feature_platform.registry import FeatureRef

__all__ = ["LABEL", "ROW", "STATUS_SUFFIX", "TIME", "AsOf", "Question", "load_spine", "output_names"]

AsOf = Literal["known", "latest"]
ROW: Final = "__row"
TIME: Final = "__time"
STATUS_SUFFIX: Final = "__status"
LABEL: Final = "label_"
"""What the names of label columns begin with."""


@dataclass(frozen=True)
class Question:
    """
    What is asked of each entity row.

    Attributes:
        refs: The features, in the order of the result's columns.
        as_of: "known": an event view's row is seen from its created_timestamp on; "latest": from its event_timestamp on.
        statuses: Whether a column `<column>__status` follows each feature.
        labels: Features as they stand `label_delay` after the entity row's time: what a model is to foretell.
        label_delay: How long after its time a row's labels are looked up.
    """

    refs: tuple[FeatureRef, ...]
    as_of: AsOf = "known"
    statuses: bool = False
    labels: tuple[FeatureRef, ...] = ()
    label_delay: timedelta = field(default=timedelta(0))

    @property
    def columns(self) -> tuple[FeatureRef, ...]:
        """All that is joined, in the order of the result's columns, each with the name of its column."""
        return (*self.refs, *(replace(ref, column=LABEL + ref.column) for ref in self.labels))

    @property
    def by_view(self) -> dict[str, list[FeatureRef]]:
        """The features of each view, views in the order first asked."""
        return _by_view(self.refs)

    @property
    def labels_by_view(self) -> dict[str, list[FeatureRef]]:
        """The labels of each view."""
        return _by_view(self.columns[len(self.refs) :])

    @property
    def join_keys(self) -> dict[str, Dtype]:
        """The union of the entities' join keys."""
        return {name: dtype for ref in self.columns for name, dtype in ref.view.entity.keys.items()}


def _by_view(refs: Sequence[FeatureRef]) -> dict[str, list[FeatureRef]]:
    found: dict[str, list[FeatureRef]] = {}
    for ref in refs:
        found.setdefault(ref.view.name, []).append(ref)
    return found


def output_names(question: Question, entity_columns: Sequence[str]) -> list[str]:
    """
    Return the names of the columns that are added.

    Raises:
        NameClashError: One of them is a column of the entity rows already.
    """
    names: list[str] = []
    for ref in question.columns:
        names.append(ref.column)
        if question.statuses:
            names.append(ref.column + STATUS_SUFFIX)
    for name in names:
        if names.count(name) > 1:
            message = f"two result columns would be named {name!r}.\nUse full_feature_names=True."
            raise NameClashError(message, name=name)
        if name in entity_columns:
            message = f"entity_df has a column {name!r} already, the name of a result column.\nUse full_feature_names=True, or rename it."
            raise NameClashError(message, name=name)
    return names


def load_spine(connection: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation, keys: dict[str, Dtype], *, given: str) -> str:
    """
    Put the row numbers, join keys and times of the entity rows into a temporary table, and return its name.

    Args:
        connection: Holds the table.
        relation: The entity rows, on that connection, in their order.
        keys: Join keys wanted.
        given: What the rows came as, for messages.

    Raises:
        EntityRowsError: A join key or event_timestamp is missing, or of another type.
    """
    types = dict(zip(relation.columns, relation.types, strict=True))
    if "event_timestamp" not in types:
        message = (
            f"entity_df ({given}) has no column 'event_timestamp', the time asked about.\n{suggest('event_timestamp', types, has='It has')}"
        )
        raise EntityRowsError(message, field="event_timestamp")
    if type_family(types["event_timestamp"]) not in {"datetime", "date", "null"}:
        message = f"entity_df: event_timestamp is {types['event_timestamp']}, not a time.\nConvert it to a timestamp first."
        raise EntityRowsError(message, field="event_timestamp")
    for name, dtype in keys.items():
        if name not in types:
            message = (
                f"entity_df ({given}) has no column {name!r}, a join key of the features asked for.\n{suggest(name, types, has='It has')}"
            )
            raise EntityRowsError(message, field=name)
        if not fits(types[name], dtype):
            message = (
                f"entity_df: join key {name!r} is {types[name]}, and declared {dtype}.\nConvert the column: nothing is cast in silence."
            )
            raise EntityRowsError(message, field=name)
    columns = [f"row_number() over () - 1 as {ROW}"]  # in the order of the rows, which DuckDB keeps unless it is told not to
    columns += [f"cast({quote(name)} as {dtype.duckdb}) as {quote(name)}" for name, dtype in keys.items()]
    columns.append(f"{floor_micros('event_timestamp', str(types['event_timestamp']))} as {TIME}")
    spine = f"spine_{secrets.token_hex(4)}"
    relation.create_view(f"{spine}_rows", replace=True)
    try:
        connection.execute(f"create temp table {spine} as select {', '.join(columns)} from {spine}_rows")
    except duckdb.DataError as exc:
        message = f"entity_df ({given}): a join key or event_timestamp does not fit its declared dtype: {exc}"
        raise EntityRowsError(message) from exc
    finally:
        connection.execute(f"drop view {spine}_rows")
    return spine
