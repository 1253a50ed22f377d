"""
The checks that what is served is what the history says, one of each view's online asset.

Knows when to look and what to show. What is compared, and how, is `skew`'s.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias, cast

import dagster as dg
from dagster_duckdb import DuckDBResource

from feature_platform.model import FeatureView
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.resources import OnlineStoreResource, connect
from feature_platform.orchestration.translator import online_key
from feature_platform.settings import Settings
from feature_platform.skew import Answer, SkewReport, measure_skew

__all__ = ["SKEW", "skew_checks", "skew_condition"]

SKEW: Final = "skew"
# Half past: hourly windows close, and are computed and pushed, on the hour. One time for all views, whose checks are one run then.
_HOURLY: Final = "30 * * * *"
_LONGEST_VALUE: Final = 80
_Key: TypeAlias = dg.AssetKey | dg.AssetCheckKey


def skew_checks(views: Sequence[FeatureView], settings: Settings) -> dg.AssetChecksDefinition:
    """
    Return the check of each view's online asset that asks both stores about a sample of keys.

    One step for all of them, of which any may be asked for alone: a step each was a twelfth of the time that 200 views take to
    load. In no view's pool, since a view that is written or pushed meanwhile is asked again. Where the stores cannot be compared
    now, the log says so and there is no verdict: the check shows as skipped, neither green nor red.
    """
    by_key = {dg.AssetCheckKey(online_key(view), SKEW): view for view in views}
    specs = [
        dg.AssetCheckSpec(
            SKEW,
            asset=online_key(view),
            description=f"For a sample of keys, the online store answers what the point-in-time join of {view.name} answers at the push.",
            automation_condition=skew_condition(),
        )
        for view in views
    ]

    @dg.multi_asset_check(name=SKEW, specs=specs, can_subset=True)
    def measure(
        context: dg.AssetCheckExecutionContext, duckdb: DuckDBResource, online_store: OnlineStoreResource
    ) -> Iterator[dg.AssetCheckResult]:
        store = OfflineStore(settings.offline_root)
        with connect(duckdb) as connection, online_store.open() as online:
            for key, view in by_key.items():
                if key not in context.selected_asset_check_keys:
                    continue
                report = measure_skew(connection, view, store=store, online=online, project=settings.project)
                if report.not_comparable is None:
                    yield _result(view, report)
                else:
                    context.log.warning("view %r cannot be compared now: %s.", view.name, report.not_comparable)

    return measure


def skew_condition() -> dg.AutomationCondition[_Key]:
    """Return when the check runs by itself: once an hour at most, after the view was pushed."""
    pushed: dg.AutomationCondition[_Key] = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.newly_updated())
    # Dagster declares it for assets, and its own `on_cron` uses it for checks too.
    hour = cast("dg.AutomationCondition[_Key]", dg.AutomationCondition.cron_tick_passed(_HOURLY))
    condition = (
        pushed.since_last_handled()
        & hour.since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    )
    return condition.with_label("pushed, and an hour has passed")


def _result(view: FeatureView, report: SkewReport) -> dg.AssetCheckResult:
    differing = [name for name, count in report.mismatches.items() if count]
    metadata: dict[str, dg.MetadataValue] = {
        "keys_compared": dg.MetadataValue.int(report.keys),
        "keys_left_out": dg.MetadataValue.int(report.unsettled),
        **{f"mismatches/{name}": dg.MetadataValue.int(count) for name, count in report.mismatches.items()},
    }
    if report.watermark is not None:
        metadata["watermark"] = dg.MetadataValue.timestamp(report.watermark)
    description = f"{report.keys} keys answer alike in both stores."
    if differing:
        metadata["examples"] = dg.MetadataValue.md(_examples(report))
        description = (
            f"The online store does not answer what the history says: {', '.join(differing)}. "
            f"A push writes what changed since the one before, and will not mend it: run 'fp rebuild-online {view.name}'."
        )
    return dg.AssetCheckResult(
        passed=not differing,
        asset_key=online_key(view),
        check_name=SKEW,
        severity=dg.AssetCheckSeverity.ERROR,
        description=description,
        metadata=metadata,
    )


def _examples(report: SkewReport) -> str:
    """Return a Markdown table of what differs."""
    lines = ["| key | feature | online | offline |", "| --- | --- | --- | --- |"]
    for one in report.examples:
        key = ", ".join(f"{name}={_shown(value)}" for name, value in one.join_keys.items()) or "(global)"
        lines.append(f"| {key} | {one.feature} | {_answer(one.online)} | {_answer(one.offline)} |")
    return "\n".join(lines)


def _answer(answer: Answer) -> str:
    return f"{_shown(answer.value)} {answer.status}"


def _shown(value: object) -> str:
    """Return a value as code, in one line and one cell of a table, whatever it holds."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    text = text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"
