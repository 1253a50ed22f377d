"""Training sets whose entity rows are a query over the declared sources."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offline_project import HOUR, MINUTE, NOW, T0, instants, put, store_of, user

from feature_platform import Aggregate, FeatureStore, FeatureView, ParquetSource
from feature_platform.errors import EntityRowsError, SourceNotFoundError

SOURCE = ParquetSource("watches", "source/*.parquet", timestamp="at")
VIEW = FeatureView(
    "counts", entity=user, sources=[SOURCE], schedule="@hourly", start=T0, features=[Aggregate("n", "count", window=3 * HOUR)]
)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Return a store of hourly counts, computed."""
    put(tmp_path, "base", ("ann", T0 + MINUTE), ("bob", T0 + 2 * MINUTE), ("ann", T0 + 70 * MINUTE))
    store = store_of(tmp_path, VIEW)
    store.compute(end=T0 + 4 * HOUR, now=NOW)
    return store


def test_the_rows_of_a_query_are_joined_like_any_others(store: FeatureStore, tmp_path: Path) -> None:
    """Columns and rows are those of the query, in its order, in every form out."""
    sql = """-- the moments of watching
        select user_id, "at" + interval 1 hour as event_timestamp, row_number() over (order by "at") as number
        from watches order by "at" desc;"""
    with store:
        joined = store.get_historical_features(sql, ["counts:n"])
        table = joined.to_arrow()
        assert table.to_pydict() == {
            "user_id": ["ann", "bob", "ann"],
            "event_timestamp": [(T0 + one).replace(tzinfo=None) for one in (130 * MINUTE, 62 * MINUTE, 61 * MINUTE)],
            "number": [3, 2, 1],
            "n": [2, 1, 1],
        }
        assert joined.to_parquet(tmp_path / "out.parquet") == 3
        assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == [2, 1, 1]
        assert joined.to_pandas()["n"].tolist() == [2, 1, 1]
        assert joined.to_polars()["n"].to_list() == [2, 1, 1]
        same = pa.table({"user_id": ["ann"], "event_timestamp": instants(HOUR)})
        assert store.get_historical_features(same, ["counts:n"]).to_arrow()["n"].to_pylist() == [1]


def test_a_query_may_name_other_tables_of_its_own(store: FeatureStore) -> None:
    """Common table expressions, and FROM first, as DuckDB has it."""
    with store:
        query = """with u as (select distinct user_id from watches)
            select user_id, timestamp '2026-03-28 02:00' as event_timestamp from u order by 1"""
        assert store.get_historical_features(query, ["counts:n"]).to_arrow()["n"].to_pylist() == [2, 1]
        query = "from watches select user_id, \"at\" + interval 1 hour as event_timestamp where user_id = 'bob'"
        assert store.get_historical_features(query, ["counts:n"]).to_arrow()["n"].to_pylist() == [1]


def test_a_query_may_be_longer_than_a_path(store: FeatureStore) -> None:
    """No file has a name of so many letters, and none is looked for that the system could not name."""
    every = " or ".join(["user_id = 'bob'"] * 500)
    with store:
        query = f'select user_id, "at" + interval 1 hour as event_timestamp from watches where {every}; -- bob'
        assert store.get_historical_features(query, ["counts:n"]).to_arrow()["n"].to_pylist() == [1]


@pytest.mark.parametrize("path", ["from/asked.parquet", "with/*.parquet", "values.parquet", "select.parquet"])
def test_a_path_is_no_query_for_its_first_word(store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A file that is not there is said to be missing, and a pattern finds its files."""
    monkeypatch.chdir(tmp_path)
    with store:
        with pytest.raises(EntityRowsError, match="no such Parquet file"):
            store.get_historical_features(path, ["counts:n"])
        file = Path(path.replace("*", "asked"))
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"user_id": ["ann"], "event_timestamp": instants(HOUR)}), file)
        assert store.get_historical_features(path, ["counts:n"]).to_arrow()["n"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("select user_id, now() as event_timestamp from watches", r"now\(\).*\n.*literals"),
        ('select user_id, "at" as event_timestamp from watchez', "Did you mean 'watches'"),
        ("select * from read_parquet('/etc/x.parquet')", r"read_parquet\(\)"),
        ("select user_id, $moment::timestamp as event_timestamp from watches", r"\$moment"),
        ("select user_id from watches; drop table x", "not one SELECT"),
        ("select user_id from watches", "event_timestamp"),
        ('select users, "at" as event_timestamp from watches', "users"),
        ("values ('ann', timestamp '2026-03-28 02:00')", "(?s)event_timestamp.*It has: col0, col1"),
        ("values ((select max(content) from read_text('/etc/passwd')), now())", r"calls (read_text|now)\(\)"),
        ("table watches", "begins with select"),
        ('select user_id::int as user_id, "at" as event_timestamp from watches', "(?s)cannot be read.*'ann'"),
    ],
    ids=[
        "clock",
        "unknown-source",
        "file",
        "parameter",
        "two-statements",
        "no-time",
        "unknown-column",
        "nameless-values",
        "file-in-values",
        "no-select",
        "value-of-another-type",
    ],
)
def test_what_a_query_cannot_be_is_named(store: FeatureStore, tmp_path: Path, query: str, says: str) -> None:
    """The error says what to write instead."""
    with store, pytest.raises(EntityRowsError, match=says):
        store.get_historical_features(query, ["counts:n"]).to_arrow()
    with store, pytest.raises(EntityRowsError, match=says):
        store.get_historical_features(query, ["counts:n"]).to_parquet(tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out*"))


def test_a_source_without_files_is_named(tmp_path: Path) -> None:
    """As when a view is computed."""
    with store_of(tmp_path, VIEW) as store, pytest.raises(SourceNotFoundError, match="watches"):
        store.get_historical_features('select user_id, "at" as event_timestamp from watches', ["counts:n"])


def test_a_path_is_a_path(tmp_path: Path) -> None:
    """Even one that begins like a query, if it is there."""
    put(tmp_path, "base", ("ann", T0))
    folder = tmp_path / "select rows"
    folder.mkdir()
    with store_of(tmp_path, VIEW) as store, pytest.raises(EntityRowsError, match="no such Parquet file"):
        store.get_historical_features(str(folder), ["counts:n"])
