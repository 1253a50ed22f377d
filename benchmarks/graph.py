"""
What a large asset graph costs: the time to load it, beside an empty one, and the ticks of a daemon that has nothing to compute in it.

Knows the projects that it writes. Knows nothing of how definitions are made.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.daemon import ended_ticks, project_environment, running_daemon
from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Result, Run, Subject, Tally, measure

__all__ = ["run"]

_FEATURES_A_VIEW = 5
_WINDOWS: Final = 3
_KINDS: Final = {"schedules": "schedules", "late_data": "late_data", "freshness": "freshness", "online_automation": "automation"}
_VALID = "All code locations passed validation"

_FEATURE_PLATFORM = """\
from datetime import datetime, timedelta

from feature_platform import Entity, Feature, FeatureView, ParquetSource, Registry
from feature_platform.orchestration import build_definitions

member = Entity("member", join_keys={{"member_id": str}})
events = ParquetSource("events", "sources/events/*.parquet", timestamp="happened_at")


def view(number):
    names = [f"view_{{number}}_feature_{{index}}" for index in range({width})]
    counted = ", ".join(f"count(*) filter (where kind = {{index}}) as {{name}}" for index, name in enumerate(names))
    return FeatureView(
        f"view_{{number}}",
        entity=member,
        sources=[events],
        query=f"select member_id, {{counted}} from events group by member_id",
        features=[Feature(name, int, "Events of a kind.") for name in names],
        schedule="{schedule}",
        start=datetime.fromisoformat("{start}"),
        lookback=timedelta(days=7),
        freshness=timedelta(hours=26),
        owners=["team:benchmark"],
    )


registry = Registry(views=[view(number) for number in range({views})])
definitions = build_definitions(registry)
"""

_EMPTY = """\
import dagster as dg

definitions = dg.Definitions()
"""

# What every schedule would ask for at its next tick is there before the daemon starts.
_COMPUTE = """
import sys
from datetime import datetime
from definitions import registry
from feature_platform import FeatureStore, Settings
now = datetime.fromisoformat(sys.argv[1])
with FeatureStore(registry, Settings.from_env()) as store:
    store.compute(now=now)
    store.materialize(now=now)
"""

_COUNT = """
import definitions
keys = [key.path for key in definitions.definitions.resolve_all_asset_keys()]
print(sum(path[0] == "features" for path in keys))
"""


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    views = context.of_size(tiny=2, quick=20, full=200)
    features = views * _FEATURES_A_VIEW
    with tempfile.TemporaryDirectory(prefix="graph-") as temporary:
        ours = _project(Path(temporary) / "ours", _views(views, "@daily", datetime(2025, 1, 1, tzinfo=UTC)))
        # The first line: below it DuckDB may list what Python had not freed when it ended.
        if (counted := _output(ours, [sys.executable, "-c", _COUNT]).partition("\n")[0]) != str(features):
            message = f"the project should have {features} feature assets, and has {counted}"
            raise BenchmarkError(message)
        subjects = [Subject(REFERENCE, partial(_validate, ours))]
        if context.limits:
            subjects.append(Subject("empty", partial(_validate, _project(Path(temporary) / "empty", _EMPTY))))
        measure(context, tally, f"{features} features", subjects, runs=context.of_size(tiny=1, quick=3, full=5))
        _measure_ticks(context, tally, Path(temporary) / "watched", views)


def _measure_ticks(context: Context, tally: Tally, folder: Path, views: int) -> None:
    """
    Measure the ticks of each kind while a daemon has nothing to compute: all schedules tick in the same minute, and find all done.

    A tick that fails, or that the daemon gives up after its limit of 60 s, ends the run.
    """
    features = views * _FEATURES_A_VIEW
    # Time to compute all windows before the daemon starts, and for the daemon to load the graph.
    ahead = timedelta(seconds=context.of_size(tiny=30, quick=60, full=120))
    at = (datetime.now(UTC) + ahead).replace(second=0, microsecond=0) + timedelta(minutes=1)
    start = at - _WINDOWS * timedelta(days=1)
    project = _project(folder, _views(views, f"{at.minute} {at.hour} * * *", start))
    _write_events(folder, start)
    context.say(f"{features} features: computing {_WINDOWS} windows of {views} views")
    _output(project, [sys.executable, "-c", _COMPUTE, at.isoformat()])
    if datetime.now(UTC) > at - timedelta(seconds=20):
        raise BenchmarkError("computing took so long that the schedules would have ticked before the daemon runs; try again")
    seconds = context.of_size(tiny=1, quick=60, full=120)
    context.say(f"{features} features: the daemon runs")
    with running_daemon(folder) as daemon:
        started = time.time()

        def all_ticked() -> dict[str, list[float]] | None:
            ticks = ended_ticks(daemon.instance)
            return ticks if len(ticks.get("schedules", [])) == views and all(ticks.get(kind) for kind in _KINDS) else None

        daemon.until("a tick of everything", all_ticked, every_seconds=5)
        time.sleep(max(0.0, started + seconds - time.time()))
        ticks, runs, watched = ended_ticks(daemon.instance), daemon.instance.get_runs_count(), time.time() - started
    for kind, name in _KINDS.items():
        its = [Run(seconds=one, checksum="") for one in ticks[kind]]
        # The right answer of every tick is that nothing is to be run.
        tally.results.append(Result(case=f"{features} features: {name}", subject=REFERENCE, runs=its, equal=runs == 0))
    counted = ", ".join(f"{len(ticks[kind])} {name}" for kind, name in _KINDS.items())
    tally.left_out.append(f"{features} features: ticks in {watched:.0f} s: {counted}; none failed")


def _views(count: int, schedule: str, start: datetime) -> str:
    return _FEATURE_PLATFORM.format(views=count, width=_FEATURES_A_VIEW, schedule=schedule, start=start.isoformat())


def _write_events(folder: Path, start: datetime) -> None:
    """Write a file of events for each window."""
    (folder / "sources" / "events").mkdir(parents=True)
    for day in range(_WINDOWS):
        times = [start + timedelta(days=day, minutes=10 * index) for index in range(144)]
        columns = {"member_id": [f"m{index}" for index in range(144)], "kind": [index % _FEATURES_A_VIEW for index in range(144)]}
        table = pa.table({**columns, "happened_at": pa.array(times, pa.timestamp("us", tz="UTC"))})
        pq.write_table(table, folder / "sources" / "events" / f"{day}.parquet")


def _project(folder: Path, text: str) -> Path:
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (folder / "definitions.py").write_text(text)
    return folder


def _validate(folder: Path) -> Run:
    started = time.perf_counter()
    said = _output(folder, [sys.executable, "-m", "dagster", "definitions", "validate", "-f", "definitions.py"])
    seconds = time.perf_counter() - started
    if _VALID not in said:
        raise BenchmarkError(said.strip()[-2000:])
    # The answer is that all is valid; what is valid was counted before.
    return Run(seconds=seconds, checksum=_VALID)


def _output(folder: Path, command: list[str]) -> str:
    done = subprocess.run(command, cwd=folder, env=project_environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError((done.stdout + done.stderr).strip()[-2000:])
    return done.stdout + done.stderr
