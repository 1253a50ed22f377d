"""
The codec of one view: its rows as keys and values of the online store, and back.

Knows the view's dtypes, and columns of Arrow on the way in. Knows no server, and not which rows count: that is
`retrieval.py`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from feature_platform.dtypes import Dtype, from_micros, to_micros
from feature_platform.errors import ContractError, OnlineStoreError
from feature_platform.online import layout
from feature_platform.online.meta import Schemas, ViewMeta

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feature_platform.model import FeatureView

__all__ = ["TOMBSTONE", "Places", "StoredRow", "ViewCodec", "ViewMeta"]

TOMBSTONE: Final = "__tombstone"
"""Name of the optional column that says which keys lose their value."""

Places: TypeAlias = "Mapping[str, tuple[int, Callable[[Any], Any] | None]]"
"""Feature to the index of its item in a row, and the function from what msgpack carries; None where they are the same."""

_ROWS_PER_SLICE: Final = 50_000
_decode = msgspec.msgpack.Decoder(list[Any]).decode
_encode = msgspec.msgpack.Encoder().encode
_pack_time = struct.Struct(">q").pack


class StoredRow(NamedTuple):
    """
    One value, read.

    Attributes:
        generation: The view's, when the value was pushed.
        event_timestamp: UTC microseconds.
        definition: Hash of the view's definition that computed it.
        is_tombstone: Whether the key's value is gone.
        values: By feature; features that the row's definition does not have, or has with another dtype, are not in it.
    """

    generation: int
    event_timestamp: int
    definition: str
    is_tombstone: bool
    values: dict[str, object]


class ViewCodec:
    """
    Encodes and decodes one view's rows.

    Args:
        project: Prefix of all keys.
        view: Declares keys and features.
    """

    def __init__(self, project: str, view: FeatureView) -> None:
        self.project, self.view = project, view
        self.meta_key, self.push_key = layout.meta_key(project, view.name), layout.push_key(project, view.name)
        self.definition = view.definition_hash
        self.dtypes: dict[str, Dtype] = {feature.name: feature.type for feature in view.features}
        self._keys = view.entity.keys
        self._texts = [_KEY_TEXT[dtype.family] for dtype in self._keys.values()]
        self._is_one_str = [dtype.family for dtype in self._keys.values()] == ["str"]
        self._prefix = layout.key_prefix(project, view.entity.name)
        self._suffix = layout.key_suffix(view.name)
        own = {name: (index + layout.HEAD_ITEMS, dtype.from_wire) for index, (name, dtype) in enumerate(self.dtypes.items())}
        self._columns: dict[str, Places] = {self.definition: own}

    @property
    def schema(self) -> list[tuple[str, str]]:
        """Name and dtype of the features, as `ViewMeta.schemas` holds them under the definition's hash."""
        return [(name, str(dtype)) for name, dtype in self.dtypes.items()]

    def entity_key(self, values: Mapping[str, Any] | Sequence[Any]) -> bytes:
        """
        Return the key of one entity.

        Args:
            values: Its join keys, by name or in declared order; of their dtypes (not checked here).

        Raises:
            UnicodeEncodeError: A str holds a lone surrogate.
        """
        if isinstance(values, Mapping):
            values = [values[name] for name in self._keys]
        if self._is_one_str:
            text: str = values[0]
            if "," in text or "\\" in text:
                text = layout.escape(text)
        else:
            text = ",".join([to_text(value) for to_text, value in zip(self._texts, values, strict=True)])
        return self._prefix + text.encode() + self._suffix

    def join_keys(self, key: bytes) -> dict[str, Any] | None:
        """Return the join keys of an entity's key; None of a key that `entity_key` makes of none."""
        if not (key.startswith(self._prefix) and key.endswith(self._suffix)):
            return None
        try:
            texts = _parted(key[len(self._prefix) : -len(self._suffix)].decode()) if self._keys else []
            found = {}
            for (name, dtype), text in zip(self._keys.items(), texts, strict=True):
                found[name] = _KEY_VALUE[dtype.family](text)
                dtype.check(found[name])
            # One value has one spelling: a key of another one is a key that nobody asks for.
            return found if self.entity_key(found) == key else None
        except (ValueError, LookupError, ArithmeticError):
            return None

    def encode_rows(self, rows: pa.Table | pa.RecordBatch, generation: int) -> Iterator[tuple[bytes, bytes]]:
        """
        Encode rows as the items of `OnlineStore.put_many`.

        Args:
            rows: The join keys, `event_timestamp`, the features, and optionally `__tombstone`; other columns are left out.
            generation: The view's, read before the rows were.

        Raises:
            ContractError: A column is missing or of another dtype, or a key or a time is null.
        """
        for start in range(0, rows.num_rows, _ROWS_PER_SLICE):
            part = rows.slice(start, _ROWS_PER_SLICE)
            keys = self._encode_keys(part)
            times = self._column(part, "event_timestamp", pa.timestamp("us", tz="UTC"), nullable=False).cast(pa.int64()).to_pylist()
            values = self._encode_values(part, times, generation)
            if TOMBSTONE in part.schema.names:
                gone = self._column(part, TOMBSTONE, pa.bool_()).to_pylist()
                values = [
                    layout.pack_head(0, generation, time, self.definition, is_tombstone=True) if is_gone else value
                    for value, time, is_gone in zip(values, times, gone, strict=True)
                ]
            yield from zip(keys, values, strict=True)

    def decode(self, value: bytes, schemas: Schemas | None = None) -> StoredRow:
        """
        Read a stored value.

        Args:
            value: As `encode_rows` made it, now or under another definition of the view.
            schemas: Of the view's meta.

        Raises:
            OnlineStoreError: It is not a value of ours.
        """
        items = self.decode_items(value)
        generation, micros, definition, is_tombstone = items[: layout.HEAD_ITEMS]
        if is_tombstone:
            return StoredRow(generation, micros, definition, is_tombstone, {})
        values = {}
        for name, (index, from_wire) in self.columns_of(definition, schemas).items():
            item = items[index]
            values[name] = item if item is None or from_wire is None else from_wire(item)
        return StoredRow(generation, micros, definition, is_tombstone, values)

    def entity_keys(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return the keys of several entities; see `entity_key`."""
        if not self._is_one_str:
            return [self.entity_key(row) for row in rows]
        (name,), prefix, suffix = self._keys, self._prefix, self._suffix
        texts = [row[name] for row in rows]
        together = "".join(texts)
        if "," in together or "\\" in together:
            texts = [layout.escape(text) for text in texts]
        return [prefix + text.encode() + suffix for text in texts]

    def decode_several(self, values: Sequence[bytes | None]) -> list[list[Any] | None]:
        """
        Return the items of each value that is not None; see `decode_items`.

        Raises:
            msgspec.DecodeError: One is not msgpack, or no list.
            LookupError: One is too short.
            TypeError: One holds something else than a row.
        """
        rows = [None if value is None else _decode(value) for value in values]
        if not {(type(row[layout.TIME_ITEM]), type(row[layout.DEFINITION_ITEM])) for row in rows if row is not None} <= {(int, str)}:
            message = "a value is not a row"
            raise TypeError(message)
        return rows

    def decode_items(self, value: bytes) -> list[Any]:
        """
        Return what msgpack holds in a stored value: the head's items, then those that `columns_of` finds.

        Raises:
            OnlineStoreError: It is not a value of ours.
        """
        try:
            items: list[Any] = _decode(value)
            if type(items[layout.DEFINITION_ITEM]) is str and type(items[layout.TIME_ITEM]) is int:
                return items
        except (msgspec.DecodeError, TypeError, LookupError):
            pass
        message = f"a value of view {self.view.name!r} in the online store cannot be read.\nRun 'fp rebuild-online' to write it again."
        raise OnlineStoreError(message)

    def columns_of(self, definition: str, schemas: Schemas | None) -> Places:
        """Return where a definition's rows hold the view's features; not those that it lacks, or has as another dtype."""
        known = self._columns.get(definition)
        if known is not None:
            return known
        if schemas is None or definition not in schemas:
            return {}
        columns = {}
        for index, (name, dtype) in enumerate(schemas[definition]):
            ours = self.dtypes.get(name)
            if ours is not None and str(ours) == dtype:
                columns[name] = (index + layout.HEAD_ITEMS, ours.from_wire)
        self._columns[definition] = columns
        return columns

    def _encode_keys(self, part: pa.Table | pa.RecordBatch) -> list[bytes]:
        if not self._keys:
            return [self._prefix + self._suffix] * part.num_rows
        texts = [_arrow_texts(self._column(part, name, dtype.arrow, nullable=False), dtype) for name, dtype in self._keys.items()]
        joined = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, ",")
        keys = pc.binary_join_element_wise(pa.scalar(self._prefix.decode()), joined, pa.scalar(self._suffix.decode()), "")
        return keys.cast(pa.binary()).to_pylist()  # type: ignore[no-any-return]

    def _encode_values(self, part: pa.Table | pa.RecordBatch, times: list[int], generation: int) -> list[bytes]:
        columns = [_wire(self._column(part, name, dtype.arrow), dtype) for name, dtype in self.dtypes.items()]
        head = layout.pack_head(len(columns), generation, 0, self.definition)
        before, after = head[: layout.TIME.start], head[layout.TIME.stop :]
        skip = len(_encode([None] * len(columns))) - len(columns)  # the header of the features' own array
        return [
            before + _pack_time(time) + after + _encode(row)[skip:] for time, row in zip(times, zip(*columns, strict=True), strict=True)
        ]

    def _column(self, part: pa.Table | pa.RecordBatch, name: str, arrow: pa.DataType, *, nullable: bool = True) -> pa.Array:
        where = f"view {self.view.name!r}: column {name!r}"
        if name not in part.schema.names:
            message = f"{where} is missing.\nThe rows have: {', '.join(part.schema.names)}."
            raise ContractError(message, field=name)
        column = part.column(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if column.null_count and not nullable:
            message = f"{where} has {column.null_count} nulls; such rows have no place in the online store.\nCompute drops and counts them."
            raise ContractError(message, field=name)
        try:
            return column if column.type == arrow else column.cast(arrow)
        except pa.ArrowException as exc:
            message = f"{where} is {column.type}, which does not fit {arrow}: {exc}."
            raise ContractError(message, field=name) from exc


def _wire(column: pa.Array, dtype: Dtype) -> list[Any]:
    """Return a column as what msgpack carries; scalars are converted by Arrow, which is several times faster."""
    if dtype.family == "datetime":
        return column.cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
    if dtype.family == "date":
        return column.cast(pa.int32()).to_pylist()  # type: ignore[no-any-return]
    values: list[Any] = column.to_pylist()
    if dtype.to_wire is None or dtype.family == "float":
        return values
    return [None if value is None else dtype.to_wire(value) for value in values]


def _arrow_texts(column: pa.Array, dtype: Dtype) -> pa.Array:
    """Return a key column as texts, the same that `_KEY_TEXT` gives one by one."""
    if dtype.family == "str":
        if pc.any(pc.match_substring_regex(column, r"[\\,]")).as_py():
            column = pc.replace_substring(pc.replace_substring(column, "\\", "\\\\"), ",", "\\,")
        return column
    if dtype.family == "datetime":
        column = column.cast(pa.int64())
    if dtype.family in {"int", "datetime", "bool", "date"}:
        return column.cast(pa.string())
    to_text = _KEY_TEXT[dtype.family]
    return pa.array([to_text(value) for value in column.to_pylist()], pa.string())


def _parted(text: str) -> list[str]:
    """Return the texts of join keys that `layout.escape` made safe to join with commas."""
    parts = [""]
    for piece in _KEY_PIECE.findall(text):
        if piece == ",":
            parts.append("")
        else:
            parts[-1] += piece.removeprefix("\\")
    return parts


def _decimal_text(value: Decimal | int) -> str:
    """Return one spelling for equal numbers: 1.10 and 1.1, 0 and -0."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


_KEY_TEXT: Final[dict[str, Callable[[Any], str]]] = {
    "str": layout.escape,
    "int": lambda value: str(int(value)),
    "bool": lambda value: "true" if value else "false",
    "bytes": bytes.hex,
    "date": date.isoformat,
    "datetime": lambda value: str(to_micros(value)),
    "decimal": _decimal_text,
}
_KEY_VALUE: Final[dict[str, Callable[[str], Any]]] = {
    "str": str,
    "int": int,
    "bool": {"true": True, "false": False}.__getitem__,
    "bytes": bytes.fromhex,
    "date": date.fromisoformat,
    "datetime": lambda text: from_micros(int(text)),
    "decimal": Decimal,
}
_KEY_PIECE: Final = re.compile(r"\\.|[^\\,]+|,", re.DOTALL)
