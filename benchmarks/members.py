"""
The members of the online benchmarks and what is true of them: every value follows from its key, so any answer can be checked.

Loads nothing: peers import it, in environments of their own.
"""

from __future__ import annotations

from typing import Final

__all__ = ["WIDTHS", "entity_id", "feature_name", "references", "values_of"]

WIDTHS: Final = (3, 10)
"""Features of the views, which are named `view_3` and `view_10`."""


def entity_id(number: int) -> str:
    """Return a key of 12 digits, as `redis-benchmark` makes them, too."""
    return f"{number:012d}"


def feature_name(width: int, index: int) -> str:
    """Return the name of a view's feature."""
    return f"f{index}_of_{width}"


def references(width: int) -> list[str]:
    """Return the features of one view."""
    return [f"view_{width}:{feature_name(width, index)}" for index in range(width)]


def values_of(number: int, width: int) -> list[int | float | str]:
    """Return the right answer for one key."""
    makers = (lambda mixed: mixed, lambda mixed: mixed / 8, lambda mixed: f"value-{mixed % 97}")
    return [makers[index % 3]((number * 31 + index * 7) % 100_003) for index in range(width)]
