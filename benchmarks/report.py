"""
What people read: a table with ratios in the terminal, and the same in Markdown for docs/benchmarks.md.

Knows the JSON of a run. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import REFERENCE

__all__ = ["print_document", "to_markdown"]

_HEAD = ("case", "subject", "time", "spread", "peak MB", "rate /s", "p50 ms", "p99 ms", "equal", "x feature_platform")
_LEFT = 2


def print_document(console: Console, document: Mapping[str, Any]) -> None:
    """Print machine, versions, table and ratios."""
    console.print(_line(document["machine"]), highlight=False)
    console.print(_line(document["versions"]), highlight=False)
    table = Table(box=SIMPLE_HEAD)
    for number, name in enumerate(_HEAD):
        table.add_column(name, justify="left" if number < _LEFT else "right", no_wrap=number != 0)
    previous = None
    for row, cells in _rows(document["cases"]):
        if previous not in {None, row["case"]}:
            table.add_section()
        table.add_row(*(cells if row["case"] != previous else ["", *cells[1:]]), style=None if row["equal"] else "bold red")
        previous = row["case"]
    console.print(table)
    for sentence in _ratios(document["cases"]):
        console.print(sentence, highlight=False, soft_wrap=True)


def to_markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return runs as Markdown: machine and versions once where they agree, one table."""
    lines: list[str] = []
    for part in ("machine", "versions"):
        facts = [{name: value for name, value in one[part].items() if name != "load_1m"} for one in documents]
        # A run without Feast says less, not something else.
        texts = dict.fromkeys(_line(one) for one in facts if not any(one.items() < other.items() for other in facts))
        lines += [f"{part.capitalize()}: {text}" for text in texts] + [""]
    loads = ", ".join(str(one["machine"].get("load_1m")) for one in documents)
    lines += [f"Load average at the start of each run: {loads}", "", f"| {' | '.join(_HEAD)} |"]
    lines.append("| " + " | ".join("---" if number < _LEFT else "--:" for number in range(len(_HEAD))) + " |")
    for document in documents:
        lines += [f"| {' | '.join(cells)} |" for _, cells in _rows(document["cases"])]
    return "\n".join(lines) + "\n"


def _line(facts: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _rows(cases: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    own = {row["case"]: row["seconds"] for row in cases if row["subject"] == REFERENCE}
    return [
        (
            row,
            [
                row["case"],
                row["subject"],
                _time(row["seconds"]),
                f"{_time(row['spread'][0])} - {_time(row['spread'][1])}",
                _number(row["peak_rss_mb"]),
                _number(row["rate"]),
                _number(row.get("p50_ms")),
                _number(row["p99_ms"]),
                "yes" if row["equal"] else "NO",
                "" if row["subject"] == REFERENCE else f"{row['seconds'] / own[row['case']]:.2g}",
            ],
        )
        for row in cases
    ]


def _ratios(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    own = {row["case"]: row["seconds"] for row in cases if row["subject"] == REFERENCE}
    sentences = []
    for row in cases:
        if row["subject"] != REFERENCE:
            ratio = own[row["case"]] / row["seconds"]
            said = f"{ratio:.2g} times as long as" if ratio >= 1 else f"1/{1 / ratio:.2g} of the time of"
            sentences.append(f"{row['case']}: feature_platform takes {said} {row['subject']}")
    return sentences


def _time(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_number(seconds * factor)} {unit}"
    return f"{_number(seconds * 1e6)} us"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"  # .3g would write 1e+03
