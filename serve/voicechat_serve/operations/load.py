"""How busy a model is, and that it is too busy."""

from dataclasses import dataclass


class OverloadedError(RuntimeError):
    """The engine's queue is full: the request was not taken, and may be tried again later."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy an engine is at a moment."""

    running: int
    """Requests that are being read or written."""
    waiting: int
    """Requests that wait for a place."""
    cache_used: float
    """Share of the cache's positions that hold a running request's tokens, 0 to 1."""
