"""
What the footers of source files say, remembered from process to process: however many files there are, each is opened once.

Knows files and footers. Knows nothing of views and windows.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.dtypes import MICROSECOND, from_micros
from feature_platform.offline.sqlite_cache import SqliteCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feature_platform.model import ParquetSource

__all__ = ["SourceFile", "SourceFooters", "paths_of"]

_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_VERSION: Final = 2
_TABLES: Final = """
create table footers (source text, path text, footer blob, primary key (source, path))"""


@dataclass(frozen=True)
class SourceFile:
    """
    One file of a source.

    Attributes:
        source: Name of the source.
        path: Relative to the project folder, where it lies in it.
        identity: Size, time of the last write and inode: another one means other content.
        schema: Stands for its columns and their types: files with the same one are read alike.
        spans: Least and greatest time of each of its row groups; None where a footer does not say.
        created_from: The earliest time that one of its rows was known; None where the footer does not say, or a row does not.
        is_static: Whether its rows have no time at all.
    """

    source: str
    path: str
    identity: tuple[int, int, int]
    schema: str
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


class SourceFooters:
    """
    The footers of all sources' files.

    Args:
        path: SQLite file that remembers them, made when first needed; None remembers them as long as the process lives.
    """

    def __init__(self, path: Path | None) -> None:
        self._cache = SqliteCache(path, _TABLES, _VERSION)
        self._known: dict[str, dict[str, SourceFile]] = {}

    def close(self) -> None:
        """Close the file; using it again opens it again."""
        self._cache.close()

    def files(self, source: ParquetSource, root: Path) -> list[SourceFile]:
        """
        Return the files of a source that exist now, by path.

        Args:
            source: Which.
            root: The project folder.
        """
        key = repr((source.name, source.timestamp, source.created_timestamp, str(root)))
        if key not in self._known:
            self._known[key] = {file.path: file for file in self._remembered(key)}
        known, below = self._known[key], os.path.join(root, "")  # noqa: PTH118 - as below
        present: dict[str, SourceFile] = {}
        read: list[SourceFile] = []
        for path in paths_of(source, root):
            try:
                stat = os.stat(path)  # noqa: PTH116 - there may be very many
                relative = path.removeprefix(below)
                identity = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                file = known.get(relative)
                if file is None or file.identity != identity:
                    file = _read(source, path, relative, identity)
                    read.append(file)
                present[relative] = file
            except (OSError, pa.ArrowInvalid):
                continue  # gone, or being written
        if read or present.keys() != known.keys():
            self._remember(key, read, gone=known.keys() - present.keys())
        self._known[key] = present
        return list(present.values())

    def _remembered(self, key: str) -> list[SourceFile]:
        def ask() -> list[SourceFile]:
            rows = self._cache.open().execute("select footer from footers where source = ?", [key])
            return [_DECODER.decode(row[0]) for row in rows]

        return self._cache.unbroken(ask)

    def _remember(self, key: str, read: Sequence[SourceFile], *, gone: Iterable[str]) -> None:
        def write() -> None:
            with self._cache.writing() as connection:
                connection.executemany("delete from footers where source = ? and path = ?", [[key, path] for path in gone])
                rows = [[key, file.path, _ENCODER.encode(file)] for file in read]
                connection.executemany("insert or replace into footers values (?, ?, ?)", rows)

        self._cache.unbroken(write)


def paths_of(source: ParquetSource, root: Path) -> list[str]:
    """Return where a source has files, by path; a pattern with two `**` matches one more than once."""
    return sorted(set(glob.glob(str(Path(glob.escape(str(root))) / source.path), recursive=True)))


def _read(source: ParquetSource, path: str, relative: str, identity: tuple[int, int, int]) -> SourceFile:
    metadata = pq.read_metadata(path)
    columns = str(metadata.schema).partition("\n")[2]  # its first line is an address
    schema = hashlib.blake2b(columns.encode(), digest_size=8).hexdigest()
    if source.timestamp is None:
        return SourceFile(source.name, relative, identity, schema, None, None, is_static=True)
    spans = _statistics(metadata, source.timestamp)
    created = _statistics(metadata, source.created_timestamp, without_nulls=True) if source.created_timestamp else None
    created_from = min((low for low, _ in created), default=None) if created else None
    # Finer units round up when they are read (law L5).
    padded = None if spans is None else tuple((low, high + min(MICROSECOND, _LATEST - high)) for low, high in spans)
    return SourceFile(source.name, relative, identity, schema, padded, created_from, is_static=False)


def _statistics(metadata: Any, column: str, *, without_nulls: bool = False) -> list[tuple[datetime, datetime]] | None:  # noqa: ANN401 - pyarrow has no types
    """Return the least and greatest time of each row group, finer units cut off; None where one does not say."""
    schema = metadata.schema
    places = [index for index in range(metadata.num_columns) if schema.column(index).path == column]
    unit = _nanoseconds(schema.column(places[0])) if len(places) == 1 else None  # a field of a struct may have the same path
    if unit is None:
        return None
    place = places[0]
    spans: list[tuple[datetime, datetime]] = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        statistics = group.column(place).statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count == group.num_rows and not without_nulls:
            continue  # rows without a time are in no window
        if statistics is None or not statistics.has_min_max or (without_nulls and statistics.null_count):
            return None
        try:  # as they are stored: made into times by Arrow, they would load pandas, a third of a second
            spans.append((from_micros(statistics.min_raw * unit // 1000), from_micros(statistics.max_raw * unit // 1000)))
        except (ValueError, OverflowError):  # a time that Python's calendar does not reach
            return None
    return spans


def _nanoseconds(column: Any) -> int | None:  # noqa: ANN401 - as above
    """Return how many nanoseconds a column's unit is; None where it is no time."""
    kind = json.loads(column.logical_type.to_json())
    if kind["Type"] == "Timestamp":
        return {"milliseconds": 1_000_000, "microseconds": 1000, "nanoseconds": 1}.get(kind["timeUnit"])
    return 86_400_000_000_000 if kind["Type"] == "Date" else None


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(SourceFile)
