"""
The middles of blocks, kept from run to run: of the aggregates that have no running total.

A file stands for the source's files that it was made of; where those are others today it is made anew. Nothing is lost with it.
Knows files. What a middle is, is `redone`'s.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.dtypes import from_micros
from feature_platform.offline.inputs import fingerprints
from feature_platform.offline.partition import METADATA_KEY
from feature_platform.offline.query import literal, parquet
from feature_platform.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

    from feature_platform.offline.redone import Redone
    from feature_platform.offline.sources import SourceViews
    from feature_platform.offline.writer import PartitionWriter

__all__ = ["make_middle"]

_FOLDER: Final = "_middles"
_VERSION: Final = 1
_KEPT: Final = 3


def make_middle(writer: PartitionWriter, sources: SourceViews, redone: Redone, table: str, points: str, *, is_last: bool) -> None:
    """
    Fill a table with the middle of a block.

    Args:
        writer: Has the connection, and knows where the view's files are.
        sources: Of the view.
        redone: Of the block.
        table: Name of a temporary table.
        points: A table of the keys that are asked for next.
        is_last: Whether this run asks for nothing after that: of a kept middle, those keys are read; a new one is kept for runs to come.
    """
    block, connection, keys = redone.block, writer.connection, redone.points.keys
    assert block is not None  # noqa: S101 - the caller asked
    start = from_micros(block.start)
    before = Window(from_micros(block.start - block.width), start)
    inputs = fingerprints(writer.view, sources.files, [before], from_micros(writer.now))[before]
    stands_for = json.dumps([_VERSION, inputs, writer.view.definition_hash, redone.points.layout.hash])
    path = writer.store.folder(writer.view) / _FOLDER / f"{block.start}.{block.width}.parquet"
    create = f"create or replace temp table {table} as"
    if _stands_for(path) == stands_for:
        try:
            only = f" semi join {points} using ({', '.join(keys)})" if is_last and keys else ""
            connection.execute(f"{create} select * from {parquet([path])}{only}")
        except duckdb.Error:
            pass  # another run removed it, or the disk lost some of it
        else:
            if _stands_for(path) == stands_for:  # still: another run may have put in what it makes of other files
                return
    sources.show(from_micros(min(block.low(one) for one in redone.shared)), start, known=start)
    connection.execute(f"{create} {redone.middle(f'select * from ({redone.points.events()}) where __known <= {block.start}')}")
    if not is_last:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    try:
        order = f" order by {', '.join(keys)}" if keys else ""
        connection.execute(
            f"copy (select * from {table}{order}) to {literal(str(temporary))} "
            f"(format parquet, compression zstd, kv_metadata {{{METADATA_KEY}: {literal(stands_for)}}})"
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _forget_all_but_newest(path.parent)


def _stands_for(path: Path) -> str | None:
    try:
        return str((pq.read_metadata(path).metadata or {})[METADATA_KEY.encode()].decode())
    except (OSError, pa.ArrowInvalid, KeyError):
        return None


def _forget_all_but_newest(folder: Path) -> None:
    """Leave a few: a backfill of old windows does not take the file of today's from the schedule."""
    with contextlib.suppress(FileNotFoundError):  # another run is at it
        for path in sorted(folder.glob("*.parquet"), key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT:]:
            path.unlink(missing_ok=True)
