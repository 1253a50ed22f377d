"""
What a run tells Dagster: rows, nulls and times of each feature and partition, and what became of its checks.

Knows Dagster's events. Knows nothing of how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from feature_platform.dtypes import from_micros
from feature_platform.materialization import MaterializationReport
from feature_platform.model import FeatureView
from feature_platform.offline.due import Pending
from feature_platform.offline.gate import ExpectationFailure
from feature_platform.offline.writer import PartitionReport
from feature_platform.orchestration.checks import (
    CONTRACT,
    LATE_DATA,
    VOLUME,
    contract_metadata,
    expectation_metadata,
    late_data_metadata,
    listed,
)
from feature_platform.orchestration.partitions import key_of
from feature_platform.orchestration.translator import feature_key
from feature_platform.windows import Window

__all__ = ["Outcome", "feature_metadata", "late_data_evaluations", "online_metadata", "report_failed", "report_selected"]

_Metadata = dict[str, dg.MetadataValue]


@dataclass(frozen=True)
class Outcome:
    """
    What became of the windows of one run.

    Attributes:
        reports: Of the windows whose rows were computed, those that were rejected among them.
        pending: What is to be computed of the view now.
        problems: What the written files break of the contract, by window.
        refused: Why a window's rows were not even computed.
        unusual: What is unusual about the written partitions, by feature.
        root: The project folder: paths are shown from there.
        newest: The newest window of the view's history.
    """

    reports: Sequence[PartitionReport]
    pending: Pending
    problems: Mapping[Window, Sequence[str]] = field(default_factory=dict)
    refused: Mapping[Window, str] = field(default_factory=dict)
    unusual: Mapping[str, Sequence[str]] = field(default_factory=dict)
    root: Path = field(default_factory=Path)
    newest: Window | None = None

    @property
    def promoted(self) -> list[PartitionReport]:
        """The reports of windows that are in the history as computed."""
        return [report for report in self.reports if report.outcome != "rejected"]

    @property
    def rejected(self) -> list[PartitionReport]:
        """The reports of windows whose rows broke an expectation."""
        return [report for report in self.reports if report.outcome == "rejected"]

    def failures(self, feature: str, expectation: str) -> dict[Window, ExpectationFailure]:
        """Return where one expectation of a feature was broken."""
        broken = ((report.window, failure) for report in self.rejected for failure in report.failures)
        return {window: one for window, one in broken if (one.feature, one.expectation) == (feature, expectation)}


@dataclass(frozen=True)
class _Check:
    """One check of one feature, judged."""

    name: str
    passed: bool
    metadata: _Metadata
    blocking: bool = True

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        return dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN


def _judge(view: FeatureView, feature: str, outcome: Outcome) -> list[_Check]:
    windows = len(outcome.reports) + len(outcome.refused)
    bad = {**{window: [text] for window, text in outcome.refused.items()}, **outcome.problems}
    checks = [_Check(CONTRACT, not bad, contract_metadata(windows, bad))]
    for expected in view.feature_by_name[feature].expect:
        failures = outcome.failures(feature, expected.name)
        checks.append(_Check(expected.name, not failures, expectation_metadata(windows, failures)))
    unusual = outcome.unusual.get(feature, ())
    shown: _Metadata = {"unusual": listed(unusual)} if unusual else {"windows": dg.MetadataValue.int(windows)}
    checks.append(_Check(VOLUME, not unusual, shown, blocking=False))
    is_settled = not outcome.pending.late and not outcome.pending.waiting
    checks.append(_Check(LATE_DATA, is_settled, late_data_metadata(outcome.pending), blocking=False))
    return checks


def report_selected(context: dg.AssetExecutionContext, view: FeatureView, outcome: Outcome) -> Iterator[dg.MaterializeResult[None]]:
    """
    Report a run in which every window was promoted.

    The features that were not asked for are in the files too: left out here, their freshness and lineage would lie, and the
    online asset would wait for them for ever.
    """
    for feature in view.feature_by_name:
        key = feature_key(view, feature)
        if key not in context.selected_asset_keys:
            _log(context, view, feature, outcome)
            continue
        whole: _Metadata = {}
        for report in outcome.promoted:
            if view.schedule is None:
                whole = feature_metadata(view, report, feature, outcome.root)
            else:
                # A result's own metadata would be copied onto every partition of the range.
                shown = feature_metadata(view, report, feature, outcome.root)
                context.add_asset_metadata(shown, asset_key=key, partition_key=key_of(view, report.window))
        results = [
            dg.AssetCheckResult(passed=one.passed, check_name=one.name, asset_key=key, severity=one.severity, metadata=one.metadata)
            for one in _judge(view, feature, outcome)
            if dg.AssetCheckKey(key, one.name) in context.selected_asset_check_keys
        ]
        yield dg.MaterializeResult(key, metadata=whole, check_results=results)


def report_failed(context: dg.AssetExecutionContext, view: FeatureView, outcome: Outcome) -> None:
    """Report the windows that were promoted in a run that will fail for others."""
    for feature in view.feature_by_name:
        _log(context, view, feature, outcome)


def _log(context: dg.AssetExecutionContext, view: FeatureView, feature: str, outcome: Outcome) -> None:
    """
    Record one feature's partitions and its checks by hand, tied together: the online asset asks for those of the newest write.

    A check that failed for some windows only is followed by one that speaks of the newest of the history: that is what would be
    pushed.
    """
    key = feature_key(view, feature)
    for report in outcome.promoted:
        context.log_event(
            dg.AssetMaterialization(
                key,
                partition=None if view.schedule is None else key_of(view, report.window),
                metadata=feature_metadata(view, report, feature, outcome.root),
                tags={"dagster/code_version": view.definition_hash},
            )
        )
    records = context.instance.fetch_materializations(key, limit=1).records
    target = [
        AssetCheckEvaluationTargetMaterializationData(storage_id=one.storage_id, run_id=one.run_id, timestamp=one.timestamp)
        for one in records
    ]
    bad = {*outcome.refused, *outcome.problems, *(report.window for report in outcome.rejected)}
    newest = max({report.window for report in outcome.promoted} | bad | ({outcome.newest} if outcome.newest else set()))
    for one in _judge(view, feature, outcome):
        judged = [one] if one.passed or newest in bad or not one.blocking else [one, _Check(one.name, passed=True, metadata=one.metadata)]
        for check in judged:
            context.log_event(
                dg.AssetCheckEvaluation(
                    asset_key=key,
                    check_name=check.name,
                    passed=check.passed,
                    blocking=check.blocking,
                    severity=check.severity,
                    metadata=check.metadata,
                    target_materialization_data=target[0] if target and newest not in bad else None,
                )
            )


def late_data_evaluations(view: FeatureView, pending: Pending) -> list[dg.AssetCheckEvaluation]:
    """Return the marks of a view whose source files changed, or no longer differ: one for each feature."""
    return [
        dg.AssetCheckEvaluation(
            asset_key=feature_key(view, feature),
            check_name=LATE_DATA,
            passed=not pending.late and not pending.waiting,
            severity=dg.AssetCheckSeverity.WARN,
            metadata=late_data_metadata(pending),
        )
        for feature in view.feature_by_name
    ]


def feature_metadata(view: FeatureView, report: PartitionReport, feature: str, root: Path) -> _Metadata:
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
        "outcome": dg.MetadataValue.text(report.outcome),
        "generation": dg.MetadataValue.int(partition.generation),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        "path": dg.MetadataValue.path(report.path.relative_to(root) if report.path.is_relative_to(root) else report.path),
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
        "rows_unchanged": dg.MetadataValue.int(report.rows_unchanged),
        "pushed": dg.MetadataValue.text("every key" if report.is_complete else "keys that may have changed"),
        "generation": dg.MetadataValue.int(report.generation),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        **{name: dg.MetadataValue.timestamp(instant) for name, instant in times.items() if instant is not None},
    }
    if report.newest_source_timestamp is not None:
        shown["data_age_seconds"] = dg.MetadataValue.float(round((now - report.newest_source_timestamp).total_seconds(), 0))
    return shown
