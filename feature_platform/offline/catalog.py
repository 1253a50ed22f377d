"""
What the footers of a view's files say, in one SQLite file, so that a reader opens the files that it needs and no other.

A cache: the Parquet is the truth, and the file may be deleted at any time. A folder's time of change tells whether files came or
went behind its back, and each file that a reader is given is looked at once more, so a copied or restored folder is noticed, too.
Knows footers and identities of files. Knows nothing of what a view counts.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.offline.partition import METADATA_KEY, SEVERAL_KEY, Partition
from feature_platform.offline.sqlite_cache import SqliteCache

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

__all__ = ["COMPACTED", "Catalog"]

COMPACTED: Final = "_compacted"
"""Folder of the files that hold several windows each."""
_VERSION: Final = 1
# A file system's clock may stand still for some milliseconds: what changed just now may change again unseen.
_SETTLED_NANOSECONDS: Final = 50_000_000
_TABLES: Final = """
create table files (file text primary key, inode integer, mtime integer, size integer) without rowid;
create table partitions (
    name text, file text, start integer, "end" integer, generation integer, is_full integer, shape text, definition text,
    newest_event integer, newest_source integer, is_current integer, primary key (name, file)
) without rowid;
create table footers (name text, file text, footer blob, primary key (name, file));
create table facts (name text primary key, value integer) without rowid;
create index by_file on partitions (file);
create index footers_by_file on footers (file);
create index by_start on partitions (start) where is_current;
create index by_end on partitions ("end") where is_current;
create index by_generation on partitions (generation) where is_current;
create view current as select * from partitions where is_current
"""
# Of two files that hold one writing of a window the compacted one is read: '_' sorts after digits.
_CHOOSE: Final = """
update partitions set is_current = not exists (
    select 1 from partitions as other where other.name = partitions.name
    and (other.generation > partitions.generation or (other.generation = partitions.generation and other.file > partitions.file))
)"""


class Catalog:
    """
    The partitions of one view's folder.

    May be used by several threads, and by several processes at once, forked ones among them.

    Args:
        folder: The view's.
        path: The SQLite file; one that cannot be made, as on a read-only disk, is replaced by memory.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder = folder
        self._cache = SqliteCache(path, _TABLES, _VERSION)

    def close(self) -> None:
        """Close the file; using the catalog again opens it again."""
        self._cache.close()

    def partitions(self, where: str = "true", parameters: Sequence[object] = ()) -> list[Partition]:
        """
        Return partitions by end and start, each window once.

        Args:
            where: Condition over the columns name, file, start, "end", generation, is_full, shape, definition, newest_event (time)
                and newest_source (time).
            parameters: Its values.
        """
        sql = f'select footer from current join footers using (name, file) where {where} order by "end", start'

        def ask() -> list[Partition]:
            while True:
                self._refresh()
                found = [_DECODER.decode(row[0]) for row in self._cache.open().execute(sql, parameters)]
                if not self._forget_changed({one.file for one in found}):
                    return found

        return self._cache.unbroken(ask)

    def facts(self, columns: str, where: str = "true", parameters: Sequence[object] = ()) -> tuple[int | None, ...]:
        """Return aggregates over partitions, as `partitions` would return them."""

        def ask() -> tuple[int | None, ...]:
            self._refresh()
            row: tuple[int | None, ...] = self._cache.open().execute(f"select {columns} from current where {where}", parameters).fetchone()
            return row

        return self._cache.unbroken(ask)

    def look_again(self, where: str = "true", parameters: Sequence[object] = ()) -> None:
        """Look at the files of partitions one by one: what was written over in place changed no folder."""
        sql = f"select distinct file from current where {where}"

        def ask() -> None:
            self._refresh()
            self._forget_changed({row[0] for row in self._cache.open().execute(sql, parameters)})

        self._cache.unbroken(ask)

    def superseded(self, *, before: float) -> list[str]:
        """Return the files of which no partition is read, since files that were written before a moment (Unix time) hold them all."""
        sql = """
            select files.file from files
            where files.file in (select file from partitions) and not exists (select 1 from current where current.file = files.file)
            and not exists (
                select 1 from partitions as mine
                join current using (name)
                join files as its on its.file = current.file
                where mine.file = files.file and its.mtime >= ?
            )"""

        its_files = "select distinct its.file from partitions as mine join current as its using (name) where mine.file = ?"

        def ask() -> list[str]:
            while True:
                self._refresh()
                connection = self._cache.open()
                found = [row[0] for row in connection.execute(sql, [int(before * 1e9)])]
                # Also those that hold it all now: written over in place, or damaged, they hold something else.
                holders = {row[0] for name in found for row in connection.execute(its_files, [name])}
                if not self._forget_changed({*found, *holders}):
                    return found

        return self._cache.unbroken(ask)

    @property
    def has_overlaps(self) -> bool:
        """Whether two windows share an instant: files of earlier schedules are still there."""

        def ask() -> bool:
            self._refresh()
            return bool(self._fact("has_overlaps"))

        return self._cache.unbroken(ask)

    def refresh(self) -> None:
        """Look for what others changed; whoever is about to `put` a file asks for it, under the view's lock."""
        self._cache.unbroken(self._refresh)

    def put(self, file: Path) -> None:
        """Take in a file that the caller has just put into the folder, under the view's lock, since it asked for `refresh`."""
        self._cache.unbroken(lambda: self._put(file))

    def _put(self, file: Path) -> None:
        with self._cache.writing() as connection:
            name = str(file.relative_to(self._folder))
            self._read(connection, name, _identity(file))
            connection.execute(f"{_CHOOSE} where name in (select name from partitions where file = ?)", [name])
            if not self._fact("has_overlaps"):
                # The others share no instant among themselves, so the last one that starts before a window's end is the one to look at.
                shared = """
                    select count(*) from current as one where one.file = ? and one.start < (
                        select other."end" from current as other
                        where other.start < one."end" and other.name <> one.name and other.shape = one.shape
                        order by other.start desc limit 1
                    )"""
                self._set_fact("has_overlaps", connection.execute(shared, [name]).fetchone()[0])
            if self._fact("folder") is not None:  # else the file broke since then, and this one knows nothing yet
                self._note(*self._changed_at())

    def _is_current(self) -> bool:
        return [self._fact("folder"), self._fact(COMPACTED)] == self._changed_at()

    def _refresh(self) -> None:
        """Look for files that came, went or changed, where the folder says that something did."""
        if self._is_current():
            return
        with self._cache.writing() as connection:
            changed_at = self._changed_at()
            now = time.time_ns()
            present = _listed(self._folder)
            known = {file: tuple(rest) for file, *rest in connection.execute("select file, inode, mtime, size from files")}
            for file in known.keys() - present.keys():
                _delete(connection, file)
            for file, identity in present.items():
                if known.get(file) != identity:
                    self._read(connection, file, identity)
            connection.execute(_CHOOSE)
            spans = connection.execute('select shape, start, "end" from current order by shape, start')
            self._set_fact("has_overlaps", _has_overlaps(spans))
            self._note(*(at if now - at > _SETTLED_NANOSECONDS else -1 for at in changed_at))

    def _read(self, connection: sqlite3.Connection, file: str, identity: tuple[int, int, int] | None) -> None:
        """Take in what a file's footer says."""
        _delete(connection, file)
        if identity is None:
            return
        try:
            partitions = _footer(self._folder / file)
        except (OSError, pa.ArrowInvalid, msgspec.DecodeError):
            return  # gone, or no Parquet: looked at again with the next change
        connection.execute("insert into files values (?, ?, ?, ?)", [file, *identity])
        for one in partitions:
            placed = replace(one, file=file, windows=len(partitions))
            connection.execute(
                "insert into partitions values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
                [
                    one.window.key,
                    file,
                    one.start,
                    one.end,
                    one.generation,
                    one.is_full,
                    one.shape,
                    one.definition,
                    one.max_event_timestamp,
                    one.newest_source_timestamp,
                ],
            )
            connection.execute("insert into footers values (?, ?, ?)", [one.window.key, file, _ENCODER.encode(placed)])

    def _forget_changed(self, files: Iterable[str]) -> bool:
        """Forget the files that are not those that were read any more; say whether there are any."""
        connection = self._cache.open()
        asked = list(files)
        known: dict[str, tuple[int, ...]] = {}
        for at in range(0, len(asked), 500):
            some = asked[at : at + 500]
            sql = f"select file, inode, mtime, size from files where file in ({','.join('?' * len(some))})"
            known |= {file: tuple(rest) for file, *rest in connection.execute(sql, some)}
        changed = [file for file in asked if known.get(file) != _identity(self._folder / file)]
        if changed:
            with self._cache.writing():
                connection.executemany("delete from files where file = ?", [[file] for file in changed])
                self._note(-1, -1)
        return bool(changed)

    def _changed_at(self) -> list[int]:
        return [_changed_at(self._folder), _changed_at(self._folder / COMPACTED)]

    def _fact(self, name: str) -> int | None:
        row = self._cache.open().execute("select value from facts where name = ?", [name]).fetchone()
        return None if row is None else int(row[0])

    def _set_fact(self, name: str, value: int) -> None:
        self._cache.open().execute("insert or replace into facts values (?, ?)", [name, int(value)])

    def _note(self, folder: int, compacted: int) -> None:
        self._set_fact("folder", folder)
        self._set_fact(COMPACTED, compacted)


def _delete(connection: sqlite3.Connection, file: str) -> None:
    for table in ("files", "footers", "partitions"):
        connection.execute(f"delete from {table} where file = ?", [file])


def _changed_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _listed(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return the Parquet files of a view and their identities."""
    found: dict[str, tuple[int, int, int]] = {}
    for prefix, where in (("", folder), (f"{COMPACTED}/", folder / COMPACTED)):
        with contextlib.suppress(FileNotFoundError), os.scandir(where) as entries:
            for entry in entries:
                if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        found[prefix + entry.name] = _identity_of(entry.stat())
    return found


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        return _identity_of(path.stat())
    except FileNotFoundError:
        return None


def _identity_of(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _footer(path: Path) -> list[Partition]:
    """Return the partitions that a file holds; none where the file is not ours."""
    metadata = pq.read_metadata(path).metadata or {}
    if text := metadata.get(METADATA_KEY.encode()):
        return [Partition.from_json(text)]
    several = metadata.get(SEVERAL_KEY.encode())
    return _SEVERAL.decode(several) if several else []


def _has_overlaps(spans: Iterable[tuple[str, int, int]]) -> bool:
    """Say whether two of some spans, ordered by shape and start, share an instant."""
    previous, latest = None, 0
    for shape, start, end in spans:
        if shape == previous and start < latest:
            return True
        latest = end if shape != previous else max(latest, end)
        previous = shape
    return False


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Partition)
_SEVERAL: Final = msgspec.json.Decoder(list[Partition])
