"""
The files of a view's sources: which of them a window reads, and whether they are still those that it was computed from.

Knows files, and the ranges of time in their footers. Knows nothing of what a query makes of their rows.
"""

from __future__ import annotations

import glob
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.dtypes import MICROSECOND
from feature_platform.model import FeatureView, ParquetSource
from feature_platform.windows import WHOLE, Window, reads_from

__all__ = ["SourceFile", "files_of", "fingerprints", "source_files"]

_MODULUS = 1 << 64
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class SourceFile:
    """
    One file of a source.

    Attributes:
        source: Name of the source.
        path: Relative to the project folder, where it lies in it.
        identity: Size, time of the last write and inode: another one means other content.
        spans: Least and greatest time of each of its row groups; None where a footer does not say.
        created_from: The earliest time that one of its rows was known; None where the footer does not say, or a row does not.
        is_static: Whether its rows have no time at all.
    """

    source: str
    path: str
    identity: tuple[int, int, int]
    spans: tuple[tuple[datetime, datetime], ...] | None
    created_from: datetime | None
    is_static: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity[0]

    @property
    def newest(self) -> datetime | None:
        """The greatest time of its rows, as far as its footer says."""
        return max((high for _, high in self.spans), default=None) if self.spans else None

    @property
    def fingerprint(self) -> int:
        """64 bits that stand for the file."""
        text = repr((self.source, self.path, self.identity))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def source_files(view: FeatureView, root: Path) -> list[SourceFile]:
    """Return the files of a view's sources that exist now; one that is being written is left for the next look."""
    return [file for source in view.sources for file in files_of(source, root)]


def files_of(source: ParquetSource, root: Path) -> list[SourceFile]:
    """Return the files of a source that exist now."""
    found: list[SourceFile] = []
    pattern = str(Path(glob.escape(str(root))) / source.path)
    for path in sorted(glob.glob(pattern, recursive=True)):
        try:
            stat = Path(path).stat()
            found.append(_file(source, path, str(root), (stat.st_size, stat.st_mtime_ns, stat.st_ino)))
        except (OSError, pa.ArrowInvalid):
            continue  # gone, or being written
    return found


@lru_cache(maxsize=100_000)
def _file(source: ParquetSource, path: str, root: str, identity: tuple[int, int, int]) -> SourceFile:
    relative = str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path
    if source.timestamp is None:
        return SourceFile(source.name, relative, identity, None, None, is_static=True)
    metadata = pq.read_metadata(path)
    spans = _statistics(metadata, source.timestamp)
    created = _statistics(metadata, source.created_timestamp, without_nulls=True) if source.created_timestamp else None
    created_from = min((low for low, _ in created), default=None) if created else None
    # Finer units round up when they are read (law L5).
    padded = None if spans is None else tuple((low, high + min(MICROSECOND, _LATEST - high)) for low, high in spans)
    return SourceFile(source.name, relative, identity, padded, created_from, is_static=False)


def _statistics(metadata: Any, column: str, *, without_nulls: bool = False) -> list[tuple[datetime, datetime]] | None:  # noqa: ANN401 - pyarrow has no types
    """Return the least and greatest time of each row group; None where one does not say."""
    names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    if column not in names:
        return None
    place, spans = names.index(column), list[tuple[datetime, datetime]]()
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        statistics = group.column(place).statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count == group.num_rows and not without_nulls:
            continue  # rows without a time are in no window
        if statistics is None or not statistics.has_min_max or (without_nulls and statistics.null_count):
            return None
        try:
            low, high = _instant(statistics.min), _instant(statistics.max)
        except (ValueError, OverflowError):  # a time that Python's calendar does not reach
            return None
        if low is None or high is None:
            return None
        spans.append((low, high))
    return spans


def _instant(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return datetime.combine(value, time(), UTC) if isinstance(value, date) else None


def fingerprints(view: FeatureView, files: Iterable[SourceFile], windows: Sequence[Window], now: datetime) -> dict[Window, str]:
    """
    Return for each window 16 hex digits that stand for the set of files that it reads, as far as footers say.

    A file counts for the windows that reach into its range of time and, in a window view, whose end and delay come after the
    first of its rows was known. One without statistics counts for every window. A static dimension counts for open windows
    only: it has no history, so the closed ones keep the values that they had.

    Args:
        view: Whose windows.
        files: Of its sources.
        windows: In order of time.
        now: Windows that end after it are open.
    """
    # A sum of the files' own 64 bits, over a row of windows that each file counts for: one pass, however many there are.
    steps = [0] * (len(windows) + 1)
    ends, starts = [window.end for window in windows], [reads_from(view, window) if window != WHOLE else window.start for window in windows]
    for file in files:
        for first, after in _places(view, file, starts, ends, now):
            steps[first] += file.fingerprint
            steps[after] -= file.fingerprint
    return {window: f"{total % _MODULUS:016x}" for window, total in zip(windows, accumulate(steps), strict=False)}


def _places(
    view: FeatureView, file: SourceFile, starts: Sequence[datetime], ends: Sequence[datetime], now: datetime
) -> Iterator[tuple[int, int]]:
    """Yield the ranges of windows that read a file, apart from each other, as the index of the first and the one after the last."""
    if view.schedule is None:
        yield 0, len(ends)
        return
    if file.is_static:
        yield bisect_right(ends, now), len(ends)
        return
    known = 0
    if view.is_window_view and file.created_from is not None:
        known = bisect_left(ends, file.created_from - min(view.delay, file.created_from - _EARLIEST))
    if file.spans is None:
        yield known, len(ends)
        return
    done = known
    for low, high in sorted(file.spans):
        first, after = max(bisect_right(ends, low), done), bisect_right(starts, high)
        if first < after:
            yield first, after
            done = after
