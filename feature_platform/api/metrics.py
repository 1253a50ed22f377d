"""
What the API counts, in the Prometheus text format.

Knows the format. Knows nothing of how a request is answered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from feature_platform.api.shared_counts import SharedCounts
from feature_platform.model import FeatureStatus

__all__ = ["METRICS_MEDIA_TYPE", "Metrics"]

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATUSES = tuple(FeatureStatus)
_BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class _Counts(msgspec.Struct):
    """What one process has counted, or several together; a bucket is the number of one in `_BUCKETS_SECONDS`."""

    requests: dict[tuple[str, int], int] = msgspec.field(default_factory=Counter)
    buckets: dict[tuple[str, int], int] = msgspec.field(default_factory=Counter)
    seconds: dict[str, float] = msgspec.field(default_factory=Counter)  # type: ignore[arg-type] # it adds floats, too
    statuses: dict[tuple[str, str, str], int] = msgspec.field(default_factory=Counter)
    refusals: dict[int, int] = msgspec.field(default_factory=Counter)
    trips: dict[int, int] = msgspec.field(default_factory=Counter)
    trip_seconds: float = 0.0
    in_flight: int = 0

    def add(self, other: _Counts) -> None:
        for name in ("requests", "buckets", "seconds", "statuses", "refusals", "trips"):
            getattr(self, name).update(getattr(other, name))
        self.trip_seconds += other.trip_seconds
        self.in_flight += other.in_flight


class Metrics:
    """
    Counters of one process; they live on one event loop, so nothing is locked.

    With `share`, what is shown is the sum over all processes that share a folder.
    """

    def __init__(self) -> None:
        self._counts = _Counts()
        self._shared: SharedCounts | None = None

    def share(self, shared: SharedCounts) -> None:
        """Show the counts of others, too; the caller sees to it that `publish` is called about once a second."""
        self._shared = shared

    def publish(self) -> None:
        """Show the others what was counted here, if it is shared."""
        if self._shared is not None:
            self._shared.publish(msgspec.msgpack.encode(self._counts))

    def begin_request(self) -> None:
        """Count a request as being in flight."""
        self._counts.in_flight += 1

    def end_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        counts = self._counts
        counts.in_flight -= 1
        counts.requests[route, status] += 1
        counts.buckets[route, bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        counts.seconds[route] += seconds

    def observe_refusal(self, status: int) -> None:
        """Count a connection that was refused before its request was one: too many, too slow, too large a head."""
        self._counts.refusals[status] += 1

    def observe_read(self, seconds: float) -> None:
        """Count one round trip to the online store that answered."""
        self._counts.trips[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        self._counts.trip_seconds += seconds

    def observe_statuses(self, view: str, feature: str, statuses: Sequence[FeatureStatus]) -> None:
        """Count what one request was answered for a feature."""
        rest = len(statuses)
        for status in _STATUSES:
            if count := statuses.count(status):
                self._counts.statuses[view, feature, status] += count
                rest -= count
            if not rest:
                break

    def render(self, gauges: Mapping[str, tuple[str, Mapping[str, float]]]) -> str:
        """
        Return everything as text.

        Args:
            gauges: Name to help text and, by view ("" for no label), the value now.
        """
        counts = self._sum()
        lines = _head("requests_total", "counter", "Requests by route and status.")
        lines += [f'{_name("requests_total")}{{route="{r}",status="{s}"}} {n}' for (r, s), n in sorted(counts.requests.items())]
        lines += _head("request_seconds", "histogram", "Seconds from a request's head to the last byte of its answer.")
        for route, seconds in sorted(counts.seconds.items()):
            buckets = {bucket: n for (of, bucket), n in counts.buckets.items() if of == route}
            lines += _histogram("request_seconds", f'route="{route}"', buckets, seconds)
        lines += _head("feature_values_total", "counter", "Values answered, by view, feature and status.")
        for (view, feature, status), n in sorted(counts.statuses.items()):
            lines.append(f'{_name("feature_values_total")}{{view="{view}",feature="{feature}",status="{status}"}} {n}')
        lines += _head("refused_connections_total", "counter", "Connections refused before their request was one, by status.")
        lines += [f'{_name("refused_connections_total")}{{status="{status}"}} {n}' for status, n in sorted(counts.refusals.items())]
        lines += _head("online_read_seconds", "histogram", "Round trips to the online store that answered.")
        lines += _histogram("online_read_seconds", "", counts.trips, counts.trip_seconds)
        lines += _head("requests_in_flight", "gauge", "Requests that are not answered yet.")
        lines.append(f"{_name('requests_in_flight')} {counts.in_flight}")
        for gauge, (text, values) in gauges.items():
            lines += _head(gauge, "gauge", text)
            lines += [f'{_name(gauge)}{{view="{view}"}} {n:g}' if view else f"{_name(gauge)} {n:g}" for view, n in values.items()]
        return "\n".join(lines) + "\n"

    def _sum(self) -> _Counts:
        if self._shared is None:
            return self._counts
        total = _Counts()
        total.add(self._counts)
        for data, is_running in self._shared.of_others():
            counts = msgspec.msgpack.decode(data, type=_Counts)
            if not is_running:
                counts.in_flight = 0  # it was killed, and its requests with it
            total.add(counts)
        return total


def _name(metric: str) -> str:
    return f"feature_platform_{metric}"


def _head(metric: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {_name(metric)} {text}", f"# TYPE {_name(metric)} {kind}"]


def _histogram(metric: str, label: str, counts: Mapping[int, int], seconds: float) -> list[str]:
    lines, total, others = [], 0, f"{{{label}}}" if label else ""
    for bucket, bound in enumerate([*map(str, _BUCKETS_SECONDS), "+Inf"]):
        total += counts.get(bucket, 0)
        lines.append(f'{_name(metric)}_bucket{{{label}{"," if label else ""}le="{bound}"}} {total}')
    return [*lines, f"{_name(metric)}_sum{others} {seconds:.6f}", f"{_name(metric)}_count{others} {total}"]
