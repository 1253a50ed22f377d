"""
Whether a training set would come out the same today: its card against today's definitions, partitions and inputs.

Knows cards and how two files of rows are compared. Joins nothing itself, and writes nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.dtypes import from_micros
from feature_platform.errors import EntityRowsError, UnknownNameError
from feature_platform.offline.card import (
    CardPartition,
    CardView,
    DatasetCard,
    card_features,
    card_views,
    encode_value,
    file_sha256,
    plain_values,
)
from feature_platform.offline.entity_frame import parquet_files
from feature_platform.offline.question import Question

if TYPE_CHECKING:
    from feature_platform.offline.store import OfflineStore
    from feature_platform.registry import FeatureRef, Registry

__all__ = ["Difference", "differences", "differing_rows", "entity_path", "refs_of"]

_BATCH_ROWS: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class Difference:
    """
    One thing that is not as the card says.

    Attributes:
        kind: "dataset", "code_version", "feature", "ttl", "partition", "entity_df"; of compared rows "columns", "rows", "column".
        where: Which file, view or column.
        what: What the card says and what is there, as a sentence.
        window: Key of the partition that changed.
        since: When it was computed again.
        rows: How many rows differ in a column.
    """

    kind: str
    where: str
    what: str
    window: str | None = None
    since: datetime | None = None
    rows: int | None = None

    @property
    def is_settled_by_rows(self) -> bool:
        """Whether it may leave the rows as they were, so that joining again decides."""
        return self.kind in {"feature", "ttl", "partition", "entity_df"}


def differences(card: DatasetCard, dataset: Path, registry: Registry, store: OfflineStore) -> list[Difference]:
    """
    Compare a card with what is there now; nothing is joined.

    Args:
        card: Of the dataset.
        dataset: Its file.
        registry: What is declared today.
        store: Today's history.
    """
    found = []
    if not dataset.is_file():
        found.append(Difference(kind="dataset", where=dataset.name, what="the file is not there"))
    elif file_sha256(dataset) != card.dataset.sha256:
        found.append(Difference(kind="dataset", where=dataset.name, what="the file is not the one that was written: its SHA-256 differs"))
    found += _inputs(card, dataset.parent)
    refs, unknown = refs_of(card, registry)
    found += unknown
    was = {one.reference: one for one in card.features}
    for now in card_features(refs):
        before = was[now.reference]
        for name, then, today in (("dtype", before.dtype, now.dtype), ("default", before.default, now.default)):
            if then != today:
                found.append(Difference(kind="feature", where=now.reference, what=f"its {name} was {then!r}, and is {today!r}"))
    if refs:
        views = card_views(store, Question(tuple(refs), card.as_of, card.statuses), card.entity_df.bounds)
        for ref in {ref.view.name: ref for ref in refs}.values():
            found += _view(ref, card.views[ref.view.name], views[ref.view.name], store)
    return found


def refs_of(card: DatasetCard, registry: Registry) -> tuple[list[FeatureRef], list[Difference]]:
    """Return the features of a card that are still declared, and a difference for each that is not."""
    refs, unknown = [], []
    for feature in card.features:
        try:
            refs += [replace(ref, column=feature.column) for ref in registry.resolve([feature.reference])]
        except UnknownNameError:
            unknown.append(Difference(kind="code_version", where=feature.reference, what="it is not declared any more"))
    return refs, unknown


def entity_path(card: DatasetCard, folder: Path) -> str | None:
    """Return where the entity rows of a card were read from, if files are still there; `folder` is the card's."""
    if card.entity_df.path is None:
        return None
    path = os.path.normpath(folder / card.entity_df.path)
    try:
        parquet_files(path)
    except EntityRowsError:
        return None
    return path


def _inputs(card: DatasetCard, folder: Path) -> list[Difference]:
    given = card.entity_df.path
    if given is None:
        return []
    path = entity_path(card, folder)
    if path is None:
        return [Difference(kind="entity_df", where=given, what="it is not there any more")]
    now = {os.path.relpath(one, folder): one for one in parquet_files(path)}
    then = {one.path: one.sha256 for one in card.entity_df.files}
    gone = [Difference(kind="entity_df", where=one, what="it is not there any more") for one in then if one not in now]
    new = [Difference(kind="entity_df", where=one, what="it was not there then") for one in now if one not in then]
    changed = [
        Difference(kind="entity_df", where=one, what="it was written again with other content: its SHA-256 differs")
        for one, file in now.items()
        if one in then and file_sha256(file) != then[one]
    ]
    return gone + new + changed


def _view(ref: FeatureRef, then: CardView, now: CardView, store: OfflineStore) -> Iterator[Difference]:
    view = ref.view
    if then.code_version != now.code_version:
        what = f"its definition was {then.code_version}, and is {now.code_version}"
        yield Difference(kind="code_version", where=view.name, what=what)
    if then.ttl_seconds != now.ttl_seconds:
        yield Difference(kind="ttl", where=view.name, what=f"its ttl was {then.ttl_seconds} s, and is {now.ttl_seconds} s")
    before, today = ({one.window: one for one in its.partitions} for its in (then, now))
    if before == today:
        return
    computed = {one.window.key: one.computed_at for one in store.partitions(view)}
    for window in sorted(before.keys() | today.keys()):
        if before.get(window) != today.get(window):
            micros = computed.get(window)
            since = None if micros is None else from_micros(micros)
            what = _changed(before.get(window), today.get(window), is_stored=window in computed)
            yield Difference(kind="partition", where=view.name, what=what, window=window, since=since)


def _changed(then: CardPartition | None, now: CardPartition | None, *, is_stored: bool) -> str:
    if then is None:
        return "it was not there then" if now is not None else ""
    if now is None:
        return "it would not be read today" if is_stored else "it is not there any more"
    rows = f"rows: {then.rows} then, {now.rows} now" if then.rows != now.rows else f"as many rows as then ({now.rows})"
    code = "" if then.code_version == now.code_version else f", of definition {then.code_version} then, {now.code_version} now"
    return f"it was computed again; {rows}{code}"


def differing_rows(dataset: Path, today: Path) -> list[Difference]:
    """
    Compare a dataset with the rows that come out today, place by place.

    Returns:
        A difference for each column that differs, with the number of its rows; nothing where all are equal.
    """
    try:
        return _compare(dataset, today)
    except (pa.ArrowException, OSError) as exc:
        return [Difference(kind="dataset", where=dataset.name, what=f"the file cannot be read as Parquet: {exc}")]


def _compare(dataset: Path, today: Path) -> list[Difference]:
    with pq.ParquetFile(dataset) as then, pq.ParquetFile(today) as now:
        columns, others = then.schema_arrow.names, now.schema_arrow.names
        if sorted(columns) != sorted(others):
            missing = ", ".join(sorted(set(columns) ^ set(others)))
            return [Difference(kind="columns", where=dataset.name, what=f"the dataset and today's rows do not both have: {missing}")]
        rows, rows_now = then.metadata.num_rows, now.metadata.num_rows
        if rows != rows_now:
            return [
                Difference(kind="rows", where=dataset.name, what=f"it has {rows} rows, and {rows_now} come out today", rows=rows_now - rows)
            ]
        counts: Counter[str] = Counter()
        for left, right in _side_by_side(then.iter_batches(_BATCH_ROWS), now.iter_batches(_BATCH_ROWS)):
            for name in columns:
                counts[name] += _unequal(left.column(name), right.column(name))
    return [
        Difference(kind="column", where=name, what=f"{counts[name]} of {rows} rows differ", rows=counts[name])
        for name in columns
        if counts[name]
    ]


def _side_by_side(left: Iterator[pa.RecordBatch], right: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Cut two streams of equally many rows at the same places."""
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        rows = min(one.num_rows, other.num_rows)
        yield one.slice(0, rows), other.slice(0, rows)
        one = one.slice(rows) if one.num_rows > rows else next(left, None)
        other = other.slice(rows) if other.num_rows > rows else next(right, None)


def _unequal(left: pa.Array, right: pa.Array) -> int:
    """Count the places where two columns differ; Arrow takes NaN for unequal to itself, so those are looked at one by one."""
    if left.equals(right):
        return 0
    if left.type != right.type:
        return sum(encode_value(one) != encode_value(other) for one, other in zip(left.to_pylist(), right.to_pylist(), strict=True))
    return sum(encode_value(one) != encode_value(other) for one, other in zip(plain_values(left), plain_values(right), strict=True))
