"""Comparisons of variants: the file, and the two sweeps that run them."""
