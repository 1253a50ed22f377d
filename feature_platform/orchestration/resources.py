"""
What assets are given to work with: a DuckDB connection, the online store, and point-in-time retrieval.

Knows how each is opened and closed. Knows nothing of partitions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar, Self, TypeVar

import dagster as dg
import duckdb as duckdb_engine
from dagster_duckdb import DuckDBResource
from pydantic import PrivateAttr

from feature_platform.feature_store import FeatureStore
from feature_platform.model import FeatureService
from feature_platform.offline.entity_frame import EntityRows
from feature_platform.offline.historical import HistoricalFeatures
from feature_platform.offline.query import spill_directory
from feature_platform.offline.question import AsOf
from feature_platform.online.opening import open_online_store
from feature_platform.online.store import OnlineStore
from feature_platform.registry import Registry
from feature_platform.settings import Settings, load_registry

__all__ = ["FeatureStoreResource", "OnlineStoreResource", "connect", "duckdb_resource"]

_Resource = TypeVar("_Resource")


def duckdb_resource(settings: Settings) -> DuckDBResource:
    """Return the engine of compute and push: in memory, since a DuckDB file has one writing process, within the settings' bounds."""
    bounds: dict[str, object] = {
        "memory_limit": settings.memory_limit,
        "threads": settings.threads,
        "temp_directory": spill_directory(),
    }
    return DuckDBResource(database=":memory:", connection_config={name: value for name, value in bounds.items() if value is not None})


@contextlib.contextmanager
def connect(duckdb: DuckDBResource) -> Iterator[duckdb_engine.DuckDBPyConnection]:
    """Hand out a connection and close it whatever happens: the resource itself leaves it open after an exception."""
    with duckdb.get_connection() as connection:
        try:
            yield connection
        finally:
            connection.close()


class OnlineStoreResource(dg.ConfigurableResource[None]):
    """
    The online store that `online/<view>` is pushed to.

    Attributes:
        url: `redis://...` or `dg.EnvVar(...)`; left out, what the settings name, else the embedded server.
    """

    settings: ClassVar[Settings | None] = None
    url: str = ""

    @classmethod
    def of(cls, settings: Settings) -> type[Self]:
        """Return this resource for a project whose settings are given, not read from the environment."""
        return _bound(cls, settings=settings)

    @contextlib.contextmanager
    def open(self) -> Iterator[OnlineStore]:
        """
        Hand out the store; it is closed afterwards.

        Raises:
            SettingsError: The URL is malformed.
        """
        settings = self.settings or Settings.from_env()
        with open_online_store(replace(settings, redis_url=self.url) if self.url else settings) as store:
            yield store


class FeatureStoreResource(dg.ConfigurableResource[None]):
    """
    Point-in-time retrieval for the assets of a project, a training set say.

    The registry is the one that the definitions were built from; elsewhere, the one that the project's settings name. What a
    step opens is closed at its end.

    Attributes:
        memory_limit: DuckDB's, as in "1GB"; left out, what the settings say.
    """

    registry: ClassVar[Registry | None] = None
    settings: ClassVar[Settings | None] = None
    memory_limit: str = ""
    _store: FeatureStore | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, registry: Registry, settings: Settings) -> type[Self]:
        """Return this resource for a given project."""
        return _bound(cls, registry=registry, settings=settings)

    @property
    def project(self) -> Settings:
        """The settings: where the project's files are."""
        settings = self.settings or Settings.from_env()
        return replace(settings, memory_limit=self.memory_limit) if self.memory_limit else settings

    def store(self) -> FeatureStore:
        """Return the project's feature store."""
        if self._store is None:
            settings = self.project
            self._store = FeatureStore(self.registry or load_registry(settings), settings)
        return self._store

    def get_historical_features(
        self,
        entity_df: EntityRows,
        features: Sequence[str] | str | FeatureService,
        as_of: AsOf = "known",
        *,
        full_feature_names: bool = False,
        statuses: bool = False,
        labels: Sequence[str] = (),
        label_delay: timedelta | None = None,
    ) -> HistoricalFeatures:
        """Join to each row the newest values known at its `event_timestamp`; see `FeatureStore.get_historical_features`."""
        return self.store().get_historical_features(
            entity_df,
            features,
            as_of,
            full_feature_names=full_feature_names,
            statuses=statuses,
            labels=labels,
            label_delay=label_delay,
        )

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close what the step opened."""
        del context
        if self._store is not None:
            self._store.close()
            self._store = None


def _bound(resource: type[_Resource], **project: object) -> type[_Resource]:
    """
    Return a resource class that knows its project.

    A registry is no configuration: Dagster makes each run's resource anew from the class and the fields. (A nested resource
    could hold it too, at the price of a DeprecationWarning from Dagster itself in every run.)
    """
    return type(resource.__name__, (resource,), {**project, "__doc__": resource.__doc__, "__module__": resource.__module__})
