"""
Several processes that serve one listening socket, and the supervisor that starts, replaces and ends them.

Knows processes and signals. What a worker answers is `app`'s; how it ends without loss is `server`'s.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from feature_platform.api.app import create_app
from feature_platform.api.auth import check_binding
from feature_platform.api.protocol import Bounds
from feature_platform.api.server import DRAIN_SECONDS, Server, inherited_listener, server_config
from feature_platform.api.shared_counts import SharedCounts
from feature_platform.errors import FeaturePlatformError
from feature_platform.settings import Settings, load_registry

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["WorkerError", "serve_workers"]

_LOG: Final = logging.getLogger("uvicorn.error")
_SPAWN: Final = multiprocessing.get_context("spawn")
_READY_SECONDS: Final = 60.0
# After its drain a worker closes the store.
_STOP_SECONDS: Final = DRAIN_SECONDS + 5.0
_POLL_SECONDS: Final = 0.1
# Between two attempts to start a worker in the place of one that died: its code may be broken for hours.
_PAUSE_SECONDS: Final = 1.0


class WorkerError(FeaturePlatformError, RuntimeError):
    """The workers do not start."""


def serve_workers(settings: Settings, *, workers: int, host: str | None = None, port: int | None = None) -> None:
    """
    Serve in several processes until SIGTERM or SIGINT; SIGHUP replaces them one by one.

    Uses `uvicorn.Config.bind_socket`, but not uvicorn's supervisor: that one kills a worker that takes 5 s to import, waits without
    end for one that does not stop, ends the service if the replacement of a dead worker fails, and leaves orphans when it is killed.

    Args:
        settings: `registry` says what is served; see `create_app`, and `api_host` and `api_port` unless given here.
        workers: How many.
        host: Address to bind.
        port: Port to bind.

    Raises:
        SettingsError: The address is not loopback and there is no token.
        WorkerError: All workers ended, or hang, before one answered anything.
    """
    host = settings.api_host if host is None else host
    port = settings.api_port if port is None else port
    listener = inherited_listener()
    check_binding(settings, host if listener is None else listener.getsockname()[0])
    config = uvicorn.Config("", host=host, port=port)  # which also sets up the log
    # Bound here and listened to by the workers: until the first of them is ready, connections are refused and not kept waiting.
    with (
        config.bind_socket() if listener is None else listener as listener,
        tempfile.TemporaryDirectory(prefix="feature-platform-api-") as counts,
    ):
        _Supervisor(settings, listener, Path(counts), workers).run()


class _Worker:
    """
    A process that serves.

    Attributes:
        process: The process.
        is_ready: Whether it accepts connections.
    """

    def __init__(self, settings: Settings, listener: socket.socket, counts: Path) -> None:
        self.is_ready = False
        self._ready, ready = _SPAWN.Pipe(duplex=False)
        # The settings go through a pipe: a command line can be read by every user of the machine.
        self.process = _SPAWN.Process(target=_work, args=(settings, listener, counts, ready), name="API worker")
        self.process.start()
        ready.close()

    def look(self) -> None:
        """See whether it has become ready."""
        if not self.is_ready and self._ready.poll():
            with contextlib.suppress(EOFError):  # it has ended
                self.is_ready = self._ready.recv() == "ready"
            if self.is_ready:
                _LOG.info("Worker %d answers.", self.process.pid)

    def terminate(self) -> None:
        """Ask it to end."""
        self.process.terminate()

    def join(self, deadline: float) -> None:
        """Wait for its end; kill it if it takes too long."""
        self.process.join(max(deadline - time.monotonic(), 0))
        if self.process.is_alive():
            _LOG.error("Worker %d has not ended: it is killed.", self.process.pid)
            self.process.kill()
            self.process.join()
        self._ready.close()


class _Supervisor:
    def __init__(self, settings: Settings, listener: socket.socket, counts: Path, number: int) -> None:
        self._settings, self._listener, self._counts, self._number = settings, listener, counts, number
        self._workers: list[_Worker] = []
        # Plain fields: a signal may arrive while a lock is held by the very thread that it interrupts.
        self._stops, self._wants_reload = 0, False

    def run(self) -> None:
        """Serve until a signal ends it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_stop)
        signal.signal(signal.SIGHUP, self._ask_reload)
        try:
            self._workers = [self._start() for _ in range(self._number)]
            self._wait_for_the_first()
            while not self._stops:
                wait([worker.process.sentinel for worker in self._workers], _POLL_SECONDS)
                if self._wants_reload:
                    self._wants_reload = False
                    self._reload()
                self._replace_dead()
        finally:
            self._stop()

    def _start(self) -> _Worker:
        return _Worker(self._settings, self._listener, self._counts)

    def _wait_for_the_first(self) -> None:
        """Return when one is ready: then the declarations load, and the death of another is an accident, which is made good."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self._stops and not any(worker.is_ready for worker in self._workers):
            if time.monotonic() > deadline or not any(worker.process.is_alive() for worker in self._workers):
                message = f"of {self._number} workers none has answered, and they ended or hang.\nWhat they said stands above."
                raise WorkerError(message)
            time.sleep(_POLL_SECONDS)
            for worker in self._workers:
                worker.look()

    def _becomes_ready(self, worker: _Worker) -> bool:
        deadline = time.monotonic() + _READY_SECONDS
        while not worker.is_ready and not self._stops and worker.process.is_alive() and time.monotonic() < deadline:
            wait([worker.process.sentinel], _POLL_SECONDS)
            worker.look()
        return worker.is_ready and worker.process.is_alive()

    def _reload(self) -> None:
        """Replace every worker: the next begins to accept before the last one ceases."""
        for index, old in enumerate(self._workers):
            new = self._start()
            if not self._becomes_ready(new):
                new.process.kill()
                new.join(0)
                if not self._stops:
                    _LOG.error("The reload has ended: the new worker does not start. Worker %d and those after it go on.", old.process.pid)
                return
            self._workers[index] = new
            old.terminate()
            old.join(time.monotonic() + _STOP_SECONDS)
        _LOG.info("Reloaded.")

    def _replace_dead(self) -> None:
        for index, worker in enumerate(self._workers):
            worker.look()
            if worker.process.is_alive() or self._stops:
                continue
            _LOG.error("Worker %d has ended (%s): it is replaced.", worker.process.pid, worker.process.exitcode)
            if not worker.is_ready:
                time.sleep(_PAUSE_SECONDS)
            worker.join(0)
            self._workers[index] = self._start()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.terminate()
        # Ours is one of the holders of the socket: while it is open, connections would wait for workers that no longer take any.
        self._listener.close()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(worker.process.is_alive() for worker in self._workers) and time.monotonic() < deadline and self._stops < 2:  # noqa: PLR2004 - asked again: at once
            wait([worker.process.sentinel for worker in self._workers if worker.process.is_alive()], _POLL_SECONDS)
        for worker in self._workers:
            worker.join(0)

    def _ask_stop(self, _: int, __: FrameType | None) -> None:
        self._stops += 1

    def _ask_reload(self, _: int, __: FrameType | None) -> None:
        self._wants_reload = True


def _work(settings: Settings, listener: socket.socket, counts: Path, ready: Connection) -> None:
    """Serve, in a process of its own that has imported everything afresh."""
    # A terminal that closes signals every process of its group; it is for the supervisor to decide.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what declarations print is not the answer of `fp serve --json`
            registry = load_registry(settings)
        app = create_app(registry, settings)
        app.metrics.share(SharedCounts(counts))
    except FeaturePlatformError as error:
        _LOG.error("%s", error)
        sys.exit(1)
    bounds = Bounds(connections=settings.api_max_connections)
    # Host and port are the socket's.
    config = server_config(app, host=settings.api_host, port=settings.api_port, bounds=bounds)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises what it was ended by
        Server(config, on_started=lambda: ready.send("ready"), each_second=app.metrics.publish).run([listener])


def _end_with_supervisor() -> None:
    """Drain when the supervisor has died without a word: systemd, or whoever started it, starts another."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        wait([supervisor.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
