"""
Training sets: entity rows of any common form in, the same rows with features out, evaluated when a form is asked for.

Knows pandas, polars, Arrow and Parquet as ways in and out. The join itself is `point_in_time`'s.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.errors import EntityRowsError
from feature_platform.offline.card import CardFile, Tally, card_views, content_sha256, file_sha256, write_card
from feature_platform.offline.point_in_time import TIME, Question, drop_spine, join_features, load_spine, output_names
from feature_platform.offline.query import first_row

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds

    from feature_platform.offline.card import Bounds, CardView
    from feature_platform.offline.store import OfflineStore

__all__ = ["EntityRows", "HistoricalFeatures", "parquet_files"]

EntityRows: TypeAlias = "pd.DataFrame | pl.DataFrame | pa.Table | duckdb.DuckDBPyRelation | str | os.PathLike[str]"
Connect: TypeAlias = Callable[[], contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]]
_BATCH_ROWS = 100_000


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
        self._rows = _Rows.of(entity_df, list(question.join_keys))
        self._names = output_names(question, self._rows.columns)

    def __repr__(self) -> str:
        """Say what is asked."""
        return f"HistoricalFeatures({', '.join(map(str, self._question.refs))}; to_arrow(), to_pandas(), to_polars(), to_parquet(path))"

    @property
    def features(self) -> pa.Table:
        """The feature columns alone, a row for each entity row."""
        return self._features(self._rows)

    def to_arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        rows = self._rows.held()
        table, features = rows.to_arrow(), self._features(rows)
        for name in features.column_names:
            table = table.append_column(features.schema.field(name), features.column(name))
        return table

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a DataFrame, with the index of a pandas input; integers with gaps stay exact (`Int64`)."""
        import pandas as pd  # noqa: PLC0415 - slow to import, and only for those who ask for it

        rows = self._rows.held()
        features = self._features(rows).to_pandas(types_mapper=_exact_dtypes().get)
        frame = rows.to_pandas()
        features.index = frame.index
        joined: pd.DataFrame = pd.concat([frame, features], axis=1)
        return joined

    def to_polars(self) -> pl.DataFrame:
        """Return the rows as a polars DataFrame."""
        import polars as pl  # noqa: PLC0415 - an extra

        rows = self._rows.held()
        frame = rows.given if isinstance(rows.given, pl.DataFrame) else pl.DataFrame(rows.to_arrow())
        return frame.hstack(pl.DataFrame(self._features(rows)))

    def to_parquet(self, path: str | os.PathLike[str], *, card: bool = False) -> int:
        """
        Write the rows to one Parquet file, streamed; a file that is there is replaced when the new one is whole.

        Args:
            path: The file.
            card: Whether to write `<path>.card.json` too: the features, code versions, partition versions, counts and SHA-256
                sums from which `fp verify` tells whether the rows would come out the same today.

        Returns:
            The number of rows.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        rows = 0
        tally, read = Tally(has_statuses=self._question.statuses), _Read()
        try:
            with self._rows.spooled(target.parent) as held, contextlib.ExitStack() as stack:
                given = self._given(held, target.parent) if card else None
                reader = stack.enter_context(self._reader(held, read if card else None))
                batches = stack.enter_context(held.batches())
                slices = _Slices(batches)
                schema = pa.schema([*batches.schema, *reader.schema])
                with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                    for features in reader:
                        taken = slices.take(features.num_rows)
                        whole = pa.Table.from_arrays([*taken.columns, *pa.Table.from_batches([features]).columns], schema=schema)
                        writer.write_table(whole)
                        rows += features.num_rows
                        if card:
                            tally.add(features)
            sha256 = file_sha256(temporary) if card else ""
            temporary.replace(target)
            if given is not None:
                write_card(
                    target,
                    question=self._question,
                    rows=rows,
                    sha256=sha256,
                    bounds=read.bounds,
                    given=given,
                    columns=batches.schema.names,
                    views=read.views,
                    tally=tally,
                )
        finally:
            temporary.unlink(missing_ok=True)
        return rows

    def _given(self, held: _Rows, folder: Path) -> tuple[str | None, list[CardFile], str | None]:
        """Say what the entity rows are, for a card in a folder: where they come from and what they hold."""
        if self._rows.path is not None:
            files = [CardFile(os.path.relpath(one, folder), file_sha256(one)) for one in self._rows.given]
            return os.path.relpath(self._rows.path, folder), files, None
        with held.batches() as batches:
            return None, [], content_sha256(batches)

    def _features(self, rows: _Rows) -> pa.Table:
        with self._reader(rows) as reader:
            return reader.read_all()

    @contextlib.contextmanager
    def _reader(self, rows: _Rows, read: _Read | None = None) -> Iterator[pa.RecordBatchReader]:
        """Stream the feature columns in the order of the rows, in their declared dtypes; `read` is told what they are read from."""
        schema = pa.schema([pa.field(name, self._type(index)) for index, name in enumerate(self._names)])
        with self._connect() as connection:
            spine = load_spine(connection, rows.relation(connection), self._question.join_keys, given=rows.kind)
            try:
                if read is not None:
                    read.bounds = first_row(connection, f"select epoch_us(min({TIME})), epoch_us(max({TIME})) from {spine}")[:2]
                    read.views = card_views(self._store, self._question, read.bounds)
                sql = join_features(connection, self._store, self._question, spine)
                batches = connection.sql(sql).to_arrow_reader(_BATCH_ROWS)
                yield pa.RecordBatchReader.from_batches(schema, (_cast(batch, schema) for batch in batches))
            finally:
                drop_spine(connection, self._question, spine)

    def _type(self, index: int) -> pa.DataType:
        if not self._question.statuses:
            return self._question.refs[index].feature.type.arrow
        return pa.string() if index % 2 else self._question.refs[index // 2].feature.type.arrow


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema)


def _exact_dtypes() -> dict[pa.DataType, object]:
    """Return the pandas dtypes that hold integers and booleans with gaps."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and only for those who ask for it

    exact: dict[pa.DataType, object] = {pa.bool_(): pd.BooleanDtype()}
    for sign in ("Int", "UInt"):
        for bits in (8, 16, 32, 64):
            exact[pa.type_for_alias(f"{sign.lower()}{bits}")] = getattr(pd, f"{sign}{bits}Dtype")()
    return exact


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """Convert entity rows; only integers with gaps leave numpy's types, where they would become floats."""
    frame: pd.DataFrame = table.to_pandas()
    exact = _exact_dtypes()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and pa.types.is_integer(column.type):
            frame[name] = column.to_pandas(types_mapper=exact.get).array
    return frame


class _Read:
    """What a join reads: the times asked about, and the partitions of each view as they were before it."""

    def __init__(self) -> None:
        self.bounds: Bounds = (None, None)
        self.views: dict[str, CardView] = {}


class _Slices:
    """Cuts a stream of batches into pieces of any length."""

    def __init__(self, batches: pa.RecordBatchReader) -> None:
        self._batches = batches
        self._rest = batches.schema.empty_table()

    def take(self, rows: int) -> pa.Table:
        """Return the next rows."""
        while self._rest.num_rows < rows:
            self._rest = pa.concat_tables([self._rest, pa.Table.from_batches([self._batches.read_next_batch()])])
        taken, self._rest = self._rest.slice(0, rows), self._rest.slice(rows)
        return taken


@dataclass(frozen=True)
class _Rows:
    """The entity rows in the form in which they were given."""

    given: Any
    kind: str
    needed: tuple[str, ...]
    path: str | None = None

    @classmethod
    def of(cls, given: EntityRows, keys: list[str]) -> _Rows:
        needed = (*dict.fromkeys([*keys, "event_timestamp"]),)
        if isinstance(given, (str, os.PathLike)):
            return cls(parquet_files(os.fspath(given)), f"Parquet {os.fspath(given)!r}", needed, os.fspath(given))
        if isinstance(given, pa.RecordBatchReader):
            given = given.read_all()  # a stream is read once; a table as often as it is asked for
        if isinstance(given, pa.RecordBatch):
            given = pa.Table.from_batches([given])
        module = type(given).__module__.partition(".")[0]
        if module == "polars" and hasattr(given, "collect"):
            given = cast("pl.LazyFrame", given).collect()
        known = {"pandas": "pandas", "polars": "polars", "pyarrow": "Arrow"}
        if isinstance(given, duckdb.DuckDBPyRelation):
            kind = "DuckDB relation"
        elif module in known and (hasattr(given, "columns") or hasattr(given, "schema")):
            kind = known[module]
        else:
            message = (
                f"entity_df is {type(given).__name__}.\n"
                "Give a pandas or polars DataFrame, a pyarrow Table, a DuckDB relation, or a path to Parquet."
            )
            raise EntityRowsError(message, field="entity_df")
        rows = cls(given, kind, needed)
        twice = {name for name in rows.columns if rows.columns.count(name) > 1}
        if twice:
            message = f"entity_df has several columns named {min(twice, key=str)!r}.\nRename them."
            raise EntityRowsError(message, field="entity_df")
        return rows

    @cached_property
    def columns(self) -> list[str]:
        if isinstance(self.given, list):
            return list(self._dataset.schema.names)
        if isinstance(self.given, pa.Table):
            return list(self.given.column_names)
        return list(self.given.columns)

    @cached_property
    def _dataset(self) -> ds.Dataset:
        import pyarrow.dataset as ds  # noqa: PLC0415 - loads pandas, which Dagster's code server does without

        return ds.dataset(self.given, format="parquet")

    def held(self) -> _Rows:
        """
        Return the same rows in a form that can be read twice.

        A relation is a query: run again, it may return its rows in another order, and other rows.
        """
        return replace(self, given=self._arrow(None)) if isinstance(self.given, duckdb.DuckDBPyRelation) else self

    @contextlib.contextmanager
    def spooled(self, folder: Path) -> Iterator[_Rows]:
        """Hand out the same rows in a form that can be read twice, in bounded memory: a relation goes through a file."""
        if not isinstance(self.given, duckdb.DuckDBPyRelation):
            yield self
            return
        spool = folder / f".entity_df.{secrets.token_hex(4)}.tmp"
        try:
            with self.batches() as batches, pq.ParquetWriter(spool, batches.schema, compression="zstd") as writer:
                for batch in batches:
                    writer.write_batch(batch)
            yield replace(self, given=[str(spool)])
        finally:
            spool.unlink(missing_ok=True)

    def relation(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """
        Return the columns that the join needs, on a connection of ours.

        Only those, since others may differ from them in case; all, where one is missing, for the error to suggest from.
        """
        names = list(self.needed) if set(self.needed) <= set(self.columns) else self.columns
        if isinstance(self.given, list):
            return connection.from_arrow(self._dataset.scanner(columns=names, batch_size=_BATCH_ROWS).to_reader())
        return connection.from_arrow(self._arrow(names))

    def to_arrow(self) -> pa.Table:
        return self._arrow(None)

    def to_pandas(self) -> pd.DataFrame:
        if self.kind == "pandas":
            frame: pd.DataFrame = self.given.copy()
            return frame
        return _to_pandas(self.to_arrow())

    @contextlib.contextmanager
    def batches(self) -> Iterator[pa.RecordBatchReader]:
        if isinstance(self.given, list):
            yield self._dataset.scanner(batch_size=_BATCH_ROWS).to_reader()
        elif isinstance(self.given, duckdb.DuckDBPyRelation):
            yield self.given.to_arrow_reader(_BATCH_ROWS)
        else:
            yield self.to_arrow().to_reader(_BATCH_ROWS)

    def _arrow(self, columns: list[str] | None) -> pa.Table:
        """Return all columns, or some."""
        try:
            if isinstance(self.given, list):
                return self._dataset.to_table(columns=columns)
            if isinstance(self.given, pa.Table):
                return self.given if columns is None else self.given.select(columns)
            if self.kind == "pandas":
                frame = self.given if columns is None else self.given[columns]
                return pa.Table.from_pandas(frame, preserve_index=False)
            if self.kind == "polars":
                return (self.given if columns is None else self.given.select(columns)).to_arrow()
            return self.given.to_arrow_table()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            message = f"entity_df has a column that is not of one type: {exc}"
            raise EntityRowsError(message, field="entity_df") from exc


def parquet_files(path: str) -> list[str]:
    """
    Return the Parquet files of a path, a folder or a pattern, in the order of their names.

    Raises:
        EntityRowsError: There is none.
    """
    pattern = str(Path(glob.escape(path)) / "*.parquet") if Path(path).is_dir() else path
    found = sorted(glob.glob(pattern, recursive=True)) or [path]
    if not all(Path(one).is_file() for one in found):
        message = f"entity_df {path!r}: there is no such Parquet file."
        raise EntityRowsError(message, field="entity_df")
    return found
