"""Training sets: every form in, every form out, and what is refused."""

# ruff: noqa: E501 - tables of cases hold values of every type, one case a line

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offline_project import MICROS, MINUTE, NOW, T0, asked, history_view, store_of, write

from feature_platform import Feature, FeatureStore
from feature_platform.errors import EntityRowsError, UnknownNameError
from feature_platform.offline import historical
from feature_platform.offline.card import read_card
from feature_platform.offline.reproduction import differences

ROWS = 5_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """Open a store of one view: user u<i> has the values i, then NULL."""
    root = tmp_path_factory.mktemp("project")
    times = pa.array([T0 + i % 2 * 60 * MINUTE for i in range(200)], MICROS)
    values = pa.array([None if i % 2 else i // 2 + 2**53 for i in range(200)], pa.int64())
    write(root, pa.table({"user_id": [f"u{i // 2}" for i in range(200)], "event_timestamp": times, "value": values}), "values")
    with store_of(root, history_view(features=[Feature("value", int, default=-1)])) as opened:
        opened.compute(now=NOW)
        yield opened


@pytest.fixture(scope="module")
def entity_df() -> pa.Table:
    """Rows with labels, duplicates, an integer column with gaps past 2^53 and unknown users."""
    noise = random.Random(5)
    return pa.table(
        {
            "label": pa.array([noise.choice([None, 2**53 + 1, -7]) for _ in range(ROWS)], pa.int64()),
            "user_id": [f"u{noise.randrange(110)}" for _ in range(ROWS)],
            "event_timestamp": pa.array([T0 + noise.randrange(-5, 125) * MINUTE for _ in range(ROWS)], MICROS),
            "split": [noise.choice(["train", "test"]) for _ in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def expected(entity_df: pa.Table) -> list[int | None]:
    """Return the answers by hand."""
    found: list[int | None] = []
    for row in entity_df.to_pylist():
        number, minutes = int(row["user_id"][1:]), (row["event_timestamp"] - T0) / MINUTE
        found.append(-1 if number >= 100 or minutes < 0 else number + 2**53 if minutes < 60 else None)
    return found


def as_files(entity_df: pa.Table, folder: Path) -> Path:
    """Write the rows as three files with row groups of odd sizes."""
    folder.mkdir(exist_ok=True)
    for index, (start, stop) in enumerate([(0, 1_700), (1_700, 1_701), (1_701, ROWS)]):
        pq.write_table(entity_df.slice(start, stop - start), folder / f"{index}.parquet", row_group_size=333)
    return folder


def replacement_scan(entity_df: pa.Table, _: Path) -> duckdb.DuckDBPyRelation:
    """Return a relation of the user's own connection over a frame of theirs."""
    frame = entity_df.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'America/New_York'")
    relation = connection.sql("select * from frame")
    assert len(frame) == ROWS
    return relation


FORMS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "arrow": lambda table, _: table,
    "arrow-in-chunks": lambda table, _: pa.concat_tables([table.slice(0, 10), table.slice(10)]),
    "record-batch": lambda table, _: table.combine_chunks().to_batches()[0],
    "record-batch-reader": lambda table, _: table.to_reader(700),
    "pandas": lambda table, _: table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get),
    "polars": lambda table, _: pl.DataFrame(table),
    "polars-lazy": lambda table, _: pl.DataFrame(table).lazy(),
    "duckdb-default-connection": lambda table, _: duckdb.from_arrow(table),
    "duckdb-over-a-frame": replacement_scan,
    "parquet-file": lambda table, folder: str(as_files(table, folder).parent / "one.parquet"),
    "parquet-path": lambda table, folder: as_files(table, folder).parent / "one.parquet",
    "parquet-folder": as_files,
    "parquet-glob": lambda table, folder: f"{as_files(table, folder)}/[0-9].parquet",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_in_and_out_gives_one_answer(
    store: FeatureStore, entity_df: pa.Table, expected: list[int | None], form: Callable[[pa.Table, Path], Any], tmp_path: Path
) -> None:
    """Rows, order and labels are the same whatever they came as and are asked for as; ints with gaps stay exact."""
    pq.write_table(entity_df, tmp_path / "one.parquet")
    answer = store.get_historical_features(form(entity_df, tmp_path / "many"), ["values:value"])
    table = answer.to_arrow()
    assert table["value"].to_pylist() == expected
    assert table.select(entity_df.column_names).to_pylist() == entity_df.to_pylist()
    frame = answer.to_pandas()
    assert [None if one is pd.NA else int(one) for one in frame["value"]] == expected
    assert [None if pd.isna(one) else int(one) for one in frame["label"]] == entity_df["label"].to_pylist()
    polars = answer.to_polars()
    assert polars["value"].to_list() == expected
    assert polars["label"].to_list() == entity_df["label"].to_pylist()
    assert answer.to_parquet(tmp_path / "out.parquet") == ROWS
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == table.to_pylist()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gets_a_card_that_holds(
    store: FeatureStore, entity_df: pa.Table, expected: list[int | None], form: Callable[[pa.Table, Path], Any], tmp_path: Path
) -> None:
    """The card counts what was written, knows where the rows came from, and nothing differs from it; without it there is none."""
    pq.write_table(entity_df, tmp_path / "one.parquet")
    out = tmp_path / "out" / "set.parquet"
    question = store.get_historical_features(form(entity_df, tmp_path / "many"), ["values:value"], statuses=True)
    question.to_parquet(out)
    assert [one.name for one in out.parent.iterdir()] == ["set.parquet"]
    question.to_parquet(out, card=True)
    assert sorted(one.name for one in out.parent.iterdir()) == ["set.parquet", "set.parquet.card.json"]
    card = read_card(out)
    [value] = card.features
    assert (card.rows, value.nulls, sum((value.statuses or {}).values())) == (ROWS, expected.count(None), ROWS)
    assert card.entity_df.columns == entity_df.column_names
    assert (card.entity_df.path is None) == (not card.entity_df.files) == (card.entity_df.sha256 is not None)
    assert differences(card, out, store.registry, store.offline) == []


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_rows_are_an_answer_without_rows(
    store: FeatureStore, entity_df: pa.Table, form: Callable[[pa.Table, Path], Any], tmp_path: Path
) -> None:
    """Zero rows in, zero rows out, with all the columns, in every form."""
    if form is FORMS["record-batch"]:
        given: Any = pa.RecordBatch.from_pylist([], schema=entity_df.schema)
    elif form is replacement_scan:
        given = duckdb.from_arrow(entity_df).filter("false")
    else:
        pq.write_table(entity_df.slice(0, 0), tmp_path / "one.parquet")
        given = form(entity_df.slice(0, 0), tmp_path / "many")
    answer = store.get_historical_features(given, ["values:value"], statuses=True)
    columns = [*entity_df.column_names, "value", "value__status"]
    assert (answer.to_arrow().num_rows, answer.to_arrow().column_names) == (0, columns)
    assert (len(answer.to_pandas()), answer.to_pandas().columns.tolist()) == (0, columns)
    assert (answer.to_polars().height, answer.to_polars().columns) == (0, columns)
    assert answer.to_parquet(tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names == columns


def test_a_relation_is_run_once_an_answer(store: FeatureStore, tmp_path: Path) -> None:
    """A query may return its rows in another order, or other rows, the second time: features stay beside their own row."""
    with duckdb.connect() as connection:
        connection.execute("set threads = 4")
        relation = connection.sql(
            f"select 'u' || (random() * 99)::int as user_id, timestamptz '{T0.isoformat()}' as event_timestamp from range(2000) order by random()"
        )
        answer = store.get_historical_features(relation, ["values:value"])
        answer.to_parquet(tmp_path / "out.parquet")
        for table in (answer.to_arrow(), pa.table(answer.to_polars()), pq.read_table(tmp_path / "out.parquet")):
            assert [int(one[1:]) + 2**53 for one in table["user_id"].to_pylist()] == table["value"].to_pylist()
        frame = answer.to_pandas()
        assert [int(one[1:]) + 2**53 for one in frame["user_id"]] == frame["value"].tolist()
        assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("batch", [1, 7, 2_048, ROWS])
def test_streaming_needs_no_round_number_of_rows(
    store: FeatureStore, entity_df: pa.Table, expected: list[int | None], batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of features and of rows are cut alike, whatever their sizes."""
    monkeypatch.setattr(historical, "BATCH_ROWS", batch)
    rows = ROWS if batch > 1 else 50
    as_files(entity_df, tmp_path / "many")
    pq.write_table(entity_df.slice(0, rows), tmp_path / "one.parquet")
    answer = store.get_historical_features(tmp_path / "one.parquet", ["values:value"])
    answer.to_parquet(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["value"].to_pylist() == expected[:rows]
    answer.to_parquet(tmp_path / "one.parquet")
    assert pq.read_table(tmp_path / "one.parquet")["value"].to_pylist() == expected[:rows], "a file may be replaced by its own answer"


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([3, 3, 1]),
        pd.Index(["a", None, "b"]),
        pd.MultiIndex.from_tuples([(1, "x"), (1, "x"), (2, "y")]),
        pd.date_range("2026", periods=3),
    ],
    ids=["duplicates", "null", "multi", "dates"],
)
def test_a_pandas_index_is_kept(store: FeatureStore, index: Any) -> None:
    """Features are put beside rows by place, never by index."""
    frame = pd.DataFrame({"user_id": ["u3", "u1", "u2"], "event_timestamp": [T0] * 3}, index=index)
    found = store.get_historical_features(frame, ["values:value"]).to_pandas()
    assert found.index.equals(index)
    assert (found["value"] - 2**53).tolist() == [3, 1, 2]
    assert "value" not in frame.columns


def test_pandas_objects_pass_through(store: FeatureStore) -> None:
    """A label that Arrow does not know stays in the frame; asked for in Arrow it is a clear error."""
    frame = pd.DataFrame({"user_id": ["u3", "u1"], "event_timestamp": [T0] * 2, "odd": [{1, 2}, "x"], 7: [1, 2]})
    answer = store.get_historical_features(frame, ["values:value"])
    assert answer.to_pandas()["odd"].tolist() == [{1, 2}, "x"]
    with pytest.raises(EntityRowsError, match="not of one type"):
        answer.to_arrow()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (pa.table({"user_id": ["u1"]}), "has no column 'event_timestamp'"),
        (pa.table({"user_id": ["u1"], "event_time": [T0]}), "Did you mean 'event_time'"),
        (pa.table({"userid": ["u1"], "event_timestamp": [T0]}), "has no column 'user_id'.*\n.*Did you mean 'userid'"),
        (pa.table({"USER_ID": ["u1"], "event_timestamp": [T0]}), "has no column 'user_id'"),
        (pa.table({"user_id": ["u1"], "event_timestamp": ["2026-01-01"]}), "event_timestamp is VARCHAR, not a time"),
        (pa.table({"user_id": ["u1"], "event_timestamp": [1]}), "event_timestamp is BIGINT, not a time"),
        (pa.table([pa.array(["u1"]), pa.array(["u1"]), pa.array([T0])], names=["user_id", "user_id", "event_timestamp"]), "several columns named 'user_id'"),
        (pd.DataFrame([["u1", 1, 2, T0]], columns=["user_id", "x", "x", "event_timestamp"]), "several columns named 'x'"),
        (pd.DataFrame({"user_id": ["u1", 2], "event_timestamp": [T0] * 2}), "not of one type"),
        (pd.DataFrame({"event_timestamp": [T0]}, index=pd.Index(["u1"], name="user_id")), "has no column 'user_id'"),
        ([{"user_id": "u1"}], "entity_df is list"),
        (None, "entity_df is NoneType"),
        ("no/such.parquet", "there is no such Parquet file"),
        ("no/such*.parquet", "there is no such Parquet file"),
    ],
    ids=["no-time", "near-time", "near-key", "key-in-capitals", "text-time", "int-time", "key-twice", "label-twice", "mixed-keys", "key-in-index", "list",
         "none", "no-file", "no-match"],
)  # fmt: skip
def test_what_cannot_be_asked_is_named(store: FeatureStore, given: Any, says: str) -> None:
    """The error says which column, what was found and what was probably meant."""
    with pytest.raises(EntityRowsError, match=says):
        store.get_historical_features(given, ["values:value"]).to_arrow()


def test_an_unknown_feature_is_answered_with_the_nearest(store: FeatureStore) -> None:
    """Before anything is read."""
    with pytest.raises(UnknownNameError, match="Did you mean 'value'"):
        store.get_historical_features(asked([NOW]), ["values:valu"])


def test_nothing_is_left_behind(store: FeatureStore, entity_df: pa.Table) -> None:
    """Temporary tables and views of a join are gone after it, also after an error."""
    store.get_historical_features(entity_df, ["values:value"], statuses=True).to_arrow()
    bad = pa.table({"user_id": ["u1"], "event_timestamp": ["x"]})
    with pytest.raises(EntityRowsError):
        store.get_historical_features(bad, ["values:value"]).to_arrow()
    with store._connect() as connection:
        assert (
            connection.execute(
                "select table_name from duckdb_tables() union all select view_name from duckdb_views() where not internal"
            ).fetchall()
            == []
        )


def test_an_error_while_rows_are_written_is_what_the_caller_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that the join's tables cannot be dropped, since its rows were not read to their end; nothing of them stays."""
    monkeypatch.setattr(historical, "BATCH_ROWS", 2048)
    write(tmp_path, {"user_id": ["ann"], "event_timestamp": pa.array([T0], MICROS), "value": [1]}, "values")

    def stop(what: str, _done: int, _total: int) -> None:
        if what == "writing":
            raise InterruptedError(what)

    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW)
        (tmp_path / "out").mkdir()
        with pytest.raises(InterruptedError, match="writing"):
            store.get_historical_features(asked([T0] * 100_000), ["values:value"]).to_parquet(
                tmp_path / "out" / "set.parquet", progress=stop
            )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written while further ones are made: it is the first refusal that tells why, and nothing of them stays."""
    monkeypatch.setattr(historical, "BATCH_ROWS", 2048)
    write(tmp_path, {"user_id": ["ann"], "event_timestamp": pa.array([T0], MICROS), "value": [1]}, "values")
    rows = 100_000
    noise = [random.random() for _ in range(rows)]
    frame = pa.table({"user_id": ["ann"] * rows, "event_timestamp": pa.array([T0] * rows, MICROS), "noise": noise})
    with store_of(tmp_path, history_view()) as store:
        store.compute(now=NOW)
        (tmp_path / "out").mkdir()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # of a file; Python turns the signal off
        try:
            with pytest.raises(OSError, match="File too large"):
                store.get_historical_features(frame, ["values:value"]).to_parquet(tmp_path / "out" / "set.parquet")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
