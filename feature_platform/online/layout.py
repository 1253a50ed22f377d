"""
The bytes of the online store: how keys are spelled, and the fixed head that every value begins with.

Knows nothing of dtypes, views or servers. The Lua scripts of `scripts.py` read the same offsets.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

__all__ = [
    "DEFINITION_ITEM",
    "GENERATION",
    "HEAD_ITEMS",
    "HEAD_SIZE",
    "TIME",
    "TIME_ITEM",
    "Head",
    "escape",
    "key_pattern",
    "key_prefix",
    "key_suffix",
    "meta_key",
    "pack_head",
    "push_key",
    "read_head",
]

# One msgpack array, so that any msgpack reader opens a value; every number takes its widest form, so that the server finds
# generation and time without decoding: array16, uint64, int64, fixstr of 16, bool, and then the view's features.
_HEAD: Final = struct.Struct(">BHBQBqB16s?")
_ARRAY16, _UINT64, _INT64, _FIXSTR16, _FALSE = 0xDC, 0xCF, 0xD3, 0xB0, 0xC2
HEAD_SIZE: Final = _HEAD.size
HEAD_ITEMS: Final = 4
TIME_ITEM: Final = 1
DEFINITION_ITEM: Final = 2
GENERATION: Final = slice(4, 12)
TIME: Final = slice(13, 21)
_GLOB = re.compile(r"([*?\[\]\\^])")


class Head(NamedTuple):
    """
    What decides which of two values is newer.

    Attributes:
        generation: Counter of the view's partition writes; the greater one wins whatever the times.
        micros: Event time of a row, or the moment of a materialization of a meta; decides within one generation.
        is_tombstone: Whether the key's value is gone.
    """

    generation: int
    micros: int
    is_tombstone: bool


def pack_head(items: int, generation: int, micros: int, definition: str, *, is_tombstone: bool = False) -> bytes:
    """
    Return the head of a value that has `items` more elements.

    Args:
        items: How many msgpack elements follow the head.
        generation: See `Head`.
        micros: See `Head`.
        definition: 16 hex digits, the hash of the view's definition.
        is_tombstone: See `Head`.
    """
    head = _HEAD.pack(
        _ARRAY16, HEAD_ITEMS + items, _UINT64, generation, _INT64, micros, _FIXSTR16, definition.encode("ascii"), is_tombstone
    )
    # msgpack's false is 0xc2 and its true 0xc3.
    return head[:-1] + bytes((_FALSE + is_tombstone,))


def read_head(value: bytes) -> Head | None:
    """Return the head of a value; None where it is not one of ours."""
    if len(value) < HEAD_SIZE or value[0] != _ARRAY16:
        return None
    generation, micros = struct.unpack_from(">QxQ", value, 4)
    return Head(generation, micros - ((micros >> 63) << 64), value[HEAD_SIZE - 1] != _FALSE)


def escape(text: str) -> str:
    r"""Return one join key's text so that a comma always parts two keys: `\` becomes `\\`, `,` becomes `\,`."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def key_prefix(project: str, entity: str) -> bytes:
    """Return what stands before an entity's join keys: the brace opens the part that decides the cluster slot."""
    return f"{project}:{{{entity}:".encode()


def key_suffix(view: str) -> bytes:
    """Return what stands behind an entity's join keys."""
    return f"}}:{view}".encode()


def meta_key(project: str, view: str) -> bytes:
    """Return the key of a view's meta; no entity key begins so, since theirs have a brace there."""
    return f"{project}:meta:{view}".encode()


def push_key(project: str, view: str) -> bytes:
    """Return the key under which a push keeps how far it came."""
    return f"{project}:push:{view}".encode()


def key_pattern(project: str, entity: str, view: str) -> bytes:
    """Return the glob that matches the keys of one view and no others, whatever text their join keys hold."""
    escaped = [_GLOB.sub(r"\\\1", part.decode()) for part in (key_prefix(project, entity), key_suffix(view))]
    return "*".join(escaped).encode()
