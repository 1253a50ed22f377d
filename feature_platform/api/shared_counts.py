"""
A folder in which each worker keeps what it has counted, so that whichever is asked can tell all of it.

Knows files and processes. Knows nothing of what is counted. A worker that has ended leaves its counts: a counter never falls.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SharedCounts"]


class SharedCounts:
    """
    The folder, as one process sees it.

    Args:
        folder: The same for all workers of a supervisor.
    """

    def __init__(self, folder: Path) -> None:
        # The system gives the number of a process that has ended to another one some day.
        self._own = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._published = b""

    def publish(self, counts: bytes) -> None:
        """Put this process' counts in the place of its last ones; a disk that is full is no reason to cease serving."""
        if counts == self._published:
            return
        temporary = self._own.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            self._own.parent.mkdir(mode=0o700, exist_ok=True)  # some systems sweep what lies in their temporary folder for days
            temporary.write_bytes(counts)
            temporary.replace(self._own)
            self._published = counts

    def of_others(self) -> Iterator[tuple[bytes, bool]]:
        """Yield what each other process published last, and whether it still runs."""
        for path in self._own.parent.glob("*-*"):
            if path == self._own or path.suffix:
                continue
            try:
                counts = path.read_bytes()
            except FileNotFoundError:  # swept away just now
                continue
            yield counts, _is_running(int(path.name.partition("-")[0]))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
