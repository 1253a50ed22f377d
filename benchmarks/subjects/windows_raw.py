"""The query that one writes by hand for an hour: all events of the window, grouped by user, into a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import duckdb

from benchmarks.measuring import Run, peak_rss_mb
from benchmarks.windows import LAST_N, Events

_BY_HAND: Final = {
    "count": "count(*)",
    "first": 'arg_min(amount, "at")',
    "last": 'arg_max(amount, "at")',
    "last_n": f'max_by(amount, "at", {LAST_N})',
    "count_distinct": "count(distinct amount)",
}


def run(*, events: dict[str, Any], root: str, hours: int, of: int, **_: Any) -> Run:  # noqa: ANN401 - what only the other subject reads
    """Compute the first hours in a query each; they stand for `of`."""
    shape, folder = Events(**events), Path(root) / "raw"
    folder.mkdir(exist_ok=True)
    files = [str(folder / f"{number}.parquet") for number in range(1, hours + 1)]
    started = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for number, file in enumerate(files, start=1):
            connection.execute(f"copy ({state(shape, root, number)}) to '{file}' (format parquet, compression zstd)")
        seconds, peak = (time.perf_counter() - started) / hours * of, peak_rss_mb()
        found = checksum(connection, shape, [f"from '{file}'" for file in files])
    for file in files:
        Path(file).unlink()
    return Run(seconds=seconds, rate=of / seconds, peak_rss_mb=peak, checksum=found)


def state(shape: Events, root: str, number: int) -> str:
    """Return the query of everybody's values after some hours; the events' files are a day each, and only those it needs are listed."""
    end = shape.hour(number)
    days = sorted({(end - shape.hour(0)).days + day for day in range(31)})
    files = [f"{root}/events/{day:02}.parquet" for day in days if Path(f"{root}/events/{day:02}.parquet").exists()]
    values = ", ".join(f"{_BY_HAND.get(one, f'{one}(amount)')} as {one}" for one in shape.functions)
    return (
        f"select user_id, {values} from read_parquet({files})\n"
        f"where \"at\" >= timestamptz '{end.isoformat()}' - interval 720 hours and \"at\" < timestamptz '{end.isoformat()}'\n"
        "group by user_id"
    )


def checksum(connection: duckdb.DuckDBPyConnection, shape: Events, states: Sequence[str]) -> str:
    """Return the checksum of everybody's values; amounts in whole cents, since plain sums of floats differ in their last bits."""
    values = [
        f"round({one} * 100)::bigint" if one == "sum" else f"{one}::bigint" if one.startswith("count") else one for one in shape.functions
    ]
    row = f"hash(user_id, {', '.join(values)})"
    return repr([connection.execute(f"select count(*), bit_xor({row}) {one}").fetchall()[0] for one in states])
