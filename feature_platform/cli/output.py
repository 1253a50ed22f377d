"""
What commands print: tables for people, one JSON document for machines, progress and errors on stderr.

Knows rich. Knows nothing of what is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from feature_platform.errors import OnlineStoreError
from feature_platform.wording import span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["EXIT_CODES", "Output", "ago", "count", "instant", "iso", "shown_path"]

EXIT_CODES: Final = {
    0: "done",
    1: (
        "refused: a declaration, a setting, a name, a range of time or the data is wrong; the message says what to write instead. "
        "Of `fp verify`: not the same today"
    ),
    2: "the command line itself is not understood",
    3: "the online store did not answer",
    130: "stopped by Ctrl-C",
}
_FAILED, _UNREACHABLE = 1, 3
_BETWEEN: Final = 2
# Wide enough for every table of the example; a terminal has the width that it has.
_PIPE_COLUMNS: Final = 160


class Output:
    """
    One command's output.

    Attributes:
        is_json: Whether stdout gets one JSON document and nothing else.
    """

    def __init__(self) -> None:
        self.is_json = False
        self._has_document = False
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
        self._console = Console(highlight=False, width=width, soft_wrap=False)
        self._errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_COLUMNS)

    def document(self, content: object) -> None:
        """Print the JSON document, the first one only; only machines see it."""
        if self.is_json and not self._has_document:
            self._has_document = True
            # Straight to the file: rich would wrap long lines.
            sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line of text as it is; only people see it."""
        if not self.is_json:
            self._console.print(Text(text, style=style), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Print something of rich's; only people see it."""
        if not self.is_json:
            self._console.print(renderable)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = (), optional: Sequence[str] = ()
    ) -> None:
        """
        Print a table; None is an empty cell, and no cell is read as markup.

        Args:
            columns: Headings.
            rows: One cell a heading; a Text keeps its style.
            right: Headings of the columns of numbers.
            optional: Headings of the columns to leave out, in this order, while the table is wider than the terminal.
        """
        cells = [[cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row] for row in rows]
        widths = {name: max([len(name), *(row[place].cell_len for row in cells)]) for place, name in enumerate(columns)}
        for name in optional:
            if sum(widths.values()) + _BETWEEN * (len(widths) - 1) > self._console.width:
                del widths[name]
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, collapse_padding=True)
        for name in widths:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*[cell for name, cell in zip(columns, row, strict=True) if name in widths])
        self.show(table)

    def facts(self, pairs: Mapping[str, object]) -> None:
        """Print names and values, leaving out what is empty."""
        table = Table.grid(padding=(0, 2))
        for name, value in pairs.items():
            if value not in (None, "", [], ()):
                table.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
        self.show(table)

    def note(self, text: str) -> None:
        """Say on stderr what is being done."""
        self._errors.print(Text(text, style="dim"), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, doing: str) -> Iterator[Callable[[str, int, int], None]]:
        """
        Show on stderr that work goes on, and give the function to say how far it is.

        Args:
            doing: Shown with a spinner until the first report, and beside the bars.
        """
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            transient=True,
            disable=not self._errors.is_terminal,  # in a pipe it would leave an empty line
        ) as bars:
            whole = bars.add_task(doing, total=None)
            tasks: dict[str, Any] = {}

            def report(name: str, done: int, wanted: int) -> None:
                if name not in tasks:
                    bars.update(whole, visible=False)
                    tasks[name] = bars.add_task(f"{doing} {name}", total=wanted)
                bars.update(tasks[name], completed=done, total=wanted)

            yield report

    def failure(self, error: Exception) -> int:
        """Print an error: what is wrong in red, the next step below it; return the exit code."""
        what, _, hint = str(error).partition("\n")
        self._errors.print(Text(f"Error: {what}", style="bold red"), soft_wrap=True)
        if hint:
            self._errors.print(Text(hint), soft_wrap=True)
        self.document({"error": {"type": type(error).__name__, "message": str(error), "field": getattr(error, "field", None)}})
        return _UNREACHABLE if isinstance(error, OnlineStoreError) else _FAILED


def ago(then: datetime | None, now: datetime) -> str:
    """Return how long ago something was, to two magnitudes."""
    if then is None:
        return ""
    whole = span(timedelta(seconds=int((now - then).total_seconds()))).split(" ")
    return " ".join(whole[:4]) + " ago"


def instant(moment: datetime | None) -> str:
    """Return an instant as people read it, in UTC."""
    if moment is None:
        return ""
    seconds = ":%S" if moment.second or moment.microsecond else ""
    return moment.astimezone(UTC).strftime(f"%Y-%m-%d %H:%M{seconds}")


def iso(moment: datetime | None) -> str | None:
    """Return an instant for machines."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def count(number: int) -> str:
    """Return a number with its thousands apart."""
    return f"{number:,}"


def shown_path(path: Path, root: Path) -> str:
    """Return a path as seen from the project folder, where it lies in it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
