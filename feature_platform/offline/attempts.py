"""
Attempts: what the last computation of a window found where it left the window's file alone, and the rows that were rejected.

They lie beside a view's files, in folders that no reader of history opens. Knows paths. Which attempt counts is told by whoever
writes a partition: both happen under the store's lock.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from feature_platform.model import FeatureView
    from feature_platform.windows import Window

__all__ = ["Attempt", "Attempts", "sync"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """
    What the last computation of a window found, where it left the window's file alone.

    Attributes:
        outcome: "unchanged", the same rows as are there; or "rejected", rows that break an expectation.
        inputs: Fingerprint of the source files that it read.
        definition: Definition hash of the view.
        expectations: What was expected, as text.
        computed_at: UTC microseconds.
        run_id: Of Dagster.
        problems: Why it was rejected.
    """

    outcome: Literal["unchanged", "rejected"]
    inputs: str | None
    definition: str
    expectations: str
    computed_at: int
    run_id: str | None = None
    problems: list[str] = field(default_factory=list)


class Attempts:
    """
    The attempts of all views.

    Args:
        root: Of the offline store: a folder a view.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, view: FeatureView) -> dict[str, Attempt]:
        """Return those of a view, by window key."""
        found: dict[str, Attempt] = {}
        for path in sorted((self._root / view.name / "_attempts").glob("*.json")):
            if attempt := _read(path):
                found[path.stem] = attempt
        return found

    def get(self, view: FeatureView, window: Window) -> Attempt | None:
        """Return that of a window; None where the last computation wrote the window's file, or there was none."""
        return _read(self._path(view, window))

    def keep(self, view: FeatureView, window: Window, attempt: Attempt) -> None:
        """Keep what a window's last computation found."""
        path = self._path(view, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{window.key}.{secrets.token_hex(4)}.tmp")
        temporary.write_text(json.dumps(asdict(attempt)), encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
        if attempt.outcome != "rejected":
            self.rejected_path(view, window).unlink(missing_ok=True)

    def forget(self, view: FeatureView, window: Window) -> None:
        """Forget what spoke of a window's file, and rows that were rejected: without it, the window is looked at again."""
        self._path(view, window).unlink(missing_ok=True)
        self.rejected_path(view, window).unlink(missing_ok=True)

    def reject(self, view: FeatureView, window: Window, write: Callable[[Path, int], None]) -> Path:
        """Keep rows that break an expectation where no reader of history looks, and return where."""
        path = self.rejected_path(view, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{window.key}.{secrets.token_hex(4)}.tmp")
        try:
            write(temporary, 0)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def rejected_path(self, view: FeatureView, window: Window) -> Path:
        """Return where the rows lie that a window's last computation was rejected for."""
        return self._root / view.name / "_rejected" / f"{window.key}.parquet"

    def _path(self, view: FeatureView, window: Window) -> Path:
        return self._root / view.name / "_attempts" / f"{window.key}.json"


def _read(path: Path) -> Attempt | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None  # of a disk that lost it: the window is looked at again
    known = {one.name for one in fields(Attempt)}
    return Attempt(**{name: value for name, value in values.items() if name in known})


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
