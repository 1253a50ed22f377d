"""
From the arrival of a source file to its newest value in the online store, with the real daemon: sensor, queue, run, push.

Knows the project that it writes, and what Dagster remembers of the runs. Knows nothing of how a change is found.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.daemon import Daemon, running_daemon
from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Result, Run, Tally, percentile_ms
from feature_platform import ON_UPDATE, Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.errors import NotMaterializedError

__all__ = ["registry", "run", "settings"]

_DAY: Final = timedelta(days=1)
_SEED: Final = 7
_POLL_SECONDS: Final = 0.05
# Longer than the sensor's interval: an arrival meets it, and the run before it, at any moment of theirs.
_LONGEST_PAUSE_SECONDS: Final = 10.0
_USERS: Final = 1000

_DEFINITIONS: Final = """\
from datetime import datetime
from pathlib import Path

from benchmarks.event_to_redis import registry, settings
from feature_platform.orchestration import build_definitions

definitions = build_definitions(registry(datetime.fromisoformat("{start}")), settings(Path(__file__).parent))
"""


@dataclass(frozen=True)
class _Arrival:
    """
    One file's way, in seconds since the epoch.

    Attributes:
        arrived: It got its name.
        looked: The sensor's tick that asked for the run began, or was under way.
        enqueued: The run was asked for.
        dequeued: The queue gave it to the launcher.
        computing: Its first step began.
        computed: That step ended.
        readable: The online store answered with its value.
        title: What it answered.
    """

    arrived: float
    looked: float
    enqueued: float
    dequeued: float
    computing: float
    computed: float
    readable: float
    title: str

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of each part; together they are the whole."""
        return {
            "until_looked": self.looked - self.arrived,
            "tick": self.enqueued - self.looked,
            "queue": self.dequeued - self.enqueued,
            "launch": self.computing - self.dequeued,
            "compute": self.computed - self.computing,
            "push": self.readable - self.computed,
        }


def registry(start: datetime) -> Registry:
    """Return the declarations: the title that each user played last, since some day."""
    user = Entity("user", join_keys={"user_id": int})
    plays = ParquetSource("plays", "data/plays/*.parquet", timestamp="played_at")
    last_play = FeatureView(
        "last_play",
        entity=user,
        sources=[plays],
        query="select user_id, played_at as event_timestamp, title as last_title from plays",
        features=[Feature("last_title", str)],
        schedule=ON_UPDATE,
        start=start,
    )
    return Registry([last_play])


def settings(root: Path) -> Settings:
    """Return the settings of a project."""
    return Settings(project="benchmark", root=root, run_schedules=True)


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    count = context.of_size(tiny=1, quick=5, full=20)
    case = f"{count} arrivals"
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - 3 * _DAY
    with tempfile.TemporaryDirectory(prefix="event-") as temporary:
        root = Path(temporary)
        (root / "definitions.py").write_text(_DEFINITIONS.format(start=start.isoformat()))
        for day in range(3):
            times = [start + day * _DAY + timedelta(minutes=user) for user in range(_USERS)]
            _drop(root, f"day_{day}", list(range(_USERS)), times, f"title of day {day}")
        with running_daemon(root) as daemon, FeatureStore(registry(start), settings(root)) as store:
            daemon.until("the first values", partial(_title_other_than, store, None))
            arrivals = _arrivals(context, daemon, store, case, count)
    whole = [arrival.readable - arrival.arrived for arrival in arrivals]
    equal = [arrival.title for arrival in arrivals] == [f"title {number}" for number in range(count)]
    for subject, seconds in {REFERENCE: whole, **{part: [one.parts[part] for one in arrivals] for part in arrivals[0].parts}}.items():
        runs = [Run(seconds=one, checksum="") for one in seconds]
        p90 = percentile_ms(seconds, 90) / 1000
        tally.results.append(Result(case=case, subject=subject, runs=runs, equal=equal, p90_seconds=p90))
    tally.left_out.append(f"{case}: 90 % of them within {percentile_ms(whole, 90) / 1000:.3g} s")


def _arrivals(context: Context, daemon: Daemon, store: FeatureStore, case: str, count: int) -> list[_Arrival]:
    rng, arrivals = random.Random(_SEED), list[_Arrival]()
    before = _title_other_than(store, None)
    for number in range(count):
        context.say(f"{case}: {number + 1}/{count}")
        time.sleep(rng.uniform(0, _LONGEST_PAUSE_SECONDS))
        arrived = _drop(daemon.root, f"arrival_{number}", [0], [datetime.now(UTC)], f"title {number}")
        title = daemon.until("the new value", partial(_title_other_than, store, before), every_seconds=_POLL_SECONDS)
        arrivals.append(_way(daemon, arrived, time.time(), title))
        before = title
    return arrivals


def _drop(root: Path, name: str, users: list[int], times: list[datetime], title: str) -> float:
    """Put a file among the sources, whole from the first moment on; return that moment."""
    table = {"user_id": users, "played_at": pa.array(times, pa.timestamp("us", tz="UTC")), "title": [title] * len(users)}
    path = root / "data" / "plays" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path.with_suffix(".writing"))
    path.with_suffix(".writing").rename(path)
    return time.time()


def _title_other_than(store: FeatureStore, known: str | None) -> str | None:
    """Return what the online store answers, once that is news."""
    try:
        answer = store.get_online_features(["last_play:last_title"], [{"user_id": 0}])
    except NotMaterializedError:
        return None
    title: str | None = answer.to_dict()["last_title"][0]
    return None if title == known else title


def _way(daemon: Daemon, arrived: float, readable: float, title: str) -> _Arrival:
    """Return an arrival's times: those of the first run that was asked for after it."""
    records = daemon.instance.get_run_records(dg.RunsFilter(job_name="last_play_refresh"), ascending=True)
    record = next((one for one in records if one.create_timestamp.timestamp() >= arrived), None)
    if record is None:
        raise BenchmarkError("a value came online, and no run was asked for after its file arrived")
    run_id = record.dagster_run.run_id
    entries = daemon.instance.all_logs(run_id)

    def first(kind: dg.DagsterEventType) -> float:
        return min(entry.timestamp for entry in entries if entry.dagster_event and entry.dagster_event.event_type is kind)

    def looked() -> float | None:
        (sensor,) = (one for one in daemon.instance.all_instigator_state() if one.name == "last_play_on_update")
        ticks = daemon.instance.get_ticks(sensor.instigator_origin_id, sensor.selector_id)
        return next((tick.timestamp for tick in ticks if run_id in tick.run_ids), None)

    return _Arrival(
        arrived=arrived,
        # A tick that had begun may see the file as well; the microsecond says that nothing was waited for.
        looked=max(daemon.until("the tick's end", looked), arrived + 1e-6),
        enqueued=first(dg.DagsterEventType.PIPELINE_ENQUEUED),
        dequeued=first(dg.DagsterEventType.PIPELINE_STARTING),
        computing=first(dg.DagsterEventType.STEP_START),
        computed=first(dg.DagsterEventType.STEP_SUCCESS),
        readable=readable,
        title=title,
    )
