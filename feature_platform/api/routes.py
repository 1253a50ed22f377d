"""
The routes: what each of them reads, and how they stand in OpenAPI.

Knows FastAPI. Knows nothing of tokens, nor of the server around it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from feature_platform.api import schemas
from feature_platform.api.bodies import JsonObject, read_object
from feature_platform.api.metrics import METRICS_MEDIA_TYPE, Metrics
from feature_platform.api.problems import PROBLEM_MEDIA_TYPE, Problem
from feature_platform.api.wire import OnlineRequest, WireForms, encode_answer
from feature_platform.errors import OnlineStoreError, UnknownNameError
from feature_platform.online.codec import ViewCodec, ViewMeta
from feature_platform.online.retrieval import plan_online_read
from feature_platform.online.store import OnlineStore
from feature_platform.registry import Registry
from feature_platform.settings import Settings

__all__ = ["READ_DEADLINE_SECONDS", "PlainRoute", "Reader", "add_routes"]

READ_DEADLINE_SECONDS: Final = 0.5
"""For one read of the online store. A frozen server holds its socket open, so the client's own timeouts add up."""

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
        self.forms = WireForms(registry, settings.max_entities)
        self._registry = registry
        self._project = settings.project
        self._max_body_bytes = settings.max_body_bytes
        self._meta_keys = {view.name: ViewCodec(settings.project, view).meta_key for view in registry.views.values()}

    async def body(self, request: Request) -> JsonObject:
        """Return the JSON object that was sent."""
        return await read_object(request, max_bytes=self._max_body_bytes)

    async def answer(self, asked: OnlineRequest) -> Response:
        """Answer a request from one read of the store."""
        shape = asked.shape
        plan = plan_online_read(self._registry, self._project, shape.features, asked.rows, full_feature_names=shape.full_feature_names)
        answer = plan.answer(await self._get(plan.keys), _now(), metadata=asked.has_metadata)
        statuses = Counter((column.view, row[column.name].status) for row in answer.rows for column in shape.columns)
        for (view, status), count in statuses.items():
            self.metrics.observe_statuses(view, status, count)
        return _json(encode_answer(asked, answer))

    async def metas(self) -> dict[str, ViewMeta | None]:
        """Return every view's meta; None for one that is not in the store."""
        values = await self._get(list(self._meta_keys.values()))
        return {view: None if value is None else ViewMeta.from_bytes(value) for view, value in zip(self._meta_keys, values, strict=True)}

    async def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                return await self.store.get_many_async(keys)
        except TimeoutError as exc:
            message = f"the online store did not answer within {READ_DEADLINE_SECONDS} s.\nSee whether its server runs, then ask again."
            raise OnlineStoreError(message) from exc


def add_routes(app: FastAPI, registry: Registry, reader: Reader) -> None:
    """Add every route."""
    _add_reads(app, registry, reader)
    _add_descriptions(app, registry)
    _add_operations(app, registry, reader)


def _add_reads(app: FastAPI, registry: Registry, reader: Reader) -> None:
    async def get_online_features(request: Request) -> Response:
        """Return features of one entity, or of several in columns."""
        return await reader.answer(reader.forms.parse(await reader.body(request)))

    async def unknown_service(request: Request) -> Response:
        raise UnknownNameError("service", request.path_params["name"][:100], registry.services, field="name")

    answers = [schemas.reference("OnlineAnswer"), schemas.reference("OnlineColumns")]
    _post(app, "/get-online-features", get_online_features, "OnlineRequest", answers)
    for service in registry.services:
        answers = [schemas.reference(schemas.response_name(service))]
        _post(app, f"/services/{service}", _service_handler(reader, service), schemas.request_name(service), answers)
    app.add_api_route("/services/{name}", unknown_service, methods=["POST"], include_in_schema=False)


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
        ages: dict[str, float] = {}
        promises = {view.name: view.freshness.total_seconds() for view in registry.views.values() if view.freshness is not None}
        is_up = False
        with contextlib.suppress(OnlineStoreError):
            metas, now = await reader.metas(), _now()
            ages = {view: meta.age_seconds(now) for view, meta in metas.items() if meta is not None}
            is_up = True
        gauges = {
            "online_store_up": ("Whether the online store answers.", {"": float(is_up)}),
            "view_age_seconds": ("Age of the data of a view in the online store.", ages),
            "view_freshness_seconds": ("The age that a view promises not to pass.", promises),
        }
        return Response(reader.metrics.render(gauges), media_type=METRICS_MEDIA_TYPE)

    _get(app, "/health", health, "Health")
    _get(app, "/ready", ready, "Readiness")
    app.add_api_route("/metrics", show_metrics, methods=["GET"], responses={200: {"content": {METRICS_MEDIA_TYPE: {}}}})


def _service_handler(reader: Reader, service: str) -> Handler:
    async def get_service(request: Request) -> Response:
        """Return the features of a service, of one entity, or of several in columns."""
        return await reader.answer(reader.forms.parse_for(service, await reader.body(request)))

    return get_service


def _get(app: FastAPI, path: str, handler: Handler, answer: str) -> None:
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    extra = {"parameters": parameters} if parameters else None
    statuses = ([401] if path not in {"/health", "/ready"} else []) + ([404] if names else []) + ([503] if path == "/ready" else [])
    app.add_api_route(path, handler, methods=["GET"], responses=_responses(schemas.reference(answer), statuses), openapi_extra=extra)


def _post(app: FastAPI, path: str, handler: Handler, request: str, answers: list[schemas.JsonSchema]) -> None:
    body = {"required": True, "content": {"application/json": {"schema": schemas.reference(request)}}}
    schema = answers[0] if len(answers) == 1 else {"oneOf": answers}
    responses = _responses(schema, [400, 401, 404, 413, 415, 422, 503])
    operation = path.strip("/").replace("/", "_").replace("-", "_")
    app.add_api_route(path, handler, methods=["POST"], operation_id=operation, responses=responses, openapi_extra={"requestBody": body})


def _responses(schema: schemas.JsonSchema, statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    problem = {"content": {PROBLEM_MEDIA_TYPE: {"schema": schemas.reference("ProblemBody")}}}
    return {200: {"content": {"application/json": {"schema": schema}}}, **dict.fromkeys(statuses, problem)}


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _now() -> datetime:
    return datetime.now(UTC)
