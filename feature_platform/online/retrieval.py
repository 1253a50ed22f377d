"""
Online reads: which keys a question needs, and what their values answer.

Pure functions around one `get_many`, so that the blocking SDK and the async API share every rule. Knows no server, and not which rows
count: that is `view_reader.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from feature_platform.dtypes import to_micros
from feature_platform.errors import NameClashError, NotMaterializedError
from feature_platform.model import FeatureService, FeatureView
from feature_platform.online.answers import Column, OnlineFeatures, ViewProvenance
from feature_platform.online.codec import ViewCodec
from feature_platform.online.entity_rows import EntityRows, checked_rows
from feature_platform.online.meta import ViewMeta
from feature_platform.online.view_reader import ViewReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_platform.online.store import OnlineStore
    from feature_platform.registry import FeatureRef, Features, Registry

__all__ = [
    "EntityRows",
    "OnlineQuestion",
    "OnlineRead",
    "online_question",
    "plan_online_read",
    "read_online",
]


class OnlineQuestion:
    """
    The features of a question, resolved: made once, asked about any rows.

    Args:
        registry: Declares the features.
        project: Prefix of the keys.
        features: References, a service, or a service's name.
        full_feature_names: Whether result columns are named `view__feature`.

    Attributes:
        refs: The features, in the order asked.
        join_keys: That rows must have.

    Raises:
        UnknownNameError: A feature or service that is not declared.
        RegistryError: A bare name that several views have, or no feature at all.
        NameClashError: Two result columns, or one and a join key, would have one name.
    """

    def __init__(self, registry: Registry, project: str, features: Features, *, full_feature_names: bool = False) -> None:
        self.refs = registry.resolve(features, full_feature_names=full_feature_names)
        self.join_keys = registry.join_keys(self.refs)
        for ref in self.refs:
            if ref.column in self.join_keys:
                message = f"feature {ref} has the name of a join key.\nUse full_feature_names=True."
                raise NameClashError(message, name=ref.column)
        by_view: dict[str, list[FeatureRef]] = {}
        for ref in self.refs:
            by_view.setdefault(ref.view.name, []).append(ref)
        self._views = [ViewReader(_codec(registry, project, refs[0].view), refs) for refs in by_view.values()]
        self._metas = [view.codec.meta_key for view in self._views]
        self._names = tuple(ref.column for ref in self.refs)
        self._dtypes = self.join_keys | {ref.column: ref.feature.type for ref in self.refs}

    def read(self, rows: list[dict[str, Any]]) -> OnlineRead:
        """Return the read of some rows, whose join keys have been checked."""
        keys, places = list(self._metas), []
        for view in self._views:
            # A global view has one key, however many rows ask for it.
            first, asked = len(keys), rows if view.codec.view.entity.join_keys else rows[:1]
            keys += view.codec.entity_keys(asked)
            places.append(slice(first, len(keys)))
        return OnlineRead(self, rows, keys, places)

    def answer(self, read: OnlineRead, values: Sequence[bytes | None], now: datetime, *, metadata: bool) -> OnlineFeatures:
        """Return the answers of one of its reads; see `OnlineRead.answer`."""
        micros = to_micros(now)
        found: dict[str, Column] = {}
        provenance: dict[str, ViewProvenance] | None = {} if metadata else None
        for view, value, place in zip(self._views, values, read.places, strict=False):  # the metas come first
            if value is None:
                raise NotMaterializedError(view.codec.view.name)
            meta = _read_meta(value)
            stored = values[place]
            view.answer(stored if len(stored) == len(read.rows) else list(stored) * len(read.rows), meta, micros, found)
            if provenance is not None:
                provenance[view.codec.view.name] = ViewProvenance.of(meta, now)
        return OnlineFeatures(self._names, read.rows, found, self._dtypes, provenance)


class OnlineRead(msgspec.Struct, frozen=True):
    """
    A read that has been checked and only waits for its values.

    Attributes:
        question: Whose it is.
        rows: The join keys asked about.
        keys: What to get: the metas of the views, then the rows.
        places: Where each view's rows stand in them.
    """

    question: OnlineQuestion
    rows: list[dict[str, Any]]
    keys: list[bytes]
    places: list[slice]

    def answer(self, values: Sequence[bytes | None], now: datetime, *, metadata: bool = False) -> OnlineFeatures:
        """
        Return the answers that stand in the values of `keys`.

        Args:
            values: One per key, in order.
            now: When the values are used: ttl is judged at it (naive means UTC).
            metadata: Whether the answer says where each view's values come from.

        Raises:
            NotMaterializedError: A view has no meta.
            OnlineStoreError: A value cannot be read.
        """
        return self.question.answer(self, values, now, metadata=metadata)


def online_question(registry: Registry, project: str, features: Features, *, full_feature_names: bool = False) -> OnlineQuestion:
    """Return the question about some features, kept as long as its registry: making one costs more than a read. Raises as it does."""
    kept = _questions.setdefault(registry, {})
    asked: Hashable
    if isinstance(features, str):
        asked = features
    elif isinstance(features, FeatureService):
        asked = features.name if registry.services.get(features.name) is features else None
    else:
        asked = tuple(features) if isinstance(features, (list, tuple)) else None
    if asked is None:
        return OnlineQuestion(registry, project, features, full_feature_names=full_feature_names)
    key = (project, asked, full_feature_names)
    try:
        question = kept.get(key)
    except TypeError:  # something in the list is no name, and is refused by it
        return OnlineQuestion(registry, project, features, full_feature_names=full_feature_names)
    if question is None:
        question = OnlineQuestion(registry, project, features, full_feature_names=full_feature_names)
        if len(kept) >= _QUESTIONS_KEPT:
            kept.clear()
        kept[key] = question
    return question


def plan_online_read(
    registry: Registry, project: str, features: Features, entity_rows: EntityRows, *, full_feature_names: bool = False
) -> OnlineRead:
    """
    Check a question and return the read that answers it.

    Args:
        registry: Declares the features.
        project: Prefix of the keys.
        features: References, a service, or a service's name.
        entity_rows: One mapping of join keys per entity, or join keys to columns; rows may repeat.
        full_feature_names: Whether result columns are named `view__feature`.

    Raises:
        EntityRowsError: A join key is missing, null, not declared or of another dtype.
        FeaturePlatformError: What `OnlineQuestion` raises.
    """
    question = online_question(registry, project, features, full_feature_names=full_feature_names)
    return question.read(checked_rows(entity_rows, question.join_keys))


def read_online(
    registry: Registry,
    store: OnlineStore,
    project: str,
    features: Features,
    entity_rows: EntityRows,
    *,
    now: datetime | None = None,
    full_feature_names: bool = False,
    metadata: bool = False,
    patient: bool = False,
) -> OnlineFeatures:
    """
    Ask the store and return the answers; one trip, however many views and entities.

    Args:
        registry: See `plan_online_read`.
        store: Holds the values.
        project: See `plan_online_read`.
        features: See `plan_online_read`.
        entity_rows: See `plan_online_read`.
        now: When the values are used; None is this moment.
        full_feature_names: See `plan_online_read`.
        metadata: See `OnlineRead.answer`.
        patient: See `OnlineStore.get_many`.

    Raises:
        OnlineStoreError: The store does not answer.
        NotMaterializedError: A view is not in the store.
        FeaturePlatformError: What `plan_online_read` raises.
    """
    read = plan_online_read(registry, project, features, entity_rows, full_feature_names=full_feature_names)
    return read.answer(store.get_many(read.keys, patient=patient), now or datetime.now(UTC), metadata=metadata)


@lru_cache(maxsize=1024)
def _read_meta(value: bytes) -> ViewMeta:
    """Read a meta; it moves once a materialization and is read with every request."""
    return ViewMeta.from_bytes(value)


_QUESTIONS_KEPT: Final = 256
_questions: weakref.WeakKeyDictionary[Registry, dict[Hashable, OnlineQuestion]] = weakref.WeakKeyDictionary()
_codecs: weakref.WeakKeyDictionary[Registry, dict[tuple[str, str], ViewCodec]] = weakref.WeakKeyDictionary()


def _codec(registry: Registry, project: str, view: FeatureView) -> ViewCodec:
    """Return the view's codec, kept as long as its registry: making one costs more than a read."""
    of_registry = _codecs.setdefault(registry, {})
    codec = of_registry.get((project, view.name))
    if codec is None or codec.view is not view:
        codec = of_registry[project, view.name] = ViewCodec(project, view)
    return codec
