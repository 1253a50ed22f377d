"""
The checks between computing, pushing and reading: what stops a promotion, and what only warns.

Knows what a written partition must be, and how old data may get. Knows nothing of how either came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import dagster as dg
import duckdb

from feature_platform.materialization import MaterializationReport
from feature_platform.model import FeatureView
from feature_platform.offline.compute import PartitionReport, verify_partition
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.translator import feature_keys, online_key
from feature_platform.windows import Window

__all__ = ["CONTRACT", "DATA_AGE", "contract_metadata", "contract_specs", "data_age_result", "data_age_specs", "find_problems"]

CONTRACT = "contract"
DATA_AGE = "data_age"
_SHOWN = 20


def contract_specs(view: FeatureView) -> list[dg.AssetCheckSpec]:
    """
    Return the blocking check of each feature: what fails it is not pushed.

    Without `partitions_def`: a single-run backfill would skip the check, and the online asset would never run again.
    """
    what = "The file of each window holds the declared columns, unique rows without NULL keys, and as many as it says."
    return [dg.AssetCheckSpec(CONTRACT, asset=key, blocking=True, description=what) for key in feature_keys(view)]


def find_problems(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, reports: Sequence[PartitionReport], store: OfflineStore
) -> dict[Window, list[str]]:
    """Read back what was written and return what is wrong, by window; no entry where the contract holds."""
    found = {report.window: verify_partition(connection, view, report.window, store) for report in reports}
    return {window: problems for window, problems in found.items() if problems}


def contract_metadata(windows: int, problems: Mapping[Window, Sequence[str]]) -> dict[str, dg.MetadataValue]:
    """Return what the check shows: how much was checked, and the first problems."""
    shown: dict[str, dg.MetadataValue] = {"windows": dg.MetadataValue.int(windows)}
    if problems:
        lines = [problem for window in sorted(problems) for problem in problems[window]]
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        shown["problems"] = dg.MetadataValue.md("\n".join(f"- {line}" for line in [*lines[:_SHOWN], *more]))
    return shown


def data_age_specs(view: FeatureView) -> list[dg.AssetCheckSpec]:
    """Return the check of a view's promise on the data itself: the freshness policy sees only that a job ran."""
    if view.freshness is None:
        return []
    what = f"The newest source row behind the online values is at most {view.freshness} old."
    return [dg.AssetCheckSpec(DATA_AGE, asset=online_key(view), description=what)]


def data_age_result(view: FeatureView, report: MaterializationReport, now: datetime) -> dg.AssetCheckResult:
    """Judge the age of what was just pushed; old data warns and blocks nothing."""
    newest = report.newest_source_timestamp
    is_fresh = newest is not None and view.freshness is not None and now - newest <= view.freshness
    age = {} if newest is None else {"data_age_seconds": (now - newest).total_seconds()}
    return dg.AssetCheckResult(passed=is_fresh, check_name=DATA_AGE, severity=dg.AssetCheckSeverity.WARN, metadata=age)
