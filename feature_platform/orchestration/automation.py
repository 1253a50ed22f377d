"""
When assets run by themselves: schedules of feature views, and what keeps the online store up to date.

Knows crons, ticks and runs under way. What is due, the files say: a missed tick is made up for by the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import dagster as dg
import msgspec

from feature_platform.model import ON_UPDATE, FeatureView
from feature_platform.offline.due import pending_windows
from feature_platform.offline.inputs import source_files
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.partitions import key_of, range_tags, span_of_tags
from feature_platform.orchestration.skew_checks import SKEW
from feature_platform.orchestration.translator import feature_key, feature_keys, online_key
from feature_platform.settings import Settings
from feature_platform.windows import WHOLE, Window, adjacent, cron_of
from feature_platform.wording import span

__all__ = ["job_of", "nothing_due", "online_condition", "online_sensor", "remembered", "run_requests", "schedule_of", "tick_cron"]

_Memory = TypeVar("_Memory", bound=msgspec.Struct)

_POLL = "*/5 * * * *"
_RETRY_FAILED = "*/10 * * * *"
_MINUTE = timedelta(minutes=1)
_IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def job_of(view: FeatureView) -> dg.UnresolvedAssetJobDefinition:
    """Return the job that computes a view: what its schedule asks for, and what a person starts."""
    # Without the comparison of both stores, which is looked at once an hour.
    skew = dg.AssetSelection.checks(dg.AssetCheckKey(online_key(view), SKEW))
    selection = dg.AssetSelection.assets(*feature_keys(view), online_key(view)) - skew
    return dg.define_asset_job(f"{view.name}_refresh", selection=selection, description=f"Compute {view.name} and push what changed.")


def schedule_of(view: FeatureView, job: dg.UnresolvedAssetJobDefinition, settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule of a view: each tick asks for every closed window that is not computed yet."""
    store = OfflineStore(settings.offline_root)  # of the code server's life: it remembers the footers that it read

    @dg.schedule(
        name=f"{view.name}_schedule",
        job=job,
        cron_schedule=tick_cron(view),
        execution_timezone=view.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING if settings.run_schedules else dg.DefaultScheduleStatus.STOPPED,
        description=f"Computes the windows of {view.name} that have closed{f', {span(view.delay)} after their end' if view.delay else ''}.",
    )
    def tick(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        now = context.scheduled_execution_time.astimezone(UTC)
        due = _due(context.instance, view, store, settings, now)
        return run_requests(context.instance, view, due, tick=f"{now:%Y-%m-%dT%H%MZ}")

    return tick


def run_requests(
    instance: dg.DagsterInstance, view: FeatureView, due: Iterable[Window], *, tick: str, job_name: str | None = None
) -> list[dg.RunRequest] | dg.SkipReason:
    """
    Ask for windows, one run for each stretch without a gap; those that a run under way computes are left to it.

    Args:
        instance: Says what is under way.
        view: Whose windows.
        due: What is wanted.
        tick: Names the occasion: asked twice on one occasion, a stretch runs once.
        job_name: Of the view's job, for a sensor of several.
    """
    wanted = sorted(due)
    if not wanted:
        return dg.SkipReason(nothing_due(view))
    busy = [_span(run, view) for run in instance.get_runs(dg.RunsFilter(statuses=_IN_PROGRESS)) if _computes(run, view)]
    open_windows = [window for window in wanted if not any(start <= window.start and window.end <= end for start, end in busy)]
    if not open_windows:
        return dg.SkipReason(f"{view.name}: a run that is under way computes what is due ({len(wanted)} windows).")
    if view.schedule is None:
        return [dg.RunRequest(run_key=f"{view.name}:all@{tick}", job_name=job_name)]
    return [_request(view, stretch, tick, job_name) for stretch in adjacent(open_windows)]


def nothing_due(view: FeatureView) -> str:
    """Say that a view has nothing to compute."""
    return f"{view.name}: every closed window is computed."


def _request(view: FeatureView, stretch: list[Window], tick: str, job_name: str | None) -> dg.RunRequest:
    first, last = stretch[0], stretch[-1]
    run_key = f"{view.name}:{key_of(view, first)}..{key_of(view, last)}@{tick}"
    if first == last:
        return dg.RunRequest(run_key=run_key, partition_key=key_of(view, first), job_name=job_name)
    return dg.RunRequest(run_key=run_key, tags=range_tags(view, stretch), job_name=job_name)


def _span(run: dg.DagsterRun, view: FeatureView) -> tuple[datetime, datetime]:
    try:
        return span_of_tags(view, run.tags)
    except ValueError:  # started before the view's schedule changed: it computes none of today's windows
        return WHOLE.end, WHOLE.start


def _computes(run: dg.DagsterRun, view: FeatureView) -> bool:
    if run.asset_selection:
        return not run.asset_selection.isdisjoint(feature_keys(view))
    return run.job_name == f"{view.name}_refresh"


def _due(instance: dg.DagsterInstance, view: FeatureView, store: OfflineStore, settings: Settings, now: datetime) -> list[Window]:
    """
    Return the windows that are due, those whose file a run wrote and did not live to report among them.

    The command line's files are not among those: they name no run.
    """
    pending = pending_windows(view, store, source_files(view, settings.root, store.source_footers), now)
    due, waits = pending.due, set(pending.rejected)
    written = {key_of(view, one.window): one.window for one in store.partitions(view) if one.run_id and one.window not in waits}
    if not written:
        return due
    reported = instance.get_materialized_partitions(feature_key(view, view.features[0].name))
    return sorted({*due, *(window for key, window in written.items() if key not in reported)})


def tick_cron(view: FeatureView) -> str:
    """
    Return when a scheduled view is looked at: when its windows can be computed, their `delay` after they close.

    A delay that cannot be added to the cron (lists, steps, a clock that changes) means a look every few minutes.
    """
    if view.schedule is None or view.schedule == ON_UPDATE:
        return _POLL
    cron = cron_of(view.schedule)
    minutes = -(-view.delay // _MINUTE)
    if minutes == 0:
        return cron
    minute, hour, *days = cron.split()
    if not minute.isdigit():
        return _POLL
    if hour == "*" and days == ["*", "*", "*"]:
        return f"{(int(minute) + minutes) % 60} * * * *"
    if hour.isdigit() and days == ["*", "*", "*"] and view.timezone == "UTC":
        at = (int(hour) * 60 + int(minute) + minutes) % (24 * 60)
        return f"{at % 60} {at // 60} * * *"
    return _POLL


def online_condition(view: FeatureView) -> dg.AutomationCondition[dg.AssetKey]:
    """
    Return when a view is pushed: after any of its partitions was written, and its contract holds.

    Missing partitions do not hold it up: what is there is pushed, whatever the order of computing (law L7), and with a `delay`
    Dagster's last partition is one that cannot be computed yet. After a failure it is tried again every few minutes.
    """
    written = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.newly_updated())
    # A row becomes visible its delay after it was written, when nothing is written.
    becomes_visible = bool(view.delay) and not view.is_window_view
    wanted = written | dg.AutomationCondition.cron_tick_passed(_POLL) if becomes_visible else written
    may_run = ~dg.AutomationCondition.execution_failed() | written | dg.AutomationCondition.cron_tick_passed(_RETRY_FAILED)
    condition = (
        wanted.since(dg.AutomationCondition.newly_updated())
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
        & may_run
    )
    return condition.with_label("history newer than the online store")


def online_sensor() -> dg.AutomationConditionSensorDefinition:
    """Return what looks at the online assets' conditions; on everywhere, since it only follows what was computed."""
    return dg.AutomationConditionSensorDefinition(
        "online_automation",
        target=dg.AssetSelection.key_prefixes("online"),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Pushes a view to the online store after its history was written.",
    )


def remembered(cursor: str | None, kind: type[_Memory]) -> _Memory:
    """Return what a sensor's cursor holds; begin anew where it holds nothing that can be read, or the sensor would fail for ever."""
    try:
        return msgspec.json.decode(cursor or "", type=kind)
    except msgspec.DecodeError:
        return kind()
