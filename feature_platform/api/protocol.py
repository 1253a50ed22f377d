"""
The HTTP protocol of the server, with bounds on what a connection may take: bytes, seconds, and how many there are.

Knows uvicorn. Of itself, uvicorn reads a head without end, waits for one without end, resets an idle connection when it stops,
and logs every connection that does not speak HTTP.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from feature_platform.api.front import SAFE_HEADERS
from feature_platform.api.metrics import Metrics
from feature_platform.api.problems import Problem

__all__ = ["MAX_HEADERS", "MAX_HEAD_BYTES", "BoundedProtocol", "Bounds"]

MAX_HEAD_BYTES: Final = 65_536
"""Request line and headers together; what arrives in one read may be more."""

MAX_HEADERS: Final = 100
"""Apache's number. A header of four bytes takes over a hundred in memory: 2,000 connections with 64 KiB of them each would take 3.5 GB."""

# A request that was sent before its client could hear of the stop is here within a round trip; a second is a slow one on any network.
_GRACE_SECONDS: Final = 1.0
# A socket that is closed with unread bytes resets the connection, and the client loses the refusal: what it still sends is read first.
_LINGER_SECONDS: Final = 1.0

# What says where a body ends, and whether another request follows.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """
    What a connection may take.

    Attributes:
        head_seconds: From the first byte of a request to the end of its headers.
        body_seconds: For a whole body to arrive, and for a whole answer to be taken.
        idle_seconds: Without a request. Longer than the 60 s after which nginx and most load balancers let go of a connection: the
            side that sends requests has to be the one that closes, or it sends one into a connection that is just being closed.
        connections: At once, in one process.
    """

    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: int = 75
    connections: int = 2000


class _Stage(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    TAKING = auto()  # answered; perhaps the client has not read all of it
    REFUSED = auto()


class BoundedProtocol(HttpToolsProtocol):
    """
    uvicorn's protocol with deadlines, which `Server` looks at: a timer for each request would cost more than the rest of this.

    Args:
        bounds: What a connection may take.
        config: Of uvicorn, as what follows.
        server_state: Shared by all connections.
        app_state: Of the lifespan.
    """

    def __init__(
        self,
        bounds: Bounds,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = bounds
        self._stage, self._deadline = _Stage.IDLE, math.inf
        self._head_bytes = 0
        self._is_draining = False
        self._is_declining = False  # an upgrade, whose request is not over yet
        self._under_way: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Let a connection in, or tell it that there are too many."""
        super().connection_made(transport)
        self._enter(_Stage.IDLE, self._bounds.idle_seconds)
        most = self._bounds.connections
        if len(self.connections) > 2 * most:
            transport.abort()  # even telling them takes too much
        elif len(self.connections) > most:
            detail = f"this process has {most} connections, and takes no more.\nTry again, or raise FEATURE_PLATFORM_API_MAX_CONNECTIONS."
            self._refuse(Problem(503, detail, kind="too-many-connections", headers={"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered: uvicorn tells the last one that came, and this one would write to nobody."""
        super().connection_lost(exc)
        if self._under_way is not None:
            self._under_way.disconnected = True
            self._under_way.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse what is not HTTP, and a head that is still not over."""
        if self._stage is _Stage.REFUSED:
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            # uvicorn would also write a line into the log: whoever sends noise could fill a disk.
            raised = error.__context__  # by a callback
            malformed = Problem(400, "this is not a request in HTTP/1.1.", kind="malformed-request")
            self._refuse_request(raised if isinstance(raised, Problem) else malformed)
            return
        # Counted afterwards: a short head and a long body may arrive together.
        if self._stage is _Stage.HEAD and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_request(Problem(431, f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes."))
            elif len(self.headers) > MAX_HEADERS:
                self._refuse_request(_too_many_headers())

    def on_message_begin(self) -> None:
        """Begin to count."""
        if self._is_declining:
            self.url, self.headers = b"", []  # for what is parsed again; the request keeps its own
            return
        self._head_bytes = 0
        self._enter(_Stage.HEAD, self._bounds.head_seconds)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Cease to count; a connection that is to end says so in its answer."""
        if self._is_declining:
            self._is_declining = False
            return
        if len(self.headers) > MAX_HEADERS:
            raise _too_many_headers()
        self._is_declining = self.parser.should_upgrade()
        super().on_headers_complete()
        self._enter(_Stage.BODY, self._bounds.body_seconds)
        if self._is_draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Wait for nothing more: it is the server's turn, unless it has answered already."""
        if self._is_declining:
            return
        if self.cycle.response_complete:  # uvicorn has stopped its timer, and would not start it again
            self._enter(_Stage.IDLE, _GRACE_SECONDS if self._is_draining else self._bounds.idle_seconds)
        else:
            self._enter(_Stage.ANSWER, math.inf)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the client to read."""
        # Else it was answered before it was all there, or the next has begun. No set: the hash of an enum is a call in Python.
        if self._stage is _Stage.ANSWER or self._stage is _Stage.TAKING:
            self._enter(_Stage.TAKING, _GRACE_SECONDS if self._is_draining else self._bounds.body_seconds)
        super().on_response_complete()

    def shutdown(self) -> None:
        """
        End the connection as soon as nothing is lost by it; may be called again.

        uvicorn closes idle connections at once, into the face of a request that is on its way.
        """
        if self._is_draining:
            return
        self._is_draining = True
        if self._is_answering:
            # An answer that has begun has told the client that it may send another request.
            self.cycle.keep_alive = self.cycle.keep_alive and self.cycle.response_started
        elif self._stage in {_Stage.IDLE, _Stage.TAKING}:
            self._enter(self._stage, _GRACE_SECONDS)

    def check_deadline(self, now: float) -> None:
        """
        Cut off what has taken too long.

        Args:
            now: The loop's time.
        """
        if now < self._deadline:
            return
        if self._stage is _Stage.HEAD:
            self._refuse_request(Problem(408, f"the request line and headers were not there within {self._bounds.head_seconds:g} s."))
        elif self._stage is _Stage.BODY:
            self._refuse_request(Problem(408, f"the body was not there within {self._bounds.body_seconds:g} s."))
        elif self._stage is _Stage.TAKING and self.transport.get_write_buffer_size() > 0:
            if not self._is_draining:  # then the server's own bound holds
                self.transport.abort()  # close() would wait for the client to read
        elif self._stage is _Stage.TAKING and not self._is_draining:
            # uvicorn closes it sooner, unless it gets line ends, which are no request and stop uvicorn's timer.
            self._enter(_Stage.IDLE, self._bounds.idle_seconds)
        elif self._stage is _Stage.REFUSED:
            self.transport.abort()
        else:
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        """
        Parse what arrived, and decline upgrades.

        httptools takes a request that asks for one to end with its headers: its body would be lost, or be the next request to us
        and not to a proxy in front. So a fresh parser learns how long the body is, and goes on from there.
        """
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = memoryview(rest)[upgrade.args[0] :]
                framing = [b"%s: %s\r\n" % one for one in self.headers if one[0] in _FRAMING]
                version = self.parser.get_http_version().encode()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(b"POST / HTTP/%s\r\n%s\r\n" % (version, b"".join(framing)))
            else:
                return

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - as uvicorn has it
        self._under_way = cycle  # with requests behind it, uvicorn knows the last of them only
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answering(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)  # before the first request there is no cycle

    def _enter(self, stage: _Stage, seconds: float) -> None:
        self._stage, self._deadline = stage, self.loop.time() + seconds

    def _refuse_request(self, problem: Problem) -> None:
        # What was asked before has no answer yet, or this has half of one: a second answer would be taken for its rest.
        if self.pipeline or (self._is_answering and (self._stage is not _Stage.BODY or self.cycle.response_started)):
            self.transport.abort()
        elif self._stage is _Stage.BODY and not self._is_answering:
            self.transport.abort()  # it was answered long ago
        else:
            if self._stage is _Stage.HEAD:  # no request has them yet, and the connection lingers
                self.headers.clear()
            self._refuse(problem)

    def _refuse(self, problem: Problem) -> None:
        """Answer in the application's stead, and hear no more."""
        metrics = getattr(self.app, "metrics", None)
        if isinstance(metrics, Metrics):  # what does not come as far as the application is counted here
            metrics.observe_refusal(problem.status)
        response = problem.response()
        head = b"".join(b"%s: %s\r\n" % header for header in [*response.raw_headers, *SAFE_HEADERS])
        line = f"HTTP/1.1 {problem.status} {problem.phrase}\r\n".encode()
        self.transport.write(line + head + b"connection: close\r\n\r\n" + bytes(response.body))
        self.transport.write_eof()
        self._unset_keepalive_if_required()
        self._enter(_Stage.REFUSED, _LINGER_SECONDS)
        self.flow.resume_reading()
        if self._is_answering:
            self.cycle.disconnected = True  # the application waits for more of the body
            self.cycle.message_event.set()


def _too_many_headers() -> Problem:
    return Problem(431, f"there are more than {MAX_HEADERS} headers.")
