"""
Planned views joined to a spine: one statement a view, or a range of its keys, for all its features, into a narrow table of row numbers.

Entity rows are never sent through a join, so they come out as they went in. Knows DuckDB and a plan's plain values: whatever runs
this needs no registry and no folder but the files that a plan names.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from feature_platform.dtypes import MICROSECOND
from feature_platform.model import FeatureStatus, ViewKind
from feature_platform.offline.history import KNOWN
from feature_platform.offline.partition import TOMBSTONE
from feature_platform.offline.query import first_row, interval, parquet, quote, quote_all
from feature_platform.offline.question import ROW, STATUS_SUFFIX, TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta

    import duckdb

    from feature_platform.offline.join_plan import ViewPlan

__all__ = ["drop_spine", "join_views", "view_parts"]

# Rows of the history within a ttl of an entity row, for each entity row: beyond it they are not worth finding one by one.
_CANDIDATES_A_ROW: Final = 8
_CANDIDATES_MORE: Final = 100_000
_FEW_KEYS: Final = 0.25
_SAMPLE_PERCENT: Final = 5
_LARGE_ROWS: Final = 200_000


def join_views(
    connection: duckdb.DuckDBPyConnection,
    plans: Sequence[ViewPlan],
    spine: str,
    *,
    ranges: Sequence[int] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """
    Join every planned view to a spine; return the SELECT of the row numbers and the result columns, in no order.

    One statement a view frees its memory before the next; nested joins would keep every view's sorted input alive. The last one is
    part of the SELECT that is returned: its answers need not be kept in between.

    Args:
        connection: Holds the spine.
        plans: Of all views.
        spine: Table of row numbers, join keys and times.
        ranges: In how many ranges of its keys each view is sorted, one after another; all in one if left out.
        progress: Told of the views, and the ranges.
    """
    rows: int = first_row(connection, f"select count(*) from {spine}")[0]
    ranges = ranges or [1] * len(plans)
    columns, joined = list[str](), list[str]()
    for index, plan in enumerate(plans):
        table = f"{spine}_{index}"
        if progress:
            progress(f"joining {plan.view}", sum(ranges[:index]), sum(ranges))
        parts = view_parts(connection, plan, spine, table, rows, ranges=ranges[index])
        if index == len(plans) - 1 and len(parts) == 1:
            joined.append(f"({parts[0][0]}) as {table}")
        else:
            for number, (sql, values) in enumerate(parts):
                if progress and number:
                    progress(f"joining {plan.view}", sum(ranges[:index]) + number, sum(ranges))
                connection.execute(f"create temp table {table} as {sql}" if number == 0 else f"insert into {table} {sql}", values)
            _drop_helpers(connection, table)
            joined.append(table)
        for feature in plan.features:
            columns.append(f"{table}.{quote(feature.name)} as {quote(feature.column)}")
            if plan.statuses:
                columns.append(f"{table}.{quote(feature.name + STATUS_SUFFIX)} as {quote(feature.column + STATUS_SUFFIX)}")
    joins = "".join(f"\njoin {one} using ({ROW})" for one in joined[:-1])
    return f"select {ROW}, {', '.join(columns)} from {joined[-1]}{joins}"


def drop_spine(connection: duckdb.DuckDBPyConnection, plans: Sequence[ViewPlan], spine: str) -> None:
    """Drop the tables of a join."""
    for index in range(len(plans)):
        connection.execute(f"drop table if exists {spine}_{index}")
        _drop_helpers(connection, f"{spine}_{index}")
    connection.execute(f"drop table if exists {spine}")


def _drop_helpers(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    for suffix in ("_windows", "_defaults", "_near"):
        connection.execute(f"drop table if exists {table}{suffix}")


def view_parts(
    connection: duckdb.DuckDBPyConnection, plan: ViewPlan, spine: str, table: str, rows: int, *, ranges: int = 1
) -> list[tuple[str, dict[str, Any]]]:
    """
    Return SELECTs that make one view's answers, a row for each row of the spine, and the values of their parameters.

    More than one for ranges of keys, to be run one after another. What they need is left in tables named after `table`.

    Args:
        connection: Holds the spine.
        plan: Of the view.
        spine: Table of row numbers, join keys and times.
        table: Names what is made.
        rows: Of the spine.
        ranges: In how many ranges of its keys the view is sorted, where it is.
    """
    asked = _asked(plan, spine)
    names = [feature.name for feature in plan.features]
    _register_defaults(connection, plan, table)
    if plan.history is None:
        nulls = ", ".join(f"null::{feature.sql_type} as {quote(feature.name)}" for feature in plan.features)
        joined = f"select s.{ROW}, s.{TIME}, false as __found, false as __fresh, {nulls} from {asked} as s"
        return [(_answers(plan, joined, table), {})]
    if plan.windows is not None:
        _register_windows(connection, plan, table)
        join = partial(_window_join, plan, names, f"{table}_windows")
    elif _may_be_near(plan, rows) and _find_near(connection, plan, asked, names, f"{table}_near", rows):
        return [(_answers(plan, _nearest(plan, names, asked, f"{table}_near"), table), {})]
    else:
        join = partial(_event_join, plan, names)
    history = _of_few_keys(connection, plan, spine, rows)
    if ranges == 1:
        return [(_answers(plan, join(history, asked), table), {})]
    return [
        (_answers(plan, join(its, those), table), values) for its, those, values in _key_ranges(connection, plan, history, asked, ranges)
    ]


def _answers(plan: ViewPlan, joined: str, table: str) -> str:
    """Return the SELECT of what the rows that were found come to: values, defaults, statuses."""
    columns = [ROW]
    for feature in plan.features:
        name = quote(feature.name)
        known = f" and {quote(feature.name + KNOWN)}" if feature.name in plan.partial else ""
        there = f"(__found{known})"
        default = f"(select {name} from {table}_defaults)" if feature.has_default else "null"
        value = f"case when {there} and __fresh then {name} else cast({default} as {feature.sql_type}) end"
        # A label of a time that is not over yet is not known; a default would be a guess.
        columns.append(f"case when {TIME} is not null then {value} end as {name}" if plan.shift is not None else f"{value} as {name}")
        if plan.statuses:
            unasked = f"when {TIME} is null then null " if plan.shift is not None else ""
            columns.append(
                f"case {unasked}when not coalesce({there}, false) then '{FeatureStatus.NOT_FOUND}' "
                f"when not __fresh then '{FeatureStatus.OUTSIDE_MAX_AGE}' "
                f"when {name} is null then '{FeatureStatus.NULL_VALUE}' else '{FeatureStatus.PRESENT}' end "
                f"as {quote(feature.name + STATUS_SUFFIX)}"
            )
    return f"select {', '.join(columns)} from ({joined})"


def _key_ranges(
    connection: duckdb.DuckDBPyConnection, plan: ViewPlan, history: str, asked: str, ranges: int
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """
    Yield the rows of a history and the entity rows of one range of the first join key after another, and the values of their parameters.

    Files are sorted by key, so a range of keys is some of their row groups, and so much less is sorted at once. Measured with 50 M
    rows and 10 M entity rows: two fifths of the memory, and no more time. Where the bounds lie is nothing to the answers; a sample tells.
    """
    key, file = quote(plan.join_keys[0]), plan.files[len(plan.files) // 2]
    sample = f"select {key} from {parquet([file])} using sample {_SAMPLE_PERCENT} percent (system)"
    cuts = [number / ranges for number in range(1, ranges)]
    bounds = dict.fromkeys(first_row(connection, f"select quantile_disc({key}, $cuts) from ({sample})", {"cuts": cuts})[0] or ())
    for low, high in pairwise([None, *bounds, None]):
        values = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
        its = " and ".join(f"{key} {'>=' if name == 'low' else '<'} ${name}" for name in values) or "true"
        # A key that is NULL is in no range, and has no history; its entity rows go with the first.
        those = f"({its} or {key} is null)" if low is None else its
        yield f"select * from ({history}) where {its}", f"(select * from {asked} where {those})", values


def _asked(plan: ViewPlan, spine: str) -> str:
    """Return the spine as a view is asked: labels at a later time, as far as that is over."""
    if plan.shift is None:
        return spine
    later = f"{TIME} + {interval(plan.shift)}"
    return f"(select * replace (case when {later} <= make_timestamp({plan.known_until}) then {later} end as {TIME}) from {spine})"


def _shifted(delay: timedelta) -> str:
    return f"s.{TIME} - {interval(delay)}" if delay else f"s.{TIME}"


def _columns(plan: ViewPlan, names: Sequence[str]) -> list[str]:
    return [*names, *(name + KNOWN for name in names if name in plan.partial)]


def _on_keys(plan: ViewPlan) -> str:
    return "".join(f"s.{quote(key)} = r.{quote(key)} and " for key in plan.join_keys)


def _window_join(plan: ViewPlan, names: Sequence[str], windows: str, history: str, asked: str) -> str:
    """Take the newest row up to the as-of, unless a newer full partition left the key out; age is the as-of's (L3)."""
    time = _shifted(plan.delay)
    fresh = f"w.window_end >= s.{TIME} - {interval(plan.ttl)}" if plan.ttl is not None else "true"
    tombstone = f" and not r.{quote(TOMBSTONE)}" if plan.kind is ViewKind.AGGREGATE else ""
    return f"""
select
    s.{ROW},
    s.{TIME},
    coalesce(r.event_timestamp >= w.newest_full{tombstone}, false) as __found,
    coalesce({fresh}, false) as __fresh,
    {quote_all(_columns(plan, names), of="r")}
from {asked} as s
asof left join ({history}) as r on {_on_keys(plan)}{time} >= r.event_timestamp
asof left join {windows} as w on {time} >= w.window_end
"""


def _event_join(plan: ViewPlan, names: Sequence[str], history: str, asked: str) -> str:
    """
    Take the newest visible row as a whole.

    Where rows say when they were known, two times decide, and still one ASOF join is enough: a row is visible from
    max(event_timestamp + delay, created_timestamp) on, and one that does not raise the running maximum of
    (event_timestamp, created_timestamp) in that order never wins.
    """
    keys = list(plan.join_keys)
    by_keys = f"partition by {quote_all(keys)} " if keys else ""
    fresh = f"r.event_timestamp >= s.{TIME} - {interval(plan.ttl)}" if plan.ttl is not None else "true"
    found = f"s.{TIME}, r.event_timestamp is not null as __found, coalesce({fresh}, false) as __fresh"
    selected = f"select s.{ROW}, {found}, {quote_all(_columns(plan, names), of='r')} from {asked} as s"
    if not plan.has_created_timestamp:
        return f"{selected} asof left join ({history}) as r on {_on_keys(plan)}{_shifted(plan.delay)} >= r.event_timestamp"
    if plan.as_of == "latest":
        by_time = quote_all([*keys, "event_timestamp"])
        newest = (
            f"select * from ({history}) qualify row_number() over (partition by {by_time} order by created_timestamp desc nulls last) = 1"
        )
        return f"{selected} asof left join ({newest}) as r on {_on_keys(plan)}{_shifted(plan.delay)} >= r.event_timestamp"
    from_event = f"event_timestamp + {interval(plan.delay)}"
    # What has no microseconds ranks lowest: a time of minus infinity, and one not known; plus infinity is never reached.
    event, created = (f"coalesce(epoch_us({name}), -9223372036854775807)" for name in ("event_timestamp", "created_timestamp"))
    rank = f"({event}::hugeint * 18446744073709551616 + {created})"
    visible = f"""
        select *, greatest({from_event}, coalesce(created_timestamp, {from_event})) as __visible_from, {rank} as __rank
        from ({history})"""
    winners = f"""
        select * from ({visible})
        qualify coalesce(__rank > max(__rank) over (
            {by_keys}order by __visible_from, __rank desc rows between unbounded preceding and 1 preceding), true)"""
    return f"{selected} asof left join ({winners}) as r on {_on_keys(plan)}s.{TIME} >= r.__visible_from"


def _may_be_near(plan: ViewPlan, rows: int) -> bool:
    """
    Say whether an answer may be looked for among the rows within the ttl, one by one, instead of sorting the history.

    Not with statuses, which tell what is past the ttl from what never was, nor where two times decide.
    """
    return plan.ttl is not None and not plan.statuses and not plan.has_created_timestamp and plan.rows > 2 * rows


def _find_near(connection: duckdb.DuckDBPyConnection, plan: ViewPlan, asked: str, names: Sequence[str], near: str, rows: int) -> bool:
    """
    Leave each entity row's rows within the ttl in a table; False, and no table, where those are too many.

    Time is cut into slices as long as the ttl, so what can answer a row lies in its slice or in the one before: an equality, for
    which DuckDB hashes the entity rows and streams the history past them. Measured with 10 M rows and 1 M entity rows: half the
    time of the sort that ASOF needs. A hot key may have very many rows in a slice; the limit bounds what is lost in finding out.
    """
    assert plan.ttl is not None  # noqa: S101 - the caller asked
    time, ttl = _shifted(plan.delay), interval(plan.ttl)
    width = plan.ttl // MICROSECOND
    keys = "".join(f"s.{quote(key)}, " for key in plan.join_keys)
    limit = _CANDIDATES_A_ROW * rows + _CANDIDATES_MORE
    connection.execute(f"""
create temp table {near} as
select s.{ROW}, r.event_timestamp, {quote_all(_columns(plan, names), of="r")}
from (
    select s.{ROW}, {keys}{time} as __until, s.{TIME} - {ttl} as __from,
        unnest([epoch_us({time}) // {width}, epoch_us({time}) // {width} - 1]) as __slice
    from {asked} as s
    where isfinite({time})
) as s
join (select *, epoch_us(event_timestamp) // {width} as __slice from ({plan.history})) as r
    on {_on_keys(plan)}s.__slice = r.__slice and r.event_timestamp <= s.__until and r.event_timestamp >= s.__from
limit {limit + 1}
""")
    if first_row(connection, f"select count(*) from {near}")[0] <= limit:
        return True
    connection.execute(f"drop table {near}")
    return False


def _nearest(plan: ViewPlan, names: Sequence[str], asked: str, near: str) -> str:
    """Take each entity row's newest one; (keys, event_timestamp) is unique, so there is one."""
    return f"""
select s.{ROW}, s.{TIME}, n.event_timestamp is not null as __found, true as __fresh, {quote_all(_columns(plan, names), of="n")}
from {asked} as s
left join (
    select r.* from {near} as r
    semi join (select {ROW}, max(event_timestamp) as __newest from {near} group by {ROW}) as m
        on r.{ROW} = m.{ROW} and r.event_timestamp = m.__newest
) as n on s.{ROW} = n.{ROW}
"""


def _of_few_keys(connection: duckdb.DuckDBPyConnection, plan: ViewPlan, spine: str, rows: int) -> str:
    """
    Return the history, of the spine's keys alone where those are few of all: then there is less to sort.

    Measured with 10 M rows: a third of the time where 2 % of the keys are asked for, a fifth more where all are. A sample tells.
    """
    assert plan.history is not None  # noqa: S101 - the caller asked
    if not plan.join_keys or rows * 4 > plan.rows or plan.rows < _LARGE_ROWS * max(1, len(plan.files) // 10):
        return plan.history
    keys = quote_all(plan.join_keys)
    sample = f"select {keys} from {parquet([plan.files[len(plan.files) // 2]])} using sample {_SAMPLE_PERCENT} percent (system)"
    found, total = first_row(
        connection,
        f"select (select count(*) from ({sample}) as r semi join {spine} as s using ({keys})), (select count(*) from ({sample}))",
    )
    if found > total * _FEW_KEYS:
        return plan.history
    return f"select r.* from ({plan.history}) as r semi join {spine} as s using ({keys})"


def _register_windows(connection: duckdb.DuckDBPyConnection, plan: ViewPlan, table: str) -> None:
    connection.register(f"{table}_arrow", plan.windows)
    connection.execute(
        f"create or replace temp table {table}_windows as select make_timestamp(window_end) as window_end, "
        # Rows without any full partition before them count: the first one computed is full, so there is none to end them.
        f"coalesce(make_timestamp(newest_full), timestamp '0001-01-01') as newest_full from {table}_arrow"
    )
    connection.unregister(f"{table}_arrow")


def _register_defaults(connection: duckdb.DuckDBPyConnection, plan: ViewPlan, table: str) -> None:
    if plan.defaults is not None:
        connection.register(f"{table}_arrow_defaults", plan.defaults)
        connection.execute(f"create or replace temp table {table}_defaults as select * from {table}_arrow_defaults")
        connection.unregister(f"{table}_arrow_defaults")
