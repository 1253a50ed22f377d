"""
Point-in-time joins over the Parquet of feature views.

Each view is joined on its own, one ASOF join for all its features, into a narrow table of row numbers; entity rows are
never sent through a join, so they come out as they went in. Knows DuckDB and the offline layout. Knows nothing of
Dagster or Redis.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import pyarrow as pa

from feature_platform.dtypes import MICROSECOND, Dtype, from_micros, to_micros
from feature_platform.errors import EntityRowsError, NameClashError, suggest
from feature_platform.model import FeatureStatus, FeatureView, ViewKind
from feature_platform.offline.history import KNOWN, history_of, window_states
from feature_platform.offline.query import first_row, fits, floor_micros, interval, quote, quote_all, type_family
from feature_platform.offline.store import TOMBSTONE, OfflineStore, Partition
from feature_platform.windows import WHOLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from feature_platform.registry import FeatureRef

__all__ = ["AsOf", "Question", "drop_spine", "join_features", "load_spine", "needed_partitions", "output_names"]

AsOf = Literal["known", "latest"]
ROW, TIME = "__row", "__time"
STATUS_SUFFIX = "__status"
_FIRST = datetime(2, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Question:
    """
    What is asked of each entity row.

    Attributes:
        refs: The features, in the order of the result's columns.
        as_of: "known": an event view's row is seen from its created_timestamp on; "latest": from its event_timestamp on.
        statuses: Whether a column `<column>__status` follows each feature.
    """

    refs: tuple[FeatureRef, ...]
    as_of: AsOf = "known"
    statuses: bool = False

    @property
    def by_view(self) -> dict[str, list[FeatureRef]]:
        """The features of each view, views in the order first asked."""
        found: dict[str, list[FeatureRef]] = {}
        for ref in self.refs:
            found.setdefault(ref.view.name, []).append(ref)
        return found

    @property
    def join_keys(self) -> dict[str, Dtype]:
        """The union of the entities' join keys."""
        return {name: dtype for ref in self.refs for name, dtype in ref.view.entity.keys.items()}


def output_names(question: Question, entity_columns: Sequence[str]) -> list[str]:
    """
    Return the names of the columns that are added.

    Raises:
        NameClashError: One of them is a column of the entity rows already.
    """
    names: list[str] = []
    for ref in question.refs:
        names.append(ref.column)
        if question.statuses:
            names.append(ref.column + STATUS_SUFFIX)
    for name in names:
        if name in entity_columns:
            message = f"entity_df has a column {name!r} already, the name of a result column.\nUse full_feature_names=True, or rename it."
            raise NameClashError(message, name=name)
    return names


def load_spine(connection: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation, keys: dict[str, Dtype], *, given: str) -> str:
    """
    Put the row numbers, join keys and times of the entity rows into a temporary table, and return its name.

    Args:
        connection: Holds the table.
        relation: The entity rows, on that connection, in their order.
        keys: Join keys wanted.
        given: What the rows came as, for messages.

    Raises:
        EntityRowsError: A join key or event_timestamp is missing, or of another type.
    """
    types = dict(zip(relation.columns, relation.types, strict=True))
    if "event_timestamp" not in types:
        message = (
            f"entity_df ({given}) has no column 'event_timestamp', the time asked about.\n{suggest('event_timestamp', types, has='It has')}"
        )
        raise EntityRowsError(message, field="event_timestamp")
    if type_family(types["event_timestamp"]) not in {"datetime", "date", "null"}:
        message = f"entity_df: event_timestamp is {types['event_timestamp']}, not a time.\nConvert it to a timestamp first."
        raise EntityRowsError(message, field="event_timestamp")
    for name, dtype in keys.items():
        if name not in types:
            message = (
                f"entity_df ({given}) has no column {name!r}, a join key of the features asked for.\n{suggest(name, types, has='It has')}"
            )
            raise EntityRowsError(message, field=name)
        if not fits(types[name], dtype):
            message = (
                f"entity_df: join key {name!r} is {types[name]}, and declared {dtype}.\nConvert the column: nothing is cast in silence."
            )
            raise EntityRowsError(message, field=name)
    columns = [f"row_number() over () - 1 as {ROW}"]  # in the order of the rows, which DuckDB keeps unless it is told not to
    columns += [f"cast({quote(name)} as {dtype.duckdb}) as {quote(name)}" for name, dtype in keys.items()]
    columns.append(f"{floor_micros('event_timestamp', str(types['event_timestamp']))}::timestamp as {TIME}")
    spine = f"spine_{secrets.token_hex(4)}"
    relation.create_view(f"{spine}_rows", replace=True)
    try:
        connection.execute(f"create temp table {spine} as select {', '.join(columns)} from {spine}_rows")
    except duckdb.DataError as exc:
        message = f"entity_df ({given}): a join key or event_timestamp does not fit its declared dtype: {exc}"
        raise EntityRowsError(message) from exc
    finally:
        connection.execute(f"drop view {spine}_rows")
    return spine


def join_features(connection: duckdb.DuckDBPyConnection, store: OfflineStore, question: Question, spine: str) -> str:
    """
    Join every view of a question to a spine; return the SELECT of the result columns, in the spine's order.

    One statement a view frees its memory before the next; nested joins would keep every view's sorted input alive.
    """
    bounds = first_row(connection, f"select epoch_us(min({TIME})), epoch_us(max({TIME})) from {spine}")
    tables: dict[str, str] = {}
    for index, (name, refs) in enumerate(question.by_view.items()):
        tables[name] = f"{spine}_{index}"
        sql = _view_sql(connection, store, question, refs, spine, bounds, tables[name])
        connection.execute(f"create temp table {tables[name]} as {sql}")
    columns: list[str] = []
    for ref in question.refs:
        columns.append(f"{tables[ref.view.name]}.{quote(ref.feature.name)} as {quote(ref.column)}")
        if question.statuses:
            columns.append(f"{tables[ref.view.name]}.{quote(ref.feature.name + STATUS_SUFFIX)} as {quote(ref.column + STATUS_SUFFIX)}")
    joins = "\n".join(f"join {table} using ({ROW})" for table in tables.values())
    return f"select {', '.join(columns)} from (select {ROW} from {spine}) as spine\n{joins}\norder by {ROW}"


def drop_spine(connection: duckdb.DuckDBPyConnection, question: Question, spine: str) -> None:
    """Drop the tables of a join."""
    for index in range(len(question.by_view)):
        for suffix in ("", "_windows", "_defaults"):
            connection.execute(f"drop table if exists {spine}_{index}{suffix}")
    connection.execute(f"drop table if exists {spine}")


def _view_sql(
    connection: duckdb.DuckDBPyConnection,
    store: OfflineStore,
    question: Question,
    refs: Sequence[FeatureRef],
    spine: str,
    bounds: tuple[int | None, ...],
    table: str,
) -> str:
    view, names = refs[0].view, [ref.feature.name for ref in refs]
    partitions = needed_partitions(view, store, bounds, question)
    history = history_of(view, store, partitions, names)
    if history.sql is None:
        joined = f"select s.{ROW}, false as __found, false as __fresh, {_nulls(view, names)} from {spine} as s"
    elif view.is_window_view:
        _register_windows(connection, table, partitions)
        joined = _window_join(view, history.sql, names, history.partial, spine, f"{table}_windows")
    else:
        joined = _event_join(view, history.sql, names, history.partial, spine, question.as_of)
    _register_defaults(connection, table, refs)
    columns = [ROW]
    for ref in refs:
        name = quote(ref.feature.name)
        known = f" and {quote(ref.feature.name + KNOWN)}" if ref.feature.name in history.partial else ""
        there = f"(__found{known})"
        default = f"(select {name} from {table}_defaults)" if ref.feature.effective_default is not None else "null"
        columns.append(f"case when {there} and __fresh then {name} else cast({default} as {ref.feature.type.duckdb}) end as {name}")
        if question.statuses:
            columns.append(
                f"case when not coalesce({there}, false) then '{FeatureStatus.NOT_FOUND}' "
                f"when not __fresh then '{FeatureStatus.OUTSIDE_MAX_AGE}' "
                f"when {name} is null then '{FeatureStatus.NULL_VALUE}' else '{FeatureStatus.PRESENT}' end "
                f"as {quote(ref.feature.name + STATUS_SUFFIX)}"
            )
    return f"select {', '.join(columns)} from ({joined})"


def needed_partitions(view: FeatureView, store: OfflineStore, bounds: tuple[int | None, ...], question: Question) -> list[Partition]:
    """Return the partitions that can hold an answer for times between the bounds."""
    earliest, latest = bounds
    if earliest is None or latest is None:
        return []
    delay = view.delay // MICROSECOND
    before = min(max(latest - delay + 1, to_micros(_FIRST)), to_micros(WHOLE.end))  # a time may be further off than a datetime reaches
    partitions = store.partitions(view, before=from_micros(before))
    if view.is_window_view:
        partitions = [one for one in partitions if one.end <= latest - delay]
        fulls = [one.end for one in partitions if one.is_full and one.end <= earliest - delay]
        return [one for one in partitions if not fulls or one.end >= fulls[-1]]
    if view.ttl is not None and not question.statuses and view.schedule is not None:
        # Past the ttl and not there at all give one value; only statuses tell them apart.
        oldest = earliest - view.ttl // MICROSECOND
        return [one for one in partitions if one.end > oldest]
    return partitions


def _nulls(view: FeatureView, names: Sequence[str]) -> str:
    return ", ".join(f"null::{view.feature_by_name[name].type.duckdb} as {quote(name)}" for name in names)


def _shifted(delay: timedelta) -> str:
    return f"s.{TIME} - {interval(delay)}" if delay else f"s.{TIME}"


def _features(names: Sequence[str], partial: frozenset[str], alias: str = "r") -> str:
    return quote_all([*names, *(name + KNOWN for name in names if name in partial)], of=alias)


def _on_keys(view: FeatureView) -> str:
    return "".join(f"s.{quote(key)} = r.{quote(key)} and " for key in view.entity.join_keys)


def _window_join(view: FeatureView, history: str, names: Sequence[str], partial: frozenset[str], spine: str, windows: str) -> str:
    """Take the newest row up to the as-of, unless a newer full partition left the key out; age is the as-of's (L3)."""
    time = _shifted(view.delay)
    fresh = f"w.window_end >= s.{TIME} - {interval(view.ttl)}" if view.ttl is not None else "true"
    tombstone = f" and not r.{quote(TOMBSTONE)}" if view.kind is ViewKind.AGGREGATE else ""
    return f"""
select
    s.{ROW},
    coalesce(r.event_timestamp >= w.newest_full{tombstone}, false) as __found,
    coalesce({fresh}, false) as __fresh,
    {_features(names, partial)}
from {spine} as s
asof left join ({history}) as r on {_on_keys(view)}{time} >= r.event_timestamp
asof left join {windows} as w on {time} >= w.window_end
"""


def _event_join(view: FeatureView, history: str, names: Sequence[str], partial: frozenset[str], spine: str, as_of: AsOf) -> str:
    """
    Take the newest visible row as a whole.

    Where rows say when they were known, two times decide, and still one ASOF join is enough: a row is visible from
    max(event_timestamp + delay, created_timestamp) on, and one that does not raise the running maximum of
    (event_timestamp, created_timestamp) in that order never wins.
    """
    keys = list(view.entity.join_keys)
    by_keys = f"partition by {quote_all(keys)} " if keys else ""
    fresh = f"r.event_timestamp >= s.{TIME} - {interval(view.ttl)}" if view.ttl is not None else "true"
    found = f"r.event_timestamp is not null as __found, coalesce({fresh}, false) as __fresh"
    selected = f"select s.{ROW}, {found}, {_features(names, partial)} from {spine} as s"
    if not view.has_created_timestamp:
        return f"{selected} asof left join ({history}) as r on {_on_keys(view)}{_shifted(view.delay)} >= r.event_timestamp"
    if as_of == "latest":
        by_time = quote_all([*keys, "event_timestamp"])
        newest = (
            f"select * from ({history}) qualify row_number() over (partition by {by_time} order by created_timestamp desc nulls last) = 1"
        )
        return f"{selected} asof left join ({newest}) as r on {_on_keys(view)}{_shifted(view.delay)} >= r.event_timestamp"
    from_event = f"event_timestamp + {interval(view.delay)}"
    rank = "(epoch_us(event_timestamp)::hugeint * 18446744073709551616 + coalesce(epoch_us(created_timestamp), -9223372036854775807))"
    visible = f"""
        select *, greatest({from_event}, coalesce(created_timestamp, {from_event})) as __visible_from, {rank} as __rank
        from ({history})"""
    winners = f"""
        select * from ({visible})
        qualify coalesce(__rank > max(__rank) over (
            {by_keys}order by __visible_from, __rank desc rows between unbounded preceding and 1 preceding), true)"""
    return f"{selected} asof left join ({winners}) as r on {_on_keys(view)}s.{TIME} >= r.__visible_from"


def _register_windows(connection: duckdb.DuckDBPyConnection, table: str, partitions: Sequence[Partition]) -> None:
    states = window_states(partitions)
    arrow = pa.table({"window_end": pa.array(states.ends, pa.int64()), "newest_full": pa.array(states.newest_full, pa.int64())})
    connection.register(f"{table}_arrow", arrow)
    connection.execute(
        f"create or replace temp table {table}_windows as select make_timestamp(window_end) as window_end, "
        # Rows without any full partition before them count: the first one computed is full, so there is none to end them.
        f"coalesce(make_timestamp(newest_full), timestamp '0001-01-01') as newest_full from {table}_arrow"
    )
    connection.unregister(f"{table}_arrow")


def _register_defaults(connection: duckdb.DuckDBPyConnection, table: str, refs: Sequence[FeatureRef]) -> None:
    """Bind the declared defaults, of any dtype, as a table of one row."""
    values: dict[str, Any] = {}
    for ref in refs:
        if ref.feature.effective_default is not None:
            values[ref.feature.name] = pa.array([ref.feature.effective_default], ref.feature.type.arrow)
    if values:
        connection.register(f"{table}_arrow_defaults", pa.table(values))
        connection.execute(f"create or replace temp table {table}_defaults as select * from {table}_arrow_defaults")
        connection.unregister(f"{table}_arrow_defaults")
