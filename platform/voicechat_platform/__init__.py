"""The floor that everything stands on: models, corpora, training, checkpoints, the registry. No Ray Tune, no Serve."""
