"""
What a feature author declares: entities, sources, features, views, services. Plain frozen values.

Knows no engine and checks nothing: `Registry` refuses contradictions, all in one place, while it loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, TypeAlias

from feature_platform.dtypes import Dtype, DtypeLike, resolve
from feature_platform.errors import RegistryError
from feature_platform.expectations import Expectation
from feature_platform.query_text import one_spaced, returns_event_timestamp, source_code

__all__ = [
    "ON_UPDATE",
    "Aggregate",
    "Entity",
    "Feature",
    "FeatureSelection",
    "FeatureService",
    "FeatureStatus",
    "FeatureView",
    "Freshness",
    "ParquetSource",
    "QueryFunction",
    "ViewKind",
]

ON_UPDATE: Final = "ON_UPDATE"
"""The schedule of an event view that is computed by UTC day, whenever data arrives."""

QueryFunction: TypeAlias = Callable[..., object]
_EMPTY_IS_ZERO = {"count", "count_distinct", "sum"}


class FeatureStatus(StrEnum):
    """What stands behind a value; never blurred (law L8)."""

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


class Freshness(StrEnum):
    """How the age of a view's data stands to its promise: the warning comes at three quarters of it."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


class ViewKind(StrEnum):
    """The three kinds of view; the first two are window views."""

    SNAPSHOT = "snapshot"
    AGGREGATE = "aggregate"
    EVENT = "event"


@dataclass(frozen=True)
class Entity:
    """
    Whom features describe, and the columns that identify one.

    Args:
        name: As in `user`.
        join_keys: Column name to dtype, in key order; none for a global view.
        description: For people.
    """

    name: str
    join_keys: Mapping[str, DtypeLike] = field(default_factory=dict)
    description: str = ""

    @cached_property
    def keys(self) -> dict[str, Dtype]:
        """Join key to resolved dtype, in order."""
        return {name: resolve(dtype) for name, dtype in self.join_keys.items()}


@dataclass(frozen=True)
class ParquetSource:
    """
    Parquet files that queries read by the source's name.

    Args:
        name: The table name in queries.
        path: A path or glob, relative to the project folder.
        timestamp: The column that says when a row became true; without it the source is a static dimension, visible whole.
        created_timestamp: The column that says when a row was known.
        description: For people.
    """

    name: str
    path: str
    timestamp: str | None = None
    created_timestamp: str | None = None
    description: str = ""


@dataclass(frozen=True)
class Feature:
    """
    One value that a view's query returns, by the column's name.

    Args:
        name: Column of the query.
        dtype: A Python type or a pyarrow DataType (see `feature_platform.dtypes`).
        description: For people and for OpenAPI.
        default: The answer where there is no value, or it is past the view's ttl.
        expect: Expectations of its values (`not_null()`, `between()`, `one_of()`, `unique()`): a partition that breaks one is not promoted.
    """

    name: str
    dtype: DtypeLike
    description: str = ""
    default: Any = None
    expect: Sequence[Expectation] = ()

    @cached_property
    def type(self) -> Dtype:
        """The resolved dtype."""
        return resolve(self.dtype)

    @cached_property
    def effective_default(self) -> object:
        """The answer for NOT_FOUND and OUTSIDE_MAX_AGE, as a stored value of it would come back."""
        return self.type.normal(self.default)


@dataclass(frozen=True)
class Aggregate:
    """
    One value computed by the platform over a sliding window `[end - window, end)`.

    An empty window is 0 for count, count_distinct and sum, NULL for the rest.

    Args:
        name: Name of the feature.
        function: count, sum, mean, min, max, first, last, count_distinct or last_n.
        window: Elapsed time.
        column: Column of the source; only `count` does without (then it counts rows).
        dtype: Of the result; count and count_distinct are int, mean is float, the rest default to float
            (last_n to a list of it): name it where the column is of another family.
        n: How many values `last_n` keeps, newest first.
        where: SQL condition over the source's columns.
        default: Replaces the empty window's value for keys without state.
        description: For people.
        expect: Expectations, as for `Feature`.
    """

    name: str
    function: str
    window: timedelta = field(kw_only=True)
    column: str | None = field(default=None, kw_only=True)
    dtype: DtypeLike | None = field(default=None, kw_only=True)
    n: int | None = field(default=None, kw_only=True)
    where: str | None = field(default=None, kw_only=True)
    default: Any = field(default=None, kw_only=True)
    description: str = field(default="", kw_only=True)
    expect: Sequence[Expectation] = field(default=(), kw_only=True)

    @cached_property
    def type(self) -> Dtype:
        """The resolved dtype."""
        if self.dtype is not None:
            return resolve(self.dtype)
        fixed: dict[str, DtypeLike] = {"count": int, "count_distinct": int, "last_n": list[float]}
        return resolve(fixed.get(self.function, float))

    @property
    def empty_value(self) -> int | float | None:
        """The value of an empty window."""
        return 0 if self.function in _EMPTY_IS_ZERO else None

    @cached_property
    def effective_default(self) -> object:
        """The answer for NOT_FOUND and OUTSIDE_MAX_AGE: a key without state has empty windows."""
        return self.type.normal(self.empty_value if self.default is None else self.default)


@dataclass(frozen=True)
class FeatureView:
    """
    One query (or a set of aggregates), one schedule, one Parquet table, n features.

    Args:
        name: As in `user_activity`; the Dagster group, the folder of the Parquet and a part of the Redis key.
        entity: Whom the features describe.
        sources: What the query may read, by name.
        features: `Feature`s that the query returns, or `Aggregate`s.
        query: One SELECT over the sources' names, which may use `$start` and `$end`; or a function of the sources' relations.
            None for aggregates, and for an event view whose source already holds the history of values.
        schedule: "@hourly", "@daily", a cron, `ON_UPDATE`, or None (one table, not partitioned).
        start: Start of the first window; naive means in `timezone`.
        timezone: IANA name; defines the windows of the schedule.
        lookback: How far the query reads: `[end - lookback, end)`; in an event view that far before a window's start.
        delay: How long after its time a value can be used.
        ttl: Older than this counts as absent, offline and online alike; None is for ever.
        freshness: Promise to people: older than this and someone is told.
        late_data_horizon: Where source files change after their windows were computed, the windows that ended at most so long ago
            are computed again by themselves; older ones, and all if it is left out, are marked and wait to be asked for. An
            ON_UPDATE view follows its files by itself however old they are, unless this says how far.
        owners: "team:name" or an e-mail address.
        tags: For Dagster.
        description: For people.
    """

    name: str
    entity: Entity = field(kw_only=True)
    sources: Sequence[ParquetSource] = field(kw_only=True)
    features: Sequence[Feature | Aggregate] = field(kw_only=True)
    query: str | QueryFunction | None = field(default=None, kw_only=True)
    schedule: str | None = field(default=None, kw_only=True)
    start: datetime | None = field(default=None, kw_only=True)
    timezone: str = field(default="UTC", kw_only=True)
    lookback: timedelta | None = field(default=None, kw_only=True)
    delay: timedelta = field(default=timedelta(0), kw_only=True)
    ttl: timedelta | None = field(default=None, kw_only=True)
    freshness: timedelta | None = field(default=None, kw_only=True)
    late_data_horizon: timedelta | None = field(default=None, kw_only=True)
    owners: Sequence[str] = field(default=(), kw_only=True)
    tags: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    description: str = field(default="", kw_only=True)

    def __getitem__(self, names: Sequence[str]) -> FeatureSelection:
        """
        Select some features for a service: `activity[["watch_count_30d"]]`.

        Raises:
            RegistryError: What is asked for is no list. Whether the features exist is for `Registry` to say.
        """
        try:
            return FeatureSelection(self, (names,) if isinstance(names, str) else tuple(names))
        except TypeError as exc:
            message = f"view {self.name!r} is asked for {names!r}, not for names.\nWrite view[['feature', ...]]."
            raise RegistryError(message) from exc

    @cached_property
    def kind(self) -> ViewKind:
        """
        Snapshot, aggregate or event view.

        A view whose query returns `event_timestamp` is an event view. Here that is read from the query's text, since the
        ground floor has no SQL parser; computing describes the query and refuses it where the two disagree.
        """
        if any(isinstance(feature, Aggregate) for feature in self.features):
            return ViewKind.AGGREGATE
        if self.query is None or self.schedule in {ON_UPDATE, None}:
            return ViewKind.EVENT
        if callable(self.query):
            names_it = "event_timestamp" in source_code(self.query)
        else:
            through_star = any(source.timestamp == "event_timestamp" for source in self.sources)
            names_it = returns_event_timestamp(self.query, through_star=through_star)
        return ViewKind.EVENT if names_it else ViewKind.SNAPSHOT

    @property
    def is_window_view(self) -> bool:
        """Snapshot and aggregate views hold the state as of a window's end."""
        return self.kind is not ViewKind.EVENT

    @cached_property
    def feature_by_name(self) -> dict[str, Feature | Aggregate]:
        """Declared order is kept."""
        return {feature.name: feature for feature in self.features}

    @cached_property
    def has_created_timestamp(self) -> bool:
        """Whether rows of this event view say when they were known: they do where one of its sources does."""
        return self.kind is ViewKind.EVENT and any(source.created_timestamp for source in self.sources)

    @property
    def freshness_warning(self) -> timedelta | None:
        """The age at which people are warned that the promise is about to be broken."""
        return None if self.freshness is None else self.freshness * 3 / 4

    def freshness_at(self, age: timedelta) -> Freshness | None:
        """Judge the age of the view's data; None where nothing is promised."""
        if self.freshness is None or self.freshness_warning is None:
            return None
        if age > self.freshness:
            return Freshness.FAIL
        return Freshness.WARN if age > self.freshness_warning else Freshness.PASS

    @cached_property
    def expectations(self) -> str:
        """What is expected of its features, as text: a partition that was rejected is tried again when this changes."""
        return "; ".join(f"{feature.name}: {expected}" for feature in self.features for expected in feature.expect)

    @cached_property
    def definition_hash(self) -> str:
        """16 hex digits over all that decides the values; every file and online value carries it."""
        parts = {
            "kind": self.kind,
            "entity": self.entity.name,
            "keys": [[name, str(dtype)] for name, dtype in self.entity.keys.items()],
            "sources": sorted([s.name, s.path, s.timestamp or "", s.created_timestamp or ""] for s in self.sources),
            "query": one_spaced(self.query) if isinstance(self.query, str) else self.query and source_code(self.query),
            "features": [_definition(feature) for feature in self.features],
            "windows": [self.schedule, self.timezone],
            "lookback": _micros(self.lookback),
            "delay": _micros(self.delay),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FeatureSelection:
    """Some features of a view, for a service."""

    view: FeatureView
    names: tuple[str, ...]


@dataclass(frozen=True)
class FeatureService:
    """
    The named list of features that one model or prompt reads.

    Args:
        name: As in `recommender`.
        features: Views (all their features) and selections (`view[["name"]]`).
        full_feature_names: Whether results are named `view__feature`.
        description: For people.
    """

    name: str
    features: Sequence[FeatureView | FeatureSelection]
    full_feature_names: bool = field(default=False, kw_only=True)
    description: str = field(default="", kw_only=True)

    @property
    def selections(self) -> list[FeatureSelection]:
        """The list with every whole view written out."""
        return [one if isinstance(one, FeatureSelection) else one[[f.name for f in one.features]] for one in self.features]


def _micros(span: timedelta | None) -> int | None:
    return None if span is None else span // timedelta(microseconds=1)


def _definition(feature: Feature | Aggregate) -> list[Any]:
    if isinstance(feature, Aggregate):
        where = feature.where and one_spaced(feature.where)
        return [feature.name, str(feature.type), feature.function, _micros(feature.window), feature.column, feature.n, where]
    return [feature.name, str(feature.type)]
