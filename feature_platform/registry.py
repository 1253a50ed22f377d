"""
The registry: all views and services of a project, checked against each other while loading.

Knows what may be declared. Knows no engine: whether a source's files exist, and whether a query
returns what it declares, is found out when it is computed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from feature_platform.dtypes import Dtype
from feature_platform.errors import DtypeError, NameClashError, RegistryError, UnknownNameError, suggest
from feature_platform.model import (
    ON_UPDATE,
    Aggregate,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    ParquetSource,
    ViewKind,
)
from feature_platform.windows import grid_of

__all__ = ["AGGREGATE_FUNCTIONS", "FeatureRef", "Features", "Registry"]

AGGREGATE_FUNCTIONS = ("count", "sum", "mean", "min", "max", "count_distinct", "last_n")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_TIME_COLUMNS = frozenset({"event_timestamp", "created_timestamp"})
# Fields of the HTTP request and answer, beside which join keys stand.
_REQUEST_FIELDS = frozenset({"features", "feature_service", "entities", "metadata", "full_feature_names", "statuses", "event_timestamps"})
_OWNER = re.compile(r"team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+")
_ZERO = timedelta(0)


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
        for view in views:
            _unique("view", view.name, self.views)
            self._add(view)
            self.views[view.name] = view
        for service in services:
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
            pairs = [(selection.view, _feature(selection.view, name)) for selection in service.selections for name in selection.names]
        else:
            pairs = [self._find(name) for name in features]
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
        """Return the join keys that rows must have for these features: the union over their entities."""
        return {name: dtype for ref in refs for name, dtype in ref.view.entity.keys.items()}

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
        _safe("view", view.name)
        self._check_entity(view.entity, where)
        for source in view.sources:
            _check_source(source, where)
            if self.sources.setdefault(source.name, source) != source:
                raise _refuse(f"{where}: source {source.name!r} is declared twice, differently", "Give one of them another name.")
        _check_features(view, where)
        _check_times(view, where)
        _check_schedule(view, where)
        _check_query(view, where)
        for owner in view.owners:
            if not _OWNER.fullmatch(owner):
                raise _refuse(f"{where}: owner {owner!r} is not understood", "Write 'team:name' or an e-mail address.")

    def _check_entity(self, entity: Entity, where: str) -> None:
        _safe("entity", entity.name)
        for name, dtype in _dtypes(f"entity {entity.name!r}", entity):
            _safe(f"join key of entity {entity.name!r}", name)
            if name in _TIME_COLUMNS | _REQUEST_FIELDS:
                raise _refuse(f"entity {entity.name!r}: join key {name!r} is a reserved name", f"Call it {entity.name}_{name}.")
            if dtype.family not in {"bool", "int", "str", "bytes", "date", "datetime", "decimal"}:
                raise _refuse(
                    f"entity {entity.name!r}: join key {name!r} has dtype {dtype}, whose values have no one spelling",
                    "Use int or str.",
                )
        if self.entities.setdefault(entity.name, entity) != entity:
            raise _refuse(f"{where}: entity {entity.name!r} is declared twice, differently", "Use one Entity, or other names.")

    def _check_service(self, service: FeatureService) -> None:
        where = f"service {service.name!r}"
        _safe("service", service.name)
        keys: dict[str, tuple[Dtype, str]] = {}
        for selection in service.selections:
            if self.views.get(selection.view.name) is not selection.view and self.views.get(selection.view.name) != selection.view:
                hint = suggest(selection.view.name, self.views)
                raise _refuse(f"{where}: view {selection.view.name!r} is not in the registry", f"Add it to views. {hint}")
            if not selection.names:
                raise _refuse(f"{where}: selects nothing of view {selection.view.name!r}", "Name some features, or leave the view out.")
            for name, dtype in selection.view.entity.keys.items():
                first = keys.setdefault(name, (dtype, selection.view.name))
                if first[0] != dtype:
                    raise _refuse(
                        f"{where}: join key {name!r} is {first[0]} in view {first[1]!r} and {dtype} in {selection.view.name!r}",
                        "Give the key one dtype.",
                    )
        try:
            refs = self.resolve(service)
        except (UnknownNameError, NameClashError) as exc:
            message = f"{where}: {exc}"
            raise RegistryError(message) from exc
        for ref in refs:
            if ref.column in keys:
                raise _refuse(f"{where}: feature {ref} has the name of a join key", "Use full_feature_names=True.")


def _feature(view: FeatureView, name: str) -> Feature | Aggregate:
    if name not in view.feature_by_name:
        raise UnknownNameError("feature", name, view.feature_by_name, where=f"view {view.name!r}", field="features")
    return view.feature_by_name[name]


def _refuse(what: str, instead: str) -> RegistryError:
    return RegistryError(f"{what}.\n{instead}")


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
    if not isinstance(source, ParquetSource):
        raise _refuse(f"{where}: source {source!r} is not a ParquetSource", "Write ParquetSource(name, path).")
    _safe("source", source.name)
    if not source.path:
        raise _refuse(f"source {source.name!r} has no path", "Name a Parquet file or a glob of them.")
    if source.created_timestamp and not source.timestamp:
        raise _refuse(f"source {source.name!r} has a created_timestamp and no timestamp", "Name the column of the event's own time too.")
    if source.timestamp is not None and source.timestamp == source.created_timestamp:
        raise _refuse(f"source {source.name!r}: both its times are {source.timestamp!r}", "Leave created_timestamp out.")


def _check_features(view: FeatureView, where: str) -> None:
    if not view.features:
        raise _refuse(f"{where} has no features", "Declare at least one.")
    seen: dict[str, str] = {}
    for feature in view.features:
        _safe(f"{where}: feature", feature.name)
        other = seen.setdefault(feature.name.lower(), feature.name)
        if other != feature.name:
            raise _refuse(f"{where}: features {other!r} and {feature.name!r} have one name in SQL", "Rename one of them.")
        if feature.name in _TIME_COLUMNS or feature.name in view.entity.join_keys:
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
    if feature.column is None and feature.function != "count":
        raise _refuse(f"{label}: {feature.function} needs a column", 'Write column="minutes", say.')
    if (feature.n is not None) != (feature.function == "last_n"):
        raise _refuse(f"{label}: n goes with last_n, and last_n with n", "Write Aggregate(name, 'last_n', n=5, column=..., window=...).")
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
        grid = grid_of(view)
    except RegistryError as exc:
        message = f"{where}: {exc}"
        raise RegistryError(message) from exc
    least = view.delay + (grid.period if grid and view.is_window_view else _ZERO)
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
        _check_function(view.query, set(names), where)
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
    parameters = [p for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    unknown = [p.name for p in parameters if p.name not in sources | {"start", "end"} and p.kind is not inspect.Parameter.VAR_KEYWORD]
    if unknown and len(parameters) > 1:
        raise _refuse(
            f"{where}: its function has a parameter {unknown[0]!r}",
            f"Name parameters after sources, or 'start' and 'end'. {suggest(unknown[0], sources)}",
        )
