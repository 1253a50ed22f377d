"""
The source files that a window reads, and whether they are still those that it was computed from.

Knows what is remembered of files. Opens none, and knows nothing of what a query makes of their rows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING

from feature_platform.model import FeatureView
from feature_platform.offline.source_footers import SourceFile
from feature_platform.windows import WHOLE, Window, reads_from

if TYPE_CHECKING:
    from pathlib import Path

    from feature_platform.offline.source_footers import SourceFooters

__all__ = ["SourceFile", "fingerprints", "source_files"]

_MODULUS = 1 << 64
_EARLIEST = datetime.min.replace(tzinfo=UTC)


def source_files(view: FeatureView, root: Path, footers: SourceFooters) -> list[SourceFile]:
    """Return the files of a view's sources that exist now; one that is being written is left for the next look."""
    return [file for source in view.sources for file in footers.files(source, root)]


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
