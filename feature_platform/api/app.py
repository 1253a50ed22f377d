"""
The HTTP application: what a request passes through on its way to a route, and how one process serves it.

Knows FastAPI. Knows no Dagster, no DuckDB and no Parquet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from feature_platform.api import schemas
from feature_platform.api.auth import BearerAuth, check_binding
from feature_platform.api.front import Front
from feature_platform.api.metrics import Metrics
from feature_platform.api.problems import Problem, defect, problem_of
from feature_platform.api.protocol import Bounds
from feature_platform.api.request_log import RequestLog
from feature_platform.api.routes import PlainRoute, Reader, add_routes
from feature_platform.api.server import Server, inherited_listener, server_config
from feature_platform.errors import FeaturePlatformError
from feature_platform.online.opening import open_online_store
from feature_platform.online.store import OnlineStore
from feature_platform.registry import Registry
from feature_platform.settings import Settings

__all__ = ["Application", "create_app", "serve"]


def create_app(registry: Registry, settings: Settings, store: OnlineStore | None = None) -> Application:
    """
    Return the ASGI application.

    Args:
        registry: What may be asked for.
        settings: `project`, `api_token`, `api_tokens`, the bounds and, unless `store` is given, where the online store is.
        store: Read from, and left open; without it the app opens one of its own and closes it.

    Raises:
        SettingsError: The token is empty, the tokens file is broken, or the store's URL is malformed.
    """
    check_binding(settings, "localhost")
    reader = Reader(registry, settings, open_online_store(settings) if store is None else store)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The embedded server takes half a second to start: better now than in the first request. Without it, /ready says so.
        with contextlib.suppress(FeaturePlatformError):
            await asyncio.to_thread(reader.store.ping)
            await reader.metas()  # opens the connection that reads share
        yield
        if store is None:
            await reader.store.aclose()

    app = Application(
        title=f"Features of {settings.project}",
        version="1",
        description="The newest value of every declared feature, by entity.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.schemas = schemas.components(registry)
    app.router.route_class = PlainRoute
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(FeaturePlatformError, _answer_platform_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_defect)
    reads = add_routes(app, registry, reader)
    app.front = Front(app.behind, reads, reader.metrics, BearerAuth.from_settings(settings), RequestLog(settings.api_log))
    app.metrics = reader.metrics
    return app


def serve(
    registry: Registry, settings: Settings, *, host: str | None = None, port: int | None = None, store: OnlineStore | None = None
) -> None:
    """
    Serve until a signal ends it, in one process.

    Args:
        registry: What may be asked for.
        settings: See `create_app`; `api_max_connections`, and `api_host` and `api_port` unless given here.
        host: Address to bind.
        port: Port to bind.
        store: See `create_app`.

    Raises:
        SettingsError: The address is not loopback and there is no token.
    """
    host = settings.api_host if host is None else host
    port = settings.api_port if port is None else port
    listener = inherited_listener()
    check_binding(settings, host if listener is None else listener.getsockname()[0])
    bounds = Bounds(connections=settings.api_max_connections)
    config = server_config(create_app(registry, settings, store), host=host, port=port, bounds=bounds)
    Server(config).run(None if listener is None else [listener])


class Application(FastAPI):
    """
    FastAPI behind a front, with the schemas of the registry in its OpenAPI.

    Attributes:
        schemas: Of the registry, by name.
        front: What every request passes.
        metrics: What was counted.
    """

    schemas: Mapping[str, schemas.JsonSchema]
    front: Front
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, through the front."""
        await self.front(scope, receive, send)

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what the front passes on."""
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            document.setdefault("components", {}).setdefault("schemas", {}).update(self.schemas)
        return super().openapi()


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - tells mypy what the registration says
    return error.response()


async def _answer_platform_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, FeaturePlatformError)  # noqa: S101 - as above
    return problem_of(error).response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    detail = f"{request.method} {request.url.path} is not answered here: {error.detail}.\nSee /docs."
    return Problem(error.status_code, detail, headers=error.headers).response()


async def _answer_defect(_: Request, __: Exception) -> Response:
    return defect().response()
