"""A production set-up with every process for itself: what it does when one of them is killed, and what it never does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster_postgres.run_storage import PostgresRunStorage
from production_servers import SCRIPTS, UNITS, Production, WebserverError, is_true, production, until
from sqlalchemy.exc import OperationalError

from feature_platform import FeatureStore, Settings
from feature_platform.settings import load_registry

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(900)]

T = TypeVar("T")
DAY = timedelta(days=1)
MICROS = pa.timestamp("us", tz="UTC")
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAYS = [TODAY - days * DAY for days in (4, 3, 2, 1)]
KEYS = [f"{day:%Y-%m-%d}" for day in DAYS]

VIEW_NAMES = ("backfilled", "killed", "begun", "pooled", "restarted", "reloaded", "stored", "lost", "secret")
VIEWS = """
import os, time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from feature_platform import Aggregate, Entity, Feature, FeatureView, ParquetSource, Registry

user = Entity("user", join_keys={"user_id": str})
FOLDER = Path(__file__).parent
PREFIXES = {}


def note(view, what, start):
    # One write of a few bytes: lines of several processes do not mix.
    with (FOLDER / f"{view}.journal").open("a") as journal:
        journal.write(f"{what} {start:%Y-%m-%d} {os.getpid()}\\n")


def played(source, start, view):
    "Count the plays of a window; wait for as long as somebody holds it."
    note(view, "begin", start)
    held = FOLDER / f"{view}.hold"
    while held.exists() and held.read_text() in ("", f"{start:%Y-%m-%d}"):
        time.sleep(0.05)
    note(view, "end", start)
    return source.aggregate(f"user_id, count(*) as plays, '{PREFIXES.get(view, '')}' || max(title) as last_title", "user_id")


def snapshot(view):
    plays = ParquetSource(f"plays_of_{view}", f"data/{view}/*.parquet", timestamp="played_at")
    return FeatureView(
        view, entity=user, sources=[plays], query=partial(compute, view=view, name=plays.name),
        features=[Feature("plays", int), Feature("last_title", str)], schedule="@daily", start=datetime.fromisoformat("START"),
    )


def compute(relations, *, view, name):
    # The window's start is its first play's: the source holds a play at midnight.
    start = relations[name].aggregate("min(played_at) as first").fetchall()[0][0]
    return played(relations[name], start, view)


counts = FeatureView(
    "counts", entity=user, sources=[ParquetSource("plays_of_counts", "data/counts/*.parquet", timestamp="played_at")],
    features=[Aggregate("n", "count", window=timedelta(hours=3))], schedule="@hourly", start=datetime.fromisoformat("START"),
)
registry = Registry([*(snapshot(view) for view in VIEW_NAMES), counts])
"""
DEFINITIONS = """
import dagster as dg
from feature_platform.orchestration import OnlineStoreResource, build_definitions
from production_views import registry

online_store = OnlineStoreResource(url=dg.EnvVar("FEATURE_PLATFORM_REDIS_URL"))
definitions = build_definitions(registry, resources={"online_store": online_store})
"""
FILES = {
    "production_views.py": VIEWS.replace("START", DAYS[0].isoformat()).replace("VIEW_NAMES", repr(VIEW_NAMES)),
    "definitions.py": DEFINITIONS,
    "pyproject.toml": '[tool.feature_platform]\nregistry = "production_views:registry"\n',
}


def write_plays(root: Path, view: str, title: str) -> None:
    """Write a play of one user every ten minutes, for all days."""
    count = len(DAYS) * 144
    times = [DAYS[0] + timedelta(minutes=10 * index) for index in range(count)]
    table = pa.table({"user_id": ["ann"] * count, "played_at": pa.array(times, MICROS), "title": [title] * count})
    path = root / "data" / view / "plays.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Start everything once; each test has a view of its own."""
    with production(tmp_path_factory.mktemp("production"), FILES) as made:
        yield made


def journal(servers: Production, view: str) -> list[tuple[str, str, int]]:
    """Return what computing a view wrote down: begin or end, window and process."""
    path = servers.root / f"{view}.journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(what, key, int(process)) for what, key, process in (line.split() for line in lines)]


@contextmanager
def held(servers: Production, view: str, key: str = "") -> Iterator[Path]:
    """Hold every computation of a view, or that of one window; until the file goes."""
    path = servers.root / f"{view}.hold"
    path.write_text(key)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def begun(servers: Production, view: str) -> list[str]:
    """Return the windows of a view that were computed, or begun, in that order."""
    return [key for what, key, _ in journal(servers, view) if what == "begin"]


def holder(servers: Production, view: str, key: str) -> int:
    """Wait until a window is being computed; return the process that does it."""

    def look() -> int | None:
        lines = journal(servers, view)
        return lines[-1][2] if lines and lines[-1][:2] == ("begin", key) else None

    return until(f"{view} {key} to be computed", look, servers.tails)


def pushed(servers: Production, view: str, title: str) -> None:
    """Wait until the API answers a title."""
    until(f"{view} to be served as {title}", lambda: is_true(servers.served(view) == title), servers.tails)


@contextmanager
def watched(servers: Production, view: str) -> Iterator[list[str | None]]:
    """Ask the API for a view all the time; hand out the answers, each of which is written down when it changes."""
    found: list[str | None] = [servers.served(view)]
    stop = threading.Event()

    def watch() -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(0.1)  # and one more look, or the end would be missed
            answer = servers.served(view)
            if answer != found[-1]:
                found.append(answer)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def filled(servers: Production, view: str) -> None:
    """Compute and push a view whose title is dune, by the command line's own way."""
    write_plays(servers.root, view, "dune")
    settings = Settings.from_env(start=servers.root)
    with FeatureStore(load_registry(settings), settings) as store:
        store.compute([view])
        store.materialize([view])
    assert servers.served(view) == "dune"
    (servers.root / f"{view}.journal").unlink(missing_ok=True)


def test_a_killed_run_is_run_again(servers: Production) -> None:
    """Killed in its third window, it is retried without being asked for; until then the old values are served, then the new."""
    filled(servers, "killed")
    write_plays(servers.root, "killed", "solaris")
    with watched(servers, "killed") as answers:
        with held(servers, "killed", KEYS[2]):
            run = servers.compute("killed", KEYS)
            os.kill(holder(servers, "killed", KEYS[2]), signal.SIGKILL)
            until("the killed run to be found", lambda: is_true(servers.status(run) == dg.DagsterRunStatus.FAILURE), servers.tails)
        retry = until("the retry", lambda: servers.retry_of(run), servers.tails)
        until("the retry to succeed", lambda: servers.succeeded(retry), servers.tails)
        pushed(servers, "killed", "solaris")
    assert answers == ["dune", "solaris"]
    settings = Settings.from_env(start=servers.root)
    with FeatureStore(load_registry(settings), settings) as store:
        asked = pa.table({"user_id": ["ann"] * 4, "event_timestamp": pa.array([day + DAY for day in DAYS], MICROS)})
        history = store.get_historical_features(asked, ["killed:plays", "killed:last_title"]).to_arrow()
    assert history["plays"].to_pylist() == [144] * 4
    assert history["last_title"].to_pylist() == ["solaris"] * 4


def test_a_backfill_outlives_the_daemon(servers: Production) -> None:
    """Launched in the UI, and the daemon killed before it has seen it: the next one sees to it, and it reaches the API."""
    write_plays(servers.root, "backfilled", "dune")
    assert servers.served("backfilled") is None
    backfill = servers.backfill("backfilled", KEYS)
    servers.kill("daemon")
    servers.start("daemon")
    until("the backfill to succeed", lambda: servers.done(backfill), servers.tails)
    pushed(servers, "backfilled", "dune")
    assert begun(servers, "backfilled") == KEYS


def test_a_run_does_not_notice_that_daemon_and_webserver_were_killed(servers: Production) -> None:
    """It ends, nothing is computed twice, and the next daemon has it pushed."""
    filled(servers, "begun")
    write_plays(servers.root, "begun", "solaris")
    with watched(servers, "begun") as answers:
        with held(servers, "begun", KEYS[2]):
            run = servers.compute("begun", KEYS)
            holder(servers, "begun", KEYS[2])
            servers.kill("daemon")
            servers.kill("webserver")
        until("the run to succeed", lambda: servers.succeeded(run), servers.tails)
        servers.start("daemon")
        servers.start("webserver")
        pushed(servers, "begun", "solaris")
    assert answers == ["dune", "solaris"]
    assert begun(servers, "begun") == KEYS
    servers.wait_for("webserver")


def test_a_code_server_that_was_killed_fails_no_run(servers: Production) -> None:
    """A run under way ends by itself; one in the queue waits until the code server is back."""
    filled(servers, "restarted")
    write_plays(servers.root, "restarted", "solaris")
    with held(servers, "restarted", KEYS[2]):
        under_way = servers.compute("restarted", KEYS[2:3])
        holder(servers, "restarted", KEYS[2])
        servers.kill("daemon")
        queued = servers.compute("restarted", KEYS[3:])
        servers.kill("code")
        servers.start("daemon")
        until("the queue to try in vain", lambda: servers.log_has("daemon", "Caught an error dequeuing run"), servers.tails)
        assert servers.served("restarted") == "dune"
        servers.start("code")
        servers.wait_for("code")
    until("the run under way to succeed", lambda: servers.succeeded(under_way), servers.tails)
    until("the one in the queue to succeed", lambda: servers.succeeded(queued), servers.tails)
    pushed(servers, "restarted", "solaris")
    servers.wait_for("webserver")


def test_new_code_is_loaded_while_everything_goes_on(servers: Production) -> None:
    """A reload replaces the code server behind its socket: a run under way keeps its code and ends, the next one has the new."""
    filled(servers, "reloaded")
    with held(servers, "reloaded", KEYS[2]):
        run = servers.compute("reloaded", KEYS[2:3])
        holder(servers, "reloaded", KEYS[2])
        before, daemon = servers.location_id(), servers.running["daemon"].process.pid
        code = servers.root / "production_views.py"
        code.write_text(code.read_text().replace("PREFIXES = {}", "PREFIXES = {'reloaded': 'new '}"))
        servers.reload()
        until("the new code", lambda: is_true(servers.location_id() not in {before, None}), servers.tails)
        again = servers.compute("reloaded", KEYS[3:])
    for one in (run, again):
        until("the runs to succeed", partial(servers.succeeded, one), servers.tails)
    pushed(servers, "reloaded", "new dune")
    assert servers.running["daemon"].process.pid == daemon
    assert servers.running["daemon"].process.poll() is None
    titles = {key: pq.read_table(servers.root / f"data/features/reloaded/{key}T0000Z.parquet")["last_title"][0].as_py() for key in KEYS[2:]}
    assert titles == {KEYS[2]: "dune", KEYS[3]: "new dune"}


def test_two_runs_of_one_view_take_turns(servers: Production) -> None:
    """The pool lets one of them compute; the other, which has started, waits."""
    write_plays(servers.root, "pooled", "dune")
    with held(servers, "pooled"):
        runs = [servers.compute("pooled", [key]) for key in KEYS[:2]]
        until("one to compute", lambda: is_true(bool(journal(servers, "pooled"))), servers.tails)
        started = dg.DagsterRunStatus.STARTED
        until("both to have started", lambda: is_true(all(servers.status(run) == started for run in runs)), servers.tails)
        time.sleep(5)  # five times what a step waits between two looks at the pool
        assert len(journal(servers, "pooled")) == 1
    for run in runs:
        until("both to succeed", partial(servers.succeeded, run), servers.tails)
    assert [what for what, _, _ in journal(servers, "pooled")] == ["begin", "end"] * 2


COMPUTE = """
from datetime import datetime
from pathlib import Path
from feature_platform import FeatureStore, Settings
from feature_platform.settings import load_registry
settings = Settings.from_env()
with FeatureStore(load_registry(settings), settings) as store:
    print("ready", flush=True)
    input()
    store.compute(["counts"], start=datetime.fromisoformat({!r}), end=datetime.fromisoformat({!r}))
"""


def test_processes_that_compute_one_view_at_once_lose_nothing(servers: Production) -> None:
    """A run of the daemon and two processes beside it, over windows that overlap: the history answers like one computed in turn."""
    write_plays(servers.root, "counts", "dune")
    hour = timedelta(hours=1)
    ranges = [(DAYS[0], DAYS[2]), (DAYS[1], DAYS[3])]
    environment = {**os.environ, "PYTHONPATH": f"{servers.root}:{os.environ['PYTHONPATH']}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPUTE.format(low.isoformat(), high.isoformat())],
            cwd=servers.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for low, high in ranges
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    keys = [f"{DAYS[0] + index * hour:%Y-%m-%dT%H}" for index in range(72)]
    run = servers.compute("counts", keys)
    until("the run to compute", lambda: next(iter((servers.root / "data/features/counts").glob("*.parquet")), None), servers.tails)
    outputs = [process.communicate("\n", timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    until("the run to succeed", lambda: servers.succeeded(run), servers.tails)

    settings = Settings.from_env(start=servers.root)
    registry = load_registry(settings)
    times = [DAYS[0] + index * hour / 2 for index in range(160)]
    asked = pa.table({"user_id": ["ann"] * 160, "event_timestamp": pa.array(times, MICROS)})
    with (
        FeatureStore(registry, settings) as together,
        FeatureStore(registry, replace(settings, offline_root=servers.root / "data/sequential")) as alone,
    ):
        partitions = together.offline.partitions(registry.view("counts"))
        assert [one.window.key for one in partitions] == [f"{key}00Z" for key in keys]
        assert len({one.generation for one in partitions}) == 72
        alone.compute(["counts"], start=DAYS[0], end=DAYS[3])
        expected = alone.get_historical_features(asked, ["counts:n"], statuses=True).to_arrow()
        assert together.get_historical_features(asked, ["counts:n"], statuses=True).to_arrow().equals(expected)
        assert set(expected["n"].to_pylist()) >= {0, 6, 12, 18}


def test_old_ticks_are_purged(servers: Production) -> None:
    """A skipped tick older than its retention is gone with the daemon's next tick; a younger one stays."""
    storage = servers.instance.schedule_storage
    assert storage is not None
    states = servers.instance.all_instigator_state()
    ((origin, selector),) = {(one.instigator_origin_id, one.selector_id) for one in states if one.instigator_name == "online_automation"}

    def ticks() -> Sequence[InstigatorTick]:
        return servers.instance.get_ticks(origin, selector)

    newest = until("a tick", lambda: next(iter(ticks()), None), servers.tails).tick_data
    now = time.time()
    old, young = (
        storage.create_tick(newest._replace(status=TickStatus.SKIPPED, timestamp=now - days * DAY.total_seconds())).tick_id
        for days in (3, 1)
    )
    until("the old tick to go", lambda: is_true(old not in {tick.tick_id for tick in ticks()}), servers.tails)
    assert young in {tick.tick_id for tick in ticks()}


def test_a_crash_of_postgres_stops_nothing_for_good(servers: Production) -> None:
    """While Dagster's storage is down the API serves; when it is back, daemon and webserver go on by themselves."""
    filled(servers, "stored")
    write_plays(servers.root, "stored", "solaris")
    servers.postgres.kill()
    assert servers.served("stored") == "dune"
    servers.postgres.start()
    # Each pool of connections, the webserver's and our own, learns of the crash by one request that fails.
    run = until("a launch", lambda: unbroken(lambda: servers.compute("stored", KEYS)), servers.tails)
    mine = servers.instance
    asks: list[Callable[[], object]] = [mine.all_instigator_state, mine.get_runs_count, mine.event_log_storage.get_maximum_record_id]
    for ask in asks:
        until("our own connection", partial(unbroken, ask), servers.tails)
    until("the run to succeed", lambda: servers.succeeded(run), servers.tails)
    pushed(servers, "stored", "solaris")
    assert all(child.process.poll() is None for child in servers.running.values())


def unbroken(ask: Callable[[], T]) -> T | None:
    """Return the answer; None where the connection turns out to be broken."""
    with suppress(WebserverError, OperationalError):
        return ask()
    return None


def test_a_crash_of_redis_is_told_and_made_good(servers: Production) -> None:
    """While the online store is down, or empty after it, the API answers 503 and never a default; a rebuild fills it."""
    filled(servers, "lost")
    servers.redis.kill()
    assert servers.serve("lost")[0] == 503
    servers.redis.start()
    assert servers.serve("lost")[0] == 503  # it kept nothing, and nothing is not the default
    subprocess.run([SCRIPTS / "fp", "rebuild-online"], cwd=servers.root, check=True, capture_output=True, timeout=200)
    assert servers.served("lost") == "dune"


def test_the_units_are_understood(tmp_path: Path) -> None:
    """Every unit is read by systemd without a complaint, and the environment file names what the processes ask for."""
    assert shutil.which("systemd-analyze"), "this test needs systemd-analyze: apt-get install systemd"
    units = sorted([*UNITS.glob("*.service"), *UNITS.glob("*.socket")])
    for unit in units:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/srv/features/.venv/bin", str(SCRIPTS)))
    command = ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    asked = set(re.findall(r"env: *(\w+)", "".join(path.read_text() for path in (UNITS.parent).glob("*.yaml"))))
    given = {line.partition("=")[0] for line in (UNITS.parent / "environment.example").read_text().splitlines() if line[:1].isalpha()}
    assert asked < given
    Settings.from_env(dict.fromkeys((name for name in given if name.startswith("FEATURE_PLATFORM_")), "true"), start=tmp_path)


ABOUT = """{ instance { info daemonHealth { allDaemonStatuses { daemonType } } }
    workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on RepositoryLocation {
        environmentPath dagsterLibraryVersions { name } repositories { allTopLevelResourceDetails {
            name configFields { name description } configuredValues { key value type } } } } } } } }
    runsOrError { ... on Runs { results { runConfigYaml tags { key value } eventConnection { events { ... on MessageEvent { message }
        ... on ExecutionStepFailureEvent { error { message stack causes { message stack } } } } } } } } }"""


def test_no_secret_is_written_anywhere(servers: Production) -> None:
    """No file, log, table, command line or answer of the UI holds a password, not even after failures that are about them."""
    filled(servers, "secret")
    servers.redis.kill()
    run = servers.push("secret")
    until("the push to fail", lambda: is_true(servers.status(run) == dg.DagsterRunStatus.FAILURE), servers.tails)
    servers.redis.start()
    answers = json.dumps(servers.graphql(ABOUT))
    # Each text holds what it must hold if it is what it says, and no secret.
    places = {
        "files": (_text_of_files(servers.root.parent), "redis.sock"),
        "tables": (servers.postgres.run("pg_dump", "--column-inserts", "dagster"), run),
        "snapshots": (_text_of_snapshots(servers), "FEATURE_PLATFORM_REDIS_URL"),
        "commands": (_command_lines(), "dagster-daemon"),
        "answers": (answers, "redis.sock"),
        "resources": (answers, "FEATURE_PLATFORM_REDIS_URL"),
    }
    for place, (text, expected) in places.items():
        assert expected in text, place
        for name, secret in servers.secrets.items():
            assert secret not in text, f"the password of {name} is in {place}"


def _text_of_files(folder: Path) -> str:
    return "\n".join(path.read_bytes().decode(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file())


def _text_of_snapshots(servers: Production) -> str:
    """Return what Dagster keeps compressed: jobs and execution plans, with the configuration of their resources."""
    storage = servers.instance.run_storage
    assert isinstance(storage, PostgresRunStorage)
    with storage.connect() as connection:
        rows = connection.exec_driver_sql("select snapshot_body from snapshots").fetchall()
    return "\n".join(zlib.decompress(bytes(row[0])).decode() for row in rows)


def _command_lines() -> str:
    """Return the command lines of all processes of this machine that we may read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)
