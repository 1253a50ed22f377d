"""A training set of the recommender: watches of the past, with what was known of the viewer just before each."""

import dagster as dg
import duckdb

from feature_platform.orchestration import FeatureStoreResource, feature_keys, source_key
from features.streaming import START, recommender, watches

OUTPUT = "data/training/recommender.parquet"


@dg.asset(
    key=["training", "recommender"],
    deps=[source_key(watches), *feature_keys(recommender)],
    group_name="training",
    kinds={"parquet", "duckdb"},
    owners=["team:personalization"],
    description="One row per sampled watch: the features a second before it, and as labels its genre and minutes.",
)
def training_set(feature_store: FeatureStoreResource) -> dg.MaterializeResult[None]:
    """Sample one viewer in twenty, and join to each of their watches what was known when the recommender had to choose."""
    root = feature_store.project.root
    with duckdb.connect() as connection:
        entity_df = connection.sql(
            """
            select user_id, watched_at - interval 1 second as event_timestamp, genre as label_genre, minutes as label_minutes
            from read_parquet($path)
            where watched_at >= $start and md5_number_lower(user_id) % 20 = 0
            order by watched_at, user_id
            """,
            params={"path": str(root / watches.path), "start": START},
        ).to_arrow_table()
    features = feature_store.get_historical_features(entity_df, recommender, statuses=True)
    rows = features.to_parquet(root / OUTPUT)
    return dg.MaterializeResult(metadata={"dagster/row_count": rows, "path": dg.MetadataValue.path(OUTPUT)})
