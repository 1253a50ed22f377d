"""
The checks between computing, pushing and reading: what stops a promotion, and what only warns.

Knows what a written partition must be, and how far it may be from those before it. Knows nothing of how it came about, nor
of events: `reporting` tells Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import dagster as dg
import duckdb

from feature_platform.model import FeatureView
from feature_platform.offline.compute import PartitionReport, verify_partition
from feature_platform.offline.due import Pending
from feature_platform.offline.gate import ExpectationFailure
from feature_platform.offline.store import OfflineStore, Partition
from feature_platform.orchestration.translator import feature_key
from feature_platform.windows import Window

__all__ = [
    "CONTRACT",
    "LATE_DATA",
    "VOLUME",
    "contract_metadata",
    "expectation_metadata",
    "feature_check_specs",
    "find_problems",
    "find_unusual",
    "late_data_metadata",
    "listed",
]

CONTRACT, VOLUME, LATE_DATA = "contract", "volume", "late_data"
_SHOWN = 20
# A day of hourly partitions, so that the nights are among what is usual.
_RECENT, _LEAST_RECENT = 24, 3
_FACTOR, _NULL_RATE_STEP = 2, 0.1


def feature_check_specs(view: FeatureView) -> list[dg.AssetCheckSpec]:
    """
    Return the checks of each feature: the contract and its expectations block, the rest warns.

    Without `partitions_def`: a single-run backfill would skip the checks, and the online asset would never run again.
    """
    specs: list[dg.AssetCheckSpec] = []
    for feature in view.features:
        key = feature_key(view, feature.name)
        specs += [
            dg.AssetCheckSpec(
                CONTRACT,
                asset=key,
                blocking=True,
                description="The file of each window holds the declared columns, unique rows without NULL keys, and as many as it says.",
            ),
            *(
                dg.AssetCheckSpec(
                    expected.name, asset=key, blocking=True, description=f"{expected}: a partition that breaks it is not promoted."
                )
                for expected in feature.expect
            ),
            dg.AssetCheckSpec(VOLUME, asset=key, description="Rows and share of NULLs are about those of the partitions before."),
            dg.AssetCheckSpec(LATE_DATA, asset=key, description="No computed window's source files have changed since."),
        ]
    return specs


def find_problems(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, reports: Sequence[PartitionReport], store: OfflineStore
) -> dict[Window, list[str]]:
    """Read back what was written and return what is wrong, by window; no entry where the contract holds."""
    written = [report.window for report in reports if report.outcome != "rejected"]
    found = {window: verify_partition(connection, view, window, store) for window in written}
    return {window: problems for window, problems in found.items() if problems}


def find_unusual(feature: str, reports: Sequence[PartitionReport], partitions: Sequence[Partition]) -> list[str]:
    """
    Return how partitions differ from those just before them, a line each: in rows, and in a feature's share of NULLs.

    Compared with up to 24 partitions of the same kind (full, or changes): outside of half the least and twice the most is
    unusual, and so is a share of NULLs that is more than a tenth above the greatest.

    Args:
        feature: Whose NULLs.
        reports: Of the partitions to look at.
        partitions: All of the view, oldest first.
    """
    written = {report.window.start for report in reports if report.outcome != "rejected"}
    recent: dict[bool, list[Partition]] = {True: [], False: []}
    found: list[str] = []
    for one in partitions:
        alike = recent[one.is_full]
        if one.window.start in written and len(alike) >= _LEAST_RECENT:
            least, most = min(other.rows for other in alike), max(other.rows for other in alike)
            if not least / _FACTOR <= one.rows <= most * _FACTOR:
                found.append(f"{one.window}: {one.rows:,} rows, where the {len(alike)} before have {least:,} to {most:,}")
            highest = max(_null_rate(other, feature) for other in alike)
            if (rate := _null_rate(one, feature)) > highest + _NULL_RATE_STEP:
                found.append(f"{one.window}: {rate:.1%} NULL, where the {len(alike)} before have at most {highest:.1%}")
        alike.append(one)
        del alike[:-_RECENT]
    return found


def _null_rate(partition: Partition, feature: str) -> float:
    rows = partition.rows - partition.tombstones
    return partition.nulls.get(feature, 0) / rows if rows else 0.0


def contract_metadata(windows: int, problems: Mapping[Window, Sequence[str]]) -> dict[str, dg.MetadataValue]:
    """Return what the contract's check shows: how much was checked, and the first problems."""
    shown: dict[str, dg.MetadataValue] = {"windows": dg.MetadataValue.int(windows)}
    if problems:
        shown["problems"] = listed(problem for window in sorted(problems) for problem in problems[window])
    return shown


def expectation_metadata(windows: int, failures: Mapping[Window, ExpectationFailure]) -> dict[str, dg.MetadataValue]:
    """Return what an expectation's check shows: how many rows of which windows break it, and a few of them."""
    shown: dict[str, dg.MetadataValue] = {"windows": dg.MetadataValue.int(windows)}
    if failures:
        shown |= {
            "rejected_windows": dg.MetadataValue.int(len(failures)),
            "failed_rows": dg.MetadataValue.int(sum(failure.failed for failure in failures.values())),
            "rows": dg.MetadataValue.int(sum(failure.rows for failure in failures.values())),
            "problems": listed(f"{window}: {failure}" for window, failure in sorted(failures.items())),
            "sample_rows": dg.MetadataValue.md(_sample_table(failures)),
        }
    return shown


def late_data_metadata(pending: Pending) -> dict[str, dg.MetadataValue]:
    """Return what the check of changed source files shows: which windows run by themselves, and which wait to be asked for."""
    shown: dict[str, dg.MetadataValue] = {
        "run_by_themselves": dg.MetadataValue.int(len(pending.late)),
        "wait_to_be_asked_for": dg.MetadataValue.int(len(pending.waiting)),
    }
    if pending.late or pending.waiting:
        shown["windows"] = listed(str(window) for window in sorted([*pending.late, *pending.waiting]))
    if pending.waiting:
        shown["to_compute_them"] = dg.MetadataValue.text("fp compute --changed, or a backfill of these partitions")
    return shown


def listed(lines: Iterable[str]) -> dg.MetadataValue:
    """Return lines as a Markdown list, the first of them if they are many."""
    every = list(lines)
    more = [f"- and {len(every) - _SHOWN} more"] if len(every) > _SHOWN else []
    return dg.MetadataValue.md("\n".join([*(f"- {line}" for line in every[:_SHOWN]), *more]))


def _sample_table(failures: Mapping[Window, ExpectationFailure]) -> str:
    rows = [{"window": str(window), **row} for window, failure in sorted(failures.items()) for row in failure.sample]
    if not rows:
        return "none"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in islice(rows, _SHOWN))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")[:100]
