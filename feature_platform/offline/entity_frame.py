"""
The rows that a training set is asked about, in whatever form they were given.

Knows pandas, polars, Arrow, DuckDB relations and Parquet as ways in. Knows nothing of features.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.errors import EntityRowsError
from feature_platform.offline.query import first_row, floor_micros, type_family

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds

__all__ = ["BATCH_ROWS", "EntityRows", "GivenRows", "Slices", "exact_dtypes", "parquet_files"]

EntityRows: TypeAlias = "pd.DataFrame | pl.DataFrame | pa.Table | duckdb.DuckDBPyRelation | str | os.PathLike[str]"
BATCH_ROWS = 100_000


def exact_dtypes() -> dict[pa.DataType, object]:
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
    exact = exact_dtypes()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and pa.types.is_integer(column.type):
            frame[name] = column.to_pandas(types_mapper=exact.get).array
    return frame


class Slices:
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
class GivenRows:
    """The entity rows in the form in which they were given."""

    given: Any
    kind: str
    needed: tuple[str, ...]
    path: str | None = None

    @classmethod
    def of(cls, given: EntityRows, keys: list[str]) -> GivenRows:
        """
        Take rows as they were given.

        Args:
            given: The rows.
            keys: Join keys that will be needed.

        Raises:
            EntityRowsError: It is no such form, or has two columns of one name.
        """
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
        """Their names, in order."""
        if self._file is not None:
            return list(self._file.schema_arrow.names)
        if isinstance(self.given, list):
            return list(self._dataset.schema.names)
        if isinstance(self.given, pa.Table):
            return list(self.given.column_names)
        return list(self.given.columns)

    @cached_property
    def _file(self) -> pq.ParquetFile | None:
        """The one file that was given; read without `pyarrow.dataset`, which loads pandas: a fifth of a second."""
        file = pq.ParquetFile(self.given[0]) if isinstance(self.given, list) and len(self.given) == 1 else None
        # Such a name would be taken for a field of a struct.
        return file if file is not None and not any("." in name for name in file.schema_arrow.names) else None

    def _stream(self, columns: list[str] | None) -> pa.RecordBatchReader:
        """Return all columns of the file, or some."""
        file = pq.ParquetFile(self.given[0])
        names = file.schema_arrow.names if columns is None else columns
        schema = pa.schema([file.schema_arrow.field(name) for name in file.schema_arrow.names if name in set(names)])
        return pa.RecordBatchReader.from_batches(schema, file.iter_batches(BATCH_ROWS, columns=schema.names))

    @cached_property
    def _dataset(self) -> ds.Dataset:
        import pyarrow.dataset as ds  # noqa: PLC0415 - loads pandas, which Dagster's code server does without

        return ds.dataset(self.given, format="parquet")

    def held(self) -> GivenRows:
        """
        Return the same rows in a form that can be read twice.

        A relation is a query: run again, it may return its rows in another order, and other rows.
        """
        return replace(self, given=self._arrow(None)) if isinstance(self.given, duckdb.DuckDBPyRelation) else self

    @contextlib.contextmanager
    def spooled(self, folder: Path) -> Iterator[GivenRows]:
        """Hand out the same rows in a form that can be read twice, in bounded memory: a relation goes through a file."""
        if not isinstance(self.given, duckdb.DuckDBPyRelation):
            yield self
            return
        spool = folder / f".entity_df.{secrets.token_hex(4)}.tmp"
        try:
            with _explaining(), self.batches() as batches, pq.ParquetWriter(spool, batches.schema, compression="zstd") as writer:
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
        if self._file is not None:
            return connection.from_arrow(self._stream(names))
        if isinstance(self.given, list):
            return connection.from_arrow(self._dataset.scanner(columns=names, batch_size=BATCH_ROWS).to_reader())
        return connection.from_arrow(self._arrow(names))

    def extent(self, connection: duckdb.DuckDBPyConnection) -> tuple[int, int | None, int | None]:
        """Return how many rows there are, and their earliest and latest time in UTC microseconds."""
        relation = self.relation(connection)
        kinds = dict(zip(relation.columns, relation.types, strict=True))
        if "event_timestamp" not in kinds or type_family(kinds["event_timestamp"]) not in {"datetime", "date"}:
            return len(relation), None, None
        name = f"extent_{secrets.token_hex(4)}"
        relation.create_view(name)
        try:
            time = floor_micros("event_timestamp", str(kinds["event_timestamp"]))
            row = first_row(connection, f"select count(*), epoch_us(min({time})), epoch_us(max({time})) from {name}")
        finally:
            connection.execute(f"drop view {name}")
        return row[0], row[1], row[2]

    def to_arrow(self) -> pa.Table:
        """Return all columns as an Arrow table."""
        return self._arrow(None)

    def to_pandas(self) -> pd.DataFrame:
        """Return all columns as a DataFrame, a copy of a given one."""
        if self.kind == "pandas":
            frame: pd.DataFrame = self.given.copy()
            return frame
        return _to_pandas(self.to_arrow())

    @contextlib.contextmanager
    def batches(self) -> Iterator[pa.RecordBatchReader]:
        """Hand out all columns as a stream."""
        if self._file is not None:
            yield self._stream(None)
        elif isinstance(self.given, list):
            yield self._dataset.scanner(batch_size=BATCH_ROWS).to_reader()
        elif isinstance(self.given, duckdb.DuckDBPyRelation):
            yield self.given.to_arrow_reader(BATCH_ROWS)
        else:
            yield self.to_arrow().to_reader(BATCH_ROWS)

    def _arrow(self, columns: list[str] | None) -> pa.Table:
        """Return all columns, or some."""
        try:
            if self._file is not None:
                table = pq.ParquetFile(self.given[0]).read(columns=columns)
                return table if columns is None else table.select(columns)
            if isinstance(self.given, list):
                return self._dataset.to_table(columns=columns)
            if isinstance(self.given, pa.Table):
                return self.given if columns is None else self.given.select(columns)
            if self.kind == "pandas":
                frame = self.given if columns is None else self.given[columns]
                return pa.Table.from_pandas(frame, preserve_index=False)
            if self.kind == "polars":
                return (self.given if columns is None else self.given.select(columns)).to_arrow()
            with _explaining():
                return self.given.to_arrow_table()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            message = f"entity_df has a column that is not of one type: {exc}"
            raise EntityRowsError(message, field="entity_df") from exc


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Say that it is the entity rows' own query that DuckDB cannot answer: a relation is run when it is read."""
    try:
        yield
    except (duckdb.DataError, duckdb.ProgrammingError) as exc:
        message = f"entity_df cannot be read: {exc}\nCorrect its query, or the rows that it reads."
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
        message = f"entity_df {path!r}: there is no such Parquet file.\nA query begins with select, with, from or values."
        raise EntityRowsError(message, field="entity_df")
    return found
