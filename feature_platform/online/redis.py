"""
An online store in a Redis (or Valkey) server, a cluster of them, or what sentinels name.

Knows redis-py and the Lua of `scripts.py`. Knows no dtype, and no `import redis` of its own: that is `connections.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import threading
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

from feature_platform.online import connections
from feature_platform.online.connections import CLIENT_ERRORS, READS, WRITES, Address, Tuning, explain
from feature_platform.online.direct import DirectReads
from feature_platform.online.layout import key_pattern
from feature_platform.online.multiplexed import MultiplexedReads
from feature_platform.online.scripts import KEYS_PER_CALL, PUT, SWEEP, Script
from feature_platform.online.store import WriteCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from feature_platform.online.connections import Endpoint

__all__ = ["RedisOnlineStore"]

T = TypeVar("T")
Client: TypeAlias = Any
Kind: TypeAlias = Literal["read", "write"]
Call: TypeAlias = "tuple[list[bytes], list[bytes]]"

_KEYS_PER_READ: Final = 10_000
_SCAN_COUNT: Final = 1_000
_SAMPLE_SCANS: Final = 200


class RedisOnlineStore:
    """
    An `OnlineStore` over redis-py; threads may share it, and event loops its async half, one at a time.

    Args:
        address: Made by `from_url`.
        reads: How long reads wait and how many connections they hold, blocking and async each.
    """

    _keys_per_trip: ClassVar[int] = 2_000

    def __init__(
        self,
        address: Address,
        *,
        reads: Tuning = READS,
    ) -> None:
        self._address = address
        self._tuning: dict[Kind, Tuning] = {"read": reads, "write": WRITES}
        self._clients: dict[Kind, Client] = {}
        self._reads = {kind: DirectReads(partial(self._make_connection, kind), address.tuned(one)) for kind, one in self._tuning.items()}
        self._async: MultiplexedReads | _ClusterReads | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        reads: Tuning = READS,
    ) -> RedisOnlineStore:
        """
        Return the store at a URL, not connected yet.

        Args:
            url: `redis://[user:password@]host:port/0`, `rediss://...` (TLS), `unix:///path/to.sock`,
                `redis+cluster://host:port,host:port` (any of the nodes), or
                `redis+sentinel://host:port,host:port/service/0`; the last two also as `rediss+...`.
                redis-py's connection arguments may follow a `?`.
            reads: See the class.

        Raises:
            SettingsError: The URL is malformed.
        """
        return RedisOnlineStore(
            Address.parse(url),
            reads=reads,
        )

    def __repr__(self) -> str:
        """Name the address, without user and password."""
        return f"{type(self).__name__}({self._address.shown})"

    def get_many(self, keys: Sequence[bytes], *, patient: bool = False) -> list[bytes | None]:
        """Return the value of each key, in order; metas that stand in front are read no later than what follows them."""
        kind: Kind = "write" if patient else "read"
        found: list[bytes | None] = []
        for chunk in self._chunks(keys):
            found += self._ask(kind, "read", lambda client, chunk=chunk: self._mget(kind, client)(chunk))  # type: ignore[misc]
        return found

    async def get_many_async(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the same without blocking the event loop."""
        reads = self._async
        if reads is None or reads.loop is not asyncio.get_running_loop():
            reads = self._async = self._async_reads()
        try:
            return [value for chunk in self._chunks(keys) for value in await reads.mget(chunk)]
        except CLIENT_ERRORS as exc:
            raise explain(exc, "read", self._address.shown) from exc

    def put_many(self, items: Iterable[tuple[bytes, bytes]], *, expire_seconds: int | None = None) -> WriteCounts:
        """Write every value that is not older than the one under its key."""
        expire = b"0" if expire_seconds is None else b"%d" % max(expire_seconds, 1)
        counts = WriteCounts()
        trip: list[Call] = []
        for batch in _batches(items, self._keys_per_call):
            trip.append((list(batch), [expire, *batch.values()]))
            if len(trip) * self._keys_per_call >= self._keys_per_trip:
                counts = counts.plus(self._put(trip))
                trip = []
        return counts.plus(self._put(trip))

    def put_meta(self, key: bytes, value: bytes, *, force: bool = False) -> bool:
        """Write a view's meta unless a newer one is there; return whether it was written."""
        if force:
            self._ask("write", "write a view's meta", lambda client: client.set(key, value))
            return True
        # A meta begins with the head of a row, so the script that guards rows guards it too.
        return self._put([([key], [b"0", value])]).skipped == 0

    def sweep(self, project: str, entity: str, view: str, *, below_generation: int, before: int | None = None) -> int:
        """Delete the values of one view that no reader counts any more; return how many, tombstones uncounted."""
        arguments = [b"%d" % below_generation, b"" if before is None else struct.pack(">q", before)]
        swept = 0
        for keys in filter(None, self._scan(key_pattern(project, entity, view))):
            size = self._keys_per_call
            calls = [(keys[start : start + size], arguments) for start in range(0, len(keys), size)]
            swept += sum(self._ask("write", f"sweep view {view!r}", lambda client, calls=calls: _run(client, SWEEP, calls)))  # type: ignore[misc]
        return swept

    def sample_keys(self, project: str, entity: str, view: str, *, seed: int, limit: int) -> list[bytes]:
        """Return some keys of one view: the first ones met on a walk over the server that begins where the seed says, and ends in time."""
        # A cursor is a place in the server's table (its bits reversed), so a walk may begin at any: what is undefined then is only
        # whether it meets everything, and it is not meant to.
        start = int.from_bytes(hashlib.sha256(b"%d" % seed).digest()[:4])
        pattern, found = key_pattern(project, entity, view), dict[bytes, None]()
        for keys in islice(chain(self._scan(pattern, start), self._scan(pattern)), _SAMPLE_SCANS):
            found.update(dict.fromkeys(keys))
            if len(found) >= limit:
                break
        return list(found)[:limit]

    def ping(self) -> None:
        """Return if the store answers."""
        self._ask("read", "ping", lambda client: client.ping())

    def close(self) -> None:
        """Close the blocking connections; using the store again opens new ones."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for reads in self._reads.values():
            reads.close()
        for client in clients.values():
            connections.close(client)

    async def aclose(self) -> None:
        """Close all connections; the async ones belong to the event loop that used them."""
        self.close()
        reads, self._async = self._async, None
        if reads is not None and reads.loop is asyncio.get_running_loop():
            await reads.aclose()

    def __enter__(self) -> Self:
        """Return the store; it connects when it is used."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the store."""
        self.close()

    @property
    def _keys_per_call(self) -> int:
        # In a cluster all keys of a script must lie in one slot, and every entity has its own.
        return 1 if self._address.kind == "cluster" else KEYS_PER_CALL

    def _open(self) -> Address:
        """Return the address to connect to; a store that has to start its server does so here."""
        return self._address

    def _revive(self, error: Exception) -> bool:  # noqa: ARG002 - a server on the network is not ours to start
        """Say whether asking again may help, having done something about it."""
        return False

    def _client(self, kind: Kind) -> Client:
        with self._lock:
            if kind not in self._clients:
                self._clients[kind] = self._open().client(self._tuning[kind])
            return self._clients[kind]

    def _make_connection(self, kind: Kind) -> Client:
        return self._client(kind).connection_pool.make_connection()

    def _async_reads(self) -> MultiplexedReads | _ClusterReads:
        tuning = self._address.tuned(self._tuning["read"])
        if self._address.kind == "cluster":
            return _ClusterReads(self._address, tuning)

        async def locate() -> Endpoint:
            return await (await asyncio.to_thread(self._open)).endpoint()

        return MultiplexedReads(locate, tuning)

    def _ask(self, kind: Kind, what: str, question: Callable[[Client], T]) -> T:
        try:
            return question(self._client(kind))
        except CLIENT_ERRORS as exc:
            if not self._revive(exc):
                raise explain(exc, what, self._address.shown) from exc
        try:
            return question(self._client(kind))
        except CLIENT_ERRORS as exc:
            raise explain(exc, what, self._address.shown) from exc

    def _mget(self, kind: Kind, client: Client) -> Callable[[Sequence[bytes]], Any]:
        return client.mget_nonatomic if self._address.kind == "cluster" else self._reads[kind].mget

    def _chunks(self, keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        start = 0
        if self._address.kind == "cluster":
            # Nodes answer in any order, so the metas (the keys without a brace) are asked for by themselves, first.
            start = next((index for index, key in enumerate(keys) if b"{" in key), len(keys))
            if start:
                yield keys[:start]
        for low in range(start, len(keys), _KEYS_PER_READ):
            yield keys[low : low + _KEYS_PER_READ]

    def _put(self, calls: list[Call]) -> WriteCounts:
        counts = WriteCounts()
        if calls:
            for written, removed, skipped in self._ask("write", "write values", lambda client: _run(client, PUT, calls)):
                counts = counts.plus(WriteCounts(written, removed, skipped))
        return counts

    def _scan(self, pattern: bytes, start: int = 0) -> Iterator[list[bytes]]:
        """
        Yield the keys that match, node by node, a step of the walk at a time.

        From the beginning, a key that stays there throughout is found at least once.
        """
        what = "look for a view's keys"

        def nodes(client: Client) -> list[Client]:
            if self._address.kind == "cluster":
                return [client.get_redis_connection(node) for node in client.get_primaries()]
            return [client]

        count: int = self._ask("write", what, lambda client: len(nodes(client)))
        for offset in range(count):
            index, cursor = (start + offset) % count, start
            while True:
                cursor, keys = self._ask(
                    "write",
                    what,
                    lambda client, index=index, cursor=cursor: nodes(client)[index].scan(cursor, pattern, _SCAN_COUNT),  # type: ignore[misc]
                )
                yield keys
                if cursor == 0:
                    break


class _ClusterReads:
    """Reads of one event loop, which asks the nodes of a cluster through redis-py."""

    def __init__(self, address: Address, tuning: Tuning) -> None:
        self.loop = asyncio.get_running_loop()
        self._address, self._tuning = address, tuning
        self._gate, self._opening = asyncio.Semaphore(tuning.max_connections), asyncio.Lock()
        self._client: Client = None

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, in order."""
        async with asyncio.timeout(self._tuning.timeout_seconds), self._gate:
            return await (self._client or await self._opened()).mget_nonatomic(keys)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _opened(self) -> Client:
        async with self._opening:  # redis-py's client breaks when it meets its nodes twice at once
            if self._client is None:
                client = self._address.async_cluster(self._tuning)
                await client.initialize()
                self._client = client
            return self._client


def _batches(items: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[dict[bytes, bytes]]:
    """Cut items into calls; a key that comes again begins a new one, since a call compares with what was there before it."""
    batch: dict[bytes, bytes] = {}
    for key, value in items:
        if len(batch) == size or key in batch:
            yield batch
            batch = {}
        batch[key] = value
    if batch:
        yield batch


def _run(client: Client, script: Script, calls: list[Call]) -> list[Any]:
    """Run a script for each call in one trip, in order; a server that does not know the script is given it."""
    replies: list[Any] = []
    is_loaded = False
    while True:
        pipeline = client.pipeline(transaction=False)
        for keys, arguments in calls[len(replies) :]:
            pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        for reply in pipeline.execute(raise_on_error=False):
            if isinstance(reply, NoScriptError) and not is_loaded:
                break  # what follows it is sent again too: the order of writes is a promise
            if isinstance(reply, Exception):
                raise reply
            replies.append(reply)
        else:
            return replies
        client.script_load(script.source)
        is_loaded = True
