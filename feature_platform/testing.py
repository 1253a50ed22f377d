"""
Brute force: what must be answered at any moment, row by row, straight from the laws of time. For tests, yours included.

Ten lines a law, no SQL, no files, nothing shared with the engine but the declarations. Slow on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from feature_platform.model import Aggregate, FeatureStatus, FeatureView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Answer", "Row", "State", "aggregate_state", "event_answer", "window_answer"]

Row: TypeAlias = "Mapping[str, Any]"
State: TypeAlias = "Mapping[tuple[Any, ...], Mapping[str, Any]]"
_NEVER = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Answer:
    """
    What must come back for one feature of one entity row.

    Attributes:
        value: The value, or the default where the status is NOT_FOUND or OUTSIDE_MAX_AGE.
        status: One of the four.
    """

    value: Any
    status: FeatureStatus


def event_answer(
    view: FeatureView, rows: Iterable[Row], key: tuple[Any, ...], feature: str, at: datetime, *, as_of: str = "known"
) -> Answer:
    """
    Answer for an event view (laws L2 to L4).

    Args:
        view: The view.
        rows: Its whole history: join keys, aware `event_timestamp`, `created_timestamp` where it has one, features.
        key: The entity's join keys, in declared order; None in it finds nothing.
        feature: Asked for.
        at: The entity row's time.
        as_of: "known" or "latest".
    """
    visible = [
        row
        for row in rows
        if _key(view, row) == key
        and row["event_timestamp"] + view.delay <= at
        and (as_of == "latest" or row.get("created_timestamp") is None or row["created_timestamp"] <= at)
    ]
    if not visible:
        return _without_value(view, feature, FeatureStatus.NOT_FOUND)
    winner = max(visible, key=lambda row: (row["event_timestamp"], row.get("created_timestamp") or _NEVER))
    return _judge(view, feature, winner, winner["event_timestamp"], at)


def window_answer(
    view: FeatureView, ends: Iterable[datetime], state_at: Callable[[datetime], State], key: tuple[Any, ...], feature: str, at: datetime
) -> Answer:
    """
    Answer for a window view (laws L2, L3 and L9): the state as of the greatest end that exists, whole.

    Args:
        view: The view.
        ends: Ends of the windows that are computed.
        state_at: The complete state as of an end: keys that have one, and their features.
        key: The entity's join keys, in declared order.
        feature: Asked for.
        at: The entity row's time.
    """
    existing = [end for end in ends if end + view.delay <= at]
    state = state_at(max(existing)) if existing else {}
    if key not in state:
        return _without_value(view, feature, FeatureStatus.NOT_FOUND)
    return _judge(view, feature, state[key], max(existing), at)


def aggregate_state(
    view: FeatureView, rows: Sequence[Row], end: datetime, *, where: Mapping[str, Callable[[Row], bool]] | None = None
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """
    Return the state of an aggregate view as of a window's end, from its source's rows.

    Args:
        view: An aggregate view.
        rows: The source's rows, with aware times under the source's column names.
        end: End of the window.
        where: The aggregates' conditions as functions, by feature.
    """
    source, state = view.sources[0], dict[tuple[Any, ...], dict[str, Any]]()
    time = source.timestamp or ""
    for key in {_key(view, row) for row in rows}:
        if None in key:
            continue
        inside: dict[str, list[Row]] = {}
        for aggregate in view.features:
            assert isinstance(aggregate, Aggregate)  # noqa: S101 - an aggregate view has nothing else
            condition = (where or {}).get(aggregate.name, _always)
            inside[aggregate.name] = [
                row
                for row in rows
                if _key(view, row) == key
                and end - aggregate.window <= row[time] < end
                and (
                    source.created_timestamp is None
                    or row[source.created_timestamp] is None
                    or row[source.created_timestamp] <= end + view.delay
                )
                and condition(row)
            ]
        if any(inside.values()):
            state[key] = {a.name: _aggregate(a, inside[a.name], time) for a in view.features if isinstance(a, Aggregate)}
    return state


def _always(_: Row) -> bool:
    return True


def _aggregate(aggregate: Aggregate, rows: Sequence[Row], time: str) -> Any:  # noqa: ANN401 - of the feature's dtype
    if aggregate.column is None:
        return len(rows)
    pairs = [(row[time], row[aggregate.column]) for row in rows if row[aggregate.column] is not None]
    values = [value for _, value in sorted(pairs, reverse=True)]  # newest first, ties by the greater value
    if aggregate.function in {"first", "last"}:
        return (values[-1] if aggregate.function == "first" else values[0]) if values else None
    as_float = aggregate.type.family == "float"
    match aggregate.function:
        case "count":
            return len(values)
        case "count_distinct":
            return len(set(values))
        case "sum":
            return math.fsum(values) if as_float else sum(values)
        case "mean":
            return math.fsum(values) / len(values) if values else None
        case "last_n":
            return values[: aggregate.n] or None
        case function:
            return {"min": min, "max": max}[function](values) if values else None


def _key(view: FeatureView, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in view.entity.join_keys)


def _judge(view: FeatureView, feature: str, row: Row, age_from: datetime, at: datetime) -> Answer:
    if view.ttl is not None and age_from < at - view.ttl:
        return _without_value(view, feature, FeatureStatus.OUTSIDE_MAX_AGE)
    return Answer(row[feature], FeatureStatus.NULL_VALUE if row[feature] is None else FeatureStatus.PRESENT)


def _without_value(view: FeatureView, feature: str, status: FeatureStatus) -> Answer:
    return Answer(view.feature_by_name[feature].effective_default, status)
