"""
The files of the offline store: where a partition lies, what exists, and how one is replaced.

One Parquet file per view and window; its footer says what it is. A view's generation is raised with every write. Beside
the files, in a folder that no reader of history opens: which keys a replacement changed. Knows paths, locks and footers. Knows
nothing of how rows are computed or joined, and of attempts only that a write ends one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from feature_platform.dtypes import to_micros
from feature_platform.model import FeatureView
from feature_platform.offline.attempts import Attempt, Attempts, sync
from feature_platform.offline.catalog import COMPACTED, Catalog
from feature_platform.offline.partition import METADATA_KEY, TOMBSTONE, Partition, shape_of
from feature_platform.offline.source_footers import SourceFooters
from feature_platform.windows import Window, utc

__all__ = ["METADATA_KEY", "TOMBSTONE", "OfflineStore", "Partition", "Summary"]

_CHANGES_KEPT_SECONDS = 7 * 86_400
_LEAST, _GREATEST = -(2**63), 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Summary:
    """
    Some partitions of a view, summed up.

    Attributes:
        partitions: How many.
        generations: Sum of their generations: since those only rise, it and the number tell whether any was replaced.
        newest_full: Greatest end of a full one, UTC microseconds.
        newest_end: Greatest end of any.
        newest_event: Greatest event time of a row.
        newest_source: Greatest time of a source row that was read.
        of_other_definitions: How many were computed by another definition of the view.
    """

    partitions: int = 0
    generations: int = 0
    newest_full: int | None = None
    newest_end: int | None = None
    newest_event: int | None = None
    newest_source: int | None = None
    of_other_definitions: int = 0


class OfflineStore:
    """
    The Parquet history of all views, below one folder.

    Args:
        root: Holds one folder a view; made when first written.

    Attributes:
        attempts: What computations found that wrote no file.
        source_footers: What is known of the sources' files.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.attempts = Attempts(self.root)
        self.source_footers = SourceFooters(self.root / "_catalog" / "_sources.sqlite")
        self._catalogs: dict[str, Catalog] = {}
        self._opening = threading.Lock()

    def close(self) -> None:
        """Close the catalogs; using the store again opens them again."""
        self.source_footers.close()
        for catalog in self._catalogs.values():
            catalog.close()

    def folder(self, view: FeatureView) -> Path:
        """Return the folder of a view's files."""
        return self.root / view.name

    def path(self, view: FeatureView, window: Window) -> Path:
        """Return where a partition lies, whether it exists or not."""
        return self.folder(view) / f"{window.key}.parquet"

    def file(self, view: FeatureView, partition: Partition) -> Path:
        """Return the file that holds a partition's rows, alone or with others."""
        return self.folder(view) / partition.file

    def partition(self, view: FeatureView, window: Window) -> Partition | None:
        """Return what is stored for a window; None where nothing is, or the file is of an earlier schedule, kind or entity."""
        if not self.folder(view).is_dir():
            return None
        found = self.catalog(view).partitions("name = ?", [window.key])
        return next((one for one in found if one.window == window and one.is_of(view)), None)

    def partitions(self, view: FeatureView, *, after: int | None = None, before: datetime | None = None) -> list[Partition]:
        """
        Return the stored partitions by window, oldest first.

        Args:
            view: Whose.
            after: Only those whose window ends after it, UTC microseconds.
            before: Only those whose window starts before it.
        """
        if not self.folder(view).is_dir():
            return []
        low, high = (_LEAST if after is None else after), (_GREATEST if before is None else to_micros(utc(before)))
        catalog = self.catalog(view)
        if not catalog.has_overlaps:
            return catalog.partitions('shape = ? and "end" > ? and start < ?', [shape_of(view), low, high])
        # Which files count is told by all of them.
        every = _without_overlaps(view, catalog.partitions("shape = ?", [shape_of(view)]))
        return [one for one in every if one.end > low and one.start < high]

    def written(self, view: FeatureView, *, after: int, until: int = _GREATEST) -> list[Partition]:
        """Return the partitions that were written last in a generation in `(after, until]`."""
        if not self.folder(view).is_dir():
            return []
        catalog = self.catalog(view)
        if catalog.has_overlaps:
            return [one for one in self.partitions(view) if after < one.generation <= until]
        return catalog.partitions("shape = ? and generation > ? and generation <= ?", [shape_of(view), after, until])

    def summary(self, view: FeatureView, *, ended_by: int | None = None, started_by: int | None = None) -> Summary:
        """
        Return what there is to know of a view's partitions without one by one.

        Args:
            view: Whose.
            ended_by: Only those whose window ends at or before it, UTC microseconds.
            started_by: Only those whose window starts at or before it.
        """
        if not self.folder(view).is_dir():
            return Summary()
        ended, started = (_GREATEST if ended_by is None else ended_by), (_GREATEST if started_by is None else started_by)
        catalog = self.catalog(view)
        if catalog.has_overlaps:
            found = [one for one in self.partitions(view) if one.end <= ended and one.start <= started]
            return Summary(
                partitions=len(found),
                generations=sum(one.generation for one in found),
                newest_full=max((one.end for one in found if one.is_full), default=None),
                newest_end=max((one.end for one in found), default=None),
                newest_event=max((one.max_event_timestamp for one in found if one.max_event_timestamp is not None), default=None),
                newest_source=max((one.newest_source_timestamp for one in found if one.newest_source_timestamp is not None), default=None),
                of_other_definitions=sum(one.definition != view.definition_hash for one in found),
            )
        facts = catalog.facts(
            'count(*), coalesce(sum(generation), 0), max("end") filter (where is_full), max("end"), max(newest_event), max(newest_source), '
            "count(*) filter (where definition <> ?)",
            'shape = ? and "end" <= ? and start <= ?',
            [view.definition_hash, shape_of(view), ended, started],
        )
        count, generations, newest_full, newest_end, newest_event, newest_source, others = facts
        return Summary(
            partitions=count or 0,
            generations=generations or 0,
            newest_full=newest_full,
            newest_end=newest_end,
            newest_event=newest_event,
            newest_source=newest_source,
            of_other_definitions=others or 0,
        )

    def look_again(self, view: FeatureView, *, ended_by: int) -> None:
        """Look at each file whose windows end at or before a time, UTC microseconds, whether it is the one that is known."""
        if self.folder(view).is_dir():
            self.catalog(view).look_again('shape = ? and "end" <= ?', [shape_of(view), ended_by])

    def catalog(self, view: FeatureView) -> Catalog:
        """Return what the footers of a view's files say."""
        with self._opening:
            if view.name not in self._catalogs:
                self._catalogs[view.name] = Catalog(self.folder(view), self.root / "_catalog" / f"{view.name}.sqlite")
            return self._catalogs[view.name]

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
        differ: Callable[[Path, Partition, Path], bool],
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
            differ: Called with the new file, the present partition, and a path: writes there the keys whose rows are not the same
                in both, and returns whether there are any.
            unchanged: Kept where there are none; under the same lock, or it could speak of a file that another process replaced.

        Returns:
            Whether it was written: a file of the same rows is left alone, and so is the generation.
        """
        folder = self.folder(view)
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked(view, fcntl.LOCK_EX):
            beside = self._unfinished(view)
            catalog = self.catalog(view)
            catalog.refresh()
            generation = self._next_generation(view)
            (self._changes(view) / f"{generation}.parquet").unlink(missing_ok=True)  # left by one that did not come to raise the counter
            temporary = beside / f".{window.key}.{secrets.token_hex(4)}.tmp"
            changes = self._changes(view) / f".{window.key}.tmp"
            try:
                write(temporary, generation)
                current = self.partition(view, window)
                if current is not None:
                    changes.parent.mkdir(exist_ok=True)
                    if not differ(temporary, current, changes):
                        self.attempts.keep(view, window, unchanged)
                        return False
                    sync(changes)
                    changes.replace(self._changes(view) / f"{generation}.parquet")
                sync(temporary)
                self._write_generation(view, generation)
                # First what spoke of the file that goes: without it, that one is looked at again, whatever happens now.
                self.attempts.forget(view, window)
                temporary.replace(self.path(view, window))
                catalog.put(self.path(view, window))
            finally:
                temporary.unlink(missing_ok=True)
                changes.unlink(missing_ok=True)
            sync(folder)
        return True

    def merge(self, view: FeatureView, day: str, partitions: Sequence[Partition], write: Callable[[Path], None]) -> bool:
        """
        Put the rows of some partitions into one file; their own files stay until `delete_superseded`, for readers that are under way.

        Args:
            view: Whose partitions.
            day: That they lie in, for the file's name.
            partitions: As they were listed; where one was replaced since, nothing is merged.
            write: Writes the file to the path that it is given.

        Returns:
            Whether they were merged.
        """
        folder = self.folder(view)
        with self._locked(view, fcntl.LOCK_EX):
            catalog = self.catalog(view)
            catalog.refresh()
            if any(self.partition(view, one.window) != one for one in partitions):
                return False
            # Generations are a view's own, so the name is new: nobody who reads an earlier file of the day is given another.
            path = folder / COMPACTED / f"{day}.{max(one.generation for one in partitions):020d}.{len(partitions)}.parquet"
            path.parent.mkdir(exist_ok=True)
            temporary = self._unfinished(view) / f".{path.stem}.{secrets.token_hex(4)}.tmp"
            try:
                write(temporary)
                sync(temporary)
                temporary.replace(path)
                catalog.put(path)
            finally:
                temporary.unlink(missing_ok=True)
            sync(path.parent)
        return True

    def delete_superseded(self, view: FeatureView, *, before: float) -> int:
        """Delete the files whose windows are all read from others that were written before a moment (Unix time); return how many."""
        if not self.folder(view).is_dir():
            return 0
        deleted = 0
        with self._locked(view, fcntl.LOCK_EX):
            for name in self.catalog(view).superseded(before=before):
                (self.folder(view) / name).unlink(missing_ok=True)
                deleted += 1
        return deleted

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

    def _unfinished(self, view: FeatureView) -> Path:
        """Return where files are written, without those of killed processes; whoever asks holds the lock alone."""
        # Not among the files: a folder's time of change tells readers that some came or went.
        folder = self.folder(view) / "_unfinished"
        folder.mkdir(exist_ok=True)
        for leftover in [*folder.glob(".*.tmp"), *self._changes(view).glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        return folder

    def _changes(self, view: FeatureView) -> Path:
        return self.folder(view) / "_changes"

    @contextlib.contextmanager
    def materializing(self, view: FeatureView) -> Iterator[None]:
        """Let one process at a time push a view online."""
        self.folder(view).mkdir(parents=True, exist_ok=True)
        with _flock(self.folder(view) / "_materialize.lock", fcntl.LOCK_EX):
            yield

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
        (newest,) = self.catalog(view).facts("max(generation)")
        return max(_clock(), (newest or 0) + 1)

    def _write_generation(self, view: FeatureView, generation: int) -> None:
        path = self.folder(view) / "_generation"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(str(generation))
        sync(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def _flock(path: Path, mode: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, mode)
        yield
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
