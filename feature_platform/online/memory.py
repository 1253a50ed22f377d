"""
An online store in a dict: the public fake, for tests of one's own and for trying things.

Keeps every law of the real ones, in one process. Knows no server.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Self

from feature_platform.online.layout import key_prefix, key_suffix, read_head
from feature_platform.online.store import WriteCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

__all__ = ["MemoryOnlineStore"]


class MemoryOnlineStore:
    """An `OnlineStore` whose values live as long as the object; threads may share it."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._deadlines: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def get_many(self, keys: Sequence[bytes], *, patient: bool = False) -> list[bytes | None]:  # noqa: ARG002 - nothing is waited for
        """Return the value of each key, in order."""
        with self._lock:
            if self._deadlines:
                self._expire()
            return [self._values.get(key) for key in keys]

    async def get_many_async(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, in order."""
        return self.get_many(keys)

    def put_many(self, items: Iterable[tuple[bytes, bytes]], *, expire_seconds: int | None = None) -> WriteCounts:
        """Write every value that is not older than the one under its key."""
        written = removed = skipped = 0
        for key, value in items:
            with self._lock:
                self._expire()
                had = self._values.get(key)
                if not self._put(key, value, expire_seconds):
                    skipped += 1
                    continue
            if _is_alive(value):
                written += 1
            elif had is not None and _is_alive(had):
                removed += 1
        return WriteCounts(written, removed, skipped)

    def put_meta(self, key: bytes, value: bytes, *, force: bool = False) -> bool:
        """Write a view's meta unless a newer one is there; return whether it was written."""
        with self._lock:
            if force:
                self._values.pop(key, None)
            return self._put(key, value, None)

    def sweep(self, project: str, entity: str, view: str, *, below_generation: int, before: int | None = None) -> int:
        """Delete the values of one view that no reader counts any more; return how many, tombstones uncounted."""
        first, last = key_prefix(project, entity), key_suffix(view)
        swept = 0
        with self._lock:
            self._expire()
            for key, value in list(self._values.items()):
                head = read_head(value)
                if head is None or not (key.startswith(first) and key.endswith(last)):
                    continue
                if head.generation < below_generation or (before is not None and head.micros < before):
                    self._forget(key)
                    swept += not head.is_tombstone
        return swept

    def sample_keys(self, project: str, entity: str, view: str, *, seed: int, limit: int) -> list[bytes]:
        """Return some keys of one view, picked by the seed."""
        first, last = key_prefix(project, entity), key_suffix(view)
        with self._lock:
            self._expire()
            keys = [key for key in self._values if key.startswith(first) and key.endswith(last)]
        return sorted(keys, key=lambda key: hashlib.sha256(b"%d:%b" % (seed, key)).digest())[:limit]

    def ping(self) -> None:
        """Return."""

    def close(self) -> None:
        """Do nothing: the values stay as long as the object."""

    async def aclose(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the store."""
        self.close()

    def _put(self, key: bytes, value: bytes, expire_seconds: int | None) -> bool:
        new, current = read_head(value), self._values.get(key)
        old = None if current is None else read_head(current)
        if new is not None and old is not None and new[:2] < old[:2]:
            return False
        self._values[key] = value
        if expire_seconds is None:
            self._deadlines.pop(key, None)
        else:
            self._deadlines[key] = time.monotonic() + expire_seconds
        return True

    def _expire(self) -> None:
        now = time.monotonic()
        for key in [key for key, deadline in self._deadlines.items() if deadline <= now]:
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._deadlines.pop(key, None)


def _is_alive(value: bytes) -> bool:
    head = read_head(value)
    return head is None or not head.is_tombstone
