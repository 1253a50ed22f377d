"""
What the API counts, in the Prometheus text format.

Knows the format. Knows nothing of how a request is answered.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["METRICS_MEDIA_TYPE", "Metrics", "MetricsMiddleware"]

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters of one process; they live on one event loop, so nothing is locked."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._statuses: Counter[tuple[str, str]] = Counter()

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests[route, status] += 1
        counts = self._latencies.setdefault(route, [0] * (len(_BUCKETS_SECONDS) + 1))
        counts[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def observe_statuses(self, view: str, status: str, count: int) -> None:
        """Count the values of a view that were answered with a status."""
        self._statuses[view, status] += count

    def render(self, gauges: Mapping[str, tuple[str, Mapping[str, float]]]) -> str:
        """
        Return everything as text.

        Args:
            gauges: Name to help text and, by view ("" for no label), the value now.
        """
        lines = _head("requests_total", "counter", "Requests by route and status.")
        lines += [f'{_name("requests_total")}{{route="{r}",status="{s}"}} {n}' for (r, s), n in sorted(self._requests.items())]
        lines += _head("request_seconds", "histogram", "Seconds from a request's head to the last byte of its answer.")
        for route, counts in sorted(self._latencies.items()):
            lines += _histogram(route, counts, self._seconds[route])
        lines += _head("feature_values_total", "counter", "Feature values answered, by view and status.")
        lines += [f'{_name("feature_values_total")}{{view="{v}",status="{s}"}} {n}' for (v, s), n in sorted(self._statuses.items())]
        for gauge, (text, values) in gauges.items():
            lines += _head(gauge, "gauge", text)
            lines += [f'{_name(gauge)}{{view="{view}"}} {n:g}' if view else f"{_name(gauge)} {n:g}" for view, n in values.items()]
        return "\n".join(lines) + "\n"


class MetricsMiddleware:
    """ASGI middleware that counts every answer under its route's template, so that the labels stay few."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # what the server answers if nothing below does

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe_request(route, status, time.perf_counter() - started)


def _name(metric: str) -> str:
    return f"feature_platform_{metric}"


def _head(metric: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {_name(metric)} {text}", f"# TYPE {_name(metric)} {kind}"]


def _histogram(route: str, counts: Iterable[int], seconds: float) -> list[str]:
    lines, total = [], 0
    for bound, count in zip([*map(str, _BUCKETS_SECONDS), "+Inf"], counts, strict=True):
        total += count
        lines.append(f'{_name("request_seconds_bucket")}{{route="{route}",le="{bound}"}} {total}')
    lines.append(f'{_name("request_seconds_sum")}{{route="{route}"}} {seconds:.6f}')
    lines.append(f'{_name("request_seconds_count")}{{route="{route}"}} {total}')
    return lines
