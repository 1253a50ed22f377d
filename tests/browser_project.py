"""
The running example as `fp demo` and `fp up` leave it, with a view that is due every minute; and a browser in front of its Dagster UI.

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

from playwright.sync_api import BrowserContext, expect, sync_playwright

from feature_platform.cli.processes import answers, free_port

__all__ = ["SECONDS", "Project", "open_browser", "running_project"]

REPOSITORY = Path(__file__).parent.parent
FP = [sys.executable, "-m", "feature_platform.cli"]
# For a page, a run or a tick, on a machine that does other things too.
SECONDS = 120.0
# Debian's Chromium as root, in a container, without a screen; it calls nobody.
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# At 1280 pixels Dagster lays an hourly partition key over its neighbour on the overview of an asset.
VIEWPORT = (1440, 900)

# Views of the tests alone, beside the example's. MINUTE becomes a fixed time: runs load this file anew.
VIEWS = '''"""The example, and a view that is due every minute: nobody waits an hour for a tick."""

from datetime import datetime, timedelta

from feature_platform import Feature, FeatureView, Registry
from features import streaming

today = FeatureView(
    "user_today",
    entity=streaming.user,
    sources=[streaming.watches],
    lookback=timedelta(hours=24) - timedelta(minutes=1),
    query="select user_id, count(*) as watch_count_24h from watches group by user_id",
    features=[Feature("watch_count_24h", int, "Titles watched in the last 24 hours.")],
    schedule="* * * * *",
    start=datetime.fromisoformat("MINUTE"),
    owners=["team:personalization"],
)

registry = Registry(views=[*streaming.registry.views.values(), today], services=list(streaming.registry.services.values()))
'''
PYPROJECT = '[tool.feature_platform]\nregistry = "features.live:registry"\n'


@dataclass(frozen=True)
class Project:
    """
    A project whose UI and daemon run.

    Attributes:
        root: Its folder.
        url: Of the UI.
        windows: The first and last partition key that `fp demo` computed, by view.
    """

    root: Path
    url: str
    windows: dict[str, tuple[str, str]]


@contextmanager
def running_project(root: Path) -> Iterator[Project]:
    """Make a project in an empty folder, walk the demo in it, and keep `fp up` running; stop all that it started."""
    _write(root)
    # DAGSTER_HOME too: `fp up` makes the project's own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    walked = subprocess.run(
        [*FP, "demo", "--users", "300", "--events", "20000", "--json"],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=SECONDS,
    )
    ports = [str(free_port()), str(free_port())]
    url, log_path = f"http://127.0.0.1:{ports[0]}", root / "up.log"
    with log_path.open("wb") as log:
        command = [*FP, "up", "--ui-port", ports[0], "--api-port", ports[1]]
        servers = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(servers, url, log_path)
            yield Project(root, url, _windows(json.loads(walked.stdout)))
        finally:
            servers.send_signal(signal.SIGINT)
            try:
                servers.wait(60)
            except subprocess.TimeoutExpired:
                servers.terminate()  # a second request: stop without waiting for the politeness of others
                servers.wait(60)


def _write(root: Path) -> None:
    shutil.copytree(REPOSITORY / "features", root / "features", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(REPOSITORY / name, root)
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5)
    (root / "features" / "live.py").write_text(VIEWS.replace("MINUTE", start.isoformat()))
    (root / "pyproject.toml").write_text(PYPROJECT)
    definitions = (REPOSITORY / "definitions.py").read_text()
    assert "from features.streaming import registry" in definitions
    (root / "definitions.py").write_text(definitions.replace("features.streaming", "features.live"))


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
