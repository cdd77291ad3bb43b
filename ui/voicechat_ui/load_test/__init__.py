"""Load on a running server: the requests (targets.py), their times (levels.py), the figures (report.py)."""
