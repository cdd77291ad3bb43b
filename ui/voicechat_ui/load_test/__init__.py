"""Load on a running server: what a request asks (targets.py), when it is sent (levels.py), the figures (report.py)."""
