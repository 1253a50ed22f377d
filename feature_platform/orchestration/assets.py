"""
The assets of a view: its features, computed into Parquet, and its newest values, pushed online.

Knows Dagster's runs and events. What is computed and pushed is `offline.compute`'s and `materialization`'s.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import dagster as dg
import duckdb as duckdb_engine
from dagster_duckdb import DuckDBResource

from feature_platform.errors import ContractError, FeaturePlatformError, OnlineStoreError
from feature_platform.materialization import materialize_view
from feature_platform.model import FeatureView
from feature_platform.offline.compute import PartitionReport, compute_windows
from feature_platform.offline.due import pending_windows
from feature_platform.offline.inputs import fingerprints, source_files
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.automation import online_condition
from feature_platform.orchestration.checks import feature_check_specs, find_problems, find_unusual
from feature_platform.orchestration.freshness import data_age_result, data_age_specs
from feature_platform.orchestration.partitions import partitions_def, window_of
from feature_platform.orchestration.reporting import Outcome, online_metadata, report_failed, report_selected
from feature_platform.orchestration.resources import OnlineStoreResource, connect
from feature_platform.orchestration.translator import feature_keys, feature_specs, freshness_policy, online_key, pool_of, view_tags
from feature_platform.settings import Settings
from feature_platform.windows import Window

__all__ = ["feature_assets", "online_asset"]

_Progress: TypeAlias = Callable[[int, int], None]
_PROGRESS_SECONDS = 5.0
# What passes by itself: a disk, a network, a server that restarts.
_RETRIES = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


def feature_assets(view: FeatureView, settings: Settings) -> dg.AssetsDefinition:
    """
    Return the features of a view, computed as one: one scan and one file a window, whatever is selected.

    Any subset can be asked for, and every feature that the files hold is reported; a range of partitions is one run.
    """

    @dg.multi_asset(
        name=f"compute_{view.name}",
        specs=feature_specs(view),
        check_specs=feature_check_specs(view),
        can_subset=True,
        pool=pool_of(view),
        backfill_policy=dg.BackfillPolicy.single_run() if partitions_def(view) else None,
        retry_policy=_RETRIES,
    )
    def compute(context: dg.AssetExecutionContext, duckdb: DuckDBResource) -> Iterator[dg.MaterializeResult[None]]:
        keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else [None]
        with user_errors_fail_at_once():
            windows = {window_of(view, key): key for key in keys}
            with connect(duckdb) as connection:
                outcome = _compute(context, connection, view, list(windows), settings)
        if outcome.refused or outcome.rejected:
            report_failed(context, view, outcome)
            why = [*outcome.refused.values(), *(f"{one.window}: {failure}" for one in outcome.rejected for failure in one.failures)]
            held = len(outcome.refused) + len(outcome.rejected)
            message = f"{held} of {len(windows)} windows were not promoted; readers see what they saw before. The others are written."
            raise dg.Failure("\n".join([message, *why]), allow_retries=False)
        yield from report_selected(context, view, outcome)

    return compute


def online_asset(view: FeatureView, settings: Settings) -> dg.AssetsDefinition:
    """
    Return a view's newest values in the online store, which follow every write to its history.

    Not partitioned: it is one state, and it reads whatever partitions exist.
    """
    newest = dg.LastPartitionMapping() if partitions_def(view) else None

    @dg.asset(
        key=online_key(view),
        deps=[dg.AssetDep(key, partition_mapping=newest) for key in feature_keys(view)],
        group_name=view.name,
        owners=list(view.owners),
        kinds={"redis"},
        tags=view_tags(view),
        description=f"The newest values of {view.name}, as the retrieval API reads them.",
        code_version=view.definition_hash,
        pool=pool_of(view),
        automation_condition=online_condition(view),
        freshness_policy=freshness_policy(view),
        check_specs=data_age_specs(view),
        retry_policy=_RETRIES,
    )
    def push(
        context: dg.AssetExecutionContext, duckdb: DuckDBResource, online_store: OnlineStoreResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        now = datetime.now(UTC)
        with user_errors_fail_at_once(), connect(duckdb) as connection, online_store.open() as online:
            report = materialize_view(
                connection,
                view,
                store=OfflineStore(settings.offline_root),
                online=online,
                project=settings.project,
                now=now,
                run_id=context.run.run_id,
                progress=_logged(context, "rows"),
            )
        checks = [data_age_result(view, report, now)] if context.selected_asset_check_keys else []
        # Yielded: a returned result beside a check would have to be annotated as a tuple.
        yield dg.MaterializeResult(metadata=online_metadata(report, now), check_results=checks)

    return push


@contextlib.contextmanager
def user_errors_fail_at_once() -> Iterator[None]:
    """Fail without a retry where only a change of code or data can help, with the message that says which."""
    try:
        yield
    except OnlineStoreError:
        raise
    except (FeaturePlatformError, duckdb_engine.ProgrammingError, duckdb_engine.DataError) as exc:
        raise dg.Failure(str(exc), allow_retries=False) from exc


def _compute(
    context: dg.AssetExecutionContext,
    connection: duckdb_engine.DuckDBPyConnection,
    view: FeatureView,
    windows: Sequence[Window],
    settings: Settings,
) -> Outcome:
    """
    Compute windows in one call; where one breaks the contract, each alone, so that it does not hold up the others.

    A retry leaves out what the runs before it wrote.
    """
    store, now = OfflineStore(settings.offline_root), datetime.now(UTC)

    def run(chosen: Sequence[Window]) -> list[PartitionReport]:
        return compute_windows(
            connection,
            view,
            chosen,
            store=store,
            root=settings.root,
            now=now,
            run_id=context.run.run_id,
            progress=_logged(context, "windows"),
        )

    done = _done_before(context, view, windows, store, settings)
    wanted = [window for window in windows if window not in {report.window for report in done}]
    if done:
        context.log.info("%d of %d windows were written before this retry", len(done), len(windows))
    refused: dict[Window, str] = {}
    try:
        reports = run(wanted) if wanted else []
    except ContractError as exc:
        context.log.warning("view %r: %s", view.name, exc)
        reports, refused = ([], {wanted[0]: str(exc)}) if len(wanted) == 1 else _one_by_one(run, wanted)
    reports = sorted([*done, *reports], key=lambda report: report.window)
    partitions = store.partitions(view)
    return Outcome(
        reports,
        pending_windows(view, store, source_files(view, settings.root, store.source_footers), now),
        find_problems(connection, view, reports, store),
        refused,
        {feature: find_unusual(feature, reports, partitions) for feature in view.feature_by_name},
        settings.root,
        partitions[-1].window if partitions else None,
    )


def _done_before(
    context: dg.AssetExecutionContext, view: FeatureView, windows: Sequence[Window], store: OfflineStore, settings: Settings
) -> list[PartitionReport]:
    """Return the windows that this run, before its step was tried again, or a run that it retries, wrote from today's files."""
    runs = {context.run.run_id}
    if {"dagster/retry_number", "dagster/is_resume_retry"} & context.run.tags.keys():
        group = context.instance.get_run_group(context.run.run_id)
        runs |= {one.run_id for one in group[1]} if group else set()
    elif not context.retry_number:
        return []
    current = fingerprints(view, source_files(view, settings.root, store.source_footers), sorted(windows), datetime.now(UTC))
    done: list[PartitionReport] = []
    for window in windows:
        partition, attempt = store.partition(view, window), store.attempts.get(view, window)
        if partition is None or partition.definition != view.definition_hash or (attempt and attempt.outcome == "rejected"):
            continue
        run_id, inputs = (attempt.run_id, attempt.inputs) if attempt else (partition.run_id, partition.inputs)
        if run_id in runs and inputs == current[window]:
            path = store.file(view, partition)
            outcome: Literal["unchanged", "written"] = "unchanged" if attempt else "written"
            done.append(PartitionReport(view=view.name, window=window, path=path, partition=partition, seconds=0.0, outcome=outcome))
    return done


def _one_by_one(
    run: Callable[[Sequence[Window]], list[PartitionReport]], windows: Sequence[Window]
) -> tuple[list[PartitionReport], dict[Window, str]]:
    reports: list[PartitionReport] = []
    refused: dict[Window, str] = {}
    for window in windows:
        try:
            reports += run([window])
        except ContractError as exc:
            refused[window] = str(exc)
    return reports, refused


def _logged(context: dg.AssetExecutionContext, what: str) -> _Progress:
    """Log progress every few seconds, and the end."""
    last = time.monotonic()

    def log(done: int, wanted: int) -> None:
        nonlocal last
        if done >= wanted or time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            context.log.info("%d of %d %s", done, wanted, what)

    return log
