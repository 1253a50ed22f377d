"""
The running example as `fp demo` and `fp up` leave it, with a few views of the tests' own; and a browser in front of its Dagster UI.

Knows how a stranger starts all this, and how it is stopped. What the pages must show is the tests' own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import BrowserContext, expect, sync_playwright

from feature_platform.cli.processes import answers, free_port

__all__ = ["DAY", "SECONDS", "Project", "open_browser", "running_project"]

DAY = timedelta(days=1)
REPOSITORY = Path(__file__).parent.parent
FP = [sys.executable, "-m", "feature_platform.cli"]
# For a page, a run or a tick, on a machine that does other things too.
SECONDS = 120.0
# Debian's Chromium as root, in a container, without a screen; it calls nobody.
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# At 1100 pixels Dagster lays an hourly partition key over its neighbour on the overview of an asset; at 1280 it does not.
VIEWPORT = (1440, 900)

# Views of the tests alone, beside the example's. MINUTE becomes a fixed time: runs load this file anew.
VIEWS = '''"""The example; a view that is due every minute, three whose data is of different age, and one that gets a bad day."""

from datetime import datetime, timedelta

from feature_platform import ON_UPDATE, Feature, FeatureView, ParquetSource, Registry, between
from features import streaming

NOW = datetime.fromisoformat("MINUTE")
FIRST_DAY = NOW.replace(hour=0, minute=0) - timedelta(days=4)

today = FeatureView(
    "user_today",
    entity=streaming.user,
    sources=[streaming.watches],
    lookback=timedelta(hours=24) - timedelta(minutes=1),
    query="select user_id, count(*) as watch_count_24h from watches group by user_id",
    features=[Feature("watch_count_24h", int, "Titles watched in the last 24 hours.")],
    schedule="* * * * *",
    start=NOW - timedelta(minutes=5),
    owners=["team:personalization"],
)


def following(name: str, description: str) -> FeatureView:
    """Return a view of a source of its own, whose data may be a day old."""
    return FeatureView(
        f"user_{name}",
        entity=streaming.user,
        sources=[ParquetSource(f"{name}_events", f"data/sources/{name}_events/*.parquet", timestamp="event_timestamp")],
        features=[Feature(f"last_{name}", str, description)],
        schedule=ON_UPDATE,
        start=FIRST_DAY,
        freshness=timedelta(hours=24),
        owners=["team:personalization"],
    )


search = following("search", "Words searched for last.")
rating = following("rating", "Title rated last.")
device = following("device", "Kind of device used last.")

minutes = FeatureView(
    "user_minutes",
    entity=streaming.user,
    sources=[ParquetSource("sessions", "data/sources/sessions/*.parquet", timestamp="ended_at")],
    query="select user_id, sum(minutes) as minutes_watched from sessions group by user_id",
    features=[Feature("minutes_watched", int, "Minutes watched in a day.", expect=[between(0, 1440)])],
    schedule="@daily",
    start=FIRST_DAY,
    owners=["team:personalization"],
)

views = [today, search, rating, device, minutes]
registry = Registry(views=[*streaming.registry.views.values(), *views], services=list(streaming.registry.services.values()))
'''
# How old the newest row of each following view is, which promises 24 hours and warns from 18 on.
AGES = {"search": timedelta(0), "rating": timedelta(hours=20), "device": timedelta(hours=30)}
# The first runs of those views: all their windows, but for the newest day of `user_minutes`, in which some sent seconds.
RUNS = """
from datetime import UTC, datetime

from feature_platform import Settings
from feature_platform.cli.runs import AssetRuns
from feature_platform.cli.servers import dagster_home
from feature_platform.offline.due import requested_windows
from features import live

settings = Settings.from_env()
with AssetRuns(live.registry, settings, dagster_home(settings)) as dagster:
    for view in (live.search, live.rating, live.device, live.minutes):
        windows = requested_windows(view, None, None, datetime.now(UTC))
        dagster.compute(view, windows[:3] if view is live.minutes else windows)
        dagster.push(view)
"""
PYPROJECT = '[tool.feature_platform]\nregistry = "features.live:registry"\n'


@dataclass(frozen=True)
class Project:
    """
    A project whose UI and daemon run.

    Attributes:
        root: Its folder.
        url: Of the UI.
        api: Of the retrieval API.
        first_day: The first partition of the views of the tests that have a partition a day.
        windows: The first and last partition key that `fp demo` computed, by view.
    """

    root: Path
    url: str
    api: str
    first_day: datetime
    windows: dict[str, tuple[str, str]]


@contextmanager
def running_project(root: Path) -> Iterator[Project]:
    """Make a project in an empty folder, walk the demo and the first runs in it, and keep `fp up` running; stop all that it started."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    first_day = now.replace(hour=0, minute=0) - 4 * DAY
    _write(root, now, first_day)
    # DAGSTER_HOME too: `fp up` makes the project's own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    environment["FEATURE_PLATFORM_READ_DEADLINE_MS"] = "5000"
    try:
        walked = subprocess.run(
            [*FP, "demo", "--users", "300", "--events", "100000", "--json"],  # of fewer, a quiet hour may be unusual
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            timeout=SECONDS,
        )
        subprocess.run([sys.executable, "-c", RUNS], cwd=root, env=environment, check=True, timeout=SECONDS)
        ports = [str(free_port()), str(free_port())]
        with _servers(root, environment, ports):
            ui, api = (f"http://127.0.0.1:{port}" for port in ports)
            yield Project(root, ui, api, first_day, _windows(json.loads(walked.stdout)))
    finally:
        subprocess.run([*FP, "down"], cwd=root, env=environment, check=False, timeout=60)


@contextmanager
def _servers(root: Path, environment: dict[str, str], ports: list[str]) -> Iterator[None]:
    log_path = root / "up.log"
    with log_path.open("wb") as log:
        command = [*FP, "up", "--ui-port", ports[0], "--api-port", ports[1]]
        servers = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(servers, f"http://127.0.0.1:{ports[0]}", log_path)
            yield
        finally:
            servers.send_signal(signal.SIGINT)
            try:
                servers.wait(60)
            except subprocess.TimeoutExpired:
                servers.terminate()  # a second request: stop without waiting for the politeness of others
                servers.wait(60)


def _write(root: Path, now: datetime, first_day: datetime) -> None:
    shutil.copytree(REPOSITORY / "features", root / "features", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(REPOSITORY / name, root)
    (root / "features" / "live.py").write_text(VIEWS.replace("MINUTE", now.isoformat()))
    for name, age in AGES.items():
        rows = [
            {"user_id": f"viewer-{user:02}", "event_timestamp": instant, f"last_{name}": f"{name} {user}"}
            for instant in (first_day, first_day + DAY, now - age)
            for user in range(20)
        ]
        _write_source(root, f"{name}_events", rows)
    # On the last day three of twenty sent seconds.
    sessions = [
        {
            "user_id": f"viewer-{user:02}",
            "ended_at": first_day + day * DAY,
            "minutes": 60 * (30 + user) if day == 3 and user < 3 else 30 + user + day,
        }
        for day in range(4)
        for user in range(20)
    ]
    _write_source(root, "sessions", sessions)
    (root / "pyproject.toml").write_text(PYPROJECT)
    definitions = (REPOSITORY / "definitions.py").read_text()
    assert "from features.streaming import registry" in definitions
    (root / "definitions.py").write_text(definitions.replace("features.streaming", "features.live"))


def _write_source(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder = root / "data" / "sources" / name
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "all.parquet")


def _wait(servers: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not answers(f"{url}/server_info"):
        assert servers.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{url} does not answer\n{log.read_text()}"
        time.sleep(0.2)


def _windows(document: Any) -> dict[str, tuple[str, str]]:
    runs = [run for run in document["runs"] if run["partitions"]]
    return {run["assets"][0].split("/")[1]: tuple(run["partitions"]) for run in runs}


@contextmanager
def open_browser(profile: Path) -> Iterator[BrowserContext]:
    """Open Debian's Chromium with a new profile; every wait of its pages is a generous one."""
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not on PATH: apt-get install chromium"
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            args=CHROMIUM,
            viewport={"width": VIEWPORT[0], "height": VIEWPORT[1]},
            timezone_id="UTC",
            locale="en-US",
        )
        context.set_default_timeout(SECONDS * 1000)
        try:
            yield context
        finally:
            context.close()
