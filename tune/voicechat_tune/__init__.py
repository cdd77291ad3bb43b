"""Sweeps over recipes, on Ray Tune. Knows nothing of serving."""
