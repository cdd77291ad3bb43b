"""The limits of one key: requests per minute, and concurrent requests."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from voicechat_serve.api.errors import APIError
from voicechat_serve.operations.keys import Key

RETRY_CONCURRENT_S = 1
"""The delay before a retry at the concurrent limit: nobody knows when a request ends."""

ROUNDING = 1e-9
"""Part of a token: after exactly the delay of a refusal, the clock's last digits must not refuse again."""


@dataclass
class Use:
    tokens: float
    """Requests that are possible at once; a new one comes every 60 / requests per minute seconds."""
    counted_at: float
    running: int = 0


class KeyLimits:
    """Counts in this process only: with several replicas of an ingress, each grants a key its whole limit.

    Args:
        requests_per_minute: for a key without a limit of its own.
        concurrent_requests: likewise. A stream counts until it ends, a WebSocket until it closes.
        clock: seconds, from any origin.
    """

    def __init__(self, requests_per_minute: int, concurrent_requests: int, clock: Callable[[], float] = time.monotonic):
        self.requests_per_minute, self.concurrent_requests = requests_per_minute, concurrent_requests
        self.clock = clock
        self._uses: dict[str, Use] = {}

    def begin(self, key: Key) -> dict[str, str]:
        """Count a request of `key`; `end` must follow. Return OpenAI's headers for the response.

        Raises:
            APIError: 429, a limit is reached; nothing was counted.
        """
        per_minute = key.requests_per_minute or self.requests_per_minute
        concurrent = key.concurrent_requests or self.concurrent_requests
        use = self._use(key.id, per_minute)
        if use.running >= concurrent:
            message = f"{use.running} requests of this key are running, which is its limit: wait until one ends"
            raise refusal(message, RETRY_CONCURRENT_S, headers(per_minute, use.tokens))
        if use.tokens < 1 - ROUNDING:
            wait_s = math.ceil((1 - use.tokens) * 60 / per_minute)
            message = f"this key's limit of {per_minute} requests per minute is reached: try again in {wait_s} s"
            raise refusal(message, wait_s, headers(per_minute, use.tokens))
        use.tokens = max(use.tokens - 1, 0.0)
        use.running += 1
        return headers(per_minute, use.tokens)

    def end(self, key: Key) -> None:
        self._uses[key.id].running -= 1

    def _use(self, id: str, per_minute: int) -> Use:
        now = self.clock()
        use = self._uses.setdefault(id, Use(per_minute, now))
        use.tokens = min(per_minute, use.tokens + (now - use.counted_at) * per_minute / 60)
        use.counted_at = now
        return use


def refusal(message: str, retry_after_s: int, headers: dict[str, str]) -> APIError:
    return APIError(429, message, code="rate_limit_exceeded", headers=headers | {"Retry-After": str(retry_after_s)})


def headers(per_minute: int, tokens: float) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(per_minute),
        "x-ratelimit-remaining-requests": str(math.floor(tokens)),
        "x-ratelimit-reset-requests": duration((per_minute - tokens) * 60 / per_minute),
    }


def duration(seconds: float) -> str:
    """Return a duration in OpenAI's notation: 1m0s, 12s, 250ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
