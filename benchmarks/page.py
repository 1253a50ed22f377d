"""
The generated part of docs/benchmarks.md and its plots: made of the kept runs in benchmarks/figures, and of nothing else.

Knows the page, its markers and which plots there are. Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.measuring import REFERENCE, size_text
from benchmarks.plots import Bar, Curve, bars, curves
from benchmarks.report import ratio_of, to_markdown

__all__ = ["BEGIN", "END", "FIGURES", "PAGE", "generated", "kept", "pictures", "read", "write"]

_ROOT: Final = Path(__file__).parent.parent
FIGURES: Final = Path(__file__).parent / "figures"
"""The folder of the runs that the page shows."""

PAGE: Final = _ROOT / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- From here to the end marker: written by `python -m benchmarks docs` from benchmarks/figures/*.json. -->"
END: Final = "<!-- The end of what is written by `python -m benchmarks docs`. -->"
_IMAGES: Final = "images"
_NOT_COMPARED: Final = frozenset({"growth", "latency"})
"""Growth has plots of its own; the subjects of latency are the parts of one way."""


def kept() -> list[Path]:
    """Return the files of the runs that the page shows, in its order."""
    return sorted(FIGURES.glob("*.json"))


def read(files: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Return the documents of kept runs."""
    return [json.loads(file.read_text()) for file in files]


def generated(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines between the markers: plots, then the tables."""
    images = [f"![{_title(text)}]({_IMAGES}/{name})" for name, text in pictures(documents).items()]
    return "\n\n".join(["", *images, to_markdown(documents)])


def pictures(documents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the plots by file name: the ratios of each benchmark that has any, then time and memory of growth."""
    rows = [(row, document["cases"]) for document in documents for row in document["cases"]]
    found = {}
    for benchmark in dict.fromkeys(row.get("benchmark", "") for row, _ in rows):
        ratios = [(row, ratio_of(row, cases)) for row, cases in rows if row.get("benchmark") == benchmark]
        shown = [
            Bar(case=row["case"], subject=row["subject"], ratio=ratio[0], least=ratio[1], greatest=ratio[2])
            for row, ratio in ratios
            if ratio is not None and benchmark not in _NOT_COMPARED
        ]
        if shown:
            axis = "time of the subject / time of feature_platform (no unit, logarithmic); left of 1 it is faster, right of 1 slower"
            found[f"benchmark-{benchmark}.svg"] = bars(f"{benchmark}: time as a multiple of feature_platform", axis, shown)
    grown = [row for row, _ in rows if "curve" in row]
    for name, title, unit, field, slope in (
        ("time", "time", "seconds (logarithmic)", "seconds", "slope"),
        ("memory", "peak memory", "peak resident memory, MB (logarithmic)", "peak_rss_mb", "memory_slope"),
    ):
        lines = _curves(grown, field, slope)
        if lines:
            x_name = "rows of the history, or of the source (logarithmic)"
            found[f"benchmark-growth-{name}.svg"] = curves(f"growth: {title} by rows", x_name, unit, lines, size=size_text)
    return found


def write(documents: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """
    Write the page's generated part and its plots; plots of no kept run are removed.

    Raises:
        click.ClickException: The page lacks a marker.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        message = f"{page} lacks a marker.\nWhat is written goes between these two lines:\n{BEGIN}\n{END}"
        raise click.ClickException(message)
    page.write_text(f"{before}{BEGIN}\n{generated(documents)}\n{END}{after}")
    images = page.parent / _IMAGES
    images.mkdir(exist_ok=True)
    for old in images.glob("benchmark-*.svg"):
        old.unlink()
    for name, picture in pictures(documents).items():
        (images / name).write_text(picture)


def _curves(rows: Sequence[Mapping[str, Any]], field: str, slope: str) -> list[Curve]:
    """Return a line for each curve and subject with two points or more, the platform's first."""
    ordered = sorted(rows, key=lambda row: row["subject"] != REFERENCE)
    names = [row["curve"] for row in rows]
    lines = []
    for curve, subject in sorted(dict.fromkeys((row["curve"], row["subject"]) for row in ordered), key=lambda one: names.index(one[0])):
        its = [row for row in rows if (row["curve"], row["subject"]) == (curve, subject) and row[field]]
        if len(its) > 1:
            said = f" (slope {its[-1][slope]:.2f})" if slope in its[-1] else ""
            points = [(float(row["rows"]), float(row[field])) for row in its]
            lines.append(Curve(of=curve, name=f"{curve}: {subject}{said}", points=points))
    return lines


def _title(picture: str) -> str:
    return picture.partition("<title>")[2].partition("</title>")[0]
