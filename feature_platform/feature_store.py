"""
The feature store as Python code uses it: compute, join, materialize, read.

Knows all parts below; holds their connections, opened late and closed at the end.
"""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self, TypeAlias

import duckdb

from feature_platform.errors import ExpectationError, RegistryError
from feature_platform.materialization import MaterializationReport, materialize_view, read_meta
from feature_platform.model import FeatureView
from feature_platform.offline.compaction import CompactionReport, compact_view
from feature_platform.offline.compute import PartitionReport, compute_windows
from feature_platform.offline.due import due_windows, pending_windows, requested_windows
from feature_platform.offline.entity_query import entity_rows, is_query
from feature_platform.offline.historical import HistoricalFeatures
from feature_platform.offline.inputs import source_files
from feature_platform.offline.query import configure, first_row, spill_directory
from feature_platform.offline.question import Question
from feature_platform.offline.store import OfflineStore
from feature_platform.online.answers import OnlineFeatures
from feature_platform.online.codec import ViewCodec
from feature_platform.online.opening import open_online_store
from feature_platform.online.retrieval import read_online
from feature_platform.online.store import OnlineStore
from feature_platform.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from feature_platform.model import FeatureService
    from feature_platform.offline.entity_frame import EntityRows
    from feature_platform.offline.question import AsOf
    from feature_platform.registry import Registry
    from feature_platform.windows import Window

__all__ = ["FeatureStore", "Views"]

_SHOWN = 20

Views: TypeAlias = "Sequence[str | FeatureView] | str | FeatureView"


class FeatureStore:
    """
    One project's features: their history in Parquet, their newest values online.

    A context manager; opens nothing until used, and may be used by several threads.

    Args:
        registry: What is declared.
        settings: Where it lives; `Settings.from_env()` if left out.
        online: An online store to use instead of the one that the settings name; the caller closes it.
    """

    def __init__(self, registry: Registry, settings: Settings | None = None, *, online: OnlineStore | None = None) -> None:
        self.registry = registry
        self.settings = settings or Settings.from_env()
        self.offline = OfflineStore(self.settings.offline_root)
        self._given_online = online
        self._online: OnlineStore | None = None
        self._database: duckdb.DuckDBPyConnection | None = None
        self._memory_limit, self._threads = "", 0
        self._opening = threading.Lock()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Close what was opened; using the store again opens it again."""
        if self._online is not None:
            self._online.close()
            self._online = None
        if self._database is not None:
            self._database.close()
            self._database = None
        self.offline.close()

    @property
    def online(self) -> OnlineStore:
        """The online store."""
        if self._given_online is not None:
            return self._given_online
        with self._opening:
            if self._online is None:
                self._online = open_online_store(self.settings)
            return self._online

    def compute(
        self,
        views: Views | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        now: datetime | None = None,
        *,
        changed: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[PartitionReport]:
        """
        Compute views from their sources into Parquet.

        Args:
            views: Views or their names; all views if left out.
            start: With `end`, a range: its windows are computed whether they were before or not. Naive means UTC.
            end: Exclusive. Without a range, every closed window that is not there yet is computed.
            now: Windows that are not closed then are left alone.
            changed: Only the windows that were computed already, or rejected, and whose source files (of the rejected: query or
                expectations too) have changed since, however old they are; in the range, if there is one.
            progress: Called with the view's name, windows done and windows wanted.

        Returns:
            One report a window, in the order of views and windows.

        Raises:
            ExpectationError: Some windows were rejected; raised after all others are computed.
            FeaturePlatformError: See `feature_platform.offline.compute.compute_windows`.
        """
        moment = now or datetime.now(UTC)
        reports: list[PartitionReport] = []
        for view in self._views(views):
            windows = self._windows(view, start, end, moment, changed=changed)
            if not windows:
                continue
            name = view.name
            each = (lambda done, wanted, name=name: progress(name, done, wanted)) if progress else None
            with self._connect() as connection:
                reports += compute_windows(
                    connection, view, windows, store=self.offline, root=self.settings.root, now=moment, progress=each
                )
        _refuse_rejected(reports)
        return reports

    def compact(
        self, views: Views | None = None, now: datetime | None = None, *, progress: Callable[[str, int, int], None] | None = None
    ) -> list[CompactionReport]:
        """
        Merge the files of closed days and keep states: what is read costs less, no answer changes.

        Args:
            views: Views or their names; all views if left out.
            now: Days that have not ended by then are left alone.
            progress: Called with the view's name, days done and days to do.
        """
        moment = now or datetime.now(UTC)
        reports: list[CompactionReport] = []
        for view in self._views(views):
            each = (lambda done, wanted, name=view.name: progress(name, done, wanted)) if progress else None
            with self._connect() as connection:
                reports.append(compact_view(connection, view, store=self.offline, now=moment, progress=each))
        return reports

    def materialize(
        self,
        views: Views | None = None,
        now: datetime | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[MaterializationReport]:
        """
        Push what is visible at `now` to the online store; computes nothing.

        Args:
            views: Views or their names; all views if left out.
            now: The moment; an earlier one than was pushed last changes nothing.
            progress: Called with the view's name, rows sent and rows to send.

        Raises:
            OnlineStoreError: The store does not answer, or was filled from another history.
        """
        return self._materialize(views, now, again=False, progress=progress)

    def rebuild_online(
        self, views: Views | None = None, now: datetime | None = None, *, progress: Callable[[str, int, int], None] | None = None
    ) -> list[MaterializationReport]:
        """
        Fill the online store from the Parquet history, whatever it holds, without an outage.

        Every view's generation is raised above what is online, so every value is replaced, and what is left over goes.

        Args:
            views: Views or their names; all views if left out.
            now: The moment whose truth is pushed.
            progress: As in `materialize`.
        """
        for view in self._views(views):
            stored = self.online.get_many([ViewCodec(self.settings.project, view).meta_key], patient=True)[0]
            meta = read_meta(stored, even_if_broken=True)
            self.offline.raise_generation(view, above=meta.generation if meta else 0)
        return self._materialize(views, now, again=True, progress=progress)

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
        """
        Join to each row the newest values known at its `event_timestamp`.

        Args:
            entity_df: One row per question: the join keys of all features and `event_timestamp` (naive means UTC). A pandas or
                polars DataFrame, an Arrow table, a DuckDB relation, a path to Parquet, or a SELECT over the declared sources, by their
                names: `"select user_id, watched_at as event_timestamp from watches"`. Further columns pass through untouched.
            features: References (`view:feature`, or a bare name where it is unique), a FeatureService, or its name.
            as_of: "known": an event view's row is seen from its created_timestamp on; "latest" ignores that, for bulk-loaded history.
            full_feature_names: Whether result columns are named `view__feature`.
            statuses: Whether `<column>__status` follows each feature.
            labels: References whose values `label_delay` after the row's time become columns `label_<column>`: what a model is to
                foretell. NULL where that time is not over yet, as far as the view is computed.
            label_delay: The horizon of the labels.

        Returns:
            The same rows in the same order plus one column a feature and label, evaluated when a form of it is asked for: the declared
            default, else null, where no value existed or it was older than the view's ttl. A NULL key or time finds nothing.

        Raises:
            UnknownNameError: A feature or service is not declared.
            RegistryError: Two entities have a key of one name and of different dtypes.
            NameClashError: Two columns would have one name.
            EntityRowsError: A join key is missing, or has another type than declared (some when evaluated).
        """
        if as_of not in {"known", "latest"}:
            message = f"as_of={as_of!r} is not understood.\nWrite 'known' or 'latest'."
            raise RegistryError(message, field="as_of")
        refs = tuple(self.registry.resolve(features, full_feature_names=full_feature_names))
        if (label_delay is None) != (not labels) or (label_delay is not None and label_delay <= timedelta(0)):
            message = "labels and a positive label_delay go together.\nWrite labels=['view:feature'], label_delay=timedelta(days=7), say."
            raise RegistryError(message, field="label_delay")
        asked = tuple(self.registry.resolve(list(labels), full_feature_names=full_feature_names)) if labels else ()
        self.registry.join_keys([*refs, *asked])  # one column of rows has one dtype, and equal numbers of two hash differently
        if isinstance(entity_df, str) and is_query(entity_df):
            entity_df = entity_rows(self._entities(), entity_df, self.registry.sources, self.settings.root)
        return HistoricalFeatures(
            self._connect, self.offline, entity_df, Question(refs, as_of, statuses, asked, label_delay or timedelta(0))
        )

    def get_online_features(
        self,
        features: Sequence[str] | str | FeatureService,
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Sequence[object]],
        now: datetime | None = None,
        *,
        full_feature_names: bool = False,
        metadata: bool = False,
    ) -> OnlineFeatures:
        """
        Read the newest values of some entities.

        Args:
            features: References, a FeatureService, or its name.
            entity_rows: One dict of join keys per entity (or a dict of columns).
            now: When values are judged by their view's ttl.
            full_feature_names: Whether results are named `view__feature`.
            metadata: Whether the answer's `views` say where each view's values come from: run, partition, code version, age.

        Raises:
            NotMaterializedError: The store holds nothing for a view.
            EntityRowsError: A join key is missing, or has another type than declared.
            OnlineStoreError: The store does not answer.
        """
        return read_online(
            self.registry,
            self.online,
            self.settings.project,
            features,
            entity_rows,
            now=now or datetime.now(UTC),
            full_feature_names=full_feature_names,
            metadata=metadata,
        )

    def _windows(self, view: FeatureView, start: datetime | None, end: datetime | None, now: datetime, *, changed: bool) -> list[Window]:
        asked = requested_windows(view, start, end, now)
        if not changed and (start is not None or end is not None):
            return asked
        pending = pending_windows(view, self.offline, source_files(view, self.settings.root, self.offline.source_footers), now)
        # Among the missing is what was rejected, and has other files, another query or other expectations now.
        if not changed:
            return sorted({*due_windows(view, self.offline, now), *pending.missing})
        again = [window for window in pending.missing if self.offline.attempts.get(view, window)]
        return sorted({*pending.late, *pending.waiting, *again} & set(asked))

    def _materialize(
        self, views: Views | None, now: datetime | None, *, again: bool, progress: Callable[[str, int, int], None] | None
    ) -> list[MaterializationReport]:
        moment = now or datetime.now(UTC)
        reports: list[MaterializationReport] = []
        for view in self._views(views):
            name = view.name
            each = (lambda done, wanted, name=name: progress(name, done, wanted)) if progress else None
            with self._connect() as connection:
                reports.append(
                    materialize_view(
                        connection,
                        view,
                        store=self.offline,
                        online=self.online,
                        project=self.settings.project,
                        now=moment,
                        again=again,
                        progress=each,
                    )
                )
        return reports

    def _views(self, views: Views | None) -> list[FeatureView]:
        if views is None:
            return list(self.registry.views.values())
        asked = [views] if isinstance(views, (str, FeatureView)) else views
        return [self.registry.view(one.name if isinstance(one, FeatureView) else one) for one in asked]

    def _entities(self) -> duckdb.DuckDBPyConnection:
        """Return a connection for the rows of a query, which are read when the join is; it is closed with the store."""
        with self._opening:
            connection = self._opened().cursor()
        configure(connection, memory_limit=self._memory_limit, threads=self._threads)
        return connection

    def _opened(self) -> duckdb.DuckDBPyConnection:
        if self._database is None:
            self._database = duckdb.connect(":memory:", config={"temp_directory": spill_directory()})
            # The database's, not a connection's: a join that spills or a push lowers them, and the next connection sets them again.
            memory_limit, threads = first_row(self._database, "select current_setting('memory_limit'), current_setting('threads')")
            self._memory_limit, self._threads = self.settings.memory_limit or memory_limit, self.settings.threads or threads
        return self._database

    @contextlib.contextmanager
    def _connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hand out a connection of its own to one database, so that threads do not share temporary tables."""
        with self._opening:
            connection = self._opened().cursor()
        try:
            configure(connection, memory_limit=self._memory_limit, threads=self._threads)
            yield connection
        finally:
            connection.close()


def _refuse_rejected(reports: Sequence[PartitionReport]) -> None:
    """
    Say what was rejected, if anything was.

    Raises:
        ExpectationError: Something was.
    """
    rejected = [report for report in reports if report.outcome == "rejected"]
    if not rejected:
        return
    lines = [f"view {one.view!r}, window {one.window}: {failure}" for one in rejected for failure in one.failures]
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    head = f"{len(rejected)} of {len(reports)} windows were rejected; readers see what they saw before."
    kept = f"The rows are kept for a look, as in {rejected[0].path}.\nCorrect the source, the query or the expectation, and compute again."
    raise ExpectationError("\n".join([head, *lines[:_SHOWN], *more, kept]), reports=reports)
