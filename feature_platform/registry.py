"""
The registry: all views and services of a project, checked against each other while loading.

Knows how declarations go together; what each may say by itself is `declarations`'. Knows no engine: whether a source's files
exist, and whether a query returns what it declares, is found out when it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from feature_platform.declarations import check_entity, check_source, check_types, check_view, each, refuse, safe, unique
from feature_platform.dtypes import Dtype
from feature_platform.errors import NameClashError, RegistryError, UnknownNameError, suggest
from feature_platform.model import Aggregate, Entity, Feature, FeatureSelection, FeatureService, FeatureView, ParquetSource

__all__ = ["FeatureRef", "Features", "Registry"]


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
        for view in each(views, FeatureView, "views", "Registry"):
            safe("view", view.name)
            unique("view", view.name, self.views)
            self._add(view)
            self.views[view.name] = view
        for service in each(services, FeatureService, "services", "Registry"):
            safe("service", service.name)
            unique("service", service.name, self.services)
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
            pairs = [self._find(name) for name in each(features, str, "features", "a list of references", field="features")]
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
        check_types(view, where)
        check_entity(view.entity)
        if self.entities.setdefault(view.entity.name, view.entity) != view.entity:
            raise refuse(f"{where}: entity {view.entity.name!r} is declared twice, differently", "Use one Entity, or other names.")
        for source in each(view.sources, ParquetSource, "sources", where):
            check_source(source, where)
            if self.sources.setdefault(source.name, source) != source:
                raise refuse(f"{where}: source {source.name!r} is declared twice, differently", "Give one of them another name.")
        check_view(view, where)

    def _check_known(self, view: FeatureView, where: str) -> None:
        known = self.views.get(view.name)
        if known is not view and known != view:
            what = "is not in the registry" if known is None else "is not the one that the registry has by that name"
            raise refuse(f"{where}: view {view.name!r} {what}", f"Add it to views. {suggest(view.name, self.views)}")

    def _check_selections(self, service: FeatureService) -> dict[str, tuple[Dtype, str]]:
        """Refuse a service over views that are not here or do not go together; return its join keys."""
        where = f"service {service.name!r}"
        check_types(service, where)
        if not list(each(service.features, (FeatureView, FeatureSelection), "features", where)):
            raise refuse(f"{where} has no features", "List views, or selections such as activity[['watch_count_30d']].")
        keys: dict[str, tuple[Dtype, str]] = {}
        for selection in service.selections:
            self._check_known(selection.view, where)
            each(selection.names, str, "a selection", where)
            if not selection.names:
                raise refuse(f"{where}: selects nothing of view {selection.view.name!r}", "Name some features, or leave the view out.")
            for name, dtype in selection.view.entity.keys.items():
                first = keys.setdefault(name, (dtype, selection.view.name))
                if first[0] != dtype:
                    raise refuse(
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
                raise refuse(f"{where}: feature {ref} has the name of a join key", "Use full_feature_names=True.")


def _feature(view: FeatureView, name: str) -> Feature | Aggregate:
    if name not in view.feature_by_name:
        raise UnknownNameError("feature", name, view.feature_by_name, where=f"view {view.name!r}", field="features")
    return view.feature_by_name[name]
