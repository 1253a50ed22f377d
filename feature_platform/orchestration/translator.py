"""
What Dagster shows of a declaration: feature views and sources as asset specs.

Knows the declared names, types and promises. Knows nothing of how values are computed or pushed.
"""

from __future__ import annotations

import re
from datetime import timedelta

import dagster as dg

from feature_platform.model import Aggregate, Feature, FeatureService, FeatureView, ParquetSource
from feature_platform.orchestration.partitions import partitions_def
from feature_platform.wording import definition_text, span

__all__ = [
    "feature_key",
    "feature_keys",
    "feature_specs",
    "freshness_policy",
    "online_key",
    "pool_of",
    "source_key",
    "source_spec",
    "view_tags",
]

_LEAST_FRESHNESS = timedelta(minutes=1)
_TAG_LENGTH = 63
_UNSAFE_IN_TAG = re.compile(r"[^A-Za-z0-9_.-]+")


def feature_key(view: FeatureView, feature: str) -> dg.AssetKey:
    """Return the asset key of one feature."""
    return dg.AssetKey(["features", view.name, feature])


def feature_keys(features: FeatureView | FeatureService) -> list[dg.AssetKey]:
    """Return the asset keys of all features of a view or service: what an asset that reads them depends on."""
    if isinstance(features, FeatureView):
        return [feature_key(features, feature.name) for feature in features.features]
    return [feature_key(selection.view, name) for selection in features.selections for name in selection.names]


def online_key(view: FeatureView) -> dg.AssetKey:
    """Return the asset key of a view's newest values in the online store."""
    return dg.AssetKey(["online", view.name])


def source_key(source: ParquetSource) -> dg.AssetKey:
    """Return the asset key of a source."""
    return dg.AssetKey(["sources", source.name])


def pool_of(view: FeatureView) -> str:
    """Return the pool that compute and push share: one writer per view."""
    return f"view_{view.name}"


def source_spec(source: ParquetSource) -> dg.AssetSpec:
    """Describe a source: files that somebody else writes."""
    times = {"event_timestamp": source.timestamp, "created_timestamp": source.created_timestamp}
    return dg.AssetSpec(
        source_key(source),
        group_name="sources",
        kinds={"parquet"},
        description=source.description or f"Parquet files at {source.path}.",
        metadata={"path": dg.MetadataValue.path(source.path), **{name: column for name, column in times.items() if column}},
    )


def feature_specs(view: FeatureView) -> list[dg.AssetSpec]:
    """Describe each feature of a view, in declared order."""
    partitions = partitions_def(view)
    return [
        dg.AssetSpec(
            feature_key(view, feature.name),
            deps=[source_key(source) for source in view.sources],
            group_name=view.name,
            owners=list(view.owners),
            kinds={"parquet", "duckdb"},
            tags=view_tags(view),
            description=feature.description or view.description or None,
            code_version=view.definition_hash,
            partitions_def=partitions,
            freshness_policy=freshness_policy(view),
            metadata=_metadata(view, feature),
        )
        for feature in view.features
    ]


def view_tags(view: FeatureView) -> dict[str, str]:
    """Return the tags of a view's assets; what Dagster does not allow in a tag becomes '_'."""
    declared = {_clean(name): _clean(value) for name, value in view.tags.items()}
    return {**declared, "entity": _clean(view.entity.name), "view_kind": str(view.kind)}


def freshness_policy(view: FeatureView) -> dg.FreshnessPolicy | None:
    """Return the promise of a view: it fails at `freshness`, and warns at three quarters of it."""
    warn = view.freshness_warning
    if view.freshness is None or warn is None:
        return None
    # Dagster looks every half a minute and takes no window under one.
    return dg.FreshnessPolicy.time_window(fail_window=view.freshness, warn_window=warn if warn >= _LEAST_FRESHNESS else None)


def _metadata(view: FeatureView, feature: Feature | Aggregate) -> dict[str, dg.MetadataValue | str]:
    spans = {"lookback": view.lookback, "delay": view.delay or None, "ttl": view.ttl, "freshness": view.freshness}
    spans["late_data_horizon"] = view.late_data_horizon
    shown: dict[str, dg.MetadataValue | str] = {
        "dagster/column_schema": dg.MetadataValue.table_schema(_columns(view, feature)),
        "dagster/table_name": f"{view.name}.{feature.name}",
        "definition": dg.MetadataValue.md(_definition(view, feature)),
        "schedule": "not partitioned" if view.schedule is None else f"{view.schedule} ({view.timezone})",
        **{name: span(length) for name, length in spans.items() if length is not None},
    }
    if feature.effective_default is not None:
        shown["default"] = repr(feature.effective_default)
    return shown


def _columns(view: FeatureView, feature: Feature | Aggregate) -> dg.TableSchema:
    required = dg.TableColumnConstraints(nullable=False)
    keys = [dg.TableColumn(name, str(dtype), "Join key.", required) for name, dtype in view.entity.keys.items()]
    times = [dg.TableColumn("event_timestamp", "datetime", "When the value became true.", required)]
    if view.has_created_timestamp:
        times.append(dg.TableColumn("created_timestamp", "datetime", "When it was known."))
    return dg.TableSchema([*keys, *times, dg.TableColumn(feature.name, str(feature.type), feature.description or None)])


def _definition(view: FeatureView, feature: Feature | Aggregate) -> str:
    """Return how a feature is computed, as Markdown."""
    text = definition_text(view, feature)
    return f"```sql\n{text}\n```" if isinstance(view.query, str) else text


def _clean(text: str) -> str:
    return _UNSAFE_IN_TAG.sub("_", text)[:_TAG_LENGTH]
