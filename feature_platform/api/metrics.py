"""
What the API counts, in the Prometheus text format.

Knows the format. Knows nothing of how a request is answered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from feature_platform.model import FeatureStatus

__all__ = ["METRICS_MEDIA_TYPE", "Metrics"]

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATUSES = tuple(FeatureStatus)
_BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """
    Counters of one process; they live on one event loop, so nothing is locked.

    Attributes:
        in_flight: Requests that are not answered yet.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._statuses: Counter[tuple[str, str, str]] = Counter()
        self._refusals: Counter[int] = Counter()
        self._trips, self._trip_seconds = [0] * (len(_BUCKETS_SECONDS) + 1), 0.0

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests[route, status] += 1
        counts = self._latencies.setdefault(route, [0] * (len(_BUCKETS_SECONDS) + 1))
        counts[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def observe_refusal(self, status: int) -> None:
        """Count a connection that was refused before its request was one: too many, too slow, too large a head."""
        self._refusals[status] += 1

    def observe_read(self, seconds: float) -> None:
        """Count one round trip to the online store that answered."""
        self._trips[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        self._trip_seconds += seconds

    def observe_statuses(self, view: str, feature: str, statuses: Sequence[FeatureStatus]) -> None:
        """Count what one request was answered for a feature."""
        rest = len(statuses)
        for status in _STATUSES:
            if count := statuses.count(status):
                self._statuses[view, feature, status] += count
                rest -= count
            if not rest:
                break

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
            lines += _histogram("request_seconds", f'route="{route}"', counts, self._seconds[route])
        lines += _head("feature_values_total", "counter", "Values answered, by view, feature and status.")
        for (view, feature, status), n in sorted(self._statuses.items()):
            lines.append(f'{_name("feature_values_total")}{{view="{view}",feature="{feature}",status="{status}"}} {n}')
        lines += _head("refused_connections_total", "counter", "Connections refused before their request was one, by status.")
        lines += [f'{_name("refused_connections_total")}{{status="{status}"}} {n}' for status, n in sorted(self._refusals.items())]
        lines += _head("online_read_seconds", "histogram", "Round trips to the online store that answered.")
        lines += _histogram("online_read_seconds", "", self._trips, self._trip_seconds)
        lines += _head("requests_in_flight", "gauge", "Requests that are not answered yet.")
        lines.append(f"{_name('requests_in_flight')} {self.in_flight}")
        for gauge, (text, values) in gauges.items():
            lines += _head(gauge, "gauge", text)
            lines += [f'{_name(gauge)}{{view="{view}"}} {n:g}' if view else f"{_name(gauge)} {n:g}" for view, n in values.items()]
        return "\n".join(lines) + "\n"


def _name(metric: str) -> str:
    return f"feature_platform_{metric}"


def _head(metric: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {_name(metric)} {text}", f"# TYPE {_name(metric)} {kind}"]


def _histogram(metric: str, label: str, counts: Iterable[int], seconds: float) -> list[str]:
    lines, total, others = [], 0, f"{{{label}}}" if label else ""
    for bound, count in zip([*map(str, _BUCKETS_SECONDS), "+Inf"], counts, strict=True):
        total += count
        lines.append(f'{_name(metric)}_bucket{{{label}{"," if label else ""}le="{bound}"}} {total}')
    return [*lines, f"{_name(metric)}_sum{others} {seconds:.6f}", f"{_name(metric)}_count{others} {total}"]
