"""
The protocol of online stores: bytes under keys, of which the newer one wins.

Knows no dtype and no server; `codec.py` makes the bytes, `redis.py`, `embedded.py` and `memory.py` hold them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

__all__ = ["OnlineStore", "WriteCounts"]


class WriteCounts(NamedTuple):
    """
    What became of the values handed to `put_many`.

    Tombstones that replaced nothing alive are in none of the three.

    Attributes:
        written: Values that are now the ones to read.
        removed: Keys that had a value and now have a tombstone.
        skipped: Values and tombstones that were older than what was there.
    """

    written: int = 0
    removed: int = 0
    skipped: int = 0

    def plus(self, other: WriteCounts) -> WriteCounts:
        """Return the sums."""
        return WriteCounts(self.written + other.written, self.removed + other.removed, self.skipped + other.skipped)


@runtime_checkable
class OnlineStore(Protocol):
    """
    Where the newest values are read from.

    Values begin with the head of `layout.py`. A value replaces the one under its key if its (generation, time) is not
    less; at equal times the later write wins. Opens nothing until used; a context manager that closes itself.

    Every method that asks a server raises OnlineStoreError where it does not answer, or refuses.
    """

    def get_many(self, keys: Sequence[bytes], *, patient: bool = False) -> list[bytes | None]:
        """
        Return the value of each key, in order; a key that stands before another is not read after it.

        Args:
            keys: Any number.
            patient: Whether to wait as long as writes do, and not for the deadline of reads: for work that nobody waits for.
        """
        ...

    async def get_many_async(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the same without blocking the event loop."""
        ...

    def put_many(self, items: Iterable[tuple[bytes, bytes]], *, expire_seconds: int | None = None) -> WriteCounts:
        """
        Write every value that is not older than the one under its key.

        Args:
            items: Key and value; consumed as it is sent, so any number fits.
            expire_seconds: Garbage collection, counted from the write. Whether a value is too old is judged by who reads it.
        """
        ...

    def put_meta(self, key: bytes, value: bytes, *, force: bool = False) -> bool:
        """Write a view's meta unless a newer one is there (`force`: even then); return whether it was written."""
        ...

    def sweep(self, project: str, entity: str, view: str, *, below_generation: int, before: int | None = None) -> int:
        """
        Delete the values of one view that no reader counts any more.

        Args:
            project: Of the keys.
            entity: Of the keys.
            view: Of the keys.
            below_generation: Values of an earlier generation go.
            before: Values of an earlier time (microseconds) go too.

        Returns:
            How many values went; tombstones go uncounted.
        """
        ...

    def sample_keys(self, project: str, entity: str, view: str, *, seed: int, limit: int) -> list[bytes]:
        """
        Return some keys of one view, those of tombstones among them.

        Args:
            project: Of the keys.
            entity: Of the keys.
            view: Of the keys.
            seed: Picks the keys: the same ones for the same seed, until something is written.
            limit: How many at most. Fewer where the view has fewer, or a store that holds much else finds no more in bounded time.
        """
        ...

    def ping(self) -> None:
        """Return if the store answers."""
        ...

    def close(self) -> None:
        """Give back what the blocking calls opened; using the store again opens it again."""
        ...

    async def aclose(self) -> None:
        """Give back all that was opened; from the event loop that used it."""
        ...

    def __enter__(self) -> Self:
        """Return the store."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the store."""
        ...
