"""A real instance with a real daemon: what is scheduled, backfilled or run alone is pushed online without being asked for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_platform import FeatureStore, Settings
from feature_platform.errors import NotMaterializedError
from feature_platform.online.answers import FeatureValue
from feature_platform.online.embedded import stop_server
from feature_platform.settings import load_registry
from feature_platform.windows import KEY_FORMAT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

REPOSITORY = Path(__file__).parent.parent
SECONDS = 300.0
T = TypeVar("T")
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)

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
    """A small project; its daemon runs until it is killed, and can be started again."""

    root: Path
    environment: dict[str, str]
    instance: dg.DagsterInstance
    today: datetime
    first: datetime
    deadline: float
    daemon: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the daemon, in a session of its own: code server and runs are its children, and end with it."""
        command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-w", "workspace.yaml"]
        with (self.root / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(command, cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> None:
        """Stop the daemon as Ctrl-C does, and kill what outlives that."""
        os.killpg(self.daemon.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(15)
        self.kill()

    def kill(self) -> None:
        """Kill the daemon, its code server and its runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.daemon.pid, signal.SIGKILL)
        self.daemon.wait()

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
        return {name: one.value for name, one in self.answers(view).items()}

    def answers(self, view: str) -> dict[str, FeatureValue]:
        """Return the same with statuses and times; nothing before the first push."""
        settings = Settings(root=self.root, read_deadline_ms=5000)
        registry = load_registry(Settings(root=self.root, registry="small_views:registry"))
        with FeatureStore(registry, settings) as store:
            try:
                answer = store.get_online_features([f"{view}:{name}" for name in registry.view(view).feature_by_name], [{"user_id": "ann"}])
            except NotMaterializedError:
                return {}
        return dict(answer.rows[0])


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
    first = now.replace(second=0, microsecond=0) - 5 * MINUTE
    (root / "small_views.py").write_text(VIEWS.replace("MINUTE", first.isoformat()).replace("DAY", (today - 6 * DAY).isoformat()))
    (root / "definitions.py").write_text(DEFINITIONS)
    (root / "pyproject.toml").write_text('[tool.feature_platform]\nregistry = "small_views:registry"\n')
    shutil.copy(REPOSITORY / "workspace.yaml", root)
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    environment |= {"DAGSTER_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "FEATURE_PLATFORM_RUN_SCHEDULES": "true"}
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.delitem(sys.modules, "small_views", raising=False)  # that of another test starts at another minute
    with dg.DagsterInstance.from_config(str(home)) as instance:
        project = Project(root, environment, instance, today, first, time.monotonic() + SECONDS)
        project.start()
        try:
            yield project
        finally:
            project.stop()
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


@pytest.mark.timeout(840)
def test_an_outage_of_the_daemon_leaves_no_partition_out(project: Project) -> None:
    """Killed for three ticks and started again, it has every minute since the start computed once, in a run a tick at most, and pushed."""
    tags = {"dagster/schedule_name": "minutely_schedule"}
    before = len(project.until("the first tick's run", lambda: project.ended(tags)))
    project.kill()
    killed_in = datetime.now(UTC).replace(second=0, microsecond=0)
    back = killed_in + 3 * MINUTE
    time.sleep((back - datetime.now(UTC)).total_seconds() + 1)
    wanted = {f"{project.first + index * MINUTE:{KEY_FORMAT}}" for index in range((back - project.first) // MINUTE)}
    assert len(wanted - project.written("minutely", "plays_1d").keys()) >= 3, "nothing was computed meanwhile"

    project.start()
    project.deadline = time.monotonic() + SECONDS
    project.until("every minute's partition", lambda: wanted <= project.written("minutely", "plays_1d").keys() or None)
    runs = project.until("the end of their runs", lambda: project.ended(tags))
    ticks = (datetime.now(UTC) - killed_in) // MINUTE
    assert 0 < len(runs) - before <= ticks
    records = project.instance.fetch_materializations(dg.AssetKey(["features", "minutely", "plays_1d"]), limit=1000).records
    assert len(records) == len({record.partition_key for record in records}), "no minute was computed twice"
    answer = project.answers("minutely")["plays_1d"]
    assert answer.value == 144
    assert answer.event_timestamp is not None
    assert answer.event_timestamp >= back, "what the last missed tick asked for is online"
