"""Sweeps over recipes on Ray Tune, and one run on several workers on Ray Train. Knows nothing of serving."""
