"""
The files of the offline store: where a partition lies, what exists, and how one is replaced.

One Parquet file per view and window; its footer says what it is. A view's generation is raised with every write. Beside
the files, in folders that no reader of history opens: what was rejected, what the last computation of a window found where
it left the file alone, and which keys a replacement changed. Knows paths, locks and footers. Knows nothing of how rows are
computed or joined.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from feature_platform.dtypes import MICROSECOND, from_micros
from feature_platform.model import FeatureView
from feature_platform.windows import KEY_FORMAT, WHOLE, Window

__all__ = ["METADATA_KEY", "TOMBSTONE", "Attempt", "OfflineStore", "Partition"]

METADATA_KEY = "feature_platform"
_CHANGES_KEPT_SECONDS = 7 * 86_400
_FIRST_YEAR = 1000
TOMBSTONE = "__tombstone"
"""Column of aggregate views' files: the key has no state from this row on."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """
    What a partition's footer says.

    Attributes:
        view: Name of its view.
        start: Window start, UTC microseconds; with `end`, the window.
        end: Window end.
        is_full: Whether it holds the complete state as of `end`, or only what changed (design: state model).
        definition: Definition hash of the view that computed it.
        columns: Feature name to dtype, in declared order.
        kind: Of view: files of another kind do not fit the state model of this one, and are passed over.
        keys: Join key to dtype; files of other keys are passed over too.
        has_created_timestamp: Whether its rows say when they were known.
        generation: Of the view, when this file was written.
        rows: Rows in the file, tombstones among them.
        tombstones: Rows that say that a key has no state.
        dropped: Rows left out for a NULL in a key or in event_timestamp.
        nulls: NULLs by feature.
        min_event_timestamp: Of the rows, UTC microseconds.
        max_event_timestamp: Of the rows.
        newest_source_timestamp: Newest time among the source rows read.
        computed_at: When it was computed.
        run_id: The Dagster run that computed it.
        inputs: Fingerprint of the source files that it read; None in files of an earlier version.
    """

    view: str
    start: int
    end: int
    is_full: bool
    definition: str
    columns: dict[str, str]
    kind: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    has_created_timestamp: bool = False
    generation: int = 0
    rows: int = 0
    tombstones: int = 0
    dropped: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    min_event_timestamp: int | None = None
    max_event_timestamp: int | None = None
    newest_source_timestamp: int | None = None
    computed_at: int | None = None
    run_id: str | None = None
    inputs: str | None = None

    @property
    def window(self) -> Window:
        """The window it holds."""
        return Window(from_micros(self.start), from_micros(self.end))

    def to_json(self) -> str:
        """Return the footer's text."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Partition:
        """Read a footer; fields that a later version added are passed over."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})

    def is_of(self, view: FeatureView) -> bool:
        """Say whether its rows can be read as the view's: same kind, same join keys."""
        return self.kind == view.kind and self.keys == {name: str(dtype) for name, dtype in view.entity.keys.items()}


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


class OfflineStore:
    """
    The Parquet history of all views, below one folder.

    Args:
        root: Holds one folder a view; made when first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._footers: dict[Path, tuple[tuple[int, int, int], Partition]] = {}

    def folder(self, view: FeatureView) -> Path:
        """Return the folder of a view's files."""
        return self.root / view.name

    def path(self, view: FeatureView, window: Window) -> Path:
        """Return where a partition lies, whether it exists or not."""
        return self.folder(view) / f"{window.key}.parquet"

    def partition(self, view: FeatureView, window: Window) -> Partition | None:
        """Return what is stored for a window; None where nothing is, or the file is of an earlier schedule, kind or entity."""
        found = self._footer(self.path(view, window))
        return found if found and found.window == window and found.is_of(view) else None

    def partitions(self, view: FeatureView, *, before: datetime | None = None) -> list[Partition]:
        """
        Return the stored partitions by window, oldest first.

        Args:
            view: Whose.
            before: Only those whose window starts before it; the others' files are not opened.
        """
        folder = self.folder(view)
        if not folder.is_dir():
            return []
        listed = os.listdir(folder)  # noqa: PTH208 - of thousands of files, names alone
        names = sorted(name for name in listed if name.endswith(".parquet") and not name.startswith("."))
        if before is not None:
            # Names tell minutes: a window that starts in the minute of `before` starts before it, unless that is the full minute.
            # Years below 1000 have names that do not sort, and no windows.
            last = (before - MICROSECOND).strftime(KEY_FORMAT) + ".parquet" if before.year >= _FIRST_YEAR else ""
            names = [name for name in names if name <= last or name == f"{WHOLE.key}.parquet"]
        found = [footer for name in names if (footer := self._footer(folder / name)) and footer.is_of(view)]
        return _without_overlaps(view, sorted(found, key=lambda partition: (partition.end, partition.start)))

    def generation(self, view: FeatureView) -> int:
        """Return the view's generation; 0 before the first write. Waits for a write that is under way."""
        if not self.folder(view).is_dir():
            return 0
        with self._locked(view, fcntl.LOCK_SH):
            return self._read_generation(view)

    def raise_generation(self, view: FeatureView, *, above: int = 0) -> int:
        """
        Raise a view's generation without a write, so that every online value is replaced by the next materialization.

        It moves to the clock at least, and so above whatever another history left in the online store.
        """
        self.folder(view).mkdir(parents=True, exist_ok=True)
        with self._locked(view, fcntl.LOCK_EX):
            generation = max(self._next_generation(view), above + 1, _clock())
            self._write_generation(view, generation)
        return generation

    def replace(
        self,
        view: FeatureView,
        window: Window,
        write: Callable[[Path, int], None],
        *,
        differ: Callable[[Path, Path, Path], bool],
        unchanged: Attempt,
    ) -> bool:
        """
        Write a partition: the old file or the new one, whole, at every instant.

        Generation and file change under one lock, so nobody can read rows of a generation that they have not seen (a
        materialization would take a correction for something that it pushed already).

        Args:
            view: Whose partition.
            window: Which one.
            write: Writes the file to the path that it is given, with the generation that it is given in its footer.
            differ: Called with the new file, the present one, and a path: writes there the keys whose rows are not the same in
                both, and returns whether there are any.
            unchanged: Kept where there are none; under the same lock, or it could speak of a file that another process replaced.

        Returns:
            Whether it was written: a file of the same rows is left alone, and so is the generation.
        """
        folder = self.folder(view)
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked(view, fcntl.LOCK_EX):
            # What a process left that was killed: the lock is ours alone.
            for leftover in [*folder.glob(".*.tmp"), *self._changes(view).glob(".*.tmp")]:
                leftover.unlink(missing_ok=True)
            generation = self._next_generation(view)
            (self._changes(view) / f"{generation}.parquet").unlink(missing_ok=True)  # left by one that did not come to raise the counter
            temporary = folder / f".{window.key}.{secrets.token_hex(4)}.tmp"
            changes = self._changes(view) / f".{window.key}.tmp"
            try:
                write(temporary, generation)
                if self.partition(view, window) is not None:
                    changes.parent.mkdir(exist_ok=True)
                    if not differ(temporary, self.path(view, window), changes):
                        self.write_attempt(view, window, unchanged)
                        return False
                    _sync(changes)
                    changes.replace(self._changes(view) / f"{generation}.parquet")
                _sync(temporary)
                self._write_generation(view, generation)
                # First what spoke of the file that goes: without it, that one is looked at again, whatever happens now.
                self._attempt_path(view, window).unlink(missing_ok=True)
                self.rejected_path(view, window).unlink(missing_ok=True)
                temporary.replace(self.path(view, window))
            finally:
                temporary.unlink(missing_ok=True)
                changes.unlink(missing_ok=True)
            _sync(folder)
        return True

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
        return self.folder(view) / "_rejected" / f"{window.key}.parquet"

    def attempts(self, view: FeatureView) -> dict[str, Attempt]:
        """Return what the last computations of windows found that left their files alone, by window key."""
        folder = self.folder(view) / "_attempts"
        found: dict[str, Attempt] = {}
        for path in sorted(folder.glob("*.json")):
            if attempt := self._read_attempt(path):
                found[path.stem] = attempt
        return found

    def attempt(self, view: FeatureView, window: Window) -> Attempt | None:
        """Return what a window's last computation found; None where it wrote the window's file, or there was none."""
        return self._read_attempt(self._attempt_path(view, window))

    def write_attempt(self, view: FeatureView, window: Window, attempt: Attempt) -> None:
        """Keep what a window's last computation found."""
        path = self._attempt_path(view, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{window.key}.{secrets.token_hex(4)}.tmp")
        temporary.write_text(json.dumps(asdict(attempt)), encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
        if attempt.outcome != "rejected":
            self.rejected_path(view, window).unlink(missing_ok=True)

    def changes(self, view: FeatureView, *, after: int, until: int) -> dict[int, Path]:
        """Return the files of keys whose rows were changed by replacements, by generation, in `(after, until]`."""
        paths = [path for path in self._changes(view).glob("*.parquet") if path.stem.isdigit() and path.stat().st_size]
        found = {int(path.stem): path for path in paths}
        return {generation: path for generation, path in sorted(found.items()) if after < generation <= until}

    def forget_changes(self, view: FeatureView, *, until: int) -> None:
        """Delete what `changes` tells up to a generation that was pushed, once it is a week old: others may push this history too."""
        for path in self.changes(view, after=0, until=until).values():
            if time.time() - path.stat().st_mtime > _CHANGES_KEPT_SECONDS:
                path.unlink(missing_ok=True)

    def _changes(self, view: FeatureView) -> Path:
        return self.folder(view) / "_changes"

    def _attempt_path(self, view: FeatureView, window: Window) -> Path:
        return self.folder(view) / "_attempts" / f"{window.key}.json"

    def _read_attempt(self, path: Path) -> Attempt | None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # of a disk that lost it: the window is looked at again
        known = {one.name for one in fields(Attempt)}
        return Attempt(**{name: value for name, value in values.items() if name in known})

    @contextlib.contextmanager
    def materializing(self, view: FeatureView) -> Iterator[None]:
        """Let one process at a time push a view online."""
        self.folder(view).mkdir(parents=True, exist_ok=True)
        with _flock(self.folder(view) / "_materialize.lock", fcntl.LOCK_EX):
            yield

    def _footer(self, path: Path) -> Partition | None:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = self._footers.get(path)
        if known is None or known[0] != identity:
            metadata = pq.read_metadata(path).metadata or {}
            text = metadata.get(METADATA_KEY.encode())
            if text is None:
                return None  # not ours
            known = self._footers[path] = (identity, Partition.from_json(text))
        return known[1]

    def _locked(self, view: FeatureView, mode: int) -> contextlib.AbstractContextManager[None]:
        return _flock(self.folder(view) / "_lock", mode)

    def _read_generation(self, view: FeatureView) -> int:
        try:
            return int((self.folder(view) / "_generation").read_text())
        except FileNotFoundError:
            return 0

    def _next_generation(self, view: FeatureView) -> int:
        current = self._read_generation(view)
        if current:
            return current + 1
        # A new history starts at the clock: one that was deleted and computed again is newer than what an online store still
        # holds. Milliseconds, since no history is written faster than a file in each.
        files = [footer.generation for path in self.folder(view).glob("*.parquet") if (footer := self._footer(path))]
        return max(_clock(), *(one + 1 for one in files), 0)

    def _write_generation(self, view: FeatureView, generation: int) -> None:
        path = self.folder(view) / "_generation"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(str(generation))
        _sync(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def _flock(path: Path, mode: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, mode)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clock() -> int:
    return time.time_ns() // 1_000_000


def _without_overlaps(view: FeatureView, partitions: list[Partition]) -> list[Partition]:
    """
    Return the partitions without those of earlier schedules that share an instant with one of this definition.

    A changed schedule leaves the old windows' files behind: their rows would be answered twice.
    """
    latest = None
    for one in partitions:
        if latest is not None and one.start < latest:
            break
        latest = one.end
    else:
        return partitions
    kept: list[Partition] = []  # disjoint, by start
    for one in sorted(partitions, key=lambda one: (one.definition == view.definition_hash, one.generation), reverse=True):
        place = bisect_left(kept, one.end, key=lambda other: other.start)
        if place == 0 or kept[place - 1].end <= one.start:
            kept.insert(place, one)
    return kept
