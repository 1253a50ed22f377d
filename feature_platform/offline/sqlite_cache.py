"""
A cache in one SQLite file, which may be deleted at any time and is made anew where it is broken, or of another version.

Knows SQLite. Knows nothing of what is kept.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["SqliteCache"]

_T = TypeVar("_T")
# Kept, since closing one would roll back what its own process is writing.
_INHERITED: Final[list[sqlite3.Connection]] = []


class SqliteCache:
    """
    May be used by several threads, and by several processes at once, forked ones among them.

    Args:
        path: The file; one that cannot be made, as on a read-only disk, is replaced by memory. None is memory.
        tables: Statements that make it, apart from each other by a semicolon and a line's end.
        version: Of those: a file of another one is emptied.
    """

    def __init__(self, path: Path | None, tables: str, version: int) -> None:
        self._path, self._tables, self._version = path, tables, version
        self._connection: sqlite3.Connection | None = None
        self._lock, self._process, self._is_file_lost = threading.RLock(), os.getpid(), False

    def close(self) -> None:
        """Close the file; using the cache again opens it again."""
        self._leave_to_parent()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def unbroken(self, ask: Callable[[], _T]) -> _T:
        """Ask the file, and once more a new one where it turns out to be deleted, or broken: of a disk that lost some of it."""
        self._leave_to_parent()
        with self._lock:
            try:
                return ask()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_DBMOVED:
                    raise  # neither
                self.close()
                return ask()
            except sqlite3.DatabaseError:
                self.close()
                if self._path is not None:
                    self._path.unlink(missing_ok=True)
                return ask()

    def _leave_to_parent(self) -> None:
        """In a forked process, leave the connection to its own process, as SQLite asks for, and open one of this process."""
        if self._process == os.getpid():
            return
        # Of a thread that was using it, which is not here, SQLite believes for good that it locks the file: then memory it is.
        self._is_file_lost |= not self._lock.acquire(blocking=False)
        if self._connection is not None:
            _INHERITED.append(self._connection)
        self._connection, self._lock, self._process = None, threading.RLock(), os.getpid()

    def open(self) -> sqlite3.Connection:
        """Return the connection; to be asked within `unbroken`."""
        if self._connection is None:
            try:
                if self._path is not None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = self._connect(None if self._is_file_lost else self._path)
            except (OSError, sqlite3.OperationalError):
                self._connection = self._connect(None)
        return self._connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection in a transaction, alone of all processes; within another one, in that."""
        connection = self.open()
        if connection.in_transaction:
            yield connection
            return
        connection.execute("begin immediate")
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

    def _connect(self, path: Path | None) -> sqlite3.Connection:
        connection = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
        try:
            # Nothing is lost with it, so a commit does not wait for the disk (0.3 ms instead of 1.5). No write-ahead log: machines that
            # share a folder share no memory.
            connection.execute("pragma journal_mode = truncate")
            connection.execute("pragma synchronous = off")
            connection.execute("begin immediate")  # also what tells a read-only file
            try:
                version = connection.execute("pragma user_version").fetchone()[0]
                if version != self._version:
                    for kind, name in connection.execute("select type, name from sqlite_schema where type in ('table', 'view')").fetchall():
                        connection.execute(f'drop {kind} "{name}"')
                    for statement in self._tables.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"pragma user_version = {self._version}")
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection
