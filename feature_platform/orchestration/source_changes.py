"""
Sensors that watch the sources: what to compute when files change, and what to tell people of it.

Knows Dagster's sensors. Which windows a changed file concerns is `offline.due`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import msgspec

from feature_platform.model import FeatureView
from feature_platform.offline.due import Pending, pending_windows
from feature_platform.offline.inputs import SourceFile, source_files
from feature_platform.offline.store import OfflineStore
from feature_platform.orchestration.automation import nothing_due, remembered, run_requests
from feature_platform.orchestration.reporting import late_data_evaluations
from feature_platform.orchestration.translator import source_key
from feature_platform.registry import Registry
from feature_platform.settings import Settings
from feature_platform.windows import Window

__all__ = ["late_data_sensor", "update_sensor"]

# The daemon looks for sensors that are due every 5 s; one of 5 s is often due a moment later, and waits for the next look.
_FOLLOW_SECONDS = 4
_WATCH_SECONDS = 30


class _Mark(msgspec.Struct):
    """
    What was seen of a view: how many windows of it are marked, which ones (as a digest), and the generation of its history.

    A digest, since the daemon sends the cursor back and forth with every look.
    """

    late: int = 0
    waiting: int = 0
    windows: str = ""
    generation: int = 0

    @classmethod
    def of(cls, pending: Pending, generation: int) -> _Mark:
        keys = ["late", *(one.key for one in pending.late), "waiting", *(one.key for one in pending.waiting)]
        marked = bool(pending.late or pending.waiting)
        digest = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16] if marked else ""
        return cls(len(pending.late), len(pending.waiting), digest, generation)

    @property
    def settled(self) -> bool:
        """Whether nothing is marked."""
        return not self.late and not self.waiting


class _Seen(msgspec.Struct):
    """What the sensor saw last: a digest of each source's files, and each view's mark."""

    sources: dict[str, str] = {}
    views: dict[str, _Mark] = {}


def update_sensor(view: FeatureView, job: dg.UnresolvedAssetJobDefinition, settings: Settings) -> dg.SensorDefinition:
    """Return the sensor of an ON_UPDATE view, or of one without a schedule: it asks for the windows whose source files changed."""
    store = OfflineStore(settings.offline_root)  # of the code server's life: it remembers the footers that it read

    @dg.sensor(
        name=f"{view.name}_on_update",
        job=job,
        minimum_interval_seconds=_FOLLOW_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.run_schedules else dg.DefaultSensorStatus.STOPPED,
        description=f"Computes the windows of {view.name} whose source files changed, and pushes what changed in them.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        files = source_files(view, settings.root, store.source_footers)
        if not files:
            return dg.SensorResult(skip_reason=f"{view.name}: its sources have no files yet.")
        due = pending_windows(view, store, files, now).due
        if not due:  # asked before the instance is opened, which is most of what a look costs
            return dg.SensorResult(skip_reason=nothing_due(view))
        found = run_requests(context.instance, view, due, tick=_occasion(due, files, now))
        if isinstance(found, dg.SkipReason):
            return dg.SensorResult(skip_reason=found)
        return dg.SensorResult(run_requests=found)

    return look


def late_data_sensor(
    registry: Registry, views: Sequence[FeatureView], jobs: Mapping[str, dg.UnresolvedAssetJobDefinition], settings: Settings
) -> dg.SensorDefinition:
    """
    Return the sensor that observes every source, and repairs the scheduled views whose source files changed after the fact.

    Windows within a view's `late_data_horizon` are asked for, as ranges; the others are marked, and wait.

    Args:
        registry: Declares the sources.
        views: The scheduled ones.
        jobs: Theirs, by name of the view.
        settings: Where the project lives.
    """
    store = OfflineStore(settings.offline_root)

    @dg.sensor(
        name="late_data",
        jobs=[jobs[view.name] for view in views],
        minimum_interval_seconds=_WATCH_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.run_schedules else dg.DefaultSensorStatus.STOPPED,
        description="Observes the sources. Where their files change under computed windows, runs those again, or marks them.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        before = remembered(context.cursor, _Seen)
        files = {name: store.source_footers.files(source, settings.root) for name, source in registry.sources.items()}
        seen = _Seen({name: _digest(its) for name, its in files.items()})
        changed = {name for name, digest in seen.sources.items() if digest != before.sources.get(name)}
        events: list[Any] = [_observation(registry, name, files[name]) for name in sorted(changed)]
        requests: list[dg.RunRequest] = []
        for view in views:
            mark, generation = before.views.get(view.name), store.generation(view)
            # Nothing to see: nothing was marked, no file changed, and no partition was written, which an older file may be behind.
            if mark and mark.settled and mark.generation == generation and changed.isdisjoint(source.name for source in view.sources):
                seen.views[view.name] = mark
                continue
            its = [file for source in view.sources for file in files[source.name]]
            pending = pending_windows(view, store, its, now)
            seen.views[view.name] = new = _Mark.of(pending, generation)
            if new.windows != (mark or _Mark()).windows:
                events += late_data_evaluations(view, pending)
            if not pending.late:
                continue
            occasion = _occasion(pending.late, its, now)
            found = run_requests(context.instance, view, pending.late, tick=occasion, job_name=jobs[view.name].name)
            requests += [] if isinstance(found, dg.SkipReason) else found
        skip = None if requests or events else "No file changed under a computed window."
        return dg.SensorResult(run_requests=requests, asset_events=events, cursor=msgspec.json.encode(seen).decode(), skip_reason=skip)

    return look


def _observation(registry: Registry, name: str, files: Sequence[SourceFile]) -> dg.AssetObservation:
    """Return what a source's files are now: how many, how large, how new."""
    newest = max((file.newest for file in files if file.newest is not None), default=None)
    metadata: dict[str, Any] = {"files": len(files), "bytes": sum(file.size for file in files)}
    if newest is not None:
        metadata["newest_timestamp"] = dg.MetadataValue.timestamp(newest)
    return dg.AssetObservation(source_key(registry.sources[name]), metadata=metadata, tags={"dagster/data_version": _digest(files)})


def _digest(files: Iterable[SourceFile]) -> str:
    return f"{sum(file.fingerprint for file in files) % (1 << 64):016x}"


def _occasion(due: Sequence[Window], files: Iterable[SourceFile], now: datetime) -> str:
    """Name an occasion: files as they are and, since a stretch whose run failed is asked for again, the hour."""
    windows = hashlib.sha256("".join(window.key for window in due).encode()).hexdigest()[:8]
    return f"{_digest(files)}/{windows}/{now:%Y-%m-%dT%H}"
