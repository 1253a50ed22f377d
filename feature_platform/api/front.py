"""
What every request passes: it is counted, named, and let in or not; a read is answered here, the rest by FastAPI.

The way through FastAPI costs several times what a read does: routing by regular expressions, two middlewares, a Request and a
Response. Knows ASGI. Knows nothing of features.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from feature_platform.api.problems import Problem, defect, problem_of
from feature_platform.errors import FeaturePlatformError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from feature_platform.api.auth import BearerAuth
    from feature_platform.api.metrics import Metrics
    from feature_platform.api.request_log import RequestLog

__all__ = ["SAFE_HEADERS", "Front", "Read"]

Read = Callable[["Scope", "Receive"], Awaitable[bytes]]
"""Answers a POST with JSON; raises Problem or FeaturePlatformError."""

SAFE_HEADERS: Final = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
"""Of every answer."""

_log = logging.getLogger("uvicorn.error")


class Front:
    """
    ASGI application in front of another one.

    Args:
        app: Answers what is no read.
        reads: By path.
        metrics: Count every answer under its route's template, so that the labels stay few.
        auth: Who may ask; None lets everybody.
        log: Names requests, and writes them down.
    """

    def __init__(self, app: ASGIApp, reads: Mapping[str, Read], metrics: Metrics, auth: BearerAuth | None, log: RequestLog) -> None:
        self._app, self._reads, self._metrics, self._auth, self._log = app, reads, metrics, auth, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, route = 500, "other"  # what the server answers if nothing below does
        metrics, request_id = self._metrics, self._log.name(scope)
        metrics.begin_request()
        more_headers = [*SAFE_HEADERS, (b"x-request-id", request_id)]

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *more_headers]
            await send(message)

        try:
            read = self._reads.get(scope["path"]) if scope["method"] == "POST" else None
            if self._auth is not None and (refusal := self._auth.refusal(scope)) is not None:
                await refusal.response()(scope, receive, noting)
            elif read is None:
                await self._app(scope, receive, noting)
                route = getattr(scope.get("route"), "path", "other")
            else:
                route = scope["path"]
                answer = await _answer(read, scope, receive)
                if isinstance(answer, Problem):
                    await answer.response()(scope, receive, noting)
                else:
                    status = 200
                    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer)), *more_headers]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await send({"type": "http.response.body", "body": answer})
        finally:
            seconds = time.perf_counter() - started
            metrics.end_request(route, status, seconds)
            if self._log.wants(status):
                self._log.write(request_id, scope, route, status, seconds)


async def _answer(read: Read, scope: Scope, receive: Receive) -> bytes | Problem:
    try:
        return await read(scope, receive)
    except Problem as problem:
        return problem
    except FeaturePlatformError as error:
        return problem_of(error)
    except Exception:  # noqa: BLE001 - as uvicorn would, which answers with no problem body
        _log.exception("a read failed that should not")
        return defect()
