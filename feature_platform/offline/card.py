"""
The dataset card: what a training set was made of, as JSON beside its Parquet.

Knows which definitions, partitions and inputs a point-in-time question read. Knows nothing of how rows are joined, nor
whether they would come out the same today: that is `reproduction`'s.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from feature_platform.dtypes import from_micros, to_micros
from feature_platform.errors import DatasetCardError
from feature_platform.offline.join_plan import needed_partitions
from feature_platform.offline.question import STATUS_SUFFIX, AsOf
from feature_platform.windows import WHOLE

if TYPE_CHECKING:
    from feature_platform.offline.question import Question
    from feature_platform.offline.store import OfflineStore
    from feature_platform.registry import FeatureRef

__all__ = [
    "CARD_VERSION",
    "CardFeature",
    "CardFile",
    "CardInput",
    "CardPartition",
    "CardView",
    "DatasetCard",
    "Tally",
    "card_features",
    "card_path",
    "card_views",
    "content_sha256",
    "encode_value",
    "file_sha256",
    "plain_values",
    "platform_version",
    "read_card",
    "write_card",
]

CARD_VERSION: Final = 1
Bounds = tuple[int | None, int | None]
_JSON_LINE: Final = re.compile(r"\[\s+(\"\S+\"),\s+(\d+),\s+(\d+),\s+(\"\w+\")\s+\]")


class CardFile(msgspec.Struct, frozen=True):
    """
    A file and what it held.

    Attributes:
        path: As seen from the card's folder.
        sha256: Of its bytes.
    """

    path: str
    sha256: str


class CardInput(msgspec.Struct, frozen=True, kw_only=True):
    """
    The entity rows that were asked about.

    Attributes:
        path: What was given, as seen from the card's folder: a file, a folder or a pattern; None for rows in memory.
        files: The files that this was then.
        sha256: Of the rows' content where they were in memory (see `content_sha256`).
        columns: Their names, in order.
        earliest: Of their event_timestamp; None where no row has one.
        latest: Of the same.
    """

    path: str | None
    files: list[CardFile]
    sha256: str | None
    columns: list[str]
    earliest: datetime | None
    latest: datetime | None

    @property
    def bounds(self) -> Bounds:
        """The times between which answers were looked for, in UTC microseconds."""
        earliest, latest = (None if one is None else to_micros(one) for one in (self.earliest, self.latest))
        return earliest, latest


class CardFeature(msgspec.Struct, frozen=True, kw_only=True):
    """
    One feature of the dataset.

    Attributes:
        reference: As `view:feature`.
        column: Its column.
        dtype: As declared.
        default: As JSON spells it.
        nulls: How many rows have none.
        statuses: How many rows have each status; None where the dataset has no status columns.
    """

    reference: str
    column: str
    dtype: str
    default: Any
    nulls: int = 0
    statuses: dict[str, int] | None = None


class CardPartition(msgspec.Struct, frozen=True, array_like=True):
    """
    One partition file that the join could read.

    Attributes:
        window: Its key: the window's start.
        generation: Of its view when it was written: the version of its rows.
        rows: How many it holds.
        code_version: Definition hash that computed it.
    """

    window: str
    generation: int
    rows: int
    code_version: str


class CardView(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was read of one view.

    Attributes:
        code_version: Definition hash of the view then.
        ttl_seconds: None where a value holds for ever.
        partitions: Every partition file that could hold an answer, oldest first.
    """

    code_version: str
    ttl_seconds: float | None
    partitions: list[CardPartition]


class DatasetCard(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a training set was made of.

    Attributes:
        version: Of this form of card.
        created_at: When the dataset was written.
        platform_version: Of the package that wrote it.
        dataset: The Parquet file.
        rows: How many it has.
        as_of: "known" or "latest", as asked.
        entity_df: What was asked about.
        features: In the order of the columns.
        views: By name.
    """

    version: int
    created_at: datetime
    platform_version: str
    dataset: CardFile
    rows: int
    as_of: AsOf
    entity_df: CardInput
    features: list[CardFeature]
    views: dict[str, CardView]

    @property
    def statuses(self) -> bool:
        """Whether the dataset has status columns."""
        return any(feature.statuses is not None for feature in self.features)

    @property
    def full_feature_names(self) -> bool:
        """Whether its columns are named `view__feature`."""
        return any(feature.column != feature.reference.partition(":")[2] for feature in self.features)


class Tally:
    """Counts the nulls and statuses of feature columns while they pass by."""

    def __init__(self, *, has_statuses: bool) -> None:
        self._has_statuses = has_statuses
        self._nulls: Counter[str] = Counter()
        self._statuses: dict[str, Counter[str]] = {}

    def add(self, features: pa.RecordBatch) -> None:
        """Count a batch."""
        for index, (name, column) in enumerate(zip(features.schema.names, features.columns, strict=True)):
            if self._has_statuses and index % 2:  # after each feature; a feature may have such a name too
                counts = {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()}
                self._statuses.setdefault(name.removesuffix(STATUS_SUFFIX), Counter()).update(counts)
            else:
                self._nulls[name] += column.null_count

    def of(self, feature: CardFeature, *, statuses: bool) -> CardFeature:
        """Return a feature with its counts."""
        counted = dict(sorted(self._statuses.get(feature.column, {}).items())) if statuses else None
        return msgspec.structs.replace(feature, nulls=self._nulls[feature.column], statuses=counted)


def card_features(refs: Iterable[FeatureRef]) -> list[CardFeature]:
    """Describe features as they are declared now, uncounted."""
    found = []
    for ref in refs:
        default, to_json = ref.feature.effective_default, ref.feature.type.to_json
        spelled = default if default is None or to_json is None else to_json(default)
        found.append(CardFeature(reference=str(ref), column=ref.column, dtype=str(ref.feature.type), default=spelled))
    return found


def card_views(store: OfflineStore, question: Question, bounds: Bounds) -> dict[str, CardView]:
    """Describe the views of a question, and the partitions that could answer it between two times, as they are now."""
    found = {}
    for name, refs in question.by_view.items():
        view = refs[0].view
        partitions = [
            CardPartition(one.window.key, one.generation, one.rows, one.definition)
            for one in needed_partitions(view, store, bounds, question)
        ]
        ttl = None if view.ttl is None else view.ttl.total_seconds()
        found[name] = CardView(code_version=view.definition_hash, ttl_seconds=ttl, partitions=partitions)
    return found


def content_sha256(batches: Iterable[pa.RecordBatch]) -> str:
    """
    Return the SHA-256 of rows that are in no file: the same for the same columns and rows, however they are cut into batches.

    Of each column's name and Arrow type, and then row by row, in msgpack.
    """
    digest = hashlib.sha256()
    is_first = True
    for batch in batches:
        if is_first:
            digest.update(encode_value([[field.name, str(field.type)] for field in batch.schema]))
            is_first = False
        columns = [plain_values(column) for column in batch.columns]
        digest.update(b"".join(map(encode_value, zip(*columns, strict=True))))
    return digest.hexdigest()


def plain_values(column: pa.Array) -> list[Any]:
    """Return a column's values; times as numbers of their unit, since they reach further than a datetime."""
    for is_of, number in ((pa.types.is_timestamp, pa.int64()), (pa.types.is_duration, pa.int64()), (pa.types.is_date32, pa.int32())):
        if is_of(column.type):
            column = column.cast(number)
    values: list[Any] = column.to_pylist()
    return values


encode_value = msgspec.msgpack.Encoder(enc_hook=repr).encode
"""Any value of an Arrow column as bytes, for equality: NaN is itself there; what msgpack lacks is spelled by repr."""


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card_path(dataset: str | os.PathLike[str]) -> Path:
    """Return where a dataset's card lies: `training.parquet.card.json`."""
    path = Path(dataset)
    return path.with_name(path.name + ".card.json")


def platform_version() -> str:
    """Return the version of this package."""
    try:
        return version("feature-platform")
    except PackageNotFoundError:  # run from a folder of sources
        return "0+unknown"


def write_card(
    dataset: Path,
    *,
    question: Question,
    rows: int,
    sha256: str,
    bounds: Bounds,
    given: tuple[str | None, list[CardFile], str | None],
    columns: list[str],
    views: Mapping[str, CardView],
    tally: Tally,
) -> None:
    """
    Write the card of a dataset.

    Args:
        dataset: The Parquet file; its card lies beside it.
        question: What was asked.
        rows: Of the dataset.
        sha256: Of the dataset.
        bounds: The earliest and latest time asked about.
        given: `path`, `files` and `sha256` of the entity rows.
        columns: Of the entity rows.
        views: As `card_views` found them before the join: what was written during it then counts as changed.
        tally: Of the feature columns.
    """
    # DuckDB's times reach further than a datetime, and further than any partition.
    low, high = to_micros(WHOLE.start), to_micros(WHOLE.end)
    earliest, latest = (None if one is None else from_micros(min(max(one, low), high)) for one in bounds)
    path, files, content = given
    card = DatasetCard(
        version=CARD_VERSION,
        created_at=datetime.now(UTC),
        platform_version=platform_version(),
        dataset=CardFile(dataset.name, sha256),
        rows=rows,
        as_of=question.as_of,
        entity_df=CardInput(path=path, files=files, sha256=content, columns=columns, earliest=earliest, latest=latest),
        features=[tally.of(one, statuses=question.statuses) for one in card_features(question.refs)],
        views=dict(views),
    )
    text = msgspec.json.format(msgspec.json.encode(card), indent=2).decode()
    target = card_path(dataset)
    temporary = target.with_name(f".{target.name}.tmp")
    # A partition a line: a year of hours is 8,760 of them.
    temporary.write_text(_JSON_LINE.sub(r"[\1, \2, \3, \4]", text) + "\n", encoding="utf-8")
    temporary.replace(target)


def read_card(dataset: str | os.PathLike[str]) -> DatasetCard:
    """
    Read the card beside a dataset.

    Raises:
        DatasetCardError: There is none, or it cannot be read.
    """
    path = card_path(dataset)
    try:
        text = path.read_bytes()
    except FileNotFoundError as exc:
        message = (
            f"{os.fspath(dataset)} has no card: there is no {path.name} beside it.\n"
            "Write the dataset with to_parquet(path, card=True), or fp history --card."
        )
        raise DatasetCardError(message) from exc
    try:
        found = msgspec.json.decode(text, type=_Versioned).version
        if found != CARD_VERSION:
            message = f"{path} is a card of version {found}, and this platform reads version {CARD_VERSION}.\nUpgrade feature-platform."
            raise DatasetCardError(message)
        return msgspec.json.decode(text, type=DatasetCard)
    except msgspec.MsgspecError as exc:
        message = f"{path} is not a dataset card: {exc}.\nWrite the dataset again, with its card."
        raise DatasetCardError(message) from exc


class _Versioned(msgspec.Struct):
    version: int
