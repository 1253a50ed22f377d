"""
Plots as SVG: bars of ratios and curves of growth, both on logarithmic axes.

Written by hand: matplotlib and what it needs would be the largest of the development dependencies, for two kinds of picture, and its
files know no dark mode. Text stays text, and the same figures give the same bytes. Knows coordinates. Knows no benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

__all__ = ["Bar", "Curve", "bars", "curves"]

_WIDTH: Final = 860
_LINE: Final = 22
_CHARACTER: Final = 6.7
"""Width of an average character at 12 pixels, with room to spare."""

_HUES: Final = ("#2f81f7", "#d4762c", "#2da44e", "#a475f9", "#d1567f", "#7d8590")
"""Each has a contrast of 3 and more on GitHub's white and on its dark background."""

_STYLE: Final = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 14px; font-weight: 600 }
.case { font-weight: 600 }
.axis { stroke: #59636e; fill: none }
.grid { stroke: #d1d9e0; fill: none }
.whisker { stroke: #1f2328; fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.axis { stroke: #9198a1 }
.grid { stroke: #3d444d }
.whisker { stroke: #f0f6fc }
}
</style>"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A subject's ratio in one case: median, least and greatest."""

    case: str
    subject: str
    ratio: float
    least: float
    greatest: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot: sizes and what was measured at each; `of` are lines of one hue, the first of them drawn through."""

    of: str
    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis between two values, laid out between two coordinates."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Powers of ten, with 2 and 5 between them where there are few."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
        return [step * 10.0**power for power in powers for step in steps if self.low <= step * 10.0**power * 1.0001 <= self.high * 1.001]


def bars(title: str, axis_name: str, found: Sequence[Bar]) -> str:
    """Return horizontal bars that begin at 1, grouped by case, with a whisker from the least to the greatest ratio."""
    left = 34 + _CHARACTER * max(len(bar.subject) for bar in found)
    values = [1.0, *(value for bar in found for value in (bar.least, bar.greatest))]
    axis = _Axis(min(*values, 0.5) / 1.15, max(*values, 2.0) * 1.15, left, _WIDTH - 90)
    rows: list[str] = []
    y, case = 44.0, ""
    for bar in found:
        if bar.case != case:
            case, y = bar.case, y + 6
            rows.append(_text(10, y + 15, case, extra=' class="case"'))
            y += _LINE
        begin, end = sorted((axis.at(1), axis.at(bar.ratio)))
        hue = _HUES[0] if bar.ratio >= 1 else _HUES[1]
        rows.append(_text(left - 8, y + 15, bar.subject, anchor="end"))
        rows.append(f'<rect x="{begin:.1f}" y="{y + 4:.1f}" width="{max(end - begin, 1):.1f}" height="14" fill="{hue}"/>')
        low, high = axis.at(bar.least), axis.at(bar.greatest)
        if bar.least < bar.greatest:
            rows.append(f'<path class="whisker" d="M{low:.1f} {y + 11:.1f}H{high:.1f}M{low:.1f} {y + 7:.1f}v8M{high:.1f} {y + 7:.1f}v8"/>')
        rows.append(_text(max(end, high) + 6, y + 15, f"{bar.ratio:.2g}"))
        y += _LINE
    grid = [f'<path class="grid" d="M{axis.at(tick):.1f} 44V{y:.1f}"/>' for tick in axis.ticks]
    marks = [_text(axis.at(tick), y + 16, f"{tick:g}", anchor="middle") for tick in axis.ticks]
    one = f'<path class="axis" stroke-width="1.5" d="M{axis.at(1):.1f} 44V{y:.1f}"/>'
    return _picture(title, y + 46, [*grid, *rows, one, *marks, _text((left + _WIDTH - 90) / 2, y + 36, axis_name, anchor="middle")])


def curves(title: str, x_name: str, y_name: str, found: Sequence[Curve], *, size: Callable[[int], str]) -> str:
    """Return lines through points on two logarithmic axes, their names below; `size` writes what was measured along x."""
    sizes = sorted({x for curve in found for x, _ in curve.points})
    heights = [y for curve in found for _, y in curve.points]
    x_axis = _Axis(sizes[0], sizes[-1], 90, _WIDTH - 40)
    y_axis = _Axis(min(heights) / 1.2, max(heights) * 1.2, 380, 50)
    parts: list[str] = []
    for tick in y_axis.ticks:
        parts.append(f'<path class="grid" d="M90 {y_axis.at(tick):.1f}H{_WIDTH - 40}"/>')
        parts.append(_text(82, y_axis.at(tick) + 4, f"{tick:,g}", anchor="end"))
    for x in sizes:
        parts.append(f'<path class="grid" d="M{x_axis.at(x):.1f} 50V380"/>')
        parts.append(_text(x_axis.at(x), 398, size(int(x)), anchor="middle"))
    parts += [f'<path class="axis" d="M90 50V380H{_WIDTH - 40}"/>', _text((50 + _WIDTH) / 2, 420, x_name, anchor="middle")]
    parts.append(_text(0, 0, y_name, anchor="middle", extra=' transform="translate(24 215) rotate(-90)"'))
    groups: dict[str, int] = {}
    y = 444.0
    for curve in found:
        is_first = curve.of not in groups
        hue = _HUES[groups.setdefault(curve.of, len(groups)) % len(_HUES)]
        style = f'stroke="{hue}" fill="none" stroke-width="2"' + ("" if is_first else ' stroke-dasharray="5 4"')
        line = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(value):.1f}" for x, value in curve.points)
        parts.append(f'<polyline points="{line}" {style}/>')
        parts += [f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(value):.1f}" r="3" fill="{hue}"/>' for x, value in curve.points]
        parts += [f'<path d="M90 {y - 4:.1f}h30" {style}/>', _text(128, y, curve.name)]
        y += _LINE
    return _picture(title, y, parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}" role="img">'
    name = f"<title>{escape(title)}</title>"
    return "\n".join([head, name, _STYLE, f'<text class="title" x="10" y="24">{escape(title)}</text>', *parts, "</svg>"]) + "\n"
