"""Sweeps over recipes on Ray Tune, and runs on several workers with Ray Train. This package does not import serving."""
