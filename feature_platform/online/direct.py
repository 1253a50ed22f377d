"""
Blocking reads: each MGET over a connection that is its alone meanwhile.

The connections are redis-py's, which know logins, TLS and sentinels. Its pool and its way from a command to a reply are passed by:
of the 100 us that a read of two keys takes through them, two thirds are theirs. Knows no layout.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feature_platform.online.connections import Tuning

__all__ = ["DirectReads"]

Connection: TypeAlias = Any
"""redis-py's connections have no common type."""


class DirectReads:
    """
    Reads of any threads.

    Args:
        make_connection: Makes one of redis-py's, which need not be open.
        tuning: How many connections there are at most, and how long a read waits for a free one.
    """

    def __init__(self, make_connection: Callable[[], Connection], tuning: Tuning) -> None:
        self._make_connection, self._tuning = make_connection, tuning
        self._free: list[Connection] = []
        self._begin()

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """
        Return the value of each key, in order.

        A connection that was lost meanwhile, as by a restart of the server, is opened once more.

        Raises:
            redis.exceptions.RedisError: The server does not answer in time, cannot be reached, or refuses; or no connection became free.
        """
        if self._process != os.getpid():
            self._begin()  # a fork has copied the connections of its parent, who goes on reading from them
        gate, free = self._gate, self._free
        if not gate.acquire(timeout=self._tuning.timeout_seconds):
            message = f"{self._tuning.max_connections} reads wait for their answers"
            raise MaxConnectionsError(message)
        try:
            try:
                connection = free.pop()
            except IndexError:
                connection = self._make_connection()
            try:
                command = [hiredis.pack_command((b"MGET", *keys))]  # type: ignore[arg-type]
                try:
                    return _ask(connection, command)
                except RedisConnectionError:
                    return _ask(connection, command)
            except BaseException:
                connection.disconnect()  # its next answer could be the one to this question
                raise
            finally:
                free.append(connection)
        finally:
            gate.release()

    def close(self) -> None:
        """Close the connections that are free; reading again opens new ones."""
        free = self._free
        self._free = []
        for connection in free:
            connection.disconnect()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._free = []
        self._gate = threading.BoundedSemaphore(self._tuning.max_connections)


def _ask(connection: Connection, command: list[bytes]) -> list[bytes | None]:
    connection.connect()  # nothing, where it is
    connection.send_packed_command(command)
    return connection.read_response(disconnect_on_error=True)  # type: ignore[no-any-return]
