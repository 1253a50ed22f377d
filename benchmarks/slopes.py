"""
How time and memory grow with rows: the slope of a curve where both axes are logarithms.

1 is in proportion to the rows, 2 with their square, 0 not at all. Knows the rows of a document. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import linear_regression
from typing import Any

__all__ = ["slope", "with_slopes"]


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the slope of the least squares line through the logarithms; None of fewer than two sizes."""
    if len({rows for rows, _ in points}) < 2:
        return None
    return round(linear_regression([math.log(rows) for rows, _ in points], [math.log(value) for _, value in points]).slope, 3)


def with_slopes(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a document, those of curves with the slopes of their curve up to them: the last one's are the whole curve's."""
    found = []
    for index, row in enumerate(cases):
        more = {}
        if "curve" in row:
            curve = [one for one in cases[: index + 1] if one.get("curve") == row["curve"] and one["subject"] == row["subject"]]
            more["slope"] = slope([(one["rows"], one["seconds"]) for one in curve])
            if all(one["peak_rss_mb"] for one in curve):
                more["memory_slope"] = slope([(one["rows"], one["peak_rss_mb"]) for one in curve])
        found.append({**row, **{name: value for name, value in more.items() if value is not None}})
    return found
