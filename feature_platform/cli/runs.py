"""
Runs of assets in this process, recorded by the project's own Dagster instance, so that `fp up` shows them.

Knows Dagster's jobs and ranges of partitions. Knows nothing of what the assets compute.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import click
import dagster as dg

from feature_platform.orchestration import build_definitions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from feature_platform.model import FeatureView
    from feature_platform.registry import Registry
    from feature_platform.settings import Settings
    from feature_platform.windows import Window

__all__ = ["AssetRun", "AssetRuns", "RunError"]


class RunError(click.ClickException):
    """A run of assets failed."""


@dataclass(frozen=True)
class AssetRun:
    """
    One run that succeeded.

    Attributes:
        run_id: Dagster's.
        assets: Their keys.
        partitions: The first and the last partition; None where the assets have none.
        seconds: Time it took.
    """

    run_id: str
    assets: list[str]
    partitions: tuple[str, str] | None
    seconds: float


class AssetRuns:
    """
    Runs assets of a project; a context manager.

    Args:
        registry: What is declared.
        settings: Of the project.
        home: Dagster's folder, where the runs are kept.
    """

    def __init__(self, registry: Registry, settings: Settings, home: Path) -> None:
        self._definitions = build_definitions(registry, settings)
        self._job = self._definitions.resolve_implicit_global_asset_job_def()
        self._home = home
        self._instance: dg.DagsterInstance | None = None

    def __enter__(self) -> Self:
        """Open the instance."""
        self._previous = os.environ.get("DAGSTER_HOME")
        os.environ["DAGSTER_HOME"] = str(self._home)  # the one public way to say which instance is meant
        self._instance = dg.DagsterInstance.get()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        if self._instance is not None:
            self._instance.dispose()
            self._instance = None
        if self._previous is None:
            os.environ.pop("DAGSTER_HOME", None)
        else:
            os.environ["DAGSTER_HOME"] = self._previous

    def compute(self, view: FeatureView, windows: Sequence[Window]) -> AssetRun:
        """
        Run the feature assets of a view for adjacent windows, in one run.

        Raises:
            RunError: It failed.
        """
        keys = [dg.AssetKey(["features", view.name, feature.name]) for feature in view.features]
        partitions_def = self._definitions.resolve_asset_graph().get(keys[0]).partitions_def
        if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
            return self._run(keys, None)
        whole = dg.TimeWindow(windows[0].start, windows[-1].end)
        names = partitions_def.get_partition_keys_in_time_window(whole)
        return self._run(keys, (names[0], names[-1]))

    def push(self, view: FeatureView) -> AssetRun:
        """
        Run the online asset of a view.

        Raises:
            RunError: It failed.
        """
        return self._run([dg.AssetKey(["online", view.name])], None)

    def _run(self, keys: Sequence[dg.AssetKey], partitions: tuple[str, str] | None) -> AssetRun:
        started = time.perf_counter()
        tags = {}
        if partitions is not None:
            tags = {"dagster/asset_partition_range_start": partitions[0], "dagster/asset_partition_range_end": partitions[1]}
        result = self._job.execute_in_process(
            # Dagster would print every event.
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            instance=self._instance,
            asset_selection=list(keys),
            tags=tags,
            raise_on_error=False,
        )
        if not result.success:
            failures = [event.step_failure_data.error_display_string for event in result.get_step_failure_events()]
            message = f"the run {result.run_id} of {keys[0].to_user_string()} failed.\n" + "\n".join(failures)
            raise RunError(message)
        return AssetRun(result.run_id, [key.to_user_string() for key in keys], partitions, time.perf_counter() - started)
