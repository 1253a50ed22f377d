"""
Online reads for code that runs on an event loop: agents, and services of users' own.

Knows the online store and the registry. Loads neither Dagster nor DuckDB.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from feature_platform.online.answers import OnlineFeatures
from feature_platform.online.opening import open_online_store
from feature_platform.online.retrieval import plan_online_read
from feature_platform.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from feature_platform.model import FeatureService
    from feature_platform.online.store import OnlineStore
    from feature_platform.registry import Registry

__all__ = ["AsyncFeatureStore"]


class AsyncFeatureStore:
    """
    The newest values of one project's features.

    An async context manager; opens nothing until used. Reads of one event loop share a connection, however many are under way.

    Args:
        registry: What is declared.
        settings: Where the online store is; `Settings.from_env()` if left out.
        online: An online store to use instead; the caller closes it.
    """

    def __init__(self, registry: Registry, settings: Settings | None = None, *, online: OnlineStore | None = None) -> None:
        self.registry = registry
        self.settings = settings or Settings.from_env()
        self.online = online or open_online_store(self.settings)
        self._is_ours = online is None

    async def __aenter__(self) -> Self:
        """Return the store."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the store."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close what was opened; using the store again opens it again."""
        if self._is_ours:
            await self.online.aclose()

    async def get_online_features(
        self,
        features: Sequence[str] | str | FeatureService,
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Sequence[object]],
        now: datetime | None = None,
        *,
        full_feature_names: bool = False,
        metadata: bool = False,
    ) -> OnlineFeatures:
        """
        Read the newest values of some entities, in one round trip.

        Args:
            features: References, a FeatureService, or its name.
            entity_rows: One dict of join keys per entity (or a dict of columns).
            now: When values are judged by their view's ttl.
            full_feature_names: Whether results are named `view__feature`.
            metadata: Whether the answer's `views` say where each view's values come from: run, partition, code version, age.

        Raises:
            NotMaterializedError: The store holds nothing for a view.
            EntityRowsError: A join key is missing, or has another type than declared.
            OnlineStoreError: The store does not answer within `read_deadline_ms`.
        """
        project = self.settings.project
        read = plan_online_read(self.registry, project, features, entity_rows, full_feature_names=full_feature_names)
        return read.answer(await self.online.get_many_async(read.keys), now or datetime.now(UTC), metadata=metadata)
