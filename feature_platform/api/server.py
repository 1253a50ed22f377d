"""
The server of one process: how it listens, looks at deadlines, and ends.

Knows uvicorn and the protocol. Knows nothing of what is answered, nor of other processes.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from feature_platform.api.protocol import BoundedProtocol, Bounds
from feature_platform.api.request_log import print_lines

__all__ = ["DRAIN_SECONDS", "Server", "inherited_listener", "server_config"]

DRAIN_SECONDS: Final = 5
"""What is still under way so long after a stop was asked for is cut off."""

# Redis, logs, pipes, libraries.
_OTHER_FILES: Final = 200
_FIRST_INHERITED: Final = 3
_TICKS_A_SECOND: Final = 10  # uvicorn's


class Server(uvicorn.Server):
    """
    uvicorn's server, which looks at the deadlines of its connections once a second, and drains.

    Args:
        config: See `server_config`.
        on_started: Called when it accepts connections.
        each_second: Called about once a second, and at the end.
    """

    def __init__(
        self, config: uvicorn.Config, on_started: Callable[[], None] = lambda: None, each_second: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self._on_started, self._each_second = on_started, each_second

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Look at the deadlines; return whether to end."""
        if counter % _TICKS_A_SECOND == 0:
            self._check_deadlines()
            self._each_second()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and return when nothing is under way."""
        draining = asyncio.create_task(self._drain())
        try:
            await super().shutdown(sockets)
        finally:
            draining.cancel()
            self._each_second()

    async def _drain(self) -> None:
        while True:
            # Also those that the kernel had accepted, and whose protocol was made after uvicorn had told all of them.
            for connection in list(self.server_state.connections):
                connection.shutdown()
            self._check_deadlines()
            await asyncio.sleep(1 / _TICKS_A_SECOND)

    def _check_deadlines(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.check_deadline(now)


def server_config(app: ASGIApp, *, host: str, port: int, bounds: Bounds | None = None) -> uvicorn.Config:
    """
    Return how an app is served: connections bounded, no WebSockets, lines of requests by our own log.

    Lets this process open as many files as its connections need, and print those lines.
    """
    bounds = bounds or Bounds()
    print_lines()
    _raise_file_limit(2 * bounds.connections + _OTHER_FILES)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(BoundedProtocol, bounds),  # type: ignore[arg-type] # uvicorn calls it, and does nothing else with it
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=bounds.idle_seconds,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def inherited_listener() -> socket.socket | None:
    """
    Return the listening socket that systemd passed on (`sd_listen_fds(3)`); None if it did not.

    Connections wait in such a socket while the service restarts.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_INHERITED)


def _raise_file_limit(needed: int) -> None:
    """Allow as many open files as connections need, as far as the machine lets us: many start a process with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
