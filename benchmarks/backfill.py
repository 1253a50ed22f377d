"""
A backfill: all windows of a view in the one run that Dagster's daemon would launch, beside a run for each window and no Dagster at all.

Knows the project that it writes, and asks it afterwards what it computed. Knows nothing of how windows are computed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.checksums import checksum_of_batches
from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Run, Subject, Tally, measure, worker_environment
from feature_platform import Aggregate, Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.orchestration.partitions import key_of
from feature_platform.windows import Window

__all__ = ["registry", "run", "settings"]

_START: Final = datetime(2025, 1, 1, tzinfo=UTC)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_SEED: Final = 7
_LONGEST_RUN_SECONDS: Final = 1800.0
_INSTANCE: Final = Path(__file__).parent.parent / "dagster.yaml"

_DEFINITIONS: Final = """\
from pathlib import Path

import dagster as dg

from benchmarks.backfill import registry, settings
from feature_platform.orchestration import build_definitions, feature_keys

# What a person's backfill selects: the features alone. The push that follows is a run of its own.
jobs = [dg.define_asset_job(f"backfill_{view.name}", selection=feature_keys(view)) for view in registry().views.values()]
definitions = dg.Definitions.merge(build_definitions(registry(), settings(Path(__file__).parent)), dg.Definitions(jobs=jobs))
"""
_BARE: Final = """\
import sys
from datetime import datetime
from pathlib import Path

from benchmarks.backfill import registry, settings
from feature_platform import FeatureStore

with FeatureStore(registry(), settings(Path.cwd())) as store:
    store.compute(sys.argv[1], start=datetime.fromisoformat(sys.argv[2]), end=datetime.fromisoformat(sys.argv[3]))
"""


@dataclass(frozen=True, kw_only=True)
class _Backfill:
    """The windows of one view that are wanted, and how many of them are run one by one."""

    view: str
    window: timedelta
    count: int
    alone: int

    @property
    def case(self) -> str:
        """The name of the case."""
        return f"{self.view} {self.count} {'hours' if self.window == _HOUR else 'days'}"

    def key(self, start: datetime) -> str:
        """Return the partition key of the window that starts then."""
        return key_of(registry().view(self.view), Window(start, start + self.window))

    def end(self, windows: int) -> datetime:
        """Return the end of the first windows."""
        return _START + windows * self.window


@dataclass(frozen=True)
class _Project:
    """A project folder with a Dagster instance on disk; each run starts from an empty history and an empty instance."""

    root: Path
    backfill: _Backfill
    users: int

    def emptied(self) -> None:
        shutil.rmtree(self.root / "data" / "features", ignore_errors=True)
        shutil.rmtree(self.root / "home", ignore_errors=True)
        (self.root / "home").mkdir()
        shutil.copy(_INSTANCE, self.root / "home")

    def seconds(self, command: Sequence[str]) -> float:
        """Return the time of a whole process."""
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env={**worker_environment(), "DAGSTER_HOME": str(self.root / "home")},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_RUN_SECONDS,
        )
        if done.returncode:
            raise BenchmarkError((done.stdout + done.stderr).strip()[-2000:])
        return time.perf_counter() - started

    def execute(self, tags: dict[str, str]) -> float:
        job = f"backfill_{self.backfill.view}"
        return self.seconds(["-m", "dagster", "job", "execute", "-f", "definitions.py", "-j", job, "--tags", json.dumps(tags)])

    def compute(self) -> float:
        backfill = self.backfill
        return self.seconds(["-c", _BARE, backfill.view, _START.isoformat(), backfill.end(backfill.count).isoformat()])

    def answers(self, windows: int) -> str:
        """Return the checksum of every user's values at the end of some windows, and of a sample of users and times before it."""
        rng, end = np.random.default_rng([_SEED, windows]), self.backfill.end(windows)
        seconds = rng.integers(0, int((end - _START).total_seconds()) + 1, 2000)
        times = [end] * self.users + [_START + timedelta(seconds=int(one)) for one in seconds]
        users = np.concatenate([np.arange(self.users), rng.integers(0, self.users, 2000)])
        asked = pa.table({"user_id": users, "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC"))})
        with FeatureStore(registry(), settings(self.root)) as store:
            names = list(store.registry.view(self.backfill.view).feature_by_name)
            found = store.get_historical_features(asked, [f"{self.backfill.view}:{name}" for name in names], statuses=True).to_arrow()
        statuses = json.dumps([found.column(f"{name}__status").to_pylist() for name in names])
        return checksum_of_batches([found], names) + hashlib.sha256(statuses.encode()).hexdigest()


def registry() -> Registry:
    """Return the declarations; whole numbers, whose sums are the same in any order."""
    user = Entity("user", join_keys={"user_id": int})
    plays = ParquetSource("plays", "data/plays.parquet", timestamp="played_at")
    aggregate = FeatureView(
        "aggregate",
        entity=user,
        sources=[plays],
        features=[
            Aggregate("plays_7d_int", "count", window=7 * _DAY),
            Aggregate("minutes_1d_int", "sum", column="minutes", dtype=int, window=_DAY),
        ],
        schedule="@hourly",
        start=_START,
    )
    snapshot = FeatureView(
        "snapshot",
        entity=user,
        sources=[plays],
        lookback=6 * _DAY,
        query="select user_id, count(*) as plays_int, sum(minutes) as minutes_int from plays group by user_id",
        features=[Feature("plays_int", int), Feature("minutes_int", int)],
        schedule="@daily",
        start=_START,
    )
    return Registry([aggregate, snapshot])


def settings(root: Path) -> Settings:
    """Return the settings of a project."""
    return Settings(project="benchmark", root=root)


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    hours, days = context.of_size(tiny=(4, 3), quick=(72, 30), full=(720, 365))
    alone = context.of_size(tiny=1, quick=3, full=10)
    events, users = context.of_size(tiny=(2000, 50), quick=(50_000, 1000), full=(500_000, 5000))
    for backfill in (
        _Backfill(view="aggregate", window=_HOUR, count=hours, alone=alone),
        _Backfill(view="snapshot", window=_DAY, count=days, alone=alone),
    ):
        with tempfile.TemporaryDirectory(prefix="backfill-") as temporary:
            project = _Project(Path(temporary), backfill, users)
            _write(project, events)
            _measure(context, tally, project)


def _measure(context: Context, tally: Tally, project: _Project) -> None:
    backfill = project.backfill
    subjects = [Subject(REFERENCE, partial(_one_run, project))]
    project.emptied()
    project.compute()
    whole, first = project.answers(backfill.count), project.answers(backfill.alone)
    if context.limits:
        subjects.append(Subject("run_per_partition", partial(_run_per_partition, project, first=first, whole=whole)))
        subjects.append(Subject("bare_compute", partial(_bare_compute, project)))
        tally.left_out.append(f"{backfill.case}: run_per_partition is {backfill.alone} runs, extrapolated to {backfill.count}")
    measure(context, tally, backfill.case, subjects, runs=context.of_size(tiny=1, quick=3, full=1), expected=whole)


def _one_run(project: _Project) -> Run:
    """Execute the run of a single-run backfill, in a process and on an instance as a launcher does."""
    backfill = project.backfill
    project.emptied()
    first, last = _START, backfill.end(backfill.count - 1)
    seconds = project.execute(
        {"dagster/asset_partition_range_start": backfill.key(first), "dagster/asset_partition_range_end": backfill.key(last)}
    )
    return Run(seconds=seconds, rate=backfill.count / seconds, checksum=project.answers(backfill.count))


def _run_per_partition(project: _Project, *, first: str, whole: str) -> Run:
    """Execute the first windows in a run each; the rest would take as long each."""
    backfill = project.backfill
    project.emptied()
    spent = sum(project.execute({"dagster/partition": backfill.key(backfill.end(index))}) for index in range(backfill.alone))
    found = project.answers(backfill.alone)
    return Run(seconds=spent / backfill.alone * backfill.count, rate=backfill.alone / spent, checksum=whole if found == first else found)


def _bare_compute(project: _Project) -> Run:
    """Compute the same windows in a process without Dagster."""
    backfill = project.backfill
    project.emptied()
    seconds = project.compute()
    return Run(seconds=seconds, rate=backfill.count / seconds, checksum=project.answers(backfill.count))


def _write(project: _Project, events: int) -> None:
    """Write the project: its definitions, and plays over all windows."""
    rng = np.random.default_rng([_SEED, events])
    span = int((project.backfill.end(project.backfill.count) - _START).total_seconds())
    times = int(_START.timestamp()) + np.sort(rng.integers(0, span, events))
    plays = {
        "user_id": rng.integers(0, project.users, events),
        "played_at": pa.array(times * 1_000_000, pa.timestamp("us", tz="UTC")),
        "minutes": rng.integers(1, 180, events),
    }
    (project.root / "data").mkdir()
    pq.write_table(pa.table(plays), project.root / "data" / "plays.parquet")
    (project.root / "definitions.py").write_text(_DEFINITIONS)
