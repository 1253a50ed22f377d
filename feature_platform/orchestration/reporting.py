"""
What a run tells Dagster: rows, nulls and times of each feature and partition, and whether the contract held.

Knows Dagster's events. Knows nothing of how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from feature_platform.dtypes import from_micros
from feature_platform.materialization import MaterializationReport
from feature_platform.model import FeatureView
from feature_platform.offline.compute import PartitionReport
from feature_platform.orchestration.checks import CONTRACT, contract_metadata
from feature_platform.orchestration.partitions import key_of
from feature_platform.orchestration.translator import feature_key
from feature_platform.windows import Window

__all__ = ["Outcome", "feature_metadata", "online_metadata", "report_all", "report_selected"]

_Metadata = dict[str, dg.MetadataValue]


@dataclass(frozen=True)
class Outcome:
    """
    What became of the windows of one run.

    Attributes:
        reports: Of the windows that were written.
        problems: What the written files break of the contract, by window.
        refused: Why a window was not written.
    """

    reports: Sequence[PartitionReport]
    problems: Mapping[Window, Sequence[str]] = field(default_factory=dict)
    refused: Mapping[Window, str] = field(default_factory=dict)


def report_selected(context: dg.AssetExecutionContext, view: FeatureView, outcome: Outcome) -> Iterator[dg.MaterializeResult[None]]:
    """
    Report a run in which every window was written.

    The features that were not asked for are in the files too: left out here, their freshness and lineage would lie, and the
    online asset would wait for them for ever.
    """
    metadata, passed = contract_metadata(len(outcome.reports), outcome.problems), not outcome.problems
    for feature in view.feature_by_name:
        key = feature_key(view, feature)
        if key not in context.selected_asset_keys:
            _log(context, view, feature, outcome, passed=passed)
            continue
        whole: _Metadata = {}
        for report in outcome.reports:
            if view.schedule is None:
                whole = feature_metadata(view, report, feature)
            else:
                # A result's own metadata would be copied onto every partition of the range.
                shown = feature_metadata(view, report, feature)
                context.add_asset_metadata(shown, asset_key=key, partition_key=key_of(view, report.window))
        wanted = dg.AssetCheckKey(key, CONTRACT) in context.selected_asset_check_keys
        check = dg.AssetCheckResult(passed=passed, check_name=CONTRACT, asset_key=key, metadata=metadata)
        yield dg.MaterializeResult(key, metadata=whole, check_results=[check] if wanted else [])


def report_all(context: dg.AssetExecutionContext, view: FeatureView, outcome: Outcome) -> None:
    """
    Report the windows that were written in a run that will fail for others.

    The check speaks of the newest window: that is what would be pushed.
    """
    bad = {**{window: [text] for window, text in outcome.refused.items()}, **outcome.problems}
    newest = max([report.window for report in outcome.reports] + list(outcome.refused))
    for feature in view.feature_by_name:
        _log(context, view, feature, Outcome(outcome.reports, bad), passed=newest not in bad)


def _log(context: dg.AssetExecutionContext, view: FeatureView, feature: str, outcome: Outcome, *, passed: bool) -> None:
    """Record one feature's partitions and its check by hand, tied together: the online asset asks for the check of the newest write."""
    key = feature_key(view, feature)
    for report in outcome.reports:
        context.log_event(
            dg.AssetMaterialization(
                key,
                partition=None if view.schedule is None else key_of(view, report.window),
                metadata=feature_metadata(view, report, feature),
                tags={"dagster/code_version": view.definition_hash},
            )
        )
    records = context.instance.fetch_materializations(key, limit=1).records if outcome.reports else []
    target = [
        AssetCheckEvaluationTargetMaterializationData(storage_id=one.storage_id, run_id=one.run_id, timestamp=one.timestamp)
        for one in records
    ]
    context.log_event(
        dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=CONTRACT,
            passed=passed,
            blocking=True,
            metadata=contract_metadata(len(outcome.reports), outcome.problems),
            target_materialization_data=target[0] if target else None,
        )
    )


def feature_metadata(view: FeatureView, report: PartitionReport, feature: str) -> _Metadata:
    """Return what Dagster shows of one feature in one partition; numbers are plotted over partitions."""
    partition = report.partition
    rows = "dagster/row_count" if view.schedule is None else "dagster/partition_row_count"
    times = {
        "min_event_timestamp": partition.min_event_timestamp,
        "max_event_timestamp": partition.max_event_timestamp,
        "newest_source_timestamp": partition.newest_source_timestamp,
    }
    return {
        rows: dg.MetadataValue.int(partition.rows),
        "nulls": dg.MetadataValue.int(partition.nulls.get(feature, 0)),
        "tombstones": dg.MetadataValue.int(partition.tombstones),
        "dropped_rows": dg.MetadataValue.int(partition.dropped),
        "kind": dg.MetadataValue.text(report.kind),
        "generation": dg.MetadataValue.int(partition.generation),
        "seconds": dg.MetadataValue.float(report.seconds),
        "path": dg.MetadataValue.path(report.path),
        **{name: dg.MetadataValue.timestamp(from_micros(micros)) for name, micros in times.items() if micros is not None},
    }


def online_metadata(report: MaterializationReport, now: datetime) -> _Metadata:
    """Return what Dagster shows of one push; the age is the data's own, not the job's."""
    times = {
        "as_of": report.as_of,
        "newest_event_timestamp": report.newest_event_timestamp,
        "newest_source_timestamp": report.newest_source_timestamp,
    }
    shown: _Metadata = {
        "rows_read": dg.MetadataValue.int(report.rows_read),
        "rows_written": dg.MetadataValue.int(report.rows_written),
        "rows_removed": dg.MetadataValue.int(report.rows_removed),
        "rows_skipped": dg.MetadataValue.int(report.rows_skipped),
        "generation": dg.MetadataValue.int(report.generation),
        "seconds": dg.MetadataValue.float(report.seconds),
        **{name: dg.MetadataValue.timestamp(instant) for name, instant in times.items() if instant is not None},
    }
    if report.newest_source_timestamp is not None:
        shown["data_age_seconds"] = dg.MetadataValue.float((now - report.newest_source_timestamp).total_seconds())
    return shown
