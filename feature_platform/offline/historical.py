"""
Training sets: entity rows of any common form in, the same rows with features out, evaluated when a form is asked for.

Knows pandas, polars, Arrow and Parquet as ways out. The join itself is `asof`'s, in buckets `buckets`'s.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.errors import EntityRowsError, suggest
from feature_platform.offline.asof import drop_spine, join_views
from feature_platform.offline.buckets import Buckets, join_in_buckets
from feature_platform.offline.card import CardFile, Tally, card_views, content_sha256, file_sha256, write_card
from feature_platform.offline.entity_frame import BATCH_ROWS, GivenRows, Slices, exact_dtypes
from feature_platform.offline.explanation import JoinExplanation, explain_join
from feature_platform.offline.join_plan import plan_views
from feature_platform.offline.query import first_row
from feature_platform.offline.question import ROW, TIME, Question, load_spine, output_names

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from feature_platform.offline.card import Bounds, CardView
    from feature_platform.offline.entity_frame import EntityRows
    from feature_platform.offline.store import OfflineStore

__all__ = ["HistoricalFeatures"]

Connect: TypeAlias = Callable[[], contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]]
Progress: TypeAlias = Callable[[str, int, int], None]
_MOST_FOLDERS = 10_000
_WAITING_TABLES = 8


class HistoricalFeatures:
    """
    The answer to a point-in-time question; nothing is read until one of the `to_` methods is called, and each call reads anew.

    One row out for each row in, in the same order, every input column untouched (law L1), and one column more for each
    feature, in the order asked.
    """

    def __init__(self, connect: Connect, store: OfflineStore, entity_df: EntityRows, question: Question) -> None:
        self._connect = connect
        self._store = store
        self._question = question
        self._rows = GivenRows.of(entity_df, list(question.join_keys))
        self._names = output_names(question, self._rows.columns)

    def __repr__(self) -> str:
        """Say what is asked."""
        return f"HistoricalFeatures({', '.join(map(str, self._question.refs))}; to_arrow(), to_pandas(), to_polars(), to_parquet(path))"

    @property
    def features(self) -> pa.Table:
        """The feature columns alone, a row for each entity row."""
        return self._features(self._rows)

    def to_arrow(self, *, progress: Progress | None = None) -> pa.Table:
        """
        Return the rows as an Arrow table.

        Args:
            progress: Called with what is done, how much of it is, and how much there is to do.
        """
        rows = self._rows.held()
        table, features = rows.to_arrow(), self._features(rows, progress)
        for name in features.column_names:
            table = table.append_column(features.schema.field(name), features.column(name))
        return table

    def to_pandas(self, *, progress: Progress | None = None) -> pd.DataFrame:
        """Return the rows as a DataFrame, with the index of a pandas input; integers with gaps stay exact (`Int64`)."""
        import pandas as pd  # noqa: PLC0415 - slow to import, and only for those who ask for it

        rows = self._rows.held()
        features = self._features(rows, progress).to_pandas(types_mapper=exact_dtypes().get)
        frame = rows.to_pandas()
        features.index = frame.index
        joined: pd.DataFrame = pd.concat([frame, features], axis=1)
        return joined

    def to_polars(self, *, progress: Progress | None = None) -> pl.DataFrame:
        """Return the rows as a polars DataFrame."""
        import polars as pl  # noqa: PLC0415 - an extra

        rows = self._rows.held()
        frame = rows.given if isinstance(rows.given, pl.DataFrame) else pl.DataFrame(rows.to_arrow())
        return frame.hstack(pl.DataFrame(self._features(rows, progress)))

    def to_parquet(
        self,
        path: str | os.PathLike[str],
        *,
        partition_by: Sequence[str] = (),
        card: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """
        Write the rows to Parquet, streamed; what is there is replaced when the new rows are whole.

        Args:
            path: The file; with `partition_by` a folder.
            partition_by: Columns whose values become folders, `column=value`, in Hive's manner; they are not in the files.
            card: Whether to write `<path>.card.json` too: the features, code versions, partition versions, counts and SHA-256
                sums from which `fp verify` tells whether the rows would come out the same today.
            progress: Called with what is done, how much of it is, and how much there is to do.

        Returns:
            The number of rows.

        Raises:
            EntityRowsError: `partition_by` names no column, or all of them; or a card is asked for that cannot be made again from.
            FileExistsError: The folder holds something else than such rows.
        """
        target = Path(path)
        self._check_out(target, partition_by, card=card)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        tally, read = Tally(has_statuses=self._question.statuses), _Read()
        try:
            with self._rows.spooled(target.parent) as held, contextlib.ExitStack() as stack:
                given = self._given(held, target.parent) if card else None
                reader = stack.enter_context(self._reader(held, read, progress, with_card=card))
                batches = stack.enter_context(held.batches())
                schema = pa.schema([*batches.schema, *reader.schema])
                whole = _side_by_side(batches, reader, schema, tally if card else None)
                written = _counted(whole, read, progress)
                if partition_by:
                    _write_folders(temporary, schema, written, partition_by)
                else:
                    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                        _write_behind(writer, written)
            sha256 = file_sha256(temporary) if card else ""
            _put_in_place(temporary, target)
            if given is not None:
                write_card(
                    target,
                    question=self._question,
                    rows=read.written,
                    sha256=sha256,
                    bounds=read.bounds,
                    given=given,
                    columns=batches.schema.names,
                    views=read.views,
                    tally=tally,
                )
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
        return read.written

    def _check_out(self, target: Path, partition_by: Sequence[str], *, card: bool) -> None:
        if card and self._question.labels:
            message = "a card does not speak of labels.\nWrite the set without a card, or the labels into a set of their own."
            raise EntityRowsError(message, field="card")
        if not partition_by:
            return
        columns = [*self._rows.columns, *self._names]
        for name in partition_by:
            if name not in columns:
                message = f"partition_by names {name!r}, which is no column of the result.\n{suggest(name, columns, has='It has')}"
                raise EntityRowsError(message, field="partition_by")
        if set(columns) <= set(partition_by):
            message = "partition_by names every column, and leaves none for the files.\nLeave one out."
            raise EntityRowsError(message, field="partition_by")
        if card:
            message = "a card speaks of one file: partition_by makes several.\nWrite one file with its card, or folders without one."
            raise EntityRowsError(message, field="partition_by")
        others = [one.name for one in target.iterdir() if not one.name.startswith(f"{partition_by[0]}=")] if target.is_dir() else []
        if others or target.is_file():
            message = f"{target} is there already and holds {others[0] if others else 'a file'}.\nName a folder of its own for the rows."
            raise FileExistsError(message)

    def _given(self, held: GivenRows, folder: Path) -> tuple[str | None, list[CardFile], str | None]:
        """Say what the entity rows are, for a card in a folder: where they come from and what they hold."""
        if self._rows.path is not None:
            files = [CardFile(os.path.relpath(one, folder), file_sha256(one)) for one in self._rows.given]
            return os.path.relpath(self._rows.path, folder), files, None
        with held.batches() as batches:
            return None, [], content_sha256(batches)

    def _features(self, rows: GivenRows, progress: Progress | None = None) -> pa.Table:
        with self._reader(rows, _Read(), progress) as reader:
            return reader.read_all()

    def explain(self) -> JoinExplanation:
        """Say what running it will read and hold, without reading a row of any history; the entity rows' times are looked at."""
        with self._connect() as connection:
            rows, earliest, latest = self._rows.extent(connection)
            plans = plan_views(self._store, self._question, (earliest, latest))
            return explain_join(plans, rows, *_bounds_of(connection))

    @contextlib.contextmanager
    def _reader(
        self, rows: GivenRows, read: _Read, progress: Progress | None = None, *, with_card: bool = False
    ) -> Iterator[pa.RecordBatchReader]:
        """Stream the feature columns in the order of the rows, in their declared dtypes; `read` is told what they are read from."""
        schema = pa.schema([pa.field(name, self._type(index)) for index, name in enumerate(self._names)])
        with self._connect() as connection, contextlib.ExitStack() as stack:
            spine = load_spine(connection, rows.relation(connection), self._question.join_keys, given=rows.kind)
            count, *bounds = first_row(connection, f"select count(*), epoch_us(min({TIME})), epoch_us(max({TIME})) from {spine}")
            read.rows, read.bounds = count, (bounds[0], bounds[1])
            if with_card:
                read.views = card_views(self._store, self._question, read.bounds)
            plans = plan_views(self._store, self._question, tuple(bounds))
            stack.callback(drop_spine, connection, plans, spine)
            planned = explain_join(plans, count, *_bounds_of(connection))
            if planned.spills:
                connection.execute("set memory_limit = ?", [planned.step_limit])
            if planned.buckets == 1:
                joined = join_views(connection, plans, spine, ranges=[view.ranges for view in planned.views], progress=progress)
                selects: Iterable[str] = [f"select * exclude ({ROW}) from ({joined}) order by {ROW}"]
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="feature_platform_"))
                buckets = Buckets(folder=folder, count=planned.buckets, memory_limit=planned.step_limit, threads=planned.threads)
                selects = join_in_buckets(connection, buckets, plans, spine, count, self._names, progress)
            batches = _batches(connection, selects, schema)
            stack.callback(batches.close)  # a result that was not read to its end would keep the tables from being dropped
            yield pa.RecordBatchReader.from_batches(schema, batches)

    def _type(self, index: int) -> pa.DataType:
        if not self._question.statuses:
            return self._question.columns[index].feature.type.arrow
        return pa.string() if index % 2 else self._question.columns[index // 2].feature.type.arrow


def _bounds_of(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """Return DuckDB's memory limit in bytes, and its threads."""
    limit, threads = first_row(connection, "select current_setting('memory_limit'), current_setting('threads')")
    return first_row(connection, "select parse_formatted_bytes(?)", [limit])[0], int(threads)


def _batches(connection: duckdb.DuckDBPyConnection, selects: Iterable[str], schema: pa.Schema) -> Generator[pa.RecordBatch, None, None]:
    """Yield the rows of one SELECT after the other."""
    for sql in selects:
        with connection.sql(sql).to_arrow_reader(BATCH_ROWS) as reader:
            for batch in reader:
                yield _cast(batch, schema)


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema)


class _Read:
    """What a join reads and writes: the rows and times asked about, the partitions of each view as they were before it."""

    def __init__(self) -> None:
        self.rows = self.written = 0
        self.bounds: Bounds = (None, None)
        self.views: dict[str, CardView] = {}


def _side_by_side(
    batches: pa.RecordBatchReader, reader: pa.RecordBatchReader, schema: pa.Schema, tally: Tally | None
) -> Iterator[pa.Table]:
    """Yield the entity rows with their features."""
    slices = Slices(batches)
    for features in reader:
        taken = slices.take(features.num_rows)
        if tally is not None:
            tally.add(features)
        yield pa.Table.from_arrays([*taken.columns, *pa.Table.from_batches([features]).columns], schema=schema)


def _counted(tables: Iterable[pa.Table], read: _Read, progress: Progress | None) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        read.written += table.num_rows
        if progress:
            progress("writing", read.written, read.rows)


def _write_behind(writer: pq.ParquetWriter, tables: Iterable[pa.Table]) -> None:
    """Write tables in their order, in a thread, while those after them are made."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for table in tables:
                waiting.append(thread.submit(writer.write_table, table))
                if len(waiting) > _WAITING_TABLES:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        except BaseException:
            for one in waiting:  # would fail in another way, or be written for nothing
                one.cancel()
            raise


def _write_folders(folder: Path, schema: pa.Schema, tables: Iterable[pa.Table], partition_by: Sequence[str]) -> None:
    import pyarrow.dataset as ds  # noqa: PLC0415 - loads pandas, which Dagster's code server does without

    batches = (batch for table in tables for batch in table.to_batches())
    ds.write_dataset(
        pa.RecordBatchReader.from_batches(schema, batches),
        folder,
        format="parquet",
        file_options=ds.ParquetFileFormat().make_write_options(compression="zstd"),
        partitioning=ds.partitioning(pa.schema([schema.field(name) for name in partition_by]), flavor="hive"),
        basename_template="part-{i}.parquet",
        max_partitions=_MOST_FOLDERS,
        use_threads=False,  # keeps the order of rows
    )


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename a file over another, or a folder into the place of another, which is moved aside before."""
    if not target.is_dir():
        temporary.replace(target)
        return
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    target.replace(aside)
    try:
        temporary.replace(target)
    except OSError:
        aside.replace(target)
        raise
    shutil.rmtree(aside)
