"""
The routes: what each of them reads, and how they stand in OpenAPI.

Knows FastAPI. Knows nothing of tokens, nor of the server around it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope

from feature_platform.api import schemas
from feature_platform.api.bodies import parse_object, read_body
from feature_platform.api.front import Read
from feature_platform.api.metrics import METRICS_MEDIA_TYPE, Metrics
from feature_platform.api.problems import PROBLEM_MEDIA_TYPE, Problem
from feature_platform.api.wire import WireForms, encode_answer
from feature_platform.errors import OnlineStoreError, UnknownNameError
from feature_platform.online.codec import ViewCodec, ViewMeta
from feature_platform.online.store import OnlineStore
from feature_platform.registry import Registry
from feature_platform.settings import Settings

__all__ = ["PlainRoute", "Reader", "add_routes"]

Handler = Callable[[Request], Awaitable[Response]]


class PlainRoute(APIRoute):
    """A route that is in OpenAPI and answers itself: bodies are parsed more strictly here, and faster, than FastAPI would."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler as it is."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


class Reader:
    """Reads the online store for requests."""

    def __init__(self, registry: Registry, settings: Settings, store: OnlineStore) -> None:
        self.store = store
        self.metrics = Metrics()
        self._forms = WireForms(registry, settings.project, settings.max_entities)
        self._max_body_bytes = settings.max_body_bytes
        self._meta_keys = {view.name: ViewCodec(settings.project, view).meta_key for view in registry.views.values()}

    async def answer(self, scope: Scope, receive: Receive, service: str | None = None) -> bytes:
        """
        Answer a request from one read of the store.

        Args:
            scope: Of ASGI.
            receive: Of ASGI.
            service: Whose features are asked for; None where the body says which.
        """
        body = parse_object(await read_body(scope, receive, max_bytes=self._max_body_bytes))
        asked = self._forms.parse(body) if service is None else self._forms.parse_for(service, body)
        read = asked.shape.question.read(asked.rows)
        started = time.perf_counter()
        values = await self.store.get_many_async(read.keys)
        self.metrics.observe_read(time.perf_counter() - started)
        answer = read.answer(values, _now(), metadata=asked.has_metadata)
        for column in asked.shape.columns:
            self.metrics.observe_statuses(column.view, column.feature, answer.columns[column.name].statuses)
        return msgspec.json.encode(encode_answer(asked, answer))

    async def metas(self) -> dict[str, ViewMeta | None]:
        """Return every view's meta; None for one that is not in the store."""
        values = await self.store.get_many_async(list(self._meta_keys.values()))
        return {view: None if value is None else ViewMeta.from_bytes(value) for view, value in zip(self._meta_keys, values, strict=True)}


def add_routes(app: FastAPI, registry: Registry, reader: Reader) -> dict[str, Read]:
    """Add every route; return those that read features, by path: the front answers them."""
    _add_descriptions(app, registry)
    _add_operations(app, registry, reader)
    return _add_reads(app, registry, reader)


def _add_reads(app: FastAPI, registry: Registry, reader: Reader) -> dict[str, Read]:
    async def unknown_service(request: Request) -> Response:
        raise UnknownNameError("service", request.path_params["name"][:100], registry.services, field="name")

    reads: dict[str, Read] = {"/get-online-features": reader.answer}
    answers = [schemas.reference("OnlineAnswer"), schemas.reference("OnlineColumns")]
    text = "Return features of one entity, or of several in columns."
    _post(app, "/get-online-features", _through_fastapi(reader.answer, text), "OnlineRequest", answers)
    for service in registry.services:
        reads[f"/services/{service}"] = read = partial(reader.answer, service=service)
        answers = [schemas.reference(schemas.response_name(service))]
        text = "Return the features of a service, of one entity, or of several in columns."
        _post(app, f"/services/{service}", _through_fastapi(read, text), schemas.request_name(service), answers)
    app.add_api_route("/services/{name}", unknown_service, methods=["POST"], include_in_schema=False)
    return reads


def _through_fastapi(read: Read, text: str) -> Handler:
    """Return the same read as an endpoint: OpenAPI is made of these, and a path that the front does not know literally ends here."""

    async def endpoint(request: Request) -> Response:
        return Response(await read(request.scope, request.receive), media_type="application/json")

    endpoint.__doc__ = text
    return endpoint


def _add_descriptions(app: FastAPI, registry: Registry) -> None:
    async def list_features(_: Request) -> Response:
        """Return every declared feature."""
        return _json(schemas.FeatureList([info for view in registry.views.values() for info in schemas.features_of(view)]))

    async def describe_view(request: Request) -> Response:
        """Return one view with its features."""
        name: str = request.path_params["view"]
        if name not in registry.views:
            raise UnknownNameError("view", name[:100], registry.views, field="view")
        return _json(schemas.view_info(registry.views[name]))

    async def list_services(_: Request) -> Response:
        """Return every declared service."""
        return _json(schemas.ServiceList([schemas.service_info(registry, one) for one in registry.services.values()]))

    _get(app, "/features", list_features, "FeatureList")
    _get(app, "/features/{view}", describe_view, "ViewInfo")
    _get(app, "/services", list_services, "ServiceList")


def _add_operations(app: FastAPI, registry: Registry, reader: Reader) -> None:
    async def health(_: Request) -> Response:
        """Say that the process answers."""
        return _json(schemas.Health())

    async def ready(_: Request) -> Response:
        """Say whether every view is in the online store, and how old it is."""
        metas, now = await reader.metas(), _now()
        missing = [view for view, meta in metas.items() if meta is None]
        if missing:
            detail = f"not in the online store: {', '.join(missing)}.\nRun 'fp materialize', or 'fp rebuild-online'."
            raise Problem(503, detail, kind="not-materialized", missing=missing, headers={"Retry-After": "1"})
        return _json(schemas.readiness(registry, {view: meta for view, meta in metas.items() if meta is not None}, now))

    async def show_metrics(_: Request) -> Response:
        """Return counters and ages for Prometheus."""
        ages, rows = dict[str, float](), dict[str, float]()
        promises = {view.name: view.freshness.total_seconds() for view in registry.views.values() if view.freshness is not None}
        is_up = False
        with contextlib.suppress(OnlineStoreError):
            metas, now = await reader.metas(), _now()
            ages = {view: meta.age_seconds(now) for view, meta in metas.items() if meta is not None}
            rows = {view: meta.rows for view, meta in metas.items() if meta is not None}
            is_up = True
        gauges = {
            "online_store_up": ("Whether the online store answers.", {"": float(is_up)}),
            "view_age_seconds": ("Age of the data of a view in the online store.", ages),
            "view_rows_materialized": ("Rows that the last push of a view wrote which wrote any.", rows),
            "view_freshness_seconds": ("The age that a view promises not to pass.", promises),
        }
        return Response(reader.metrics.render(gauges), media_type=METRICS_MEDIA_TYPE)

    _get(app, "/health", health, "Health")
    _get(app, "/ready", ready, "Readiness")
    app.add_api_route("/metrics", show_metrics, methods=["GET"], responses={200: {"content": {METRICS_MEDIA_TYPE: {}}}})


def _get(app: FastAPI, path: str, handler: Handler, answer: str) -> None:
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    extra = {"parameters": parameters} if parameters else None
    statuses = ([401, 403] if path not in {"/health", "/ready"} else []) + ([404] if names else []) + ([503] if path == "/ready" else [])
    app.add_api_route(path, handler, methods=["GET"], responses=_responses(schemas.reference(answer), statuses), openapi_extra=extra)


def _post(app: FastAPI, path: str, handler: Handler, request: str, answers: list[schemas.JsonSchema]) -> None:
    body = {"required": True, "content": {"application/json": {"schema": schemas.reference(request)}}}
    schema = answers[0] if len(answers) == 1 else {"oneOf": answers}
    responses = _responses(schema, [400, 401, 403, 404, 413, 415, 422, 503])
    operation = path.strip("/").replace("/", "_").replace("-", "_")
    app.add_api_route(path, handler, methods=["POST"], operation_id=operation, responses=responses, openapi_extra={"requestBody": body})


def _responses(schema: schemas.JsonSchema, statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    problem = {"content": {PROBLEM_MEDIA_TYPE: {"schema": schemas.reference("ProblemBody")}}}
    return {200: {"content": {"application/json": {"schema": schema}}}, **dict.fromkeys(statuses, problem)}


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _now() -> datetime:
    return datetime.now(UTC)
