"""
Every error the platform raises, as one tree.

    FeaturePlatformError
    ├── RegistryError (ValueError)            a declaration contradicts itself or another one
    │   └── DtypeError                        a dtype that the platform does not carry
    ├── SettingsError (ValueError)            a setting is missing or malformed
    ├── UnknownNameError (LookupError)        a view, feature, service or source that is not declared
    ├── QueryError (ValueError)               a view's query is unsafe or is not one SELECT
    ├── ContractError (ValueError)            computed rows differ from the declared columns
    ├── ExpectationError (ValueError)         computed rows break what is expected of a feature
    ├── SourceNotFoundError (FileNotFoundError)  a source's files do not exist
    ├── WindowError (ValueError)              a range of time that cannot be computed
    ├── EntityRowsError (ValueError)          the rows asked about lack a key or have the wrong type
    ├── NameClashError (ValueError)           two result columns would have one name
    ├── DatasetCardError (ValueError)         a training set has no card that can be read
    ├── OnlineStoreError (ConnectionError)    the online store did not answer
    └── NotMaterializedError (LookupError)    the online store holds nothing for a view

Each message says what, where and the next step; the parts stay on the exception as
attributes. Missing data is no error: it is a status.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ContractError",
    "DatasetCardError",
    "DtypeError",
    "EntityRowsError",
    "ExpectationError",
    "FeaturePlatformError",
    "NameClashError",
    "NotMaterializedError",
    "OnlineStoreError",
    "QueryError",
    "RegistryError",
    "SettingsError",
    "SourceNotFoundError",
    "UnknownNameError",
    "WindowError",
    "suggest",
]

_SHOWN = 20


def suggest(name: str, known: Iterable[str], *, has: str = "Known") -> str:
    """Say which of the `known` names was probably meant, then list them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"{hint}{has}: {shown or 'nothing'}."


class FeaturePlatformError(Exception):
    """
    Base of all errors of the platform.

    Attributes:
        field: The name of the input that is wrong, where one can be named.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RegistryError(FeaturePlatformError, ValueError):
    """A declaration contradicts itself or another one."""


class DtypeError(RegistryError):
    """A dtype that the platform does not carry, or a value that is not of its dtype."""


class SettingsError(FeaturePlatformError, ValueError):
    """A setting is missing or malformed."""


class UnknownNameError(FeaturePlatformError, LookupError):
    """
    A view, feature, service or source that is not declared, or a token that is not in the file.

    Attributes:
        kind: What was looked for: "view", "feature", "service", "source" or "token".
        name: The name that is not known.
        suggestion: The nearest known name, if one is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "", field: str | None = None) -> None:
        names = list(known)
        has = f"The {where.split(maxsplit=1)[0]} has" if where else "Known"
        message = f"no {kind} {name!r}{f' in {where}' if where else ''}.\n{suggest(name, names, has=has)}"
        super().__init__(message, field=field)
        self.kind, self.name = kind, name
        close = get_close_matches(name, names, n=1)
        self.suggestion = close[0] if close else None


class QueryError(FeaturePlatformError, ValueError):
    """A view's query is unsafe or is not one SELECT."""


class ContractError(FeaturePlatformError, ValueError):
    """Computed rows differ from the declared columns, or break a promise of the view's kind."""


class ExpectationError(FeaturePlatformError, ValueError):
    """
    Computed rows break what is expected of a feature; they are kept aside, and readers see what they saw before.

    Attributes:
        reports: What every window came to, those that were written among them.
    """

    def __init__(self, message: str, *, reports: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)


class SourceNotFoundError(FeaturePlatformError, FileNotFoundError):
    """A source's files do not exist."""


class WindowError(FeaturePlatformError, ValueError):
    """A range of time that cannot be computed."""


class EntityRowsError(FeaturePlatformError, ValueError):
    """The rows asked about lack a join key, or have another type than declared."""


class NameClashError(FeaturePlatformError, ValueError):
    """
    Two result columns would have one name.

    Attributes:
        name: The name that clashes.
    """

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message, field="features")
        self.name = name


class DatasetCardError(FeaturePlatformError, ValueError):
    """A training set has no card, or one that cannot be read."""


class OnlineStoreError(FeaturePlatformError, ConnectionError):
    """The online store did not answer, or refused."""


class NotMaterializedError(FeaturePlatformError, LookupError):
    """
    The online store holds nothing for a view: answering defaults for everyone would hide that.

    Attributes:
        view: The view that was never materialized, or whose meta is gone.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"view {view!r} is not in the online store: it was never materialized, or the store was emptied.\n"
            f"Run 'fp materialize {view}', or 'fp rebuild-online' to fill the store from the Parquet history."
        )
        self.view = view
