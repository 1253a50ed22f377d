"""The example's training sets as real Dagster runs: a week a partition, a card beside each, and the same when made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_platform import FeatureStore, Settings
from feature_platform.offline.card import DatasetCard, read_card
from feature_platform.offline.reproduction import differences
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.orchestration import build_definitions, feature_keys
from feature_platform.sample import generate
from features.streaming import START, recommender, registry
from features.training import LABELS, TRAINING_SET, WEEKS, labels, training_set

pytestmark = pytest.mark.slow

WEEK = timedelta(days=7)
FIRST, SECOND = (f"{START + number * WEEK:%Y-%m-%d}" for number in (3, 4))


@dataclass(frozen=True)
class Run:
    """A project after one run over two weeks."""

    root: Path
    store: FeatureStore
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    def dataset(self, week: str) -> Path:
        """Return a week's training set."""
        return self.root / "data" / "training" / "recommender" / f"{week}.parquet"

    def differences(self, week: str) -> list[str]:
        """Return what kinds of things are not as a week's card says."""
        path = self.dataset(week)
        return [one.kind for one in differences(read_card(path), path, registry, self.store.offline)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Compute the features of two weeks, then both weeks' labels and training sets in one run."""
    root = tmp_path_factory.mktemp("project")
    settings = Settings(root=root, read_deadline_ms=5000)
    generate(root, users=2_000, events=40_000, days=60, end=datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    start = START + 3 * WEEK
    with FeatureStore(registry, settings, online=MemoryOnlineStore()) as store, dg.DagsterInstance.ephemeral() as instance:
        store.compute(["user_profile", "user_activity"], start - timedelta(days=1), start + 2 * WEEK)
        store.compute("user_last_watch")
        definitions = dg.Definitions.merge(build_definitions(registry, settings), dg.Definitions(assets=[labels, training_set]))
        done = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[LABELS.key, TRAINING_SET.key],
            tags={"dagster/asset_partition_range_start": FIRST, "dagster/asset_partition_range_end": SECOND},
        )
        assert done.success
        yield Run(root, store, definitions, instance)


def test_one_run_writes_a_file_a_week(run: Run) -> None:
    """A backfill is one run; each week's file has its own labels with features, and its own row count in Dagster."""
    events = run.instance.fetch_materializations(TRAINING_SET.key, limit=10).records
    assert {one.partition_key for one in events} == {FIRST, SECOND}
    for event in events:
        week = event.partition_key or ""
        table = pq.read_table(run.dataset(week))
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["dagster/partition_row_count"].value == table.num_rows > 0
        window = WEEKS.time_window_for_partition_key(week)
        assert window.start <= pc.min(table["event_timestamp"]).as_py() + timedelta(seconds=1)
        assert pc.max(table["event_timestamp"]).as_py() + timedelta(seconds=1) < window.end
        assert {"user_id", "label_genre", "label_minutes", "user_segment", "watch_count_30d", "last_genre"} < set(table.column_names)
        assert "PRESENT" in pc.unique(table["watch_count_30d__status"]).to_pylist()


def test_each_week_has_a_card_that_holds(run: Run) -> None:
    """The card names the labels' file and the partitions that were read, and nothing differs from it."""
    for week in (FIRST, SECOND):
        card: DatasetCard = read_card(run.dataset(week))
        assert [one.path for one in card.entity_df.files] == [f"../labels/{week}.parquet"]
        assert card.rows == pq.read_metadata(run.dataset(week)).num_rows
        assert card.views.keys() == {"user_profile", "user_activity", "user_last_watch"}
        assert {name for name, view in card.views.items() if view.partitions} == card.views.keys(), card
        assert run.differences(week) == []


def test_a_week_that_is_made_again_is_the_same_file(run: Run) -> None:
    """Run again, labels and training set come out byte for byte."""
    before = {path: path.read_bytes() for path in (run.root / "data" / "training").rglob("*.parquet")}
    assert len(before) == 4
    again = run.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=run.instance, asset_selection=[LABELS.key, TRAINING_SET.key], partition_key=FIRST
    )
    assert again.success
    assert {path: path.read_bytes() for path in before} == before


def test_the_lineage_reaches_from_the_source_to_the_training_set(run: Run) -> None:
    """The training set hangs off its labels and off every feature that it reads, week by week."""
    graph = run.definitions.resolve_asset_graph()
    assert graph.get(TRAINING_SET.key).parent_keys == {LABELS.key, *feature_keys(recommender)}
    assert graph.get(LABELS.key).parent_keys == {dg.AssetKey(["sources", "watches"])}
    assert graph.get(TRAINING_SET.key).backfill_policy == dg.BackfillPolicy.single_run()
