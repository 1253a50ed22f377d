"""The embedded server: one per project folder, whoever comes first, found again whatever happened."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from online_contract import key, value

from feature_platform.errors import OnlineStoreError
from feature_platform.online import embedded
from feature_platform.online.connections import Tuning
from feature_platform.online.embedded import EmbeddedOnlineStore, ensure_server, server_status, stop_server

if TYPE_CHECKING:
    from collections.abc import Iterator

START = """
import sys
from pathlib import Path
from feature_platform.online.embedded import ensure_server, server_status
ensure_server(Path(sys.argv[1]))
status = server_status(Path(sys.argv[1]))
print(status.pid)
"""


def start_elsewhere(folder: Path) -> subprocess.Popen[str]:
    """Ensure the server from another process, which prints the server's process and ends."""
    return subprocess.Popen([sys.executable, "-c", START, str(folder)], stdout=subprocess.PIPE, text=True)


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


@pytest.fixture(params=["short", "long"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a folder whose server is stopped in the end; the long one is too deep for the path of a socket."""
    folder = tmp_path / ("online" if request.param == "short" else "ünï cödé " * 10)
    yield folder
    stop_server(folder)


def test_processes_that_race_share_one_server(folder: Path) -> None:
    """Eight processes that need it at once start one server, which outlives all of them."""
    processes = [start_elsewhere(folder) for _ in range(8)]
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert len(answers) == 1
    status = server_status(folder)
    assert status is not None
    assert answers == {f"{status.pid}\n"}
    assert is_alive(status.pid)


def test_data_is_kept_through_a_kill(folder: Path) -> None:
    """A store whose server is killed goes on with the next one, which has every value that was written."""
    with EmbeddedOnlineStore(folder) as store:
        store.put_many([(key(str(index)), value(1)) for index in range(1000)])
        first = server_status(folder)
        assert first is not None
        assert first.keys == 1000
        os.kill(first.pid, signal.SIGKILL)
        assert store.get_many([key("0"), key("999"), key("?")]) == [value(1), value(1), None]
        second = server_status(folder)
        assert second is not None
        assert second.pid != first.pid
        assert not is_alive(first.pid)


@pytest.mark.parametrize("reads_async", [False, True], ids=["blocking", "async"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_store_starts_its_server_again(tmp_path: Path, how: str, *, reads_async: bool) -> None:
    """A server that ended between two calls, in whatever way, is started again by the next one."""

    async def read(store: EmbeddedOnlineStore) -> list[bytes | None]:
        return await store.get_many_async([key("a")])

    async def session(store: EmbeddedOnlineStore) -> list[list[bytes | None]]:
        first = await read(store)
        end()
        second = await asyncio.gather(*(read(store) for _ in range(5)))
        await store.aclose()
        return [first, *second]

    def end() -> None:
        if how == "stopped":
            assert stop_server(tmp_path)
        else:
            status = server_status(tmp_path)
            assert status is not None
            os.kill(status.pid, signal.SIGKILL)

    try:
        with EmbeddedOnlineStore(tmp_path) as store:
            assert store.put_many([(key("a"), value(1))]).written == 1
            if reads_async:
                assert asyncio.run(session(store)) == [[value(1)]] * 6
            else:
                end()
                assert store.put_many([(key("a"), value(2))]).written == 1
                assert store.get_many([key("a")]) == [value(2)]
    finally:
        stop_server(tmp_path)


def test_nobody_else_gets_in(folder: Path) -> None:
    """Folder and socket are closed to other users, and the server listens on no port."""
    path = ensure_server(folder)
    assert len(os.fsencode(path)) < 104
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    if path.parent != folder:
        assert stat.S_IMODE(path.parent.parent.lstat().st_mode) == 0o700
    with EmbeddedOnlineStore(folder) as store:
        assert "0" in str(store._client("read").config_get("port"))


def test_a_link_that_others_could_plant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for short links that others can write to is not used: their link could lead to a socket of theirs."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    open_folder = tmp_path / f"feature-platform-{os.getuid()}"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    monkeypatch.setattr(embedded, "_LONGEST_PATH", len(os.fsencode(open_folder)) + 40)
    with pytest.raises(OnlineStoreError, match="open to other users"):
        ensure_server(tmp_path / ("deep" * 40))


def test_stopping_says_whether_one_ran(tmp_path: Path) -> None:
    """The first stop stops, the second finds nothing, and nothing is left but the data, the lock and the log."""
    assert not stop_server(tmp_path / "never")
    assert not (tmp_path / "never").exists()
    assert server_status(tmp_path) is None
    ensure_server(tmp_path)
    status = server_status(tmp_path)
    assert status is not None
    assert stop_server(tmp_path)
    assert not stop_server(tmp_path)
    assert server_status(tmp_path) is None
    assert not is_alive(status.pid)
    assert not (tmp_path / "online.sock").exists()


def test_a_left_over_socket_and_pid_mislead_nobody(tmp_path: Path) -> None:
    """What a crash leaves in the folder is no server, even if its process number is now somebody else's."""
    (tmp_path / "online.pid").write_text(f"{os.getpid()}\n")
    (tmp_path / "online.lock").touch()
    (tmp_path / "online.sock").touch()
    assert server_status(tmp_path) is None
    assert not stop_server(tmp_path)
    try:
        assert ensure_server(tmp_path).is_socket()
    finally:
        assert stop_server(tmp_path)


def test_a_frozen_server_is_not_doubled(tmp_path: Path) -> None:
    """A server that is there and does not answer is an error that says so, not a second server on the same file."""
    ensure_server(tmp_path)
    status = server_status(tmp_path)
    assert status is not None
    os.kill(status.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OnlineStoreError, match="has not answered"):
            ensure_server(tmp_path, wait_seconds=0.7)
        assert Path(f"/proc/{status.pid}").exists()
    finally:
        os.kill(status.pid, signal.SIGCONT)
        assert stop_server(tmp_path)


def test_a_reader_of_a_frozen_server_is_told_soon(tmp_path: Path) -> None:
    """A read that gets no answer fails after its timeout and one more try."""
    with EmbeddedOnlineStore(tmp_path, reads=Tuning(timeout_seconds=0.1)) as store:
        store.ping()
        status = server_status(tmp_path)
        assert status is not None
        os.kill(status.pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            with pytest.raises(OnlineStoreError, match="did not answer in time"):
                store.get_many([key("a")])
            assert time.monotonic() - begin < 1.5
            os.kill(status.pid, signal.SIGCONT)
            assert store.get_many([key("a")]) == [None]
        finally:
            os.kill(status.pid, signal.SIGCONT)
            stop_server(tmp_path)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A ruined file ends in an error with the end of the server's log, at once."""
    ensure_server(tmp_path)
    stop_server(tmp_path)
    for file in (tmp_path / "appendonlydir").glob("*.manifest"):
        file.write_text("not a manifest\n")
    begin = time.monotonic()
    with pytest.raises(OnlineStoreError, match=r"(?s)ended while starting.*online\.log"):
        ensure_server(tmp_path)
    assert time.monotonic() - begin < 10


def test_a_folder_out_of_reach_is_our_error(tmp_path: Path) -> None:
    """A folder that cannot be made is an error that names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(OnlineStoreError, match="FEATURE_PLATFORM_ONLINE_ROOT"):
        EmbeddedOnlineStore(tmp_path / "file" / "online").ping()


def test_a_stop_ends_although_others_start_again(tmp_path: Path) -> None:
    """While another thread keeps using the store, a stop still returns: it stops one server, not all that follow."""
    is_done = threading.Event()

    def use() -> None:
        while not is_done.is_set():
            ensure_server(tmp_path)

    user = threading.Thread(target=use)
    user.start()
    try:
        time.sleep(0.3)
        for _ in range(2):
            stop_server(tmp_path)
    finally:
        is_done.set()
        user.join()
        stop_server(tmp_path)
    assert server_status(tmp_path) is None


def test_a_bulk_write_goes_in_short_trips(tmp_path: Path) -> None:
    """The server is never given so much at once that readers on the same cores wait long for their turn."""
    folder, behind = tmp_path / "online", []

    def items() -> Iterator[tuple[bytes, bytes]]:
        for number in range(1_000):
            if number and number % 100 == 0:
                status = server_status(folder)
                behind.append(number - (status.keys if status else 0))
            yield key(f"user {number}"), value(number)

    try:
        with EmbeddedOnlineStore(folder) as store:
            assert store.put_many(items()).written == 1_000
    finally:
        stop_server(folder)
    assert max(behind) <= 250
