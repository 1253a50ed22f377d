"""
The age of the data behind what is served, held to each view's promise.

A freshness policy of Dagster's sees that a run wrote something, whatever it wrote: the backfill of an old partition turns it
green, and so does an hourly run over a dead source. Here the age is that of the newest row that the online values come from,
as the store itself says, and it is looked at whether or not anything runs. Knows metas and promises. Pushes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg
import msgspec

from feature_platform.dtypes import from_micros
from feature_platform.errors import FeaturePlatformError
from feature_platform.materialization import MaterializationReport, read_meta
from feature_platform.model import FeatureView, Freshness
from feature_platform.online.layout import meta_key
from feature_platform.orchestration.automation import remembered
from feature_platform.orchestration.resources import OnlineStoreResource
from feature_platform.orchestration.translator import online_key
from feature_platform.settings import Settings
from feature_platform.wording import span

__all__ = ["DATA_AGE", "data_age_result", "data_age_specs", "freshness_sensor"]

DATA_AGE = "data_age"
_SECONDS = 30
# Said again so often though nothing changed, for the age in its metadata. The daemon writes each event by itself: a tick with
# those of 200 views was seen to take 150 s on a busy machine.
_SAID_AGAIN = timedelta(hours=1)
_SAID_AT_ONCE = 25


class _Said(msgspec.Struct):
    """What the sensor said last: of each view its state, and when, in seconds."""

    views: dict[str, tuple[str, float]] = {}


def data_age_specs(view: FeatureView) -> list[dg.AssetCheckSpec]:
    """Return the check of a view's promise on the data itself; it warns at three quarters of it, and blocks nothing."""
    if view.freshness is None:
        return []
    limit, warning = span(view.freshness), span(view.freshness_warning)
    what = f"The newest source row behind the online values is at most {limit} old; a warning from {warning} on."
    return [dg.AssetCheckSpec(DATA_AGE, asset=online_key(view), description=what)]


def data_age_result(view: FeatureView, report: MaterializationReport, now: datetime) -> dg.AssetCheckResult:
    """Judge the age of what was just pushed."""
    state, severity, metadata = _judge(view, report.newest_source_timestamp, now)
    return dg.AssetCheckResult(passed=state is Freshness.PASS, check_name=DATA_AGE, severity=severity, metadata=metadata)


def freshness_sensor(views: Iterable[FeatureView], settings: Settings) -> dg.SensorDefinition:
    """Return what looks at the age of what is served: as soon as a view's state changes, its check says so."""
    promising = [view for view in views if view.freshness is not None]

    @dg.sensor(
        name="freshness",
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Holds the age of the data in the online store to the views' promises, whether or not anything runs.",
    )
    def look(context: dg.SensorEvaluationContext, online_store: OnlineStoreResource) -> dg.SensorResult | dg.SkipReason:
        now = datetime.now(UTC)
        try:
            with online_store.open() as online:
                values = online.get_many([meta_key(settings.project, view.name) for view in promising], patient=True)
            metas = [read_meta(value, even_if_broken=True) for value in values]
        except FeaturePlatformError as exc:
            return dg.SkipReason(f"The online store does not tell how old its data is: {exc}")
        said = remembered(context.cursor, _Said).views
        events: list[dg.AssetCheckEvaluation] = []
        for view, meta in zip(promising, metas, strict=True):
            if meta is None:
                continue  # never pushed: the asset says so itself
            newest = None if meta.newest_source_timestamp is None else from_micros(meta.newest_source_timestamp)
            state, severity, metadata = _judge(view, newest, now)
            last_state, last_at = said.get(view.name, ("", 0.0))
            is_known = state == last_state and now.timestamp() - last_at < _SAID_AGAIN.total_seconds()
            if is_known or len(events) == _SAID_AT_ONCE:
                continue
            said[view.name] = (state, now.timestamp())
            events.append(
                dg.AssetCheckEvaluation(online_key(view), DATA_AGE, state is Freshness.PASS, metadata, severity=severity, blocking=False)
            )
        return dg.SensorResult(
            asset_events=events,
            cursor=msgspec.json.encode(_Said(said)).decode(),
            skip_reason=None if events else "No view's state changed.",
        )

    return look


def _judge(
    view: FeatureView, newest: datetime | None, now: datetime
) -> tuple[Freshness, dg.AssetCheckSeverity, dict[str, dg.MetadataValue]]:
    """Return the state of a view's promise, how bad that is, and what the check shows; no data at all breaks it."""
    state = None if newest is None else view.freshness_at(now - newest)
    severity = dg.AssetCheckSeverity.WARN if state is Freshness.WARN else dg.AssetCheckSeverity.ERROR
    shown: dict[str, dg.MetadataValue] = {"promise_seconds": dg.MetadataValue.float((view.freshness or timedelta(0)).total_seconds())}
    if newest is not None:
        shown["newest_source_timestamp"] = dg.MetadataValue.timestamp(newest)
        shown["data_age_seconds"] = dg.MetadataValue.float(round((now - newest).total_seconds(), 0))
    return state or Freshness.FAIL, severity, shown
