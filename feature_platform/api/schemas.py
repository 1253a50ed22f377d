"""
The schemas of the API, generated from the registry: every service and every dtype is in OpenAPI.

Knows the registry and JSON Schema. Knows no route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from feature_platform.api.problems import ProblemBody
from feature_platform.dtypes import Dtype, from_micros, resolve
from feature_platform.model import FeatureService, FeatureStatus, FeatureView, Freshness
from feature_platform.online.answers import ViewProvenance
from feature_platform.online.codec import ViewMeta
from feature_platform.registry import FeatureRef, Registry

__all__ = [
    "FeatureInfo",
    "FeatureList",
    "Health",
    "JsonSchema",
    "Readiness",
    "ServiceInfo",
    "ServiceList",
    "ViewInfo",
    "ViewReadiness",
    "components",
    "features_of",
    "readiness",
    "reference",
    "request_name",
    "response_name",
    "service_info",
    "view_info",
]

JsonSchema: TypeAlias = "dict[str, Any]"


class FeatureInfo(msgspec.Struct, frozen=True):
    """A declared feature; `default` is the answer where there is no value."""

    name: str
    reference: str
    view: str
    dtype: str
    description: str
    default: Any
    join_keys: dict[str, str]


class FeatureList(msgspec.Struct, frozen=True):
    """All declared features."""

    features: list[FeatureInfo]


class ViewInfo(msgspec.Struct, frozen=True):
    """A declared view with its features."""

    name: str
    kind: str
    entity: str
    join_keys: dict[str, str]
    schedule: str | None
    timezone: str
    ttl_seconds: float | None
    freshness_seconds: float | None
    owners: list[str]
    description: str
    features: list[FeatureInfo]


class ServiceInfo(msgspec.Struct, frozen=True):
    """A declared service; `columns` are the names of its features in answers."""

    name: str
    description: str
    join_keys: dict[str, str]
    features: list[str]
    columns: list[str]


class ServiceList(msgspec.Struct, frozen=True):
    """All declared services."""

    services: list[ServiceInfo]


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str = "ok"


class ViewReadiness(msgspec.Struct, frozen=True):
    """
    How old a view is in the online store.

    Attributes:
        materialized_at: The moment whose truth was pushed last.
        as_of: Of a window view: the end of its newest window then.
        age_seconds: Age of the data: since the newest source row that was read, else the as-of, else the materialization.
        freshness: How that stands to what the view promises: pass, warn or fail; null where it promises nothing.
        rows: How many the last push wrote that wrote any.
    """

    materialized_at: str
    as_of: str | None
    age_seconds: float
    freshness: str | None
    rows: int


class Readiness(msgspec.Struct, frozen=True):
    """
    Every view is in the online store.

    Attributes:
        status: ready; or stale, where the data of some view is older than it promises: values are served all the same.
        views: By name.
    """

    status: str
    views: dict[str, ViewReadiness]


def features_of(view: FeatureView) -> list[FeatureInfo]:
    """Describe a view's features, in declared order."""
    return [
        FeatureInfo(
            name=feature.name,
            reference=f"{view.name}:{feature.name}",
            view=view.name,
            dtype=str(feature.type),
            description=feature.description,
            default=_to_json(feature.type, feature.effective_default),
            join_keys=_names(view.entity.keys),
        )
        for feature in view.features
    ]


def view_info(view: FeatureView) -> ViewInfo:
    """Describe a view."""
    return ViewInfo(
        name=view.name,
        kind=view.kind,
        entity=view.entity.name,
        join_keys=_names(view.entity.keys),
        schedule=view.schedule,
        timezone=view.timezone,
        ttl_seconds=view.ttl.total_seconds() if view.ttl else None,
        freshness_seconds=view.freshness.total_seconds() if view.freshness else None,
        owners=list(view.owners),
        description=view.description,
        features=features_of(view),
    )


def service_info(registry: Registry, service: FeatureService) -> ServiceInfo:
    """Describe a service."""
    refs = registry.resolve(service)
    return ServiceInfo(
        name=service.name,
        description=service.description,
        join_keys=_names(registry.join_keys(refs)),
        features=[str(ref) for ref in refs],
        columns=[ref.column for ref in refs],
    )


def readiness(registry: Registry, metas: Mapping[str, ViewMeta], now: datetime) -> Readiness:
    """Describe the metas of all views."""
    views = {name: _view_readiness(registry.views[name], meta, now) for name, meta in metas.items()}
    is_stale = any(view.freshness == Freshness.FAIL for view in views.values())
    return Readiness("stale" if is_stale else "ready", views)


def _view_readiness(view: FeatureView, meta: ViewMeta, now: datetime) -> ViewReadiness:
    age = meta.age_seconds(now)
    return ViewReadiness(
        materialized_at=_instant(meta.materialized_at),
        as_of=None if meta.as_of is None else _instant(meta.as_of),
        age_seconds=age,
        freshness=view.freshness_at(timedelta(seconds=age)),
        rows=meta.rows,
    )


def reference(name: str) -> JsonSchema:
    """Return the schema that points to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def request_name(service: str) -> str:
    """Return the component that a service is asked with."""
    return f"{service}_request"


def response_name(service: str) -> str:
    """Return the component that a service answers with."""
    return f"{service}_response"


def components(registry: Registry) -> dict[str, JsonSchema]:
    """Return all schemas by name."""
    structs = [ProblemBody, FeatureInfo, FeatureList, ViewInfo, ServiceInfo, ServiceList, Health, Readiness, ViewReadiness, ViewProvenance]
    _, found = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    found["FeatureStatus"] = {
        "type": "string",
        "enum": [status.value for status in FeatureStatus],
        "description": "What stands behind a value; the declared default replaces it in the last two.",
    }
    found |= {"OnlineRequest": _ANY_REQUEST, "OnlineAnswer": _ANY_ANSWER, "OnlineColumns": _columns_of([], _ANY_VIEWS)}
    for service in registry.services.values():
        refs = registry.resolve(service)
        found |= _service_schemas(service, refs, registry.join_keys(refs))
    return found


def _service_schemas(service: FeatureService, refs: Sequence[FeatureRef], keys: Mapping[str, Dtype]) -> dict[str, JsonSchema]:
    name = service.name
    metadata = {"type": "boolean", "default": False, "description": "Add event_timestamps, and where each view's values come from."}
    key_values = {key: dtype.json_schema for key, dtype in keys.items()}
    key_lists = {key: {"type": "array", "items": schema} for key, schema in key_values.items()}
    features = {ref.column: _describe(ref) for ref in refs}
    statuses = {ref.column: reference("FeatureStatus") for ref in refs}
    times = {ref.column: _nullable({"type": "string", "format": "date-time"}) for ref in refs}
    views = _closed({ref.view.name: reference("ViewProvenance") for ref in refs})
    row = _closed({**key_values, "metadata": metadata}, list(key_values), service.description)
    rows = _closed({"entities": _closed(key_lists), "metadata": metadata}, ["entities"], service.description)
    answer = {**key_values, "features": _closed(features), "statuses": _closed(statuses)}
    names = {
        "row": f"{name}_row",
        "rows": f"{name}_rows",
        "answer": f"{name}_answer",
        "columns": f"{name}_columns",
    }
    return {
        names["row"]: row,
        names["rows"]: rows,
        request_name(name): {"oneOf": [reference(names["row"]), reference(names["rows"])]},
        names["answer"]: _closed({**answer, "event_timestamps": _closed(times), "views": views}, list(answer), service.description),
        names["columns"]: _columns_of([*key_values.values(), *features.values()], views),
        response_name(name): {"oneOf": [reference(names["answer"]), reference(names["columns"])]},
    }


def _columns_of(values: Sequence[JsonSchema], views: JsonSchema) -> JsonSchema:
    """Return the columnar answer; typed by position where the columns are known."""

    def column(value: JsonSchema) -> JsonSchema:
        parts = {"values": value, "statuses": reference("FeatureStatus"), "event_timestamps": {"type": "string", "format": "date-time"}}
        return _closed({part: {"type": "array", "items": schema} for part, schema in parts.items()})

    results: JsonSchema = {"type": "array", "items": column({})}
    if values:
        results = {"type": "array", "prefixItems": [column(value) for value in values], "items": False, "minItems": len(values)}
    names = {"type": "array", "items": {"type": "string"}}
    description = "One result for every name: the join keys first, then the features in the order asked. No timestamp is the epoch."
    metadata = _closed({"feature_names": names, "views": views}, ["feature_names"])
    return _closed({"metadata": metadata, "results": results}, description=description)


def _closed(properties: JsonSchema, required: Sequence[str] | None = None, description: str = "") -> JsonSchema:
    schema: JsonSchema = {"type": "object", "properties": properties, "additionalProperties": False}
    names = list(properties) if required is None else list(required)
    return schema | ({"required": names} if names else {}) | ({"description": description} if description else {})


def _describe(ref: FeatureRef) -> JsonSchema:
    schema = _nullable(ref.feature.type.json_schema)
    return {**schema, "description": ref.feature.description} if ref.feature.description else schema


def _nullable(schema: JsonSchema) -> JsonSchema:
    return {"anyOf": [schema, {"type": "null"}]}


def _names(keys: Mapping[str, Dtype]) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in keys.items()}


def _to_json(dtype: Dtype, value: object) -> object:
    return value if value is None or dtype.to_json is None else dtype.to_json(value)


def _instant(micros: int) -> str:
    return str((resolve(datetime).to_json or str)(from_micros(micros)))


_ANY_REQUEST: JsonSchema = {
    "type": "object",
    "description": "One entity: its join keys stand beside the options. Several: entities holds a list for every join key.",
    "properties": {
        "features": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": "'view:feature', or bare where that is unique.",
        },
        "feature_service": {"type": "string", "description": "Instead of features."},
        "entities": {"type": "object", "additionalProperties": {"type": "array"}},
        "full_feature_names": {"type": "boolean", "default": False, "description": "Name results 'view__feature'."},
        "metadata": {
            "type": "boolean",
            "default": False,
            "description": "Add event_timestamps (the columnar form always has them), and where each view's values come from.",
        },
    },
    "oneOf": [{"required": ["features"]}, {"required": ["feature_service"]}],
    "additionalProperties": True,
}
_ANY_VIEWS: JsonSchema = {"type": "object", "additionalProperties": reference("ViewProvenance")}
_ANY_ANSWER: JsonSchema = {
    "type": "object",
    "description": "The join keys as they were sent, and by feature its value and status.",
    "properties": {
        "features": {"type": "object"},
        "statuses": {"type": "object", "additionalProperties": reference("FeatureStatus")},
        "event_timestamps": {"type": "object", "additionalProperties": _nullable({"type": "string", "format": "date-time"})},
        "views": _ANY_VIEWS,
    },
    "required": ["features", "statuses"],
    "additionalProperties": True,
}
