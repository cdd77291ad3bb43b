"""The base layer: models, corpora, training, checkpoints, the registry. It imports neither Ray Tune nor Serve."""

import os

# Ray reads these when it is imported, by us or by another library, and when its processes start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
