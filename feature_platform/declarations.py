"""
What one declaration may say: every contradiction that it can hold in itself, each with what to write instead.

Knows names, types and times. Knows nothing of other declarations: how they go together is the registry's.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import NoneType
from typing import Any, TypeAlias, TypeVar

from feature_platform.dtypes import Dtype
from feature_platform.errors import DtypeError, RegistryError, suggest
from feature_platform.expectations import Between, NotNull, OneOf, Unique
from feature_platform.model import ON_UPDATE, Aggregate, Entity, Feature, FeatureService, FeatureView, ParquetSource, ViewKind
from feature_platform.windows import grid_of, utc

__all__ = ["check_entity", "check_source", "check_types", "check_view", "each", "refuse", "safe", "unique"]

_AGGREGATE_FUNCTIONS = ("count", "sum", "mean", "min", "max", "first", "last", "count_distinct", "last_n")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_TIME_COLUMNS = frozenset({"event_timestamp", "created_timestamp"})
# Fields of the HTTP request and answer, beside which join keys stand.
_REQUEST_FIELDS = frozenset(
    {"features", "feature_service", "entities", "metadata", "full_feature_names", "statuses", "event_timestamps", "views"}
)
_OWNER = re.compile(r"team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+")
_ZERO = timedelta(0)
# More overflows the arithmetic of DuckDB and Python alike; "for ever" is None.
_LONGEST = timedelta(days=36_525)
_SHOWN = 80


def refuse(what: str, instead: str, field: str | None = None) -> RegistryError:
    """Return the error that says what is wrong, where, and what to write instead."""
    return RegistryError(f"{what}.\n{instead}", field=field)


_One = TypeVar("_One")
_Types: TypeAlias = "tuple[Any, ...]"
_TEXT, _TEXT_OR_NONE, _SPAN = (str,), (str, NoneType), (timedelta, NoneType)
# Of each kind of declaration, the Python types of its fields and what to write. Whoever type-checks never meets these.
_FIELDS: dict[type, dict[str, tuple[_Types, str]]] = {
    Entity: {"join_keys": ((Mapping,), '{"user_id": str}'), "description": (_TEXT, '"text"')},
    ParquetSource: {
        "path": (_TEXT, '"data/sources/watches/*.parquet"'),
        "timestamp": (_TEXT_OR_NONE, '"watched_at"'),
        "created_timestamp": (_TEXT_OR_NONE, '"ingested_at"'),
        "description": (_TEXT, '"text"'),
    },
    Feature: {"description": (_TEXT, '"text"'), "expect": ((Sequence,), "[...]")},
    Aggregate: {
        "function": (_TEXT, '"count"'),
        "window": ((timedelta,), "timedelta(days=30)"),
        "column": (_TEXT_OR_NONE, '"minutes"'),
        "n": ((int, NoneType), "5"),
        "where": (_TEXT_OR_NONE, "\"genre = 'drama'\""),
        "description": (_TEXT, '"text"'),
        "expect": ((Sequence,), "[...]"),
    },
    FeatureView: {
        "entity": ((Entity,), 'Entity("user", join_keys={"user_id": str})'),
        "query": ((str, NoneType, Callable), '"select ..."'),
        "schedule": (_TEXT_OR_NONE, '"@daily"'),
        "start": ((datetime, NoneType), "datetime(2026, 1, 1)"),
        "timezone": (_TEXT, '"Europe/Berlin"'),
        "lookback": (_SPAN, "timedelta(days=30)"),
        "delay": ((timedelta,), "timedelta(minutes=10)"),
        "ttl": (_SPAN, "timedelta(days=2)"),
        "freshness": (_SPAN, "timedelta(hours=2)"),
        "late_data_horizon": (_SPAN, "timedelta(days=7)"),
        "tags": ((Mapping,), '{"tier": "gold"}'),
        "description": (_TEXT, '"text"'),
    },
    FeatureService: {"full_feature_names": ((bool,), "True"), "description": (_TEXT, '"text"')},
}


def check_types(declared: object, where: str) -> None:
    """Refuse values of the wrong Python type, and spans that no clock can hold, before anything is computed with them."""
    for name, (types, example) in next(fields for kind, fields in _FIELDS.items() if isinstance(declared, kind)).items():
        value = getattr(declared, name)
        is_bool = isinstance(value, bool) and bool not in types
        if is_bool or not isinstance(value, types) or (isinstance(value, str) and str not in types):
            raise refuse(f"{where}: {name} is {value!r} ({type(value).__name__})", f"Write {name}={example}, say.")
        if isinstance(value, timedelta) and abs(value) > _LONGEST:
            raise refuse(f"{where}: {name} {value} is longer than a hundred years", f"Write {name}={example}, say.")
        if isinstance(value, str) and "\0" in value:
            raise refuse(f"{where}: {name} {value!r} holds a NUL character", "Leave it out.")


def each(
    values: Iterable[_One], kinds: type[_One] | tuple[type[_One], ...], name: str, where: str, field: str | None = None
) -> Sequence[_One]:
    """Return a list's members, having refused what is no list, or a list of other things."""
    known = kinds if isinstance(kinds, tuple) else (kinds,)
    of = " or ".join(kind.__name__ for kind in known)
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise refuse(f"{where}: {name} is {_shown(values)}, not a list", f"Write {name}=[...], a list of {of}.", field)
    for value in values:
        if not isinstance(value, known):
            raise refuse(f"{where}: {name} has {_shown(value)} in it", f"Each one is a {of}.", field)
    return values


def _shown(value: object) -> str:
    """Return a short repr and the type."""
    text = repr(value)
    return f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} ({type(value).__name__})"


def unique(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is taken, or whose files would be those of another."""
    if name in known:
        raise refuse(f"two {kind}s are named {name!r}", "Give one of them another name.")
    for other in known:
        if other.lower() == name.lower():
            raise refuse(f"{kind}s {other!r} and {name!r} differ only in case", "Their files would collide: rename one.")


def safe(kind: str, name: object) -> None:
    """Refuse a name that paths, SQL or keys of the online store could take for something else."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name or name.endswith("_"):
        clean = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9]+", "_", str(name))).strip("_") or "name"
        clean = clean if clean[0].isalpha() else f"n_{clean}"
        raise refuse(
            f"{kind} name {name!r} is not safe in paths, SQL and keys",
            f"Use letters, digits and single '_', a letter first, at most 100: {clean[:100]!r}.",
        )


def _dtypes(where: str, holder: Entity) -> Iterator[tuple[str, Dtype]]:
    try:
        yield from holder.keys.items()
    except DtypeError as exc:
        message = f"{where}: {exc}"
        raise DtypeError(message) from exc


def check_source(source: ParquetSource, where: str) -> None:
    """Refuse what a source cannot be."""
    safe(f"{where}: source", source.name)
    check_types(source, f"source {source.name!r}")
    if not source.path:
        raise refuse(f"source {source.name!r} has no path", "Name a Parquet file or a glob of them.")
    for name in ("timestamp", "created_timestamp"):
        if getattr(source, name) == "":
            raise refuse(f"source {source.name!r}: {name} is empty", f"Name a column, or leave {name} out.")
    if source.created_timestamp and not source.timestamp:
        raise refuse(f"source {source.name!r} has a created_timestamp and no timestamp", "Name the column of the event's own time too.")
    if source.timestamp is not None and source.timestamp == source.created_timestamp:
        raise refuse(f"source {source.name!r}: both its times are {source.timestamp!r}", "Leave created_timestamp out.")


def check_entity(entity: Entity) -> None:
    """Refuse what an entity cannot be: its keys stand in SQL, in requests and in the keys of the online store."""
    where = f"entity {entity.name!r}"
    safe("entity", entity.name)
    check_types(entity, where)
    for name, dtype in _dtypes(where, entity):
        safe(f"join key of {where}", name)
        if name.lower() in _TIME_COLUMNS or name in _REQUEST_FIELDS:
            raise refuse(f"{where}: join key {name!r} is a reserved name", f"Call it {entity.name}_{name}.")
        if other := next((key for key in entity.join_keys if key != name and key.lower() == name.lower()), None):
            raise refuse(f"{where}: join keys {name!r} and {other!r} have one name in SQL", "Rename one of them.")
        if dtype.family not in {"bool", "int", "str", "bytes", "date", "datetime", "decimal"}:
            raise refuse(f"{where}: join key {name!r} has dtype {dtype}, whose values have no one spelling", "Use int or str.")


def check_view(view: FeatureView, where: str) -> None:
    """Refuse what a view cannot be; its types, entity and sources are checked already."""
    _check_features(view, where)
    _check_times(view, where)
    _check_schedule(view, where)
    _check_query(view, where)
    for owner in each(view.owners, str, "owners", where):
        if not _OWNER.fullmatch(owner):
            raise refuse(f"{where}: owner {owner!r} is not understood", "Write 'team:name' or an e-mail address.")


def _check_features(view: FeatureView, where: str) -> None:
    if not each(view.features, (Feature, Aggregate), "features", where):
        raise refuse(f"{where} has no features", "Declare at least one.")
    seen: dict[str, str] = {}
    taken = _TIME_COLUMNS | {name.lower() for name in view.entity.join_keys}
    for feature in each(view.features, (Feature, Aggregate), "features", where):
        safe(f"{where}: feature", feature.name)
        check_types(feature, f"{where}: feature {feature.name!r}")
        other = seen.setdefault(feature.name.lower(), feature.name)
        if other != feature.name:
            raise refuse(f"{where}: features {other!r} and {feature.name!r} have one name in SQL", "Rename one of them.")
        if feature.name.lower() in taken:
            raise refuse(f"{where}: feature {feature.name!r} is named like a key or time column", f"Call it {view.name}_{feature.name}.")
        label = f"{where}: feature {feature.name!r}"
        try:
            dtype = feature.type
            dtype.check(feature.default)
        except DtypeError as exc:
            message = f"{label}: {'default ' if feature.default is not None else ''}{exc}"
            raise DtypeError(message) from exc
        if isinstance(feature, Aggregate):
            _check_aggregate(feature, label)
        _check_expectations(feature, label)
    if len({isinstance(feature, Aggregate) for feature in view.features}) > 1:
        raise refuse(f"{where} mixes Feature and Aggregate", "Declare two views: one query, one set of aggregates.")
    if len(seen) != len(view.features):
        raise refuse(f"{where}: two features are named {_twice(view.features)!r}", "Give one of them another name.")


def _twice(features: Sequence[Feature | Aggregate]) -> str:
    names = [feature.name for feature in features]
    return next(name for name in names if names.count(name) > 1)


def _check_aggregate(feature: Aggregate, label: str) -> None:
    if feature.function not in _AGGREGATE_FUNCTIONS:
        raise refuse(f"{label}: aggregate function {feature.function!r} is not known", suggest(feature.function, _AGGREGATE_FUNCTIONS))
    if feature.window <= _ZERO:
        raise refuse(f"{label}: window {feature.window} is not positive", "Write timedelta(days=30), say.")
    if not feature.column and (feature.column == "" or feature.function != "count"):
        raise refuse(f"{label}: {feature.function} needs a column", 'Write column="minutes", say.')
    if (feature.n is not None) != (feature.function == "last_n"):
        raise refuse(f"{label}: n goes with last_n, and last_n with n", "Write Aggregate(name, 'last_n', n=5, column=..., window=...).")
    if feature.where is not None and not feature.where.strip():
        raise refuse(f"{label}: where is empty", "Write a SQL condition, or leave where out.")
    if feature.n is not None and feature.n < 1:
        raise refuse(f"{label}: n={feature.n} is not positive", "Keep at least one value.")
    family = feature.type.family
    wanted = {"count": {"int"}, "count_distinct": {"int"}, "mean": {"float"}, "sum": {"int", "float", "decimal"}, "last_n": {"list"}}
    if family not in wanted.get(feature.function, {family}):
        raise refuse(
            f"{label}: {feature.function} cannot have dtype {feature.type}", f"Use {' or '.join(sorted(wanted[feature.function]))}."
        )


def _check_expectations(feature: Feature | Aggregate, label: str) -> None:
    seen: set[str] = set()
    for expected in each(feature.expect, (NotNull, Between, OneOf, Unique), "expect", label):
        for what, instead in expected.problems(feature.type):
            raise refuse(f"{label}: {expected}: {what}", instead)
        if expected.name in seen:
            raise refuse(f"{label} expects {expected.name} twice", "Say each kind of expectation once.")
        seen.add(expected.name)


def _check_times(view: FeatureView, where: str) -> None:
    for name in ("lookback", "ttl", "freshness", "late_data_horizon"):
        span = getattr(view, name)
        if span is not None and span <= _ZERO:
            raise refuse(f"{where}: {name} {span} is not positive", f"Leave {name} out, or write a positive timedelta.")
    if view.delay < _ZERO:
        raise refuse(f"{where}: delay {view.delay} is negative: values would be seen before they are true", "Write zero or more.")
    if view.freshness is not None and view.freshness < timedelta(minutes=1):
        raise refuse(f"{where}: freshness {view.freshness} is under a minute, finer than it is looked at", "Write at least a minute.")
    if view.lookback is not None and view.kind is ViewKind.AGGREGATE:
        raise refuse(f"{where}: lookback goes with a query", "Aggregates read as far back as their windows: leave it out.")


def _check_schedule(view: FeatureView, where: str) -> None:
    if view.schedule is None:
        if view.kind is not ViewKind.EVENT:
            raise refuse(f"{where} holds {view.kind}s and has no schedule, which defines its windows", 'Write schedule="@daily", say.')
        for name in ("start", "lookback", "late_data_horizon"):
            if getattr(view, name) is not None:
                raise refuse(f"{where} has a {name} and no schedule", f"It is computed whole: leave {name} out, or name a schedule.")
    elif view.start is None:
        raise refuse(f"{where} has a schedule and no start", "Write start=datetime(2026, 1, 1), the start of its first window.")
    elif view.schedule == ON_UPDATE and view.kind is not ViewKind.EVENT:
        raise refuse(f"{where} holds {view.kind}s and has ON_UPDATE", 'Event views have that: write schedule="@hourly", say.')
    try:
        utc(datetime(2026, 1, 1), view.timezone)  # noqa: DTZ001 - for the zone's name, which counts without a schedule too
        grid = grid_of(view)
        least = view.delay + (grid.period if grid and view.is_window_view else _ZERO)
    except RegistryError as exc:
        message = f"{where}: {exc}"
        raise RegistryError(message) from exc
    except OverflowError as exc:
        message = f"{where}: start {view.start} leaves the calendar before its first windows end.\nWrite the year that the data begins in."
        raise RegistryError(message) from exc
    if view.ttl is not None and view.ttl < least:
        raise refuse(
            f"{where}: ttl {view.ttl} is shorter than {least}, the age of the newest value when all runs as planned",
            "Nothing would ever be PRESENT: write a longer ttl.",
        )


def _check_query(view: FeatureView, where: str) -> None:
    if not view.sources:
        raise refuse(f"{where} has no sources", "Name at least one ParquetSource.")
    names = [source.name.lower() for source in view.sources]
    if len(set(names)) != len(names):
        raise refuse(f"{where} names a source twice", "Name each source once.")
    if view.kind is ViewKind.AGGREGATE:
        if view.query is not None:
            raise refuse(f"{where} has aggregates and a query", "Aggregates read their source: leave the query out, or use Feature.")
        _one_timed_source(view, where)
    elif view.query is None:
        if view.schedule is not None:
            _one_timed_source(view, where)
        elif len(view.sources) != 1 or view.sources[0].timestamp is None:
            raise refuse(f"{where} has no query", "Write one, or name one source with a timestamp that holds the values.")
    elif callable(view.query):
        _check_function(view.query, {source.name for source in view.sources}, where)
    elif not view.query.strip():
        raise refuse(f"{where} has an empty query", "Write one SELECT over its sources.")


def _one_timed_source(view: FeatureView, where: str) -> None:
    if len(view.sources) != 1:
        raise refuse(f"{where} has {len(view.sources)} sources and no query to join them", "Name one source.")
    if view.sources[0].timestamp is None:
        raise refuse(f"{where}: source {view.sources[0].name!r} has no timestamp", 'Write ParquetSource(..., timestamp="watched_at"), say.')


def _check_function(function: Callable[..., object], sources: set[str], where: str) -> None:
    if clash := sources & {"start", "end"}:
        raise refuse(f"{where}: source {clash.pop()!r} has the name of a window's bound, which a function gets too", "Rename it.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as exc:
        message = f"{where}: query {function!r} does not tell its parameters.\nWrite a function of the sources' names."
        raise RegistryError(message) from exc
    parameters = [p for p in signature.parameters.values() if p.default is inspect.Parameter.empty]
    unknown = [p.name for p in parameters if p.name not in sources | {"start", "end"} and p.kind is not inspect.Parameter.VAR_KEYWORD]
    if unknown and len(parameters) > 1:
        raise refuse(
            f"{where}: its function has a parameter {unknown[0]!r}",
            f"Name parameters after sources, or 'start' and 'end'. {suggest(unknown[0], sources)}",
        )
