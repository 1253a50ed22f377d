"""What Dagster loads: the registry's assets, and the training sets made of them."""

import dagster as dg

from feature_platform.orchestration import build_definitions
from features.streaming import registry
from features.training import labels, training_set

definitions = dg.Definitions.merge(build_definitions(registry), dg.Definitions(assets=[labels, training_set]))
