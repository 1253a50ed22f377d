"""A real instance with a real daemon: what is scheduled, backfilled or run alone is pushed online without being asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_platform import FeatureStore, Settings
from feature_platform.errors import NotMaterializedError
from feature_platform.online.embedded import stop_server
from feature_platform.settings import load_registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parent.parent
SECONDS = 200.0
T = TypeVar("T")
DAY = timedelta(days=1)

VIEWS = """
from datetime import UTC, datetime, timedelta
from feature_platform import Entity, Feature, FeatureView, ParquetSource, Registry

user = Entity("user", join_keys={"user_id": str})
plays = ParquetSource("plays", "data/plays/*.parquet", timestamp="played_at")
minutely = FeatureView(
    "minutely", entity=user, sources=[plays], lookback=timedelta(days=1),
    query="select user_id, count(*) as plays_1d from plays group by user_id",
    features=[Feature("plays_1d", int)], schedule="* * * * *", start=datetime.fromisoformat("MINUTE"),
)
daily = FeatureView(
    "daily", entity=user, sources=[plays],
    query="select user_id, count(*) as plays, max(title) as last_title from plays group by user_id",
    features=[Feature("plays", int), Feature("last_title", str)], schedule="@daily", start=datetime.fromisoformat("DAY"),
)
registry = Registry([minutely, daily])
"""
DEFINITIONS = """
from feature_platform.orchestration import build_definitions
from small_views import registry

definitions = build_definitions(registry)
"""
BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
RUN = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } } }"""


def write_plays(root: Path, day: datetime, title: str) -> None:
    """Write a play of one user every ten minutes of a day."""
    times = [day + timedelta(minutes=10 * index) for index in range(144)]
    table = pa.table({"user_id": ["ann"] * 144, "played_at": pa.array(times, pa.timestamp("us", tz="UTC")), "title": [title] * 144})
    path = root / "data" / "plays" / f"{day:%Y-%m-%d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@dataclass
class Project:
    """A small project whose daemon runs."""

    root: Path
    environment: dict[str, str]
    instance: dg.DagsterInstance
    daemon: subprocess.Popen[bytes]
    today: datetime
    deadline: float

    def until(self, what: str, look: Callable[[], T | None]) -> T:
        """Wait for something to be there."""
        while True:
            if (found := look()) is not None:
                return found
            assert self.daemon.poll() is None, self.log()
            assert time.monotonic() < self.deadline, f"waited in vain for {what}\n{self.log()}"
            time.sleep(0.5)

    def log(self) -> str:
        """Return the end of what the daemon said."""
        return (self.root / "daemon.log").read_text()[-8000:]

    def graphql(self, query: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask Dagster what its UI would ask; the daemon does the rest."""
        output = self.root / "answer.json"
        command = [str(Path(sys.executable).parent / "dagster-graphql"), "-w", "workspace.yaml", "-t", query]
        command += ["-v", json.dumps({"params": params}), "-o", str(output)]
        subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, check=True, timeout=120)
        answer: dict[str, Any] = json.loads(output.read_text())
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def key(self, days_ago: int) -> str:
        """Return the partition key of a day."""
        return f"{self.today - days_ago * DAY:%Y-%m-%d}"

    def ended(self, tags: dict[str, str]) -> list[dg.RunRecord] | None:
        """Return the runs with some tags once there are some and all have ended; each must have succeeded."""
        records = list(self.instance.get_run_records(dg.RunsFilter(tags=tags)))
        if not records or not all(record.dagster_run.is_finished for record in records):
            return None
        assert all(record.dagster_run.is_success for record in records), self.log()
        return records

    def pushed_since(self, view: str, storage_id: int) -> int | None:
        """Return the id of the first push of a view that automation asked for after an event."""
        records = self.instance.fetch_materializations(dg.AssetKey(["online", view]), limit=100).records
        for record in reversed(records):
            run = self.instance.get_run_by_id(record.run_id)
            if record.storage_id > storage_id and run is not None and "dagster/from_automation_condition" in run.tags:
                return record.storage_id
        return None

    def written(self, view: str, feature: str) -> dict[str, int]:
        """Return the id of the newest materialization of each partition of a feature."""
        records = self.instance.fetch_materializations(dg.AssetKey(["features", view, feature]), limit=1000).records
        return {str(record.partition_key): record.storage_id for record in reversed(records)}

    def online(self, view: str) -> dict[str, object]:
        """Return what the online store answers for the one user."""
        settings = Settings(root=self.root)
        registry = load_registry(Settings(root=self.root, registry="small_views:registry"))
        with FeatureStore(registry, settings) as store:
            try:
                answer = store.get_online_features([f"{view}:{name}" for name in registry.view(view).feature_by_name], [{"user_id": "ann"}])
            except NotMaterializedError:
                return {}
        return {name: values[0] for name, values in answer.to_dict().items() if name != "user_id"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Start the daemon of a small project, with the repository's own dagster.yaml and workspace.yaml, and stop all of it in the end."""
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    root, home = tmp_path / "project", tmp_path / "home"
    root.mkdir()
    home.mkdir()
    for day in range(-7, 2):
        write_plays(root, today + day * DAY, "dune")
    first = now.replace(second=0, microsecond=0) - timedelta(minutes=5)
    (root / "small_views.py").write_text(VIEWS.replace("MINUTE", first.isoformat()).replace("DAY", (today - 6 * DAY).isoformat()))
    (root / "definitions.py").write_text(DEFINITIONS)
    (root / "pyproject.toml").write_text('[tool.feature_platform]\nregistry = "small_views:registry"\n')
    shutil.copy(REPOSITORY / "workspace.yaml", root)
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    environment |= {"DAGSTER_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "FEATURE_PLATFORM_RUN_SCHEDULES": "true"}
    monkeypatch.syspath_prepend(str(root))
    command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-w", "workspace.yaml"]
    with (root / "daemon.log").open("wb") as log, dg.DagsterInstance.from_config(str(home)) as instance:
        # A session of its own: code server and runs are its children, and end with it.
        daemon = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield Project(root, environment, instance, daemon, today, time.monotonic() + SECONDS)
        finally:
            os.killpg(daemon.pid, signal.SIGINT)
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
            stop_server(Settings(root=root).online_root)


def test_what_the_daemon_runs_reaches_the_online_store(project: Project) -> None:
    """A scheduled tick, a partition backfill, and a run of one feature: each is computed by the daemon, and pushed unasked."""
    # A backfill of four days is one run.
    days = [project.key(days_ago) for days_ago in (4, 3, 2, 1)]
    asked = {"assetSelection": [{"path": ["features", "daily", name]} for name in ("plays", "last_title")], "partitionNames": days}
    backfill = project.graphql(BACKFILL, asked)["launchPartitionBackfill"]["backfillId"]
    (record,) = project.until("the backfill's run", lambda: project.ended({"dagster/backfill": backfill}))
    assert record.dagster_run.tags["dagster/asset_partition_range_start"] == days[0]
    written = project.written("daily", "plays")
    assert sorted(written) == days
    pushed = project.until("the push after the backfill", lambda: project.pushed_since("daily", max(written.values())))
    assert project.online("daily") == {"plays": 144, "last_title": "dune"}

    # A run of one feature computes the view's file: the other feature's new value is pushed too.
    write_plays(project.root, project.today - DAY, "solaris")
    selector = {
        "repositoryLocationName": "feature_platform",
        "repositoryName": "__repository__",
        "pipelineName": "__ASSET_JOB",
        "assetSelection": [{"path": ["features", "daily", "plays"]}],
        "assetCheckSelection": None,
    }
    tags = [{"key": "dagster/partition", "value": days[-1]}, {"key": "test", "value": "one"}]
    project.graphql(RUN, {"selector": selector, "mode": "default", "runConfigData": {}, "executionMetadata": {"tags": tags}})
    project.until("the run of one feature", lambda: project.ended({"test": "one"}))
    other = project.written("daily", "last_title")[days[-1]]
    assert other > pushed
    project.until("the push after it", lambda: project.pushed_since("daily", other))
    assert project.online("daily") == {"plays": 144, "last_title": "solaris"}

    # The first tick finds all minutes since the start missing, and asks for them in one run.
    runs = project.until("the tick's run", lambda: project.ended({"dagster/schedule_name": "minutely_schedule"}))
    first = min(runs, key=lambda record: record.create_timestamp)
    assert {"dagster/asset_partition_range_start", "dagster/asset_partition_range_end"} <= first.dagster_run.tags.keys()
    assert first.dagster_run.tags["dagster/run_key"].startswith("minutely:")
    written = project.written("minutely", "plays_1d")
    assert len(written) >= 5
    pushes = project.instance.fetch_materializations(dg.AssetKey(["online", "minutely"]), limit=100).records
    assert first.dagster_run.run_id in {push.run_id for push in pushes}, "a tick's run pushes what it computed"
    assert project.online("minutely") == {"plays_1d": 144}
