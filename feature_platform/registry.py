"""
The registry: all views and services of a project, checked against each other while loading.

Knows what may be declared. Knows no engine: whether a source's files exist, and whether a query
returns what it declares, is found out when it is computed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import NoneType
from typing import Any, TypeAlias, TypeVar

from feature_platform.dtypes import Dtype
from feature_platform.errors import DtypeError, NameClashError, RegistryError, UnknownNameError, suggest
from feature_platform.model import (
    ON_UPDATE,
    Aggregate,
    Entity,
    Feature,
    FeatureSelection,
    FeatureService,
    FeatureView,
    ParquetSource,
    ViewKind,
)
from feature_platform.windows import grid_of, utc

__all__ = ["AGGREGATE_FUNCTIONS", "FeatureRef", "Features", "Registry"]

AGGREGATE_FUNCTIONS = ("count", "sum", "mean", "min", "max", "count_distinct", "last_n")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_TIME_COLUMNS = frozenset({"event_timestamp", "created_timestamp"})
# Fields of the HTTP request and answer, beside which join keys stand.
_REQUEST_FIELDS = frozenset({"features", "feature_service", "entities", "metadata", "full_feature_names", "statuses", "event_timestamps"})
_OWNER = re.compile(r"team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+")
_ZERO = timedelta(0)
# More overflows the arithmetic of DuckDB and Python alike; "for ever" is None.
_LONGEST = timedelta(days=36_525)
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class FeatureRef:
    """
    One feature of one view, and the name of its result column.

    Attributes:
        view: Its view.
        feature: Its declaration.
        column: The bare name, or `view__feature`.
    """

    view: FeatureView
    feature: Feature | Aggregate
    column: str

    def __str__(self) -> str:
        """Return the reference as users write it: `view:feature`."""
        return f"{self.view.name}:{self.feature.name}"


Features: TypeAlias = "Sequence[str] | str | FeatureService"


class Registry:
    """
    All that a project declares; refuses contradictions while loading.

    Args:
        views: Names are unique.
        services: Their features are features of `views`.

    Raises:
        RegistryError: Says what, where, and what to write instead.
    """

    def __init__(self, views: Sequence[FeatureView] = (), services: Sequence[FeatureService] = ()) -> None:
        self.views: dict[str, FeatureView] = {}
        self.services: dict[str, FeatureService] = {}
        self.entities: dict[str, Entity] = {}
        self.sources: dict[str, ParquetSource] = {}
        for view in _each(views, FeatureView, "views", "Registry"):
            _safe("view", view.name)
            _unique("view", view.name, self.views)
            self._add(view)
            self.views[view.name] = view
        for service in _each(services, FeatureService, "services", "Registry"):
            _safe("service", service.name)
            _unique("service", service.name, self.services)
            self._check_service(service)
            self.services[service.name] = service

    def __repr__(self) -> str:
        """Say how much is declared."""
        count = sum(len(view.features) for view in self.views.values())
        return f"Registry({len(self.views)} views, {count} features, {len(self.services)} services)"

    def view(self, name: str) -> FeatureView:
        """
        Return a view by name.

        Raises:
            UnknownNameError: With the nearest name.
        """
        if name not in self.views:
            raise UnknownNameError("view", name, self.views, field="features")
        return self.views[name]

    def service(self, name: str) -> FeatureService:
        """
        Return a service by name.

        Raises:
            UnknownNameError: With the nearest name.
        """
        if name not in self.services:
            raise UnknownNameError("service", name, self.services, field="feature_service")
        return self.services[name]

    def resolve(self, features: Features, *, full_feature_names: bool = False) -> list[FeatureRef]:
        """
        Return the features that are meant, in the order asked.

        Args:
            features: References (`view:feature`, or a bare name where it is unique), a service, or a service's name.
            full_feature_names: Whether result columns are named `view__feature`.

        Raises:
            UnknownNameError: A name that is not declared.
            RegistryError: A bare name that several views have, or no feature at all.
            NameClashError: Two features would have one result column.
        """
        if isinstance(features, str):
            features = self.service(features)
        if isinstance(features, FeatureService):
            service, full_feature_names = features, full_feature_names or features.full_feature_names
            if self.services.get(service.name) is not service:
                self._check_selections(service)
            pairs = [(selection.view, _feature(selection.view, name)) for selection in service.selections for name in selection.names]
        else:
            pairs = [self._find(name) for name in _each(features, str, "features", "a list of references", field="features")]
        if not pairs:
            message = "no feature is asked for.\nName some as 'view:feature', or name a service."
            raise RegistryError(message, field="features")
        refs = [FeatureRef(view, one, f"{view.name}__{one.name}" if full_feature_names else one.name) for view, one in pairs]
        seen: dict[str, FeatureRef] = {}
        for ref in refs:
            other = seen.setdefault(ref.column.lower(), ref)
            if other is not ref:
                advice = "Ask for it once." if str(other) == str(ref) else "Use full_feature_names=True."
                message = f"two result columns would be named {ref.column!r}: {other} and {ref}.\n{advice}"
                raise NameClashError(message, name=ref.column)
        return refs

    def join_keys(self, refs: Sequence[FeatureRef]) -> dict[str, Dtype]:
        """
        Return the join keys that rows must have for these features: the union over their entities.

        Raises:
            RegistryError: Two entities have a key of one name and of different dtypes.
        """
        keys: dict[str, Dtype] = {}
        for ref in refs:
            for name, dtype in ref.view.entity.keys.items():
                if keys.setdefault(name, dtype) != dtype:
                    message = f"join key {name!r} is {keys[name]} in one view and {dtype} in {ref.view.name!r}.\nAsk for them one by one."
                    raise RegistryError(message, field="features")
        return keys

    def _find(self, reference: str) -> tuple[FeatureView, Feature | Aggregate]:
        view_name, colon, name = reference.partition(":")
        if colon:
            view = self.view(view_name)
            return view, _feature(view, name)
        found = [(view, view.feature_by_name[reference]) for view in self.views.values() if reference in view.feature_by_name]
        if not found:
            names = [name for view in self.views.values() for name in view.feature_by_name]
            raise UnknownNameError("feature", reference, names, field="features")
        if len(found) > 1:
            choices = " or ".join(f"'{view.name}:{reference}'" for view, _ in found)
            message = f"feature {reference!r} is in several views.\nWrite {choices}."
            raise RegistryError(message, field="features")
        return found[0]

    def _add(self, view: FeatureView) -> None:
        where = f"view {view.name!r}"
        _check_types(view, where)
        self._check_entity(view.entity, where)
        for source in _each(view.sources, ParquetSource, "sources", where):
            _check_source(source, where)
            if self.sources.setdefault(source.name, source) != source:
                raise _refuse(f"{where}: source {source.name!r} is declared twice, differently", "Give one of them another name.")
        _check_features(view, where)
        _check_times(view, where)
        _check_schedule(view, where)
        _check_query(view, where)
        for owner in _each(view.owners, str, "owners", where):
            if not _OWNER.fullmatch(owner):
                raise _refuse(f"{where}: owner {owner!r} is not understood", "Write 'team:name' or an e-mail address.")

    def _check_entity(self, entity: Entity, where: str) -> None:
        _safe("entity", entity.name)
        _check_types(entity, f"entity {entity.name!r}")
        for name, dtype in _dtypes(f"entity {entity.name!r}", entity):
            _safe(f"join key of entity {entity.name!r}", name)
            if name.lower() in _TIME_COLUMNS or name in _REQUEST_FIELDS:
                raise _refuse(f"entity {entity.name!r}: join key {name!r} is a reserved name", f"Call it {entity.name}_{name}.")
            if other := next((key for key in entity.join_keys if key != name and key.lower() == name.lower()), None):
                raise _refuse(f"entity {entity.name!r}: join keys {name!r} and {other!r} have one name in SQL", "Rename one of them.")
            if dtype.family not in {"bool", "int", "str", "bytes", "date", "datetime", "decimal"}:
                raise _refuse(
                    f"entity {entity.name!r}: join key {name!r} has dtype {dtype}, whose values have no one spelling",
                    "Use int or str.",
                )
        if self.entities.setdefault(entity.name, entity) != entity:
            raise _refuse(f"{where}: entity {entity.name!r} is declared twice, differently", "Use one Entity, or other names.")

    def _check_known(self, view: FeatureView, where: str) -> None:
        known = self.views.get(view.name)
        if known is not view and known != view:
            what = "is not in the registry" if known is None else "is not the one that the registry has by that name"
            raise _refuse(f"{where}: view {view.name!r} {what}", f"Add it to views. {suggest(view.name, self.views)}")

    def _check_selections(self, service: FeatureService) -> dict[str, tuple[Dtype, str]]:
        """Refuse a service over views that are not here or do not go together; return its join keys."""
        where = f"service {service.name!r}"
        _check_types(service, where)
        if not list(_each(service.features, (FeatureView, FeatureSelection), "features", where)):
            raise _refuse(f"{where} has no features", "List views, or selections such as activity[['watch_count_30d']].")
        keys: dict[str, tuple[Dtype, str]] = {}
        for selection in service.selections:
            self._check_known(selection.view, where)
            _each(selection.names, str, "a selection", where)
            if not selection.names:
                raise _refuse(f"{where}: selects nothing of view {selection.view.name!r}", "Name some features, or leave the view out.")
            for name, dtype in selection.view.entity.keys.items():
                first = keys.setdefault(name, (dtype, selection.view.name))
                if first[0] != dtype:
                    raise _refuse(
                        f"{where}: join key {name!r} is {first[0]} in view {first[1]!r} and {dtype} in {selection.view.name!r}",
                        "Give the key one dtype.",
                    )
        return keys

    def _check_service(self, service: FeatureService) -> None:
        where = f"service {service.name!r}"
        keys = self._check_selections(service)
        try:
            refs = self.resolve(service)
        except (UnknownNameError, NameClashError) as exc:
            message = f"{where}: {exc}"
            raise RegistryError(message) from exc
        for ref in refs:
            if ref.column.lower() in {name.lower() for name in keys}:
                raise _refuse(f"{where}: feature {ref} has the name of a join key", "Use full_feature_names=True.")


def _feature(view: FeatureView, name: str) -> Feature | Aggregate:
    if name not in view.feature_by_name:
        raise UnknownNameError("feature", name, view.feature_by_name, where=f"view {view.name!r}", field="features")
    return view.feature_by_name[name]


def _refuse(what: str, instead: str, field: str | None = None) -> RegistryError:
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
        "tags": ((Mapping,), '{"tier": "gold"}'),
        "description": (_TEXT, '"text"'),
    },
    FeatureService: {"full_feature_names": ((bool,), "True"), "description": (_TEXT, '"text"')},
}


def _check_types(declared: object, where: str) -> None:
    """Refuse values of the wrong Python type, and spans that no clock can hold, before anything is computed with them."""
    for name, (types, example) in next(fields for kind, fields in _FIELDS.items() if isinstance(declared, kind)).items():
        value = getattr(declared, name)
        is_bool = isinstance(value, bool) and bool not in types
        if is_bool or not isinstance(value, types) or (isinstance(value, str) and str not in types):
            raise _refuse(f"{where}: {name} is {value!r} ({type(value).__name__})", f"Write {name}={example}, say.")
        if isinstance(value, timedelta) and abs(value) > _LONGEST:
            raise _refuse(f"{where}: {name} {value} is longer than a hundred years", f"Write {name}={example}, say.")
        if isinstance(value, str) and "\0" in value:
            raise _refuse(f"{where}: {name} {value!r} holds a NUL character", "Leave it out.")


def _each(
    values: Iterable[_One], kinds: type[_One] | tuple[type[_One], ...], name: str, where: str, field: str | None = None
) -> Sequence[_One]:
    """Return a list's members, having refused what is no list, or a list of other things."""
    known = kinds if isinstance(kinds, tuple) else (kinds,)
    of = " or ".join(kind.__name__ for kind in known)
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise _refuse(f"{where}: {name} is {_shown(values)}, not a list", f"Write {name}=[...], a list of {of}.", field)
    for value in values:
        if not isinstance(value, known):
            raise _refuse(f"{where}: {name} has {_shown(value)} in it", f"Each one is a {of}.", field)
    return values


def _shown(value: object) -> str:
    """Return a short repr and the type."""
    text = repr(value)
    return f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} ({type(value).__name__})"


def _unique(kind: str, name: str, known: dict[str, object] | dict[str, FeatureView] | dict[str, FeatureService]) -> None:
    if name in known:
        raise _refuse(f"two {kind}s are named {name!r}", "Give one of them another name.")
    for other in known:
        if other.lower() == name.lower():
            raise _refuse(f"{kind}s {other!r} and {name!r} differ only in case", "Their files would collide: rename one.")


def _safe(kind: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name or name.endswith("_"):
        clean = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9]+", "_", str(name))).strip("_") or "name"
        clean = clean if clean[0].isalpha() else f"n_{clean}"
        raise _refuse(
            f"{kind} name {name!r} is not safe in paths, SQL and keys",
            f"Use letters, digits and single '_', a letter first, at most 100: {clean[:100]!r}.",
        )


def _dtypes(where: str, holder: Entity) -> Iterator[tuple[str, Dtype]]:
    try:
        yield from holder.keys.items()
    except DtypeError as exc:
        message = f"{where}: {exc}"
        raise DtypeError(message) from exc


def _check_source(source: ParquetSource, where: str) -> None:
    _safe(f"{where}: source", source.name)
    _check_types(source, f"source {source.name!r}")
    if not source.path:
        raise _refuse(f"source {source.name!r} has no path", "Name a Parquet file or a glob of them.")
    for name in ("timestamp", "created_timestamp"):
        if getattr(source, name) == "":
            raise _refuse(f"source {source.name!r}: {name} is empty", f"Name a column, or leave {name} out.")
    if source.created_timestamp and not source.timestamp:
        raise _refuse(f"source {source.name!r} has a created_timestamp and no timestamp", "Name the column of the event's own time too.")
    if source.timestamp is not None and source.timestamp == source.created_timestamp:
        raise _refuse(f"source {source.name!r}: both its times are {source.timestamp!r}", "Leave created_timestamp out.")


def _check_features(view: FeatureView, where: str) -> None:
    if not _each(view.features, (Feature, Aggregate), "features", where):
        raise _refuse(f"{where} has no features", "Declare at least one.")
    seen: dict[str, str] = {}
    taken = _TIME_COLUMNS | {name.lower() for name in view.entity.join_keys}
    for feature in _each(view.features, (Feature, Aggregate), "features", where):
        _safe(f"{where}: feature", feature.name)
        _check_types(feature, f"{where}: feature {feature.name!r}")
        other = seen.setdefault(feature.name.lower(), feature.name)
        if other != feature.name:
            raise _refuse(f"{where}: features {other!r} and {feature.name!r} have one name in SQL", "Rename one of them.")
        if feature.name.lower() in taken:
            raise _refuse(f"{where}: feature {feature.name!r} is named like a key or time column", f"Call it {view.name}_{feature.name}.")
        label = f"{where}: feature {feature.name!r}"
        try:
            dtype = feature.type
            dtype.check(feature.default)
        except DtypeError as exc:
            message = f"{label}: {'default ' if feature.default is not None else ''}{exc}"
            raise DtypeError(message) from exc
        if isinstance(feature, Aggregate):
            _check_aggregate(feature, label)
    if len({isinstance(feature, Aggregate) for feature in view.features}) > 1:
        raise _refuse(f"{where} mixes Feature and Aggregate", "Declare two views: one query, one set of aggregates.")
    if len(seen) != len(view.features):
        raise _refuse(f"{where}: two features are named {_twice(view.features)!r}", "Give one of them another name.")


def _twice(features: Sequence[Feature | Aggregate]) -> str:
    names = [feature.name for feature in features]
    return next(name for name in names if names.count(name) > 1)


def _check_aggregate(feature: Aggregate, label: str) -> None:
    if feature.function not in AGGREGATE_FUNCTIONS:
        raise _refuse(f"{label}: aggregate function {feature.function!r} is not known", suggest(feature.function, AGGREGATE_FUNCTIONS))
    if feature.window <= _ZERO:
        raise _refuse(f"{label}: window {feature.window} is not positive", "Write timedelta(days=30), say.")
    if not feature.column and (feature.column == "" or feature.function != "count"):
        raise _refuse(f"{label}: {feature.function} needs a column", 'Write column="minutes", say.')
    if (feature.n is not None) != (feature.function == "last_n"):
        raise _refuse(f"{label}: n goes with last_n, and last_n with n", "Write Aggregate(name, 'last_n', n=5, column=..., window=...).")
    if feature.where is not None and not feature.where.strip():
        raise _refuse(f"{label}: where is empty", "Write a SQL condition, or leave where out.")
    if feature.n is not None and feature.n < 1:
        raise _refuse(f"{label}: n={feature.n} is not positive", "Keep at least one value.")
    family = feature.type.family
    wanted = {"count": {"int"}, "count_distinct": {"int"}, "mean": {"float"}, "sum": {"int", "float", "decimal"}, "last_n": {"list"}}
    if family not in wanted.get(feature.function, {family}):
        raise _refuse(
            f"{label}: {feature.function} cannot have dtype {feature.type}", f"Use {' or '.join(sorted(wanted[feature.function]))}."
        )


def _check_times(view: FeatureView, where: str) -> None:
    for name, span in (("lookback", view.lookback), ("ttl", view.ttl), ("freshness", view.freshness)):
        if span is not None and span <= _ZERO:
            raise _refuse(f"{where}: {name} {span} is not positive", f"Leave {name} out, or write a positive timedelta.")
    if view.delay < _ZERO:
        raise _refuse(f"{where}: delay {view.delay} is negative: values would be seen before they are true", "Write zero or more.")
    if view.freshness is not None and view.freshness < timedelta(minutes=1):
        raise _refuse(f"{where}: freshness {view.freshness} is under a minute, finer than it is looked at", "Write at least a minute.")
    if view.lookback is not None and view.kind is ViewKind.AGGREGATE:
        raise _refuse(f"{where}: lookback goes with a query", "Aggregates read as far back as their windows: leave it out.")


def _check_schedule(view: FeatureView, where: str) -> None:
    if view.schedule is None:
        if view.kind is not ViewKind.EVENT:
            raise _refuse(f"{where} holds {view.kind}s and has no schedule, which defines its windows", 'Write schedule="@daily", say.')
        for name in ("start", "lookback"):
            if getattr(view, name) is not None:
                raise _refuse(f"{where} has a {name} and no schedule", f"It is computed whole: leave {name} out, or name a schedule.")
    elif view.start is None:
        raise _refuse(f"{where} has a schedule and no start", "Write start=datetime(2026, 1, 1), the start of its first window.")
    elif view.schedule == ON_UPDATE and view.kind is not ViewKind.EVENT:
        raise _refuse(f"{where} holds {view.kind}s and has ON_UPDATE", 'Event views have that: write schedule="@hourly", say.')
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
        raise _refuse(
            f"{where}: ttl {view.ttl} is shorter than {least}, the age of the newest value when all runs as planned",
            "Nothing would ever be PRESENT: write a longer ttl.",
        )


def _check_query(view: FeatureView, where: str) -> None:
    if not view.sources:
        raise _refuse(f"{where} has no sources", "Name at least one ParquetSource.")
    names = [source.name.lower() for source in view.sources]
    if len(set(names)) != len(names):
        raise _refuse(f"{where} names a source twice", "Name each source once.")
    if view.kind is ViewKind.AGGREGATE:
        if view.query is not None:
            raise _refuse(f"{where} has aggregates and a query", "Aggregates read their source: leave the query out, or use Feature.")
        _one_timed_source(view, where)
    elif view.query is None:
        if view.schedule is not None:
            _one_timed_source(view, where)
        elif len(view.sources) != 1 or view.sources[0].timestamp is None:
            raise _refuse(f"{where} has no query", "Write one, or name one source with a timestamp that holds the values.")
    elif callable(view.query):
        _check_function(view.query, {source.name for source in view.sources}, where)
    elif not view.query.strip():
        raise _refuse(f"{where} has an empty query", "Write one SELECT over its sources.")


def _one_timed_source(view: FeatureView, where: str) -> None:
    if len(view.sources) != 1:
        raise _refuse(f"{where} has {len(view.sources)} sources and no query to join them", "Name one source.")
    if view.sources[0].timestamp is None:
        raise _refuse(
            f"{where}: source {view.sources[0].name!r} has no timestamp", 'Write ParquetSource(..., timestamp="watched_at"), say.'
        )


def _check_function(function: Callable[..., object], sources: set[str], where: str) -> None:
    if clash := sources & {"start", "end"}:
        raise _refuse(f"{where}: source {clash.pop()!r} has the name of a window's bound, which a function gets too", "Rename it.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as exc:
        message = f"{where}: query {function!r} does not tell its parameters.\nWrite a function of the sources' names."
        raise RegistryError(message) from exc
    parameters = [p for p in signature.parameters.values() if p.default is inspect.Parameter.empty]
    unknown = [p.name for p in parameters if p.name not in sources | {"start", "end"} and p.kind is not inspect.Parameter.VAR_KEYWORD]
    if unknown and len(parameters) > 1:
        raise _refuse(
            f"{where}: its function has a parameter {unknown[0]!r}",
            f"Name parameters after sources, or 'start' and 'end'. {suggest(unknown[0], sources)}",
        )
