"""
The registry as a Dagster project: assets, partitions, checks, schedules, sensors, resources.

Not called `dagster`, so that greps and tracebacks do not lie.
"""

from feature_platform.orchestration.definitions import build_definitions
from feature_platform.orchestration.resources import FeatureStoreResource, OnlineStoreResource
from feature_platform.orchestration.translator import feature_key, feature_keys, online_key, source_key

__all__ = [
    "FeatureStoreResource",
    "OnlineStoreResource",
    "build_definitions",
    "feature_key",
    "feature_keys",
    "online_key",
    "source_key",
]
