"""Features of a viewer of a streaming service, read by the homepage recommender."""

from datetime import UTC, datetime, timedelta

from feature_platform import (
    ON_UPDATE,
    Aggregate,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    ParquetSource,
    Registry,
    between,
    not_null,
    one_of,
)

# The sample data always ends now, so the example's start moves along, a Monday at a time. A real project writes a date.
_today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
START = _today - timedelta(days=49 + _today.weekday())

user = Entity("user", join_keys={"user_id": str}, description="A viewer with an account.")

watches = ParquetSource(
    "watches",
    "data/sources/watches/*.parquet",
    timestamp="watched_at",
    created_timestamp="ingested_at",
    description="One row per title watched; a few arrive late.",
)

profile = FeatureView(
    "user_profile",
    entity=user,
    sources=[watches],
    lookback=timedelta(days=30),
    query="""
        select
            user_id,
            case
                when count(*) >= 30 then 'power_user'
                when count(*) >= 10 then 'regular'
                else 'casual'
            end as user_segment
        from watches
        group by user_id
    """,
    features=[
        Feature(
            "user_segment",
            str,
            "Activity segment over the last 30 days.",
            default="new",
            expect=[not_null(), one_of("power_user", "regular", "casual")],
        ),
    ],
    schedule="@daily",
    start=START,
    freshness=timedelta(hours=26),
    late_data_horizon=timedelta(days=7),
    ttl=timedelta(days=2),
    owners=["team:personalization"],
)

activity = FeatureView(
    "user_activity",
    entity=user,
    sources=[watches],
    features=[
        Aggregate(
            "watch_count_30d",
            "count",
            window=timedelta(days=30),
            description="Titles watched in the last 30 days.",
            expect=[between(0, 10_000)],
        ),
        Aggregate(
            "watch_minutes_7d", "sum", column="minutes", dtype=int, window=timedelta(days=7), description="Minutes watched in a week."
        ),
    ],
    schedule="@hourly",
    start=START,
    freshness=timedelta(hours=2),
    late_data_horizon=timedelta(days=7),
    owners=["team:personalization"],
)

last_watch = FeatureView(
    "user_last_watch",
    entity=user,
    sources=[watches],
    query="select user_id, watched_at as event_timestamp, ingested_at as created_timestamp, genre as last_genre from watches",
    features=[Feature("last_genre", str, "Genre of the title watched last.")],
    schedule=ON_UPDATE,
    start=START,
    freshness=timedelta(minutes=5),
    owners=["team:personalization"],
)

recommender = FeatureService(
    "recommender",
    [profile, activity[["watch_count_30d"]], last_watch],
    description="What the homepage recommender's prompt says of a viewer.",
)

registry = Registry(views=[profile, activity, last_watch], services=[recommender])
