"""
One window's rows to its file, past the gate, counted on the way for the footer and the report.

Knows the layout of a partition's columns, and when two files hold the same. Knows nothing of how the rows came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from feature_platform.dtypes import to_micros
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.attempts import Attempt
from feature_platform.offline.contract import time_columns
from feature_platform.offline.gate import ExpectationFailure, failed_expectations
from feature_platform.offline.history import partition_rows
from feature_platform.offline.partition import ROW_GROUP
from feature_platform.offline.query import first_row, literal, parquet, quote, quote_all
from feature_platform.offline.store import METADATA_KEY, TOMBSTONE, OfflineStore, Partition
from feature_platform.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

__all__ = ["Outcome", "PartitionReport", "PartitionWriter"]

_CHANGES = "feature_platform__changes"
_LEAST_ROW_GROUP = 16_384

Outcome: TypeAlias = Literal["written", "unchanged", "rejected"]


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """
    What one window's computation came to.

    Attributes:
        view: Name of the view.
        window: The window.
        path: Its file; of rejected rows, where they are kept for a look.
        partition: What the file's footer says (rows, nulls, time range, generation).
        seconds: Time it took; windows computed together share it evenly.
        outcome: "written"; "unchanged", where the window's file holds the same rows and was left alone; or "rejected", where the
            rows break an expectation: readers see what they saw before.
        failures: The expectations that are broken.
    """

    view: str
    window: Window
    path: Path
    partition: Partition
    seconds: float
    outcome: Outcome = "written"
    failures: tuple[ExpectationFailure, ...] = ()

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
        inputs: Fingerprint of the source files that each window reads.
    """

    connection: duckdb.DuckDBPyConnection
    view: FeatureView
    store: OfflineStore
    now: int
    run_id: str | None
    inputs: Mapping[Window, str] = field(default_factory=dict)

    def write(
        self,
        window: Window,
        rows: str,
        *,
        is_full: bool,
        dropped: int,
        newest: int | None,
        seconds: float,
        accumulators: str | None = None,
    ) -> PartitionReport:
        """
        Write a window's file.

        Args:
            window: Which.
            rows: A SELECT of all the file's columns in order; it is run twice.
            is_full: Whether it is the complete state.
            dropped: Rows left out for a NULL in a key or time.
            newest: Newest source time read, UTC microseconds.
            seconds: Time that computing took.
            accumulators: Layout of the running totals among the rows' columns.
        """
        names = list(self.view.feature_by_name)
        tombstones = f"count(*) filter (where {quote(TOMBSTONE)})" if self.view.kind is ViewKind.AGGREGATE else "0"
        nulls = "".join(f", count(*) - count({quote(name)})" for name in names)
        times = "epoch_us(min(event_timestamp)), epoch_us(max(event_timestamp))"
        counts = first_row(self.connection, f"select count(*), {tombstones}, {times}{nulls} from ({rows})")
        order = quote_all([*self.view.entity.join_keys, *time_columns(self.view)])
        failures = failed_expectations(self.connection, self.view, rows)
        inputs = self.inputs.get(window)
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
                inputs=inputs,
                accumulators=accumulators,
            )
            self.connection.execute(
                f"copy (select * from ({rows}) order by {order}) to {literal(str(path))} "
                f"(format parquet, compression zstd, row_group_size {_row_group(counts[0])}, "
                f"kv_metadata {{{METADATA_KEY}: {literal(partition.to_json())}}})"
            )
            written.append(partition)

        def report(path: Path, partition: Partition, outcome: Outcome) -> PartitionReport:
            return PartitionReport(
                view=self.view.name, window=window, path=path, partition=partition, seconds=seconds, outcome=outcome, failures=failures
            )

        if failures:
            path = self.store.attempts.reject(self.view, window, copy)
            self.store.attempts.keep(self.view, window, self._attempt(window, "rejected", failures))
            return report(path, written[0], "rejected")
        path, attempt = self.store.path(self.view, window), self._attempt(window, "unchanged")
        differ = partial(self._differ, is_full=is_full, accumulators=accumulators)
        if self.store.replace(self.view, window, copy, differ=differ, unchanged=attempt):
            return report(path, written[0], "written")
        return report(path, self.store.partition(self.view, window) or written[0], "unchanged")

    def _attempt(self, window: Window, outcome: Literal["unchanged", "rejected"], failures: tuple[ExpectationFailure, ...] = ()) -> Attempt:
        return Attempt(
            outcome=outcome,
            inputs=self.inputs.get(window),
            definition=self.view.definition_hash,
            expectations=self.view.expectations,
            computed_at=self.now,
            run_id=self.run_id,
            problems=[str(failure) for failure in failures],
        )

    def _differ(self, new: Path, current: Partition, changes: Path, *, is_full: bool, accumulators: str | None) -> bool:
        """
        Write the keys whose rows are not the same in a new file and in what is there; return whether they differ.

        Rows of another definition, or with other running totals, differ in all their keys: their columns may mean something else.
        """
        is_alike = current.definition == self.view.definition_hash and current.is_full == is_full and current.accumulators == accumulators
        keys = quote_all(self.view.entity.join_keys) or "true as whole"
        ours, theirs = f"select * from {parquet([new])}", partition_rows(self.view, self.store, current)
        one_way = f"({ours} except all {theirs})" if is_alike else f"({ours})"
        other_way = f"({theirs} except all {ours})" if is_alike else f"({theirs})"
        changed = f"select {keys} from {one_way} union select {keys} from {other_way}"
        self.connection.execute(f"create or replace temp table {_CHANGES} as {changed}")
        differ = not is_alike or bool(first_row(self.connection, f"select count(*) from temp.{_CHANGES}")[0])
        if differ:
            self.connection.execute(f"copy temp.{_CHANGES} to {literal(str(changes))} (format parquet)")
        self.connection.execute(f"drop table temp.{_CHANGES}")
        return differ


def _row_group(rows: int) -> int:
    """Return how many rows a file's groups hold: each is written, and read, by one thread, so a small file has four of them, too."""
    return min(max(-(-rows // 4), _LEAST_ROW_GROUP), ROW_GROUP)
