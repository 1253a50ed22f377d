"""
The data of the online benchmarks: views whose every value follows from its key, so that any answer can be checked.

Knows the declarations, and starts and stops the server that the subjects share. Measures nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.members import WIDTHS, entity_id, feature_name, values_of
from feature_platform import Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.online.embedded import ensure_server, stop_server

__all__ = [
    "NOW",
    "PROJECT",
    "empty_server",
    "ensure_history",
    "filled_server",
    "online_registry",
    "online_settings",
]

PROJECT: Final = "benchmark"

NOW: Final = datetime(2025, 1, 2, tzinfo=UTC)
_EVENT: Final = datetime(2025, 1, 1, tzinfo=UTC)
_CHUNK: Final = 500_000


def online_registry() -> Registry:
    """Return the declarations: an int, a float and a str, and so on."""
    member = Entity("member", join_keys={"member_id": str})
    return Registry(
        views=[
            FeatureView(
                f"view_{width}",
                entity=member,
                sources=[ParquetSource(f"source_{width}", f"sources/{width}.parquet", timestamp="event_timestamp")],
                features=[Feature(feature_name(width, index), (int, float, str)[index % 3]) for index in range(width)],
            )
            for width in WIDTHS
        ]
    )


def online_settings(folder: Path, online_root: Path) -> Settings:
    """Return the settings of the project in the folder, with its server elsewhere."""
    # A machine that stalls for 50 ms now and then is not what is measured.
    return Settings(project=PROJECT, root=folder, online_root=online_root, read_deadline_ms=1000)


def ensure_history(keys: int, cache: Path, widths: Sequence[int] = WIDTHS) -> Path:
    """Return the project folder that holds one row a key, made where it is not there yet."""
    folder = cache / f"online_{keys}_{'_'.join(map(str, widths))}"
    if (folder / "complete").exists() and _is_readable(folder, keys, widths):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sources").mkdir(parents=True)
    for width in widths:
        _write_source(folder / "sources" / f"{width}.parquet", keys, width)
    with FeatureStore(online_registry(), online_settings(folder, folder / "online")) as store:
        store.compute([f"view_{width}" for width in widths], now=NOW)
    (folder / "complete").touch()
    return folder


@contextlib.contextmanager
def filled_server(keys: int, cache: Path) -> Iterator[tuple[Path, Path]]:
    """Give the project folder and the folder of a server that holds all keys; stop the server at the end."""
    folder = ensure_history(keys, cache)
    with tempfile.TemporaryDirectory(prefix="online-") as temporary:
        online_root = Path(temporary)
        try:
            with FeatureStore(online_registry(), online_settings(folder, online_root)) as store:
                store.materialize(now=NOW)
            yield folder, online_root
        finally:
            stop_server(online_root)


@contextlib.contextmanager
def empty_server() -> Iterator[tuple[Path, Path]]:
    """Give the folder and the socket of a fresh server with nothing in it; stop the server at the end."""
    with tempfile.TemporaryDirectory(prefix="online-") as temporary:
        online_root = Path(temporary)
        try:
            yield online_root, ensure_server(online_root)
        finally:
            stop_server(online_root)


def _is_readable(folder: Path, keys: int, widths: Sequence[int]) -> bool:
    """Say whether the platform finds every row: another version of it passes over files that it does not know."""
    registry = online_registry()
    with FeatureStore(registry, online_settings(folder, folder / "online")) as store:
        views = [registry.view(f"view_{width}") for width in widths]
        return all(sum(one.rows for one in store.offline.partitions(view)) == keys for view in views)


def _write_source(path: Path, keys: int, width: int) -> None:
    writer: pq.ParquetWriter | None = None
    for start in range(0, keys, _CHUNK):
        numbers = range(start, min(start + _CHUNK, keys))
        columns = {"member_id": pa.array([entity_id(number) for number in numbers])}
        columns["event_timestamp"] = pa.array([_EVENT] * len(numbers), pa.timestamp("us", tz="UTC"))
        rows = [values_of(number, width) for number in numbers]
        columns |= {feature_name(width, index): pa.array([row[index] for row in rows]) for index in range(width)}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
