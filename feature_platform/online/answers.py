"""
What an online read answers: a value with its status and time, by column or by row, and where it comes from.

Knows dtypes and what a view's meta says. Knows nothing of how values are stored or found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pyarrow as pa

from feature_platform.dtypes import Dtype, from_micros
from feature_platform.model import FeatureStatus

if TYPE_CHECKING:
    import pandas as pd

    from feature_platform.online.meta import ViewMeta

__all__ = ["Column", "FeatureValue", "OnlineFeatures", "Row", "ViewProvenance"]


class FeatureValue(msgspec.Struct, frozen=True, gc=False):
    """
    One answer. A msgspec struct and not a dataclass: a request makes a thousand of them, 8 times as fast.

    Attributes:
        value: The declared default where the status is NOT_FOUND or OUTSIDE_MAX_AGE; None for NULL_VALUE.
        status: What stands behind the value.
        event_timestamp: When the stored value became true; None for NOT_FOUND.
    """

    value: object
    status: FeatureStatus
    event_timestamp: datetime | None = None


Row: TypeAlias = "dict[str, FeatureValue]"


class ViewProvenance(msgspec.Struct, frozen=True):
    """
    Where the values of one view come from: the last push of its history.

    Attributes:
        run_id: The Dagster run that pushed; None where the command line did.
        partition: The newest partition that was pushed.
        code_version: Hash of the view's definition when it was pushed.
        as_of: Of a window view: the end of its newest window then.
        materialized_at: The moment whose truth was pushed.
        age_seconds: Age of the data: since the newest source row that was read, else the as-of, else the materialization.
    """

    run_id: str | None
    partition: str | None
    code_version: str
    as_of: datetime | None
    materialized_at: datetime
    age_seconds: float

    @classmethod
    def of(cls, meta: ViewMeta, now: datetime) -> ViewProvenance:
        """Return what a view's meta says at a moment."""
        return cls(
            run_id=meta.run_id,
            partition=meta.partition,
            code_version=meta.definition,
            as_of=None if meta.as_of is None else from_micros(meta.as_of),
            materialized_at=from_micros(meta.materialized_at),
            age_seconds=meta.age_seconds(now),
        )


class Column(msgspec.Struct, frozen=True):
    """
    The answers of one feature, one per entity row; `FeatureValue` says what they mean.

    Attributes:
        values: With the defaults put in.
        statuses: Of each value.
        times: UTC microseconds of each event; columns of one view share the list where they can.
    """

    values: list[Any]
    statuses: list[FeatureStatus]
    times: list[int | None]


@dataclass
class OnlineFeatures:
    """
    The answers, one per entity row, in the order asked.

    Attributes:
        names: Result columns: the bare feature name, or `view__feature`.
        entity_rows: The join keys asked about.
        columns: The answers, by result column.
        dtypes: Of join keys and result columns.
        views: By view, where its values come from; None unless it was asked for.
    """

    names: tuple[str, ...]
    entity_rows: list[dict[str, Any]]
    columns: dict[str, Column]
    dtypes: dict[str, Dtype] = field(repr=False)
    views: dict[str, ViewProvenance] | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """The answers by row, then by result column; made when first asked for."""
        columns = []
        for name in self.names:
            column = self.columns[name]
            instants = [None if time is None else from_micros(time) for time in column.times]
            columns.append(list(map(FeatureValue, column.values, column.statuses, instants)))
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return columns: join keys first, then the features."""
        keys = [name for name in self.dtypes if name not in self.columns]
        columns: dict[str, list[Any]] = {name: [row[name] for row in self.entity_rows] for name in keys}
        return columns | {name: list(self.columns[name].values) for name in self.names}

    def to_pandas(self) -> pd.DataFrame:
        """Return the same as a DataFrame; ints, bools and strs are nullable there, so that nothing turns into a float."""
        import pandas as pd  # noqa: PLC0415 - the API process does without

        columns = {}
        for name, values in self.to_dict().items():
            columns[name] = pd.Series(values, dtype=_pandas_dtype(self.dtypes[name]), name=name)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.entity_rows)))


def _pandas_dtype(dtype: Dtype) -> str:
    match dtype.family:
        case "int":
            return f"{'UInt' if pa.types.is_unsigned_integer(dtype.arrow) else 'Int'}{dtype.arrow.bit_width}"
        case "bool":
            return "boolean"
        case "str":
            return "string"
        case "float":
            return f"float{dtype.arrow.bit_width}"
        case "datetime":
            return "datetime64[us, UTC]"
        case _:
            return "object"
