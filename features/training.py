"""The training sets of the recommender: each week's labels, with what was known of the viewer just before each of them."""

import dagster as dg
import duckdb

from feature_platform.orchestration import FeatureStoreResource, feature_keys, source_key
from features.streaming import START, recommender, watches

FOLDER = "data/training"
WEEKS = dg.WeeklyPartitionsDefinition(START, day_offset=1)  # Mondays, in UTC

LABELS = dg.AssetSpec(
    ["training", "labels"],
    deps=[source_key(watches)],
    partitions_def=WEEKS,
    group_name="training",
    kinds={"parquet", "duckdb"},
    owners=["team:personalization"],
    description="One row per sampled watch, a second before it: whom to ask about, and as labels its genre and minutes.",
)
TRAINING_SET = dg.AssetSpec(
    ["training", "recommender"],
    deps=[LABELS, *feature_keys(recommender)],
    partitions_def=WEEKS,
    group_name="training",
    kinds={"parquet", "duckdb"},
    owners=["team:personalization"],
    description="The labels with the recommender's features, as they were known. The card beside each file says what it was made of.",
)


@dg.multi_asset(specs=[LABELS], backfill_policy=dg.BackfillPolicy.single_run())
def labels(context: dg.AssetExecutionContext, feature_store: FeatureStoreResource) -> None:
    """Sample one viewer in twenty; a week's labels are one file."""
    folder = feature_store.project.path(f"{FOLDER}/labels")
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        for week in context.partition_keys:
            window = WEEKS.time_window_for_partition_key(week)
            rows = connection.sql(
                """
                select user_id, watched_at - interval 1 second as event_timestamp, genre as label_genre, minutes as label_minutes
                from read_parquet($path)
                where watched_at >= $start and watched_at < $end and md5_number_lower(user_id) % 20 = 0
                order by watched_at, user_id, label_genre, label_minutes
                """,
                params={"path": str(feature_store.project.path(watches.path)), "start": window.start, "end": window.end},
            )
            rows.write_parquet(str(folder / f"{week}.parquet"))


@dg.multi_asset(specs=[TRAINING_SET], backfill_policy=dg.BackfillPolicy.single_run())
def training_set(context: dg.AssetExecutionContext, feature_store: FeatureStoreResource) -> None:
    """Join to each label what was known when the recommender had to choose, and write the dataset's card."""
    for week in context.partition_keys:
        path = f"{FOLDER}/recommender/{week}.parquet"
        entity_df = feature_store.project.path(f"{FOLDER}/labels/{week}.parquet")
        features = feature_store.get_historical_features(entity_df, recommender, statuses=True)
        rows = features.to_parquet(feature_store.project.path(path), card=True)
        metadata = {"dagster/partition_row_count": rows, "path": dg.MetadataValue.path(path)}
        context.add_asset_metadata(metadata, partition_key=week)
