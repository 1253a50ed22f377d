"""
A real `dagster-daemon` over a project in a folder: the repository's own dagster.yaml and workspace.yaml, schedules and sensors running.

Knows processes, and the ticks that the instance remembers. Knows nothing of what they run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorType, TickStatus

from benchmarks.measuring import BenchmarkError, worker_environment
from feature_platform import Settings
from feature_platform.online.embedded import stop_server

__all__ = ["Daemon", "ended_ticks", "project_environment", "running_daemon"]

_REPOSITORY: Final = Path(__file__).parent.parent
_LONGEST_WAIT_SECONDS: Final = 600.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs, and the instance that it serves."""

    root: Path
    instance: dg.DagsterInstance
    process: subprocess.Popen[bytes]

    def until(self, what: str, look: Callable[[], _T | None], *, every_seconds: float = 0.5) -> _T:
        """
        Wait for something to be there.

        Raises:
            BenchmarkError: The daemon ended, or it took ten minutes.
        """
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while (found := look()) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                message = f"waited in vain for {what}; the daemon said last:\n{(self.root / 'daemon.log').read_text()[-2000:]}"
                raise BenchmarkError(message)
            time.sleep(every_seconds)
        return found


def project_environment(root: Path) -> dict[str, str]:
    """Return the environment of a project's processes."""
    environment = worker_environment()
    return {
        **environment,
        "DAGSTER_HOME": str(root / "home"),
        "FEATURE_PLATFORM_ROOT": str(root),
        "FEATURE_PLATFORM_RUN_SCHEDULES": "true",
        "PYTHONPATH": os.pathsep.join([str(root), environment["PYTHONPATH"]]),
    }


def ended_ticks(instance: dg.DagsterInstance) -> dict[str, list[float]]:
    """
    Return the seconds of the ticks that ended, by name of the sensor; those of all schedules as `schedules`.

    A schedule's tick begins at the time of its cron, so it waits for its turn in these seconds.

    Raises:
        BenchmarkError: One of them failed.
    """
    found: dict[str, list[float]] = {}
    for state in instance.all_instigator_state():
        kind = "schedules" if state.instigator_type is InstigatorType.SCHEDULE else state.name
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id):
            if tick.status is TickStatus.FAILURE:
                message = f"a tick of {state.name} failed: {tick.error.message.strip() if tick.error else tick}"
                raise BenchmarkError(message[:2000])
            if tick.end_timestamp is not None:
                found.setdefault(kind, []).append(tick.end_timestamp - tick.timestamp)
    return found


@contextlib.contextmanager
def running_daemon(root: Path) -> Iterator[Daemon]:
    """
    Run the daemon of a project; stop all that it started in the end, the embedded online store too.

    Args:
        root: The project folder, which has its definitions.py; the instance is in its `home`.
    """
    (root / "home").mkdir(exist_ok=True)
    shutil.copy(_REPOSITORY / "workspace.yaml", root)
    shutil.copy(_REPOSITORY / "dagster.yaml", root / "home")
    command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-w", "workspace.yaml"]
    with (root / "daemon.log").open("wb") as log, dg.DagsterInstance.from_config(str(root / "home")) as instance:
        # A session of its own: code server and runs are its children, and end with it.
        process = subprocess.Popen(command, cwd=root, env=project_environment(root), stdout=log, stderr=log, start_new_session=True)
        try:
            yield Daemon(root, instance, process)
        finally:
            _stop(process)
            stop_server(Settings(root=root).online_root)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the daemon, and what of its session outlives it: a run still writes where its project is about to be removed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.05)
