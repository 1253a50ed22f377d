"""The Redis store's edges: what URLs mean, and how trouble is told."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from online_contract import key, value

from feature_platform.errors import OnlineStoreError, SettingsError
from feature_platform.online.connections import Address, Tuning
from feature_platform.online.embedded import EmbeddedOnlineStore, stop_server
from feature_platform.online.layout import meta_key
from feature_platform.online.redis import RedisOnlineStore


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("redis://:secret@cache:7000/2", "server", "redis://cache:7000"),
        ("rediss://me:secret@cache", "server", "rediss://cache:6379"),
        ("redis://[::1]:7000", "server", "redis://::1:7000"),
        ("unix:///run/my%20cache.sock?db=1", "server", "/run/my cache.sock"),
        ("redis+cluster://me:secret@a:1,b:2,c", "cluster", "redis+cluster://a:1,b:2,c:6379"),
        ("rediss+cluster://a", "cluster", "rediss+cluster://a:6379"),
        ("redis+sentinel://:secret@a:1,b/primary/3", "sentinel", "redis+sentinel://a:1,b:26379/primary"),
        ("redis://cache?socket_timeout=2.5", "server", "redis://cache:6379"),
    ],
    ids=["server", "tls", "ipv6", "unix", "cluster", "tls-cluster", "sentinel", "argument"],
)
def test_urls_are_understood_and_shown_without_secrets(url: str, kind: str, shown: str) -> None:
    """Every form of URL is read, and neither its address nor the store shows user or password."""
    address = Address.parse(url)
    assert (address.kind, address.shown) == (kind, shown)
    assert "secret" not in repr(address) + repr(RedisOnlineStore.from_url(url))
    assert address.options.get("password") == ("secret" if "secret" in url else None)


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@cache",
        "secret",
        "redis://:secret@cache:port",
        "redis://:secret@cache/first",
        "redis://:secret@a:1,b:2",
        "redis://:secret@cache?unheard_of=1",
        "redis://:secret@cache?socket_timeout=soon",
        "redis+cluster://:secret@a,/0",
        "redis+cluster://:secret@a/3",
        "redis+sentinel://:secret@a",
        "redis+sentinel://:secret@a/primary/x",
        "redis://:secret@[cache",
    ],
)
def test_malformed_urls_are_refused_without_repeating_them(url: str) -> None:
    """A URL that cannot work is refused when the store is made, by a message that shows the forms and no password."""
    with pytest.raises(SettingsError, match="Write redis://") as caught:
        RedisOnlineStore.from_url(url)
    assert caught.value.field == "redis_url"
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_cluster_is_asked_for_metas_first() -> None:
    """Nodes answer in any order, so the metas are a question of their own, before the rows; elsewhere all is one question."""
    keys = [meta_key("shop", "a"), meta_key("shop", "b"), key("1"), key("2")]
    assert list(RedisOnlineStore.from_url("redis+cluster://a:1")._chunks(keys)) == [keys[:2], keys[2:]]
    assert list(RedisOnlineStore.from_url("redis://a:1")._chunks(keys)) == [keys]


def test_a_server_out_of_reach_is_told_at_once() -> None:
    """Where nobody listens, every call is an OnlineStoreError with address and next step, soon and without the password."""
    store = RedisOnlineStore.from_url("redis://:secret@127.0.0.1:1")
    begin = time.monotonic()
    with pytest.raises(OnlineStoreError, match=r"127\.0\.0\.1:1.*cannot be reached") as caught:
        store.get_many([key("a")])
    with pytest.raises(OnlineStoreError, match="cannot write"):
        store.put_many([(key("a"), value(1))])
    with pytest.raises(OnlineStoreError):
        store.sweep("shop", "user", "profile", below_generation=1)
    with pytest.raises(OnlineStoreError):
        store.ping()
    assert time.monotonic() - begin < 1
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


async def _read(store: RedisOnlineStore) -> None:
    try:
        await store.get_many_async([key("a")])
    finally:
        await store.aclose()


def test_async_reads_of_a_server_out_of_reach_are_told_likewise() -> None:
    """The async read raises the same error."""
    with pytest.raises(OnlineStoreError, match="cannot be reached"):
        asyncio.run(_read(RedisOnlineStore.from_url("redis://127.0.0.1:1")))


def test_a_server_that_never_answers_is_given_up() -> None:
    """A listener that accepts and stays silent costs the timeout and one more try, not forty seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        store = RedisOnlineStore.from_url(f"redis://127.0.0.1:{port}", reads=Tuning(timeout_seconds=0.1))
        begin = time.monotonic()
        with store, pytest.raises(OnlineStoreError, match="did not answer in time"):
            store.get_many([key("a")])
        assert time.monotonic() - begin < 1


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    """A full server and a wrong password are told apart, each with its next step; reads of a full one go on."""
    with EmbeddedOnlineStore(tmp_path) as store:
        try:
            store.put_many([(key("a"), value(1))])
            client = store._client("write")
            client.config_set("maxmemory", "1")
            with pytest.raises(OnlineStoreError, match=r"(?s)out of memory.*maxmemory"):
                store.put_many([(key("b"), value(1))])
            with pytest.raises(OnlineStoreError, match="out of memory"):
                store.put_meta(b"shop:meta:profile", value(1), force=True)
            assert store.get_many([key("a")]) == [value(1)]
            client.config_set("maxmemory", "0")
            client.config_set("requirepass", "right")
            with (
                RedisOnlineStore.from_url(f"unix://:wrong@{tmp_path}/online.sock") as wrong,
                pytest.raises(OnlineStoreError, match=r"(?s)refused the login.*FEATURE_PLATFORM_REDIS_URL"),
            ):
                wrong.get_many([key("a")])
            with RedisOnlineStore.from_url(f"unix://:right@{tmp_path}/online.sock") as right:
                assert right.get_many([key("a")]) == [value(1)]
            client.config_set("requirepass", "")
        finally:
            stop_server(tmp_path)


def test_more_threads_than_connections_wait(tmp_path: Path) -> None:
    """Calls beyond the number of connections wait for a free one instead of failing."""
    with EmbeddedOnlineStore(tmp_path, reads=Tuning(timeout_seconds=5, max_connections=2)) as store:
        found: list[bytes | None] = []
        try:
            store.put_many([(key("a"), value(1))])
            threads = [threading.Thread(target=lambda: found.extend(store.get_many([key("a")]))) for _ in range(30)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            stop_server(tmp_path)
    assert found == [value(1)] * 30


def test_more_threads_than_connections_do_not_wait_forever(tmp_path: Path) -> None:
    """A call that finds no free connection in time says so; how many there are may stand in the URL."""
    with EmbeddedOnlineStore(tmp_path) as server:
        try:
            server.put_many([(key("a"), value(1))])
            url = f"unix://{tmp_path}/online.sock?max_connections=1"
            with RedisOnlineStore.from_url(url, reads=Tuning(timeout_seconds=0.3)) as store:
                assert store.get_many([key("a")]) == [value(1)]
                server._client("write").client_pause(2000)
                told: list[str] = []

                def read() -> None:
                    try:
                        store.get_many([key("a")])
                    except OnlineStoreError as error:
                        told.append(str(error))

                threads = [threading.Thread(target=read) for _ in range(2)]
                for thread in threads:
                    thread.start()
                    time.sleep(0.1)
                for thread in threads:
                    thread.join()
                assert "did not answer in time" in told[0]
                assert "every connection is in use" in told[1] or "did not answer in time" in told[1]
        finally:
            stop_server(tmp_path)


def test_an_answer_that_came_too_late_is_nobodys(tmp_path: Path) -> None:
    """The connection of a read that was given up is not used again: its next answer would be that of the question before."""
    with EmbeddedOnlineStore(tmp_path, reads=Tuning(timeout_seconds=0.2, max_connections=1)) as store:
        try:
            store.put_many([(key("a"), value(1)), (key("b"), value(2))])
            assert store.get_many([key("a")]) == [value(1)]
            store._client("write").client_pause(400)
            with pytest.raises(OnlineStoreError, match="did not answer in time"):
                store.get_many([key("a")])
            time.sleep(0.5)
            assert store.get_many([key("b")]) == [value(2)]
        finally:
            stop_server(tmp_path)


def test_a_forked_process_reads_over_connections_of_its_own(tmp_path: Path) -> None:
    """Parent and child read at once, and each gets its own answers."""
    with EmbeddedOnlineStore(tmp_path, reads=Tuning(timeout_seconds=5)) as store:
        try:
            store.put_many([(key(name), value(number)) for number, name in enumerate("ab", start=1)])
            assert store.get_many([key("a")]) == [value(1)]
            child = os.fork()
            wanted, name = (2, "b") if child == 0 else (1, "a")
            try:
                is_right = all(store.get_many([key(name)]) == [value(wanted)] for _ in range(300))
            except OnlineStoreError:
                is_right = False
            if child == 0:
                os._exit(0 if is_right else 1)
            assert is_right
            assert os.waitpid(child, 0)[1] == 0
        finally:
            stop_server(tmp_path)
