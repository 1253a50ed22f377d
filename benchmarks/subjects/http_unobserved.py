"""The API with nothing counted, named or logged: beside the API as it is, this tells what that costs."""

from __future__ import annotations

from benchmarks.subjects import http_feature_platform
from feature_platform.api import app, routes
from feature_platform.api.metrics import Metrics
from feature_platform.api.request_log import RequestLog


class _NoMetrics(Metrics):
    def begin_request(self) -> None:
        pass

    def end_request(self, *_: object) -> None:
        pass

    def observe_read(self, *_: object) -> None:
        pass

    def observe_statuses(self, *_: object) -> None:
        pass


class _NoLog(RequestLog):
    def name(self, _: object) -> bytes:
        return b"0"

    def wants(self, _: int) -> bool:
        return False


def run(*, folder: str, online_root: str, port: int) -> None:
    """Serve."""
    routes.Metrics = _NoMetrics  # type: ignore[attr-defined]
    app.RequestLog = _NoLog  # type: ignore[attr-defined]
    http_feature_platform.run(folder=folder, online_root=online_root, port=port)
