"""Sweeps over recipes on Ray Tune, and one run on several workers on Ray Train. Knows nothing of serving."""

from voicechat_platform import cluster  # noqa: F401 (Ray reads the variables that this sets when it is imported)
