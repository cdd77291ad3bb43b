"""Comparisons of variants: the file, and the two sweeps that do the work."""
