"""
A feature store that lives inside Dagster: declare features once, train and serve without leaks.

The public names. Importing this package imports no framework: `FeatureStore`, which needs DuckDB, and `AsyncFeatureStore`, which needs
redis-py, are loaded when first named.
"""

from typing import TYPE_CHECKING, Any

from feature_platform.expectations import between, not_null, one_of, unique
from feature_platform.model import (
    ON_UPDATE,
    Aggregate,
    Entity,
    Feature,
    FeatureService,
    FeatureStatus,
    FeatureView,
    ParquetSource,
)
from feature_platform.registry import Registry
from feature_platform.settings import Settings

if TYPE_CHECKING:
    from feature_platform.async_feature_store import AsyncFeatureStore
    from feature_platform.feature_store import FeatureStore

__all__ = [
    "ON_UPDATE",
    "Aggregate",
    "AsyncFeatureStore",
    "Entity",
    "Feature",
    "FeatureService",
    "FeatureStatus",
    "FeatureStore",
    "FeatureView",
    "ParquetSource",
    "Registry",
    "Settings",
    "between",
    "not_null",
    "one_of",
    "unique",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the module protocol (PEP 562)
    if name == "FeatureStore":
        from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - the API process must not load DuckDB

        return FeatureStore
    if name == "AsyncFeatureStore":
        from feature_platform.async_feature_store import AsyncFeatureStore  # noqa: PLC0415 - as above

        return AsyncFeatureStore
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
