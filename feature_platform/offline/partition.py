"""
What a partition's footer says, and the names that every reader and writer of partitions' files shares.

Knows no folder: where files lie is the store's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

import msgspec

from feature_platform.dtypes import from_micros
from feature_platform.model import FeatureView
from feature_platform.windows import Window

__all__ = ["METADATA_KEY", "ROW_GROUP", "SEVERAL_KEY", "TOMBSTONE", "WINDOW_START", "Partition", "shape_of"]

METADATA_KEY: Final = "feature_platform"
SEVERAL_KEY: Final = "feature_platform_partitions"
"""In the footer of a compacted file: the footers of the partitions whose rows it holds."""
WINDOW_START: Final = "__window"
"""Column of compacted files: the start of the row's window."""
TOMBSTONE: Final = "__tombstone"
"""Column of aggregate views' files: the key has no state from this row on."""
ROW_GROUP: Final = 122_880
"""Rows of a row group, at most: DuckDB's own."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """
    What a partition's footer says.

    Attributes:
        view: Name of its view.
        start: Window start, UTC microseconds; with `end`, the window.
        end: Window end.
        is_full: Whether it holds the complete state as of `end`, or only what changed (design: state model).
        definition: Definition hash of the view that computed it.
        columns: Feature name to dtype, in declared order.
        kind: Of view: files of another kind do not fit the state model of this one, and are passed over.
        keys: Join key to dtype; files of other keys are passed over too.
        has_created_timestamp: Whether its rows say when they were known.
        generation: Of the view, when this file was written.
        rows: Rows in the file, tombstones among them.
        tombstones: Rows that say that a key has no state.
        dropped: Rows left out for a NULL in a key or in event_timestamp.
        nulls: NULLs by feature.
        min_event_timestamp: Of the rows, UTC microseconds.
        max_event_timestamp: Of the rows.
        newest_source_timestamp: Newest time among the source rows read.
        computed_at: When it was computed.
        run_id: The Dagster run that computed it.
        inputs: Fingerprint of the source files that it read; None in files of an earlier version.
        accumulators: Layout of the hidden columns of running totals that an aggregate view's next window builds on; None without.
        file: Where its rows lie, below the view's folder. Not in the footer: compaction moves rows to another file.
        windows: How many windows that file holds.
    """

    view: str
    start: int
    end: int
    is_full: bool
    definition: str
    columns: dict[str, str]
    kind: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    has_created_timestamp: bool = False
    generation: int = 0
    rows: int = 0
    tombstones: int = 0
    dropped: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    min_event_timestamp: int | None = None
    max_event_timestamp: int | None = None
    newest_source_timestamp: int | None = None
    computed_at: int | None = None
    run_id: str | None = None
    inputs: str | None = None
    accumulators: str | None = None
    file: str = ""
    windows: int = 1

    @property
    def window(self) -> Window:
        """The window it holds."""
        return Window(from_micros(self.start), from_micros(self.end))

    def to_json(self) -> str:
        """Return the footer's text."""
        footer = asdict(self)
        del footer["file"], footer["windows"]
        return json.dumps(footer, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Partition:
        """Read a footer; fields that a later version added are passed over."""
        return _DECODER.decode(text)

    def is_of(self, view: FeatureView) -> bool:
        """Say whether its rows can be read as the view's: same kind, same join keys."""
        return self.shape == shape_of(view)

    @property
    def shape(self) -> str:
        """Kind and join keys, as text."""
        return _shape(self.kind, self.keys)


def shape_of(view: FeatureView) -> str:
    """Return kind and join keys of a view, as text: partitions of another shape cannot be read as the view's."""
    return _shape(str(view.kind), {name: str(dtype) for name, dtype in view.entity.keys.items()})


def _shape(kind: str, keys: Mapping[str, str]) -> str:
    return json.dumps([kind, dict(keys)])


_DECODER: Final = msgspec.json.Decoder(Partition)
