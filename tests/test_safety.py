"""Queries that could see past their source views, or answer differently the next time, are refused."""

from __future__ import annotations

import duckdb
import pytest

from feature_platform.errors import QueryError
from feature_platform.offline.safety import check_select

UNSAFE = {
    "now": "select now() from watches",
    "now-quoted": 'select "now"() from watches',
    "now-qualified": "select system.main.now() from watches",
    "current-date": "select current_date from watches",
    "current-date-in-case": "select case when true then current_date end from watches",
    "current-timestamp-with-zone": "select current_timestamp at time zone 'UTC' from watches",
    "localtimestamp-function": "select current_localtimestamp() from watches",
    "ago-macro": "select ago(interval 1 day) from watches",
    "own-macro": "select my_clock() from watches",
    "age-from-today": "select age(seen_at) from watches",
    "random": "select random() from watches",
    "random-in-lambda": "select list_transform([1], lambda x: x + random()) from watches",
    "random-in-limit": "select * from watches limit random() * 10",
    "random-in-filter": "select count(*) filter (where random() > 0.5) from watches",
    "random-in-replace": "select * replace (random() as user_id) from watches",
    "random-in-lateral": "select * from watches, lateral (select random())",
    "now-in-having": "select user_id from watches group by user_id having max(seen_at) > now()",
    "now-in-qualify": "select * from watches qualify row_number() over (order by now()) = 1",
    "uuid-in-window": "select count(*) over w from watches window w as (order by uuid())",
    "now-in-subquery": "select (select max(now())) from watches",
    "now-in-cte": "with a as (select now() as t) select * from a",
    "now-in-union": "select seen_at from watches union all select now()",
    "user": "select current_user from watches",
    "setting": "select current_setting('TimeZone') from watches",
    "variable": "select getvariable('feature_platform_end') from watches",
    "read-parquet": "select * from read_parquet('a.parquet')",
    "parquet-scan": "select * from parquet_scan('a.parquet')",
    "read-csv-in-subquery": "select (select max(x) from read_csv('a.csv') t(x)) from watches",
    "file-as-table": "select * from 'a.parquet'",
    "file-under-own-cte-name": 'with "a.parquet" as (select * from "a.parquet") select * from "a.parquet"',
    "file-beside-a-cte-of-its-name": 'select * from (with "a.parquet" as (select 1) select * from "a.parquet") join "a.parquet" on true',
    "query-function": "select * from query('select 1')",
    "other-table": "select * from other",
    "other-schema": "select * from main.watches",
    "catalog-function": "select * from duckdb_tables()",
    "catalog-view": "select * from information_schema.tables",
    "describe": "select * from (describe watches)",
    "show": "select * from (show tables)",
    "summarize": "select * from (summarize watches)",
    "glob": "select * from glob('*')",
    "tablesample": "select * from watches tablesample 10%",
    "using-sample": "select * from watches using sample 3",
    "two-statements": "select 1; select 2",
    "insert": "insert into watches values (1)",
    "create": "create table t as select * from watches",
    "drop": "drop view watches",
    "attach": "attach 'a.db'",
    "copy": "copy watches to 'a.csv'",
    "not-sql": "selekt 1",
    "nothing": "-- only a comment",
}
SAFE = {
    "plain": "select user_id, count(*) from watches group by all",
    "from-first": "from watches",
    "comment-at-the-end": "select user_id from watches -- now()",
    "word-in-a-string": "select 'now()' from watches",
    "case-of-the-source": "select * from WATCHES",
    "cte": "with a as (select * from watches), b as (select * from a) select * from b",
    "cte-in-a-subquery": "select * from (with a as (select * from watches) select * from a)",
    "cte-seen-from-a-subquery": "with a as (select * from watches) select (select count(*) from a)",
    "cte-over-a-source": "with watches as (select * from watches where true) select * from watches",
    "recursive-cte": "with recursive n as (select 1 as x union all select x + 1 from n where x < 5) select * from n",
    "window-bounds": "select age($end, seen_at), $start from watches",
    "values": "select * from (values (1), (2)) as t(x)",
    "generated": "select * from range(5), unnest([1, 2])",
    "pivot": "select * from (pivot watches on user_id in ('a', 'b') using count(*))",
    "column-named-now": "select now from (select user_id as now from watches)",
    "column-named-user": "select w.user from (select user_id as user from watches) as w",
}


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    """Open a session with the source's view and a macro of its own."""
    made = duckdb.connect()
    made.execute("create view watches as select 'ann' as user_id, timestamp '2026-01-01' as seen_at")
    made.execute("create macro my_clock() as now()")
    return made


@pytest.mark.parametrize("sql", UNSAFE.values(), ids=UNSAFE)
def test_what_looks_past_the_window_is_refused(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """A query that depends on the clock, on chance, on the session or on other data does not run."""
    with pytest.raises(QueryError, match="view 'v'"):
        check_select(connection, sql, sources=["watches"], where="view 'v'")


@pytest.mark.parametrize("sql", SAFE.values(), ids=SAFE)
def test_what_reads_its_sources_alone_is_taken(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """A SELECT over sources, constants and common table expressions passes."""
    check_select(connection, sql, sources=["watches"], where="view 'v'")


def test_a_near_miss_is_named(connection: duckdb.DuckDBPyConnection) -> None:
    """A misspelt source is answered with the one that was probably meant."""
    with pytest.raises(QueryError, match="Did you mean 'watches'"):
        check_select(connection, "select * from watch", sources=["watches"], where="view 'v'")
