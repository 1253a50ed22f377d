"""
One window's rows to its file, counted on the way for the footer and the report.

Knows the layout of a partition's columns. Knows nothing of how the rows came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from feature_platform.dtypes import to_micros
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.contract import time_columns
from feature_platform.offline.query import first_row, literal, quote, quote_all
from feature_platform.offline.store import METADATA_KEY, TOMBSTONE, OfflineStore, Partition
from feature_platform.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

__all__ = ["PartitionReport", "PartitionWriter"]


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """
    What one window's computation wrote.

    Attributes:
        view: Name of the view.
        window: The window.
        path: Its file.
        partition: What the file's footer says (rows, nulls, time range, generation).
        seconds: Time it took; windows computed together share it evenly.
    """

    view: str
    window: Window
    path: Path
    partition: Partition
    seconds: float

    @property
    def kind(self) -> str:
        """Full or changes."""
        return "full" if self.partition.is_full else "changes"


@dataclass(frozen=True)
class PartitionWriter:
    """
    Writes the rows of windows of one view.

    Attributes:
        connection: Where the rows are.
        view: Whose rows.
        store: Where the files go.
        now: When they were computed, UTC microseconds.
        run_id: Of Dagster.
    """

    connection: duckdb.DuckDBPyConnection
    view: FeatureView
    store: OfflineStore
    now: int
    run_id: str | None

    def write(self, window: Window, rows: str, *, is_full: bool, dropped: int, newest: int | None, seconds: float) -> PartitionReport:
        """
        Write a window's file.

        Args:
            window: Which.
            rows: A SELECT of all the file's columns in order; it is run twice.
            is_full: Whether it is the complete state.
            dropped: Rows left out for a NULL in a key or time.
            newest: Newest source time read, UTC microseconds.
            seconds: Time that computing took.
        """
        names = list(self.view.feature_by_name)
        tombstones = f"count(*) filter (where {quote(TOMBSTONE)})" if self.view.kind is ViewKind.AGGREGATE else "0"
        nulls = "".join(f", count(*) - count({quote(name)})" for name in names)
        times = "epoch_us(min(event_timestamp)), epoch_us(max(event_timestamp))"
        counts = first_row(self.connection, f"select count(*), {tombstones}, {times}{nulls} from ({rows})")
        order = quote_all([*self.view.entity.join_keys, *time_columns(self.view)])
        written: list[Partition] = []

        def copy(path: Path, generation: int) -> None:
            partition = Partition(
                view=self.view.name,
                start=to_micros(window.start),
                end=to_micros(window.end),
                is_full=is_full,
                definition=self.view.definition_hash,
                columns={name: str(feature.type) for name, feature in self.view.feature_by_name.items()},
                kind=str(self.view.kind),
                keys={name: str(dtype) for name, dtype in self.view.entity.keys.items()},
                has_created_timestamp=self.view.has_created_timestamp,
                generation=generation,
                rows=counts[0],
                tombstones=counts[1],
                dropped=dropped,
                nulls=dict(zip(names, counts[4:], strict=True)),
                min_event_timestamp=counts[2],
                max_event_timestamp=counts[3],
                newest_source_timestamp=newest,
                computed_at=self.now,
                run_id=self.run_id,
            )
            self.connection.execute(
                f"copy (select * from ({rows}) order by {order}) to {literal(str(path))} "
                f"(format parquet, compression zstd, kv_metadata {{{METADATA_KEY}: {literal(partition.to_json())}}})"
            )
            written.append(partition)

        self.store.replace(self.view, window, copy)
        path = self.store.path(self.view, window)
        return PartitionReport(view=self.view.name, window=window, path=path, partition=written[0], seconds=seconds)
