"""A small project's definitions on a Dagster instance of their own, run in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform import ON_UPDATE, Aggregate, Entity, Feature, FeatureView, ParquetSource, Registry, Settings
from feature_platform.offline.store import OfflineStore
from feature_platform.online.embedded import stop_server
from feature_platform.orchestration import build_definitions

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
user = Entity("user", join_keys={"user_id": str})
plays = ParquetSource("plays", "data/plays/*.parquet", timestamp="played_at")

profile = FeatureView(
    "profile",
    entity=user,
    sources=[plays],
    query="select user_id, count(*) as plays, max(title) as last_title from plays group by user_id",
    features=[Feature("plays", int, "Plays of the day."), Feature("last_title", str, "The greatest title.")],
    schedule="@daily",
    start=START,
    freshness=timedelta(hours=30),
    owners=["team:a"],
    tags={"cost centre": "A/B & C"},
)
activity = FeatureView(
    "activity",
    entity=user,
    sources=[plays],
    features=[Aggregate("plays_2h", "count", window=timedelta(hours=2))],
    schedule="@hourly",
    start=START,
)
last_play = FeatureView(
    "last_play",
    entity=user,
    sources=[plays],
    query="select user_id, played_at as event_timestamp, title from plays",
    features=[Feature("title", str)],
    schedule=ON_UPDATE,
    start=START,
)
titles = FeatureView("titles", entity=user, sources=[plays], features=[Feature("title", str)])


def write_day(root: Path, day: datetime, *, users: Sequence[str | None] = ("ann", "bob"), title: str | None = "dune") -> Path:
    """Write one play an hour of each user on a day."""
    times = [day + timedelta(hours=hour) for hour in range(24) for _ in users]
    columns = {
        "user_id": [*users] * 24,
        "played_at": pa.array(times, pa.timestamp("us", tz="UTC")),
        "title": pa.array([title] * len(times), pa.string()),
    }
    path = root / "data" / "plays" / f"{day:%Y-%m-%d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@dataclass
class Project:
    """A project's definitions on an instance of their own."""

    settings: Settings
    instance: dg.DagsterInstance
    registry: Registry
    cursor: dg.AssetDaemonCursor | None = None

    @property
    def definitions(self) -> dg.Definitions:
        """What its registry gives now."""
        return build_definitions(self.registry, self.settings)

    @property
    def store(self) -> OfflineStore:
        """Its history."""
        return OfflineStore(self.settings.offline_root)

    def run(self, *keys: dg.AssetKey, first: str | None = None, last: str | None = None) -> dg.ExecuteInProcessResult:
        """Run some assets, for a partition or a range of them."""
        defs = self.definitions
        span = {"dagster/asset_partition_range_start": first or "", "dagster/asset_partition_range_end": last} if last else {}
        return dg.materialize(
            [one for one in defs.assets or () if isinstance(one, (dg.AssetsDefinition, dg.AssetSpec))],
            selection=list(keys),
            instance=self.instance,
            resources=dict(defs.resources or {}),
            partition_key=None if last else first,
            tags=span,
            raise_on_error=False,
        )

    def evaluate(self, view: FeatureView, at: datetime) -> tuple[list[dg.RunRequest], str]:
        """Evaluate a view's schedule; return what it asks for, and why it asks for nothing."""
        defs = self.definitions
        schedule = defs.resolve_schedule_def(f"{view.name}_schedule")
        with dg.build_schedule_context(
            instance=self.instance, repository_def=defs.get_repository_def(), scheduled_execution_time=at
        ) as context:
            found = schedule.evaluate_tick(context)
        return list(found.run_requests or ()), found.skip_message or ""

    def tick(self, view: FeatureView, at: datetime) -> list[dg.RunRequest]:
        """Return what a tick asks for."""
        return self.evaluate(view, at)[0]

    def skip(self, view: FeatureView, at: datetime) -> str:
        """Return why a tick asks for nothing."""
        asked, message = self.evaluate(view, at)
        assert asked == []
        return message

    def execute(self, view: FeatureView, request: dg.RunRequest) -> None:
        """Run what a tick asked for."""
        job = self.definitions.resolve_job_def(f"{view.name}_refresh")
        assert job.execute_in_process(instance=self.instance, partition_key=request.partition_key, tags=dict(request.tags)).success

    def pushes(self, now: datetime | None = None) -> set[str]:
        """Return the views that automation would push now; remembers what it saw."""
        found = dg.evaluate_automation_conditions(
            self.definitions,
            instance=self.instance,
            cursor=self.cursor,
            asset_selection=dg.AssetSelection.key_prefixes("online"),
            evaluation_time=now,
        )
        self.cursor = found.cursor
        return {result.key.path[-1] for result in found.results if result.true_subset.size and isinstance(result.key, dg.AssetKey)}


@contextlib.contextmanager
def open_project(root: Path, views: Sequence[FeatureView], **settings: Any) -> Iterator[Project]:
    """Open a project with five days of plays; its online store is stopped in the end."""
    chosen = Settings(root=root, **({"read_deadline_ms": 5000} | settings))
    for day in range(5):
        write_day(root, START + day * DAY)
    (root / "dagster").mkdir()
    with dg.instance_for_test(temp_dir=str(root / "dagster")) as instance:
        yield Project(chosen, instance, Registry(list(views)))
    stop_server(chosen.online_root)


def key(window: int) -> str:
    """Return the partition key of the n-th day."""
    return f"{START + window * DAY:%Y-%m-%d}"


def evaluations(project: Project, run_id: str, check: str) -> list[dg.AssetCheckEvaluation]:
    """Return what a run said of the checks of one name, in order."""
    records = project.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    found = [record.event_log_entry.get_dagster_event().asset_check_evaluation_data for record in records]
    return [evaluation for evaluation in found if evaluation.check_name == check]
