"""
Upkeep of the history: the asset that merges the files of closed days and keeps states, and when it runs.

Knows Dagster. What is merged and kept is `offline.compaction`'s.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import dagster as dg
from dagster_duckdb import DuckDBResource

from feature_platform.errors import FeaturePlatformError
from feature_platform.model import FeatureView
from feature_platform.offline.compaction import CompactionReport, compact_view
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.resources import connect
from feature_platform.settings import Settings

__all__ = ["compaction_asset", "compaction_schedule"]

# Between the hours, and after the daily windows of every time zone that has a delay of less than four hours.
_NIGHTLY: Final = "17 4 * * *"
_KEY: Final = dg.AssetKey(["upkeep", "compaction"])


def compaction_asset(views: Sequence[FeatureView], settings: Settings) -> dg.AssetsDefinition:
    """
    Return the asset that makes reading the history cheaper: one for all views, since nothing depends on it.

    In no pool: each day is merged under the view's own lock, so that writers and pushes wait for a day at most.
    """

    @dg.asset(
        key=_KEY,
        group_name="upkeep",
        kinds={"parquet"},
        description=(
            "The Parquet of closed days in one file each, and the newest rows as of the ends of days and months. "
            "No answer changes; what was merged is deleted a day later."
        ),
        output_required=False,
    )
    def compaction(context: dg.AssetExecutionContext, duckdb: DuckDBResource) -> dg.MaterializeResult[None]:
        store, reports, problems = OfflineStore(settings.offline_root), list[CompactionReport](), list[str]()
        for view in views:
            try:
                with connect(duckdb) as connection:
                    reports.append(compact_view(connection, view, store=store, now=datetime.now(UTC)))
            except FeaturePlatformError as exc:
                context.log.warning("%s", exc)
                problems.append(str(exc))
        store.close()
        if problems:  # after all others are done
            raise dg.Failure("\n".join(problems))
        return dg.MaterializeResult(metadata=_metadata(reports))

    return compaction


def compaction_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule of the asset: once a night."""
    return dg.ScheduleDefinition(
        name="compaction_schedule",
        target=dg.AssetSelection.assets(_KEY),
        cron_schedule=_NIGHTLY,
        default_status=dg.DefaultScheduleStatus.RUNNING if settings.run_schedules else dg.DefaultScheduleStatus.STOPPED,
        description="Merges the files of the days that have closed.",
    )


def _metadata(reports: Sequence[CompactionReport]) -> dict[str, dg.MetadataValue]:
    rows = [
        dg.TableRecord(
            {
                "view": one.view,
                "days merged": one.days,
                "windows": one.merged,
                "files now": one.files,
                "files deleted": one.deleted,
                "states kept": one.states,
                "seconds": round(one.seconds, 1),
            }
        )
        for one in reports
    ]
    names = [("view", "string"), *((name, "int") for name in list(rows[0].data)[1:-1]), ("seconds", "float")] if rows else []
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in names])
    return {
        "views": dg.MetadataValue.table(rows, schema),
        "days_merged": dg.MetadataValue.int(sum(one.days for one in reports)),
        "files": dg.MetadataValue.int(sum(one.files for one in reports)),
        "files_deleted": dg.MetadataValue.int(sum(one.deleted for one in reports)),
    }
