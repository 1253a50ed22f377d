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

__all__ = ["print_document", "ratio_of", "to_markdown"]

_HEAD = (
    "case",
    "subject",
    "time",
    "spread",
    "peak MB",
    "rate /s",
    "p50 ms",
    "p99 ms",
    "equal",
    "x feature_platform",
    "time slope",
    "MB slope",
)
_LEFT = 2


def print_document(console: Console, document: Mapping[str, Any]) -> None:
    """Print machine, versions, table and ratios."""
    console.print(_line(document["machine"]), highlight=False)
    console.print(_line(document["versions"]), highlight=False)
    head, rows = _table(document["cases"])
    table = Table(box=SIMPLE_HEAD)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < _LEFT else "right", no_wrap=number != 0)
    previous = None
    for row, cells in zip(document["cases"], rows, strict=True):
        if previous not in {None, row["case"]}:
            table.add_section()
        table.add_row(*(cells if row["case"] != previous else ["", *cells[1:]]), style=None if row["equal"] else "bold red")
        previous = row["case"]
    console.print(table)
    for sentence in [*_ratios(document["cases"]), *_slopes(document["cases"])]:
        console.print(sentence, highlight=False, soft_wrap=True)


def to_markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return runs as Markdown: each with its day, machine and versions, and a table for each of its benchmarks."""
    return "\n".join(line for document in documents for line in _section(document))


def ratio_of(row: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """Return a row's time over the feature platform's: median, least and greatest; None of the platform itself, and where it is missing."""
    if row["subject"] == REFERENCE:
        return None
    if "ratio" in row:
        least, greatest = row["ratio_spread"]
        return row["ratio"], least, greatest
    own = next((one["seconds"] for one in cases if one["case"] == row["case"] and one["subject"] == REFERENCE), None)
    return None if own is None else (row["seconds"] / own,) * 3


def _section(document: Mapping[str, Any]) -> list[str]:
    machine, cases = document["machine"], document["cases"]
    names = list(dict.fromkeys(row.get("benchmark", "figures") for row in cases))
    title = [str(machine["date"])] if "date" in machine else []
    lines = [f"### {': '.join([*title, ', '.join(f'`{name}`' for name in names)])}", ""]
    for part in ("machine", "versions"):
        facts = {name: value for name, value in document[part].items() if name not in {"load_1m", "date"}}
        lines += [f"{part.capitalize()}: {_line(facts)}", ""]
    lines += [f"Load average at the start: {machine.get('load_1m')}", ""]
    for name in names:
        head, rows = _table([row for row in cases if row.get("benchmark", "figures") == name])
        lines += [f"`{name}`:", ""] if len(names) > 1 else []
        lines += [f"| {' | '.join(head)} |", "| " + " | ".join("---" if number < _LEFT else "--:" for number in range(len(head))) + " |"]
        lines += [*(f"| {' | '.join(cells)} |" for cells in rows), ""]
    return lines


def _line(facts: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _table(cases: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells; a column that no row fills is left out."""
    rows = [_cells(row, cases) for row in cases]
    filled = [number for number in range(len(_HEAD)) if any(row[number] for row in rows)]
    return [_HEAD[number] for number in filled], [[row[number] for number in filled] for row in rows]


def _cells(row: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> list[str]:
    ratio = ratio_of(row, cases)
    return [
        row["case"],
        row["subject"],
        _time(row["seconds"]),
        f"{_time(row['spread'][0])} - {_time(row['spread'][1])}",
        _number(row["peak_rss_mb"]),
        _number(row["rate"]),
        _number(row.get("p50_ms")),
        _number(row["p99_ms"]),
        "yes" if row["equal"] else "NO",
        "" if ratio is None else f"{ratio[0]:.2g}{_spread(row, *(f'{one:.2g}' for one in ratio[1:]))}",
        _number(row.get("slope")),
        _number(row.get("memory_slope")),
    ]


def _ratios(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences = []
    for row in cases:
        ratio = ratio_of(row, cases)
        if ratio is not None:
            median, most, least = (1 / one for one in ratio)
            said = f"{median:.2g} times as long as" if median >= 1 else f"1/{1 / median:.2g} of the time of"
            sentences.append(f"{row['case']}: feature_platform takes {said} {row['subject']}{_spread(row, _times(least), _times(most))}")
    return sentences


def _slopes(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    last = {(row["curve"], row["subject"]): row for row in cases if "slope" in row}
    return [
        f"{curve}: {subject}'s time grows as rows^{row['slope']:.2f}"
        + (f", its peak memory as rows^{row['memory_slope']:.2f}" if "memory_slope" in row else "")
        for (curve, subject), row in last.items()
    ]


def _spread(row: Mapping[str, Any], least: str, greatest: str) -> str:
    return f" [{least} - {greatest}]" if "ratio" in row else ""


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio >= 1 else f"1/{1 / ratio:.2g}"


def _time(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_number(seconds * factor)} {unit}"
    return f"{_number(seconds * 1e6)} us"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"  # .3g would write 1e+03
