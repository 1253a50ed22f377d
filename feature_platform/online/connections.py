"""
The address of a Redis: what URLs mean, and clients tuned for serving.

redis-py's defaults suit a worker, not a server of requests: a frozen Redis blocks a call for 40 s, a dead one for 3.7 s
(ten retries with a backoff). Here timeouts are short, and a connection that is
lost, as by a restart of the server, is opened once more. Knows no keys.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import unquote

import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import UnixDomainSocketConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from feature_platform.errors import OnlineStoreError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["CLIENT_ERRORS", "READS", "WRITES", "Address", "Endpoint", "Tuning", "close", "explain", "reply_error"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

CLIENT_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""All that a redis-py client raises when a server does not answer or refuses."""

Client: TypeAlias = Any
"""A redis-py client, of one server or a cluster: their types have no common ground."""

_FORMS = (
    "Write redis://[user:password@]host:port/0, rediss://... (TLS), unix:///path/to.sock, redis+cluster://host:port,host:port "
    "or redis+sentinel://host:port,host:port/service/0."
)
_SCHEMES = frozenset({"redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"})
_PORTS = {"sentinel": 26379}
# Not timeouts: a deadline that may pass twice is none.
_RETRIED = (RedisConnectionError,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """
    How long a client waits, and how many connections it holds.

    Attributes:
        timeout_seconds: For one answer.
        connect_timeout_seconds: For a connection.
        max_connections: At most; a call waits for a free one, no longer than for an answer.
    """

    timeout_seconds: float = 0.5
    connect_timeout_seconds: float = 0.5
    max_connections: int = 32

    def options(self) -> dict[str, Any]:
        """Return redis-py's names for it."""
        return {"socket_timeout": self.timeout_seconds, "socket_connect_timeout": self.connect_timeout_seconds}


READS: Final = Tuning()
WRITES: Final = Tuning(timeout_seconds=30.0, max_connections=4)
"""For one trip of a bulk write."""


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where a Redis is.

    Attributes:
        kind: One server, a cluster, or the primary that sentinels name.
        shown: For messages: no user, no password.
        options: redis-py's connection arguments.
        nodes: Host and port of cluster nodes or sentinels.
        service: The name that the sentinels know the primary by.
    """

    kind: Literal["server", "cluster", "sentinel"]
    shown: str
    options: Mapping[str, Any] = field(repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @classmethod
    def of_socket(cls, path: Path) -> Address:
        """Return the address of a unix socket."""
        return cls("server", str(path), {"connection_class": UnixDomainSocketConnection, "path": str(path)})

    @classmethod
    def parse(cls, url: str) -> Address:
        """
        Read a URL; further redis-py arguments may follow a `?`, as in `?socket_timeout=2&ssl_ca_certs=ca.pem`.

        Raises:
            SettingsError: It is malformed; the message does not repeat it, for it may hold a password.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES:
            message = f"redis_url begins with no scheme of Redis.\n{_FORMS}"
            raise SettingsError(message, field="redis_url")
        try:
            return cls._parse(scheme, rest)
        except (ValueError, TypeError) as exc:
            reason = exc if isinstance(exc, _MalformedError) else "it cannot be read"
        message = f"redis_url is malformed: {reason}.\n{_FORMS}"
        raise SettingsError(message, field="redis_url")

    @classmethod
    def _parse(cls, scheme: str, rest: str) -> Address:
        base, _, topology = scheme.partition("+")
        if base == "unix":
            options = _options(f"unix://{rest}")
            return cls("server", str(options.get("path", "")), options)
        location, question, query = rest.partition("?")
        authority, _, path = location.partition("/")
        login, at, hosts = authority.rpartition("@")
        service, database = _path(path, topology)
        if "," in hosts and not all(hosts.split(",")):
            raise _MalformedError("a host is empty")
        each = [_options(f"{base}://{login}{at}{host}/{database}{question}{query}") for host in hosts.split(",")]
        nodes = tuple((options.get("host", "localhost"), options.get("port", _PORTS.get(topology, 6379))) for options in each)
        shown = f"{scheme}://" + ",".join(f"{host}:{port}" for host, port in nodes)
        options = each[0]
        if not topology:
            if len(nodes) > 1:
                raise _MalformedError("several hosts need redis+cluster:// or redis+sentinel://")
            return cls("server", shown, options)
        options = {name: value for name, value in options.items() if name not in {"host", "port"}}
        if options.pop("connection_class", None) is not None:
            options["ssl"] = True
        if topology == "sentinel":
            return cls("sentinel", f"{shown}/{service}", options, nodes, service)
        if options.pop("db", 0):
            raise _MalformedError("a cluster has only database 0")
        return cls("cluster", shown, options, nodes)

    def client(self, tuning: Tuning) -> Client:
        """
        Return a client that has not connected yet, except to a cluster, whose slots it asks for.

        redis-py's pools for clusters and sentinels refuse what is over their limit instead of waiting, so there the number
        of threads is the limit.
        """
        options = {**tuning.options(), **self.options}
        retry = Retry(NoBackoff(), 1, _RETRIED)
        if self.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self.nodes]  # type: ignore[no-untyped-call]
            return RedisCluster(startup_nodes=nodes, retry=retry, **options)
        if self.kind == "sentinel":
            sentinel: Any = Sentinel(self.nodes, sentinel_kwargs=tuning.options(), **options)  # type: ignore[no-untyped-call]
            return sentinel.master_for(self.service, retry=retry)
        pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
            **{"max_connections": tuning.max_connections, "timeout": tuning.timeout_seconds, "retry": retry, **options}
        )
        return redis.Redis.from_pool(pool)

    def async_cluster(self, tuning: Tuning) -> Client:
        """
        Return a client of the cluster that belongs to the running event loop and has not connected yet.

        For the reason above, no more than `max_connections` calls at once may ask it.
        """
        nodes = [AsyncClusterNode(host, port) for host, port in self.nodes]
        options = {"max_connections": tuning.max_connections, **tuning.options(), **self.options}
        return AsyncRedisCluster(startup_nodes=nodes, retry=AsyncRetry(NoBackoff(), 1, _RETRIED), **options)

    async def endpoint(self) -> Endpoint:
        """Return the server, or the primary that the sentinels name now."""
        options = self.options
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        if self.kind == "sentinel":
            sentinel: Any = AsyncSentinel(self.nodes, sentinel_kwargs=READS.options(), **options)  # type: ignore[no-untyped-call]
            try:
                host, port = await sentinel.discover_master(self.service)
            finally:
                await sentinel.aclose()
        tls = None
        if options.get("ssl") or issubclass(options.get("connection_class", redis.Connection), redis.SSLConnection):
            wanted = {name: value for name, value in options.items() if name.startswith("ssl_")}
            tls = redis.asyncio.SSLConnection(**wanted).ssl_context.get()
        greeting: list[tuple[bytes, ...]] = []
        if (password := options.get("password")) is not None:
            user = options.get("username")
            greeting.append((b"AUTH", *([user.encode()] if user else []), password.encode()))
        if options.get("db"):
            greeting.append((b"SELECT", b"%d" % options["db"]))
        if options.get("client_name"):
            greeting.append((b"CLIENT", b"SETNAME", options["client_name"].encode()))
        return Endpoint(options.get("path"), host, port, tls, greeting)

    def tuned(self, tuning: Tuning) -> Tuning:
        """Return a tuning with what the URL says of it put in."""
        names = {"max_connections": "max_connections", "socket_timeout": "timeout_seconds"}
        names["socket_connect_timeout"] = "connect_timeout_seconds"
        return replace(tuning, **{ours: self.options[theirs] for theirs, ours in names.items() if theirs in self.options})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One server.

    Attributes:
        path: Of its unix socket; None for TCP.
        host: For TCP.
        port: For TCP.
        tls: None for none.
        greeting: Commands that a new connection begins with.
    """

    path: str | None
    host: str
    port: int
    tls: ssl.SSLContext | None
    greeting: Sequence[tuple[bytes, ...]] = field(repr=False)

    async def open(self, protocol: Callable[[], P]) -> P:
        """Return a protocol that is connected; `greeting` is its own to send."""
        loop = asyncio.get_running_loop()
        if self.path is not None:
            return (await loop.create_unix_connection(protocol, self.path))[1]
        return (await loop.create_connection(protocol, self.host, self.port, ssl=self.tls))[1]


def reply_error(text: str) -> RedisError:
    """Return the error of redis-py's that a server's error reply means."""
    code, _, rest = text.partition(" ")
    return _REPLIES[code](rest) if code in _REPLIES else ResponseError(text)


_REPLIES: Final[Mapping[str, type[RedisError]]] = {
    "LOADING": BusyLoadingError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "WRONGPASS": AuthenticationError,
}


def close(client: Client) -> None:
    """Close a client's connections, those to sentinels too, which redis-py leaves to us."""
    client.close()
    if (sentinel := getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)) is not None:
        sentinel.close()


class _MalformedError(ValueError):
    """What is wrong with a URL, in words that hold no secret."""


def _path(path: str, topology: str) -> tuple[str, str]:
    """Return the service and the database of a URL's path."""
    service, _, database = path.partition("/") if topology == "sentinel" else ("", "", path)
    if topology == "sentinel" and not service:
        raise _MalformedError("the name of the sentinels' service is missing")
    if database and not database.isdecimal():
        raise _MalformedError("the database after the last '/' is not a number")
    return unquote(service), database


def _options(url: str) -> dict[str, Any]:
    """Return redis-py's connection arguments for a plain URL."""
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    options.pop("decode_responses", None)  # values are bytes
    # A connection object refuses an argument that it does not know; without this the first request would find out.
    known = {name: value for name, value in options.items() if name not in {"connection_class", "max_connections", "timeout"}}
    try:
        options.get("connection_class", redis.Connection)(**known)
    except (TypeError, RedisError) as exc:
        raise _MalformedError("redis-py does not know an argument after the '?', or its value") from exc
    return options


def explain(error: Exception, what: str, where: str) -> OnlineStoreError:
    """Return the error of ours that says what failed, where, and what to do."""
    match error:
        case AuthenticationError() | AuthorizationError() | NoPermissionError():
            how, advice = "it refused the login", "Check user, password and permissions in FEATURE_PLATFORM_REDIS_URL."
        case OutOfMemoryError():
            how, advice = "it is out of memory; reads go on", "Raise its maxmemory, or drop views that nobody reads."
        case ReadOnlyError():
            how, advice = "it is a replica", "Point FEATURE_PLATFORM_REDIS_URL at the primary, or at the sentinels."
        case BusyLoadingError():
            how, advice = "it is still loading its data", "Try again in a moment."
        case MaxConnectionsError():
            how, advice = "every connection is in use", "Raise max_connections, or run more processes."
        case RedisTimeoutError() | TimeoutError():
            how, advice = "it did not answer in time", "See whether the server is overloaded or frozen, then try again."
        case RedisConnectionError() | RedisClusterException() | OSError():
            how, advice = f"it cannot be reached ({_brief(error)})", "See whether the server runs and FEATURE_PLATFORM_REDIS_URL names it."
        case _:
            how, advice = f"it answered {_brief(error)!r}", "See the server's log."
    return OnlineStoreError(f"cannot {what}, online store {where}: {how}.\n{advice}")


def _brief(error: Exception) -> str:
    return (str(error).strip().rstrip(".") or type(error).__name__)[:300]
