"""The HTTP server as processes: workers, reload, drain and restart under load, and bounds on what a connection takes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pyarrow as pa
import pytest
from starlette.types import Receive, Scope, Send

from feature_platform.api import WorkerError
from feature_platform.api.protocol import MAX_HEADERS, Bounds
from feature_platform.api.server import Server, server_config
from feature_platform.cli.processes import answers, free_port
from feature_platform.dtypes import to_micros
from feature_platform.online.codec import ViewCodec, ViewMeta
from feature_platform.online.embedded import stop_server
from feature_platform.online.opening import open_online_store
from feature_platform.settings import Settings, load_registry

REPOSITORY = Path(__file__).parents[1]
SECONDS = 60.0
TOKEN = "a long random text"
BODY = json.dumps({"features": ["genre"], "user_id": "u1"}).encode()
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
DECLARATIONS = """
from feature_platform import Entity, Feature, FeatureService, FeatureView, ParquetSource, Registry

events = ParquetSource("events", "events/*.parquet", timestamp="event_timestamp")
last_watch = FeatureView("last_watch", entity=Entity("user", {"user_id": str}), sources=[events], features=[Feature("genre", str)])
registry = Registry(views=[last_watch], services=[FeatureService("SERVICE", [last_watch])])
"""


def until(what: str, is_so: Callable[[], object]) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


# A project that is served by `fp serve`


def declare(root: Path, service: str, module: str = "served_declarations") -> None:
    """Write the declarations, with one service."""
    (root / f"{module}.py").write_text(DECLARATIONS.replace("SERVICE", service), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a project with one entity in its embedded store."""
    root = tmp_path_factory.mktemp("served")
    (root / "pyproject.toml").write_text('[tool.feature_platform]\nregistry = "served_declarations"\n', encoding="utf-8")
    declare(root, "before")
    settings = Settings.from_env({}, start=root)
    view, now = load_registry(settings).views["last_watch"], datetime.now(UTC)
    codec = ViewCodec(settings.project, view)
    columns = {"user_id": ["u1"], "genre": ["noir"], "event_timestamp": pa.array([now], pa.timestamp("us", tz="UTC"))}
    with open_online_store(settings) as store:
        store.put_many(codec.encode_rows(pa.table(columns), 1))
        meta = ViewMeta(generation=1, materialized_at=to_micros(now), definition=codec.definition, as_of=to_micros(now), rows=1)
        store.put_meta(codec.meta_key, meta.to_bytes())
    yield root
    stop_server(settings.online_root)


class Serving:
    """
    A running `fp serve`.

    Attributes:
        process: The command, which is the supervisor where there is one.
        port: Where it answers.
    """

    def __init__(self, root: Path, port: int, workers: int, listener: socket.socket | None = None) -> None:
        self.port, self._log = port, root / "serve.log"
        command = [sys.executable, "-m", "feature_platform.cli", "serve", "--port", str(port), "--workers", str(workers)]
        if listener is not None:  # as systemd passes it on
            script = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')"
            command = [sys.executable, "-c", f"{script}; os.execv(sys.executable, sys.argv[2:])", str(listener.fileno()), *command]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "FEATURE_PLATFORM_API_TOKEN": TOKEN},
                stdout=log,
                stderr=log,
                pass_fds=[] if listener is None else [listener.fileno()],
                start_new_session=True,
            )
        until("an answer", lambda: self.process.poll() is not None or answers(f"http://127.0.0.1:{port}/health"))
        assert self.process.poll() is None, self.log()
        if workers > 1:
            until("all workers", lambda: sum(f"Worker {pid} answers." in self.log() for pid in self.workers()) == workers)

    def log(self) -> str:
        """Return what it printed."""
        return self._log.read_text(encoding="utf-8")

    def children(self) -> list[int]:
        """Return the processes that it started."""
        with suppress(OSError):
            return [int(word) for word in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]
        return []

    def workers(self) -> set[int]:
        """Return the processes that answer."""
        found = set()
        for pid in self.children():
            with suppress(OSError):
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.add(pid)
        return found

    def stop(self) -> None:
        """End it and see that nothing is left: no process, no open port."""
        left = self.children()
        self.process.terminate()
        self.process.wait(SECONDS)
        until(f"the end of {left}", lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


@contextmanager
def serving(root: Path, workers: int, listener: socket.socket | None = None) -> Iterator[Serving]:
    """Serve while the body runs."""
    made = Serving(root, free_port() if listener is None else listener.getsockname()[1], workers, listener)
    try:
        yield made
    finally:
        made.stop()


class Load:
    """
    Clients that ask without pause over connections which they keep, and count.

    Attributes:
        answered: Right answers.
        refused: Connections that were never answered.
        failures: What happened on connections that had been answered, and were not told to close.
    """

    def __init__(self, port: int, clients: int = 6) -> None:
        self.answered, self.refused, self._port = 0, 0, port
        self.failures: list[str] = []
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        """Cease."""
        self.cease()

    def cease(self) -> None:
        """Ask no more."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def wait_for_more(self) -> None:
        """Wait for many more answers."""
        enough = self.answered + 100
        until("more answers", lambda: self.answered >= enough)

    def _ask(self) -> None:
        asked = 0  # over this connection
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._is_over.is_set():
            try:
                connection.request("POST", "/get-online-features", BODY, HEADERS)
                with connection.getresponse() as response:
                    is_right = response.status == 200 and b"noir" in response.read()
                asked = 0 if response.will_close else asked + 1
                with self._lock:
                    self.answered += is_right
                    self.failures += [] if is_right else [str(response.status)]
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    if asked:
                        self.failures.append(repr(error))
                    else:
                        self.refused += 1
                asked = 0
                connection.close()
                time.sleep(0.05)
        connection.close()


def services(port: int) -> list[str]:
    """Return the names of the services that a worker knows."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/services", headers=HEADERS)
    named = [one["name"] for one in json.loads(connection.getresponse().read())["services"]]
    connection.close()
    return named


def is_free(port: int) -> bool:
    """Say whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_a_reload_brings_new_code_and_loses_no_request(project: Path) -> None:
    """SIGHUP replaces every worker while clients ask; code that does not load leaves the old workers where they are."""
    with serving(project, workers=2) as served, Load(served.port) as load:
        old = served.workers()
        assert len(old) == 2
        assert services(served.port) == ["before"]
        declare(project, "after")
        try:
            served.process.send_signal(signal.SIGHUP)
            until("new workers", lambda: "Reloaded." in served.log())
            new = served.workers()
            assert len(new) == 2
            assert not new & old
            assert services(served.port) == ["after"]
            (project / "served_declarations.py").write_text("registry = 'none'", encoding="utf-8")
            served.process.send_signal(signal.SIGHUP)
            until("a refusal", lambda: "The reload has ended" in served.log())
            assert served.workers() == new
        finally:
            declare(project, "before")
        load.wait_for_more()
        assert (load.failures, load.refused) == ([], 0)
        commands = [Path(f"/proc/{pid}/cmdline").read_text() + str(pid) for pid in [served.process.pid, *served.children()]]
        assert TOKEN not in "".join(commands)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_takes_only_its_own_connections(project: Path) -> None:
    """Each client fails once at most, and two workers answer again."""
    with serving(project, workers=2) as served, Load(served.port, clients=6) as load:
        old = served.workers()
        killed = min(old)
        os.kill(killed, signal.SIGKILL)
        until("a replacement", lambda: len(served.workers()) == 2 and killed not in served.workers())
        load.wait_for_more()
        # A connection that the dead worker had accepted, and not read from, is lost too.
        assert len(load.failures) + load.refused <= 6
        before = len(load.failures) + load.refused
        load.wait_for_more()
        assert len(load.failures) + load.refused == before


@pytest.mark.slow
def test_whichever_worker_is_asked_tells_what_all_have_counted(project: Path) -> None:
    """Within seconds; and what a worker counted that was killed then stays in the sum, but for its requests in flight."""
    with serving(project, workers=2) as served:
        for _ in range(40):  # each over a new connection, so that both workers have some
            assert services(served.port) == ["before"]
        until("one sum", lambda: {counted(served.port) for _ in range(10)} == {(40, 1)})
        killed = min(served.workers())
        os.kill(killed, signal.SIGKILL)
        until("a replacement", lambda: len(served.workers()) == 2 and killed not in served.workers())
        assert {counted(served.port) for _ in range(10)} == {(40, 1)}


def counted(port: int) -> tuple[int, int]:
    """Return how many requests for services were answered, and how many are in flight, the one that asks among them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics", headers=HEADERS)
    text = connection.getresponse().read().decode()
    connection.close()
    answered = re.search(r'^feature_platform_requests_total\{route="/services",status="200"\} (\d+)$', text, re.MULTILINE)
    in_flight = re.search(r"^feature_platform_requests_in_flight (\d+)$", text, re.MULTILINE)
    assert in_flight is not None
    return int(answered[1]) if answered else 0, int(in_flight[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number"),
    [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)],
    ids=["one-process", "workers", "workers-by-Ctrl-C"],
)
def test_a_stop_answers_what_was_asked(project: Path, workers: int, number: signal.Signals) -> None:
    """Clients on kept connections are told to close and not reset; half a body is waited for; port and processes are gone."""
    with serving(project, workers=workers) as served, socket.create_connection(("127.0.0.1", served.port), timeout=30) as slow:
        head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        slow.sendall(f"POST /get-online-features HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY[:5])
        with Load(served.port) as load:
            served.process.send_signal(number)
            until("the end of accepting", lambda: is_free(served.port))
            slow.sendall(BODY[5:])
            answer = b"".join(iter(lambda: slow.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close\r\n" in answer
            assert b"noir" in answer
            served.process.wait(SECONDS)
        assert load.failures == []
        assert is_free(served.port)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_behind_a_passed_socket_loses_nothing(project: Path, workers: int) -> None:
    """Connections wait in a socket that outlives the server, as systemd's does, until the next one takes them."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as listener,
        serving(project, workers, listener) as served,
        Load(served.port) as load,
    ):
        served.stop()
        with serving(project, workers, listener):
            load.wait_for_more()
            load.cease()
        assert (load.failures, load.refused) == ([], 0)


@pytest.mark.slow
def test_workers_do_not_outlive_their_supervisor(project: Path) -> None:
    """When the supervisor is killed, its workers drain by themselves and the port is free."""
    with serving(project, workers=2) as served:
        left = served.children()
        served.process.kill()
        served.process.wait(SECONDS)
        until("the end of the workers", lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
        assert is_free(served.port)


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error(tmp_path: Path) -> None:
    """The command ends, and says so; it does not try for ever."""
    (tmp_path / "pyproject.toml").write_text('[tool.feature_platform]\nregistry = "unloadable"\n', encoding="utf-8")
    script = """
from feature_platform.api import serve_workers
from feature_platform.settings import Settings
if __name__ == "__main__":
    serve_workers(Settings.from_env({}), workers=2, port=0)
"""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert WorkerError.__name__.encode() in done.stderr
    assert b"there is no module 'unloadable'" in done.stderr


# Bounds of a connection


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what was sent; `/large` with more than sockets buffer."""
    if scope["type"] == "lifespan":
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    body = bytes(30_000_000) if scope["path"] == "/large" else body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def bounded(bounds: Bounds) -> Iterator[tuple[Server, Callable[[], socket.socket]]]:
    """Run a server in a thread; return it, and what connects to it."""
    server = Server(server_config(echo, host="127.0.0.1", port=0, bounds=bounds))
    thread = threading.Thread(target=server.run)
    thread.start()
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=SECONDS))
        return made[-1]

    try:
        until("a start", lambda: server.started)
        yield server, connect
    finally:
        for one in made:
            one.close()
        server.should_exit = True
        thread.join(SECONDS)


def read_all(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and all the bytes of what is answered until the server closes; 0 where there is no answer."""
    answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    return int(answer[9:12] or 0), answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n", 408),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf", 408),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", 408),
        (b"", 0),
        (b"\r\n\r\n", 0),
    ],
    ids=["half-a-head", "half-a-body", "half-a-body-in-chunks", "nothing", "line-ends"],
)
def test_a_client_that_does_not_go_on_is_cut_off(sent: bytes, status: int) -> None:
    """What has begun is answered 408, what has not is closed; the next client is answered."""
    with bounded(Bounds(head_seconds=1, body_seconds=1, idle_seconds=1)) as (_, connect):
        slow = connect()
        slow.sendall(sent)
        got, answer = read_all(slow)
        assert got == status
        if status:
            assert b"content-type: application/problem+json\r\n" in answer
            assert b"connection: close\r\n" in answer
            assert b"x-content-type-options: nosniff\r\n" in answer
        good = connect()
        good.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nconnection: close\r\n\r\nwell")
        assert read_all(good)[1].endswith(b"well")


@pytest.mark.parametrize("end", [b"", b"\r\n"], ids=["unfinished", "whole"])
def test_a_head_of_many_headers_is_refused(end: bytes) -> None:
    """A header of four bytes takes over a hundred in memory, and a connection keeps those of its last request."""
    with bounded(Bounds()) as (_, connect):
        for number, status in ((MAX_HEADERS - 1, 200), (MAX_HEADERS + 1, 431)):
            client = connect()
            client.sendall(b"GET / HTTP/1.1\r\nconnection: close\r\n" + b"a:\r\n" * number + end)
            if status == 200 and not end:
                client.sendall(b"\r\n")
            assert read_all(client)[0] == status


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\0b\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\nwell",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwell\r\nx\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\nnoise",
    ],
    ids=["tls", "http2", "nul-in-a-header", "no-path", "two-lengths", "broken-chunks", "noise-after-a-request"],
)
def test_what_is_not_http_is_refused_and_writes_no_log(sent: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """A problem as any other, but where it would be taken for the answer to an earlier request; noise shall not fill a disk."""
    with bounded(Bounds()) as (_, connect):
        before = capsys.readouterr().err
        noisy = connect()
        noisy.sendall(sent)
        status, answer = read_all(noisy)
        assert status == (0 if sent.endswith(b"noise") else 400)
        if status:
            assert b"content-type: application/problem+json\r\n" in answer
            assert b"connection: close\r\n" in answer
            assert b"x-content-type-options: nosniff\r\n" in answer
        assert "INFO" in before
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_apart", [False, True], ids=["at-once", "body-apart"])
@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_an_upgrade_is_declined_and_the_request_is_answered(upgrade: str, is_apart: bool, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001 - a parameter
    """Java's client asks for HTTP/2 so: what follows is the body of that request, never another request, and then the next one."""
    head = f"POST / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: {upgrade}\r\n".encode()
    smuggled = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n"
    framed = [(b"content-length: %d\r\n\r\n" % len(smuggled), smuggled)]
    framed += [(b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(smuggled), smuggled)), (b"\r\n", b"")]
    with bounded(Bounds()) as (server, connect):
        capsys.readouterr()
        client = connect()
        for end, body in framed * 2:
            client.sendall(head + end + (b"" if is_apart else body))
            if is_apart:
                time.sleep(0.05)
                client.sendall(body)
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = read_all(client)[1]
        assert server.server_state.total_requests == len(framed) * 2 + 1
        assert answer.count(b"HTTP/1.1 200 OK\r\n") == len(framed) * 2 + 1
        assert answer.count(smuggled) == 4
        assert capsys.readouterr().err == ""


def test_a_head_too_large_behind_an_unanswered_request_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal would be taken for the answer to the first request, so there is none."""
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nwell"
    with bounded(Bounds()) as (_, connect):
        capsys.readouterr()
        client = connect()
        client.sendall(request * 2 + b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000)
        with suppress(ConnectionResetError):
            assert b"431" not in read_all(client)[1]
        assert capsys.readouterr().err == ""


def test_a_trickle_counts_as_a_whole() -> None:
    """A byte now and then does not prolong the time that a head or body has."""
    for head in (b"GET / HTTP/1.1\r\nx: ", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"):
        with bounded(Bounds(head_seconds=1, body_seconds=1)) as (_, connect):
            slow, sent = connect(), 0
            slow.sendall(head)
            slow.settimeout(0.2)
            answer = b""
            while not answer:
                assert sent < 200, "it was never cut off"
                with suppress(TimeoutError):
                    answer = slow.recv(100)
                slow.sendall(b"x")
                sent += 1
            assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_let_go() -> None:
    """An answer that nobody takes is dropped in the end, and no second one is made meanwhile."""
    with bounded(Bounds(body_seconds=1)) as (server, connect):
        deaf = connect()
        deaf.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        until("the answer", lambda: server.server_state.total_requests)
        until("the end", lambda: not server.server_state.connections)
        assert server.server_state.total_requests <= 2


def test_a_client_that_leaves_between_two_answers_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The request that is being answered hears of it, not only the last one that came: nothing is written to who is gone."""
    with bounded(Bounds()) as (server, connect):
        gone = connect()
        gone.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
        until("the first answer", lambda: server.server_state.total_requests)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        gone.close()
        until("the end", lambda: not server.server_state.connections and not server.server_state.tasks)
    assert "Traceback" not in capsys.readouterr().err


def test_connections_above_the_limit_are_told_so() -> None:
    """They get 503 and when to come again; beyond twice the limit nothing. Those that were there go on, and there is room when one ends."""
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nwell"
    with bounded(Bounds(connections=2)) as (server, connect):
        first, second = connect(), connect()
        until("both", lambda: len(server.server_state.connections) == 2)
        third = connect()
        third.sendall(request)
        status, answer = read_all(third)
        assert status == 503
        assert b"retry-after: 1\r\n" in answer.lower()
        assert b"too-many-connections" in answer
        first.sendall(request)
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        second.close()
        third.close()
        until("room", lambda: len(server.server_state.connections) == 1)
        fourth = connect()
        fourth.sendall(request)
        assert fourth.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_kept_connection_outlives_what_stands_in_front() -> None:
    """Proxies let go of an idle connection after 60 s: the server is not the first to close."""
    assert server_config(echo, host="127.0.0.1", port=0).timeout_keep_alive > 60


def test_an_idle_connection_is_answered_once_more_in_a_drain() -> None:
    """A request that was on its way when the server was told to stop gets its answer, which says that it is the last."""
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nwell"
    with bounded(Bounds()) as (server, connect):
        used, fresh, quiet = connect(), connect(), connect()
        used.sendall(request)
        assert b"connection: close" not in used.recv(1000)
        until("all three", lambda: len(server.server_state.connections) == 3)
        server.should_exit = True
        until("the end of accepting", lambda: not server.servers[0].is_serving())
        for connection in (used, fresh):
            connection.sendall(request)
            status, answer = read_all(connection)
            assert status == 200
            assert b"connection: close\r\n" in answer
        assert read_all(quiet) == (0, b"")
