"""
How declarations are told to people: lengths of time, and how a feature is computed.

Knows declarations. Knows neither terminals nor Dagster, which both say it so.
"""

from __future__ import annotations

import textwrap
from datetime import timedelta
from typing import Final

from feature_platform.model import Aggregate, Feature, FeatureView

__all__ = ["definition_text", "span"]

_DAY_HOURS: Final = 24
_MAGNITUDE = (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1)), ("s", timedelta(seconds=1)))


def span(length: timedelta | None) -> str:
    """Return a length of time as people write it: `30 d`, `26 h`, `5 min 30 s`."""
    if length is None:
        return ""
    hour, hours = timedelta(hours=1), length // timedelta(hours=1)
    if length == hours * hour and _DAY_HOURS < hours < 3 * _DAY_HOURS and hours % _DAY_HOURS:
        return f"{hours} h"  # as people say it: a promise of 26 hours, not of a day and two
    parts, rest = [], length
    for name, unit in _MAGNITUDE:
        amount, rest = divmod(rest, unit)
        if amount:
            parts.append(f"{amount} {name}")
    return " ".join(parts) or "0 s"


def definition_text(view: FeatureView, feature: Feature | Aggregate) -> str:
    """Return how a feature is computed: the SQL of its view as it was written, or words where there is none."""
    if isinstance(view.query, str):
        return textwrap.dedent(view.query).strip()
    if isinstance(feature, Aggregate):
        what = f"{feature.function}({feature.column or '*'}{'' if feature.n is None else f', {feature.n}'})"
        where = f" where {feature.where}" if feature.where else ""
        return f"{what} of {view.sources[0].name} over [end - {span(feature.window)}, end){where}"
    if view.query is None:
        return f"column {feature.name} of {view.sources[0].name}"
    return f"Python function {view.query.__module__}.{getattr(view.query, '__qualname__', type(view.query).__qualname__)}"
