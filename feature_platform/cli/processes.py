"""
Child processes that are started together and stopped together, each with all that it started itself.

Knows process groups, signals and ports. Knows nothing of what runs in them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import click

from feature_platform.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType, TracebackType

__all__ = ["Child", "ChildError", "Children", "StopSignals", "answers", "check_port", "free_port"]

LOOPBACK: Final = "127.0.0.1"
_POLL_SECONDS: Final = 0.1
# Dagster waits 5 s for each of its services; the API closes its connections within 5 s.
_GRACE: Final = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


class ChildError(click.ClickException):
    """A child process ended by itself, or does not answer."""


@dataclass
class Child:
    """
    One process, the leader of a group of its own.

    Attributes:
        name: For messages.
        process: The leader.
        log: Where its output goes.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """Return the end of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Children:
    """A context manager that stops what it started, whatever happens."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop all children."""
        self.stop()

    def start(self, name: str, command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str] | None = None) -> Child:
        """
        Start a process in a session of its own, so that a Ctrl-C in the terminal reaches it through us alone.

        Signals that we ignore stay ignored in it: use `StopSignals` first. A shell starts its background commands with SIGINT
        ignored, and `dagster dev` inherits that and could not be stopped.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """
        Return if all of them run.

        Raises:
            ChildError: One has ended; the end of its output tells why.
        """
        for child in self._children:
            if child.process.poll() is not None:
                message = f"{child.name} ended with code {child.process.returncode}.\nThe end of {child.log}:\n{child.tail()}"
                raise ChildError(message)

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """
        Stop them and all that they started: politely first, then not.

        Args:
            hurry: Whether to be polite no longer.
        """
        for number, patience in _GRACE:
            deadline = time.monotonic() + patience
            for child in self._children:
                _signal_group(child, number)
            while time.monotonic() < deadline and any(_is_alive(child) for child in self._children):
                if hurry() and number is not signal.SIGKILL:
                    break
                time.sleep(_POLL_SECONDS)
            if not any(_is_alive(child) for child in self._children):
                break
        self._children.clear()


def _is_alive(child: Child) -> bool:
    """Say whether the leader or anything else of its group lives."""
    child.process.poll()
    return _signal_group(child, 0)


def _signal_group(child: Child, number: int) -> bool:
    # The group is the leader's number for as long as it has a member.
    try:
        os.killpg(child.process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class StopSignals:
    """
    A context manager within which Ctrl-C, SIGTERM and a closed terminal are requests to stop, counted and not raised.

    Attributes:
        asked: How many there were.
    """

    _WATCHED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked = 0
        self._event = threading.Event()

    def __enter__(self) -> Self:
        """Begin to listen; also where a shell started us with SIGINT ignored."""
        self._previous = {number: signal.signal(number, self._ask) for number in self._WATCHED}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put back what was there."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait a while; return whether a stop was asked for."""
        return self._event.wait(seconds)

    def _ask(self, _: int, __: FrameType | None) -> None:
        self.asked += 1
        self._event.set()


def check_port(port: int, what: str, option: str) -> None:
    """
    Return if a loopback port is free.

    Raises:
        SettingsError: It is taken; says which option chooses another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as exc:
            message = (
                f"port {port}, meant for {what}, is taken or not allowed ({exc}).\n"
                f"Perhaps it runs already. Choose another: {option} {free_port()}"
            )
            raise SettingsError(message, field=option.lstrip("-").replace("-", "_")) from exc


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Say whether a GET of a loopback URL succeeds."""
    # No proxy: these are addresses of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(urllib.error.URLError, OSError, ValueError), opener.open(url, timeout=2) as response:
        return bool(response.status == 200)  # noqa: PLR2004 - OK
    return False
