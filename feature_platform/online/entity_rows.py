"""
The rows that an online read asks about, checked against the declared join keys.

Knows dtypes. Knows no store; what it lets through can be spelled as a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from feature_platform.errors import DtypeError, EntityRowsError, suggest

if TYPE_CHECKING:
    from feature_platform.dtypes import Dtype

__all__ = ["EntityRows", "checked_rows"]

EntityRows: TypeAlias = "Sequence[Mapping[str, object]] | Mapping[str, Iterable[object]]"
"""One mapping of join keys to values per entity, or one mapping of join keys to columns of values."""


def checked_rows(entity_rows: EntityRows, keys: Mapping[str, Dtype]) -> list[dict[str, Any]]:
    """
    Return one dict per entity that holds each join key, of its dtype, and nothing else.

    Args:
        entity_rows: See `EntityRows`.
        keys: The join keys that the features need.

    Raises:
        EntityRowsError: A key is missing, null, not declared or of another dtype; names the key and the row.
    """
    rows = _from_columns(entity_rows, keys) if isinstance(entity_rows, Mapping) else _from_rows(entity_rows)
    if _are_plain(rows, keys):
        return rows
    names = keys.keys()
    for index, row in enumerate(rows):
        if row.keys() != names:
            raise _wrong_names(row, keys, index)
        for name, value in row.items():
            row[name] = _checked(value, name, keys[name], index)
    return rows


def _are_plain(rows: list[dict[str, Any]], keys: Mapping[str, Dtype]) -> bool:
    """Say whether all values are ASCII text, and shall be: nearly always, and a glance at a column shows it."""
    if any(dtype.family != "str" for dtype in keys.values()) or set(map(len, rows)) != {len(keys)}:
        return False
    try:
        columns = [[row[name] for row in rows] for name in keys]
    except KeyError:
        return False
    return all(set(map(type, column)) == {str} and "".join(column).isascii() for column in columns)


def _from_rows(entity_rows: object) -> list[dict[str, Any]]:
    if isinstance(entity_rows, Sequence) and not isinstance(entity_rows, (str, bytes)):
        for index, row in enumerate(entity_rows):
            if not isinstance(row, Mapping):
                message = f'entity row {index} is a {type(row).__name__}, not a dict of join keys.\nWrite {{"user_id": "8a2f"}}, say.'
                raise EntityRowsError(message, field="entity_rows")
        return [dict(row) for row in entity_rows]
    message = f'entity rows are a {type(entity_rows).__name__}, not a list of dicts.\nWrite [{{"user_id": "8a2f"}}], say.'
    raise EntityRowsError(message, field="entity_rows")


def _from_columns(columns: Mapping[str, Any], keys: Mapping[str, Dtype]) -> list[dict[str, Any]]:
    if not columns and not keys:
        return [{}]  # a global view has one row, which has no join keys
    missing = [name for name in keys if name not in columns]
    unknown = [name for name in columns if name not in keys]
    if missing or unknown:
        raise _wrong_names(columns, keys, None)
    lists: dict[str, list[Any]] = {}
    for name, column in columns.items():
        values = column.tolist() if hasattr(column, "tolist") else column
        if not isinstance(values, (list, tuple)):
            message = f"join key {name!r} has a {type(column).__name__} for a column, not a list.\nWrite {{{name!r}: [{column!r}]}}."
            raise EntityRowsError(message, field=name)
        lists[name] = list(values)
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        message = f"columns of join keys differ in length: {lengths}.\nGive one value of each for every entity."
        raise EntityRowsError(message, field=next(iter(lists)))
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _wrong_names(row: Mapping[str, object], keys: Mapping[str, Dtype], index: int | None) -> EntityRowsError:
    where = "the entity columns" if index is None else f"entity row {index}"
    known = "The join keys of these features are"
    unknown = [name for name in row if name not in keys]
    if unknown:
        message = f"{where}: {unknown[0]!r} is no join key of these features.\n{suggest(str(unknown[0]), keys, has=known)}"
        return EntityRowsError(message, field=str(unknown[0]))
    missing = next(name for name in keys if name not in row)
    return EntityRowsError(f"{where}: join key {missing!r} is missing.\n{known}: {', '.join(keys)}.", field=missing)


def _checked(value: object, name: str, dtype: Dtype, index: int) -> object:
    where = f"entity row {index}: join key {name!r}"
    if value is None:
        message = f"{where} is null.\nLeave the row out, or give a value: a null is nobody's key."
        raise EntityRowsError(message, field=name)
    try:
        dtype.check(value)
    except DtypeError as exc:
        plain = value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
        if plain is not value:
            return _checked(plain, name, dtype, index)
        message = f"{where}: {str(exc).strip()}\nGive a {dtype.family}, as the entity declares."
        raise EntityRowsError(message, field=name) from exc
    return value
