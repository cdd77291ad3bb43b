"""The health of a replica's models: a replica with only failures must not stay in service."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from voicechat_platform.errors import InputError
from voicechat_serve.operations.load import OverloadedError

MOST_FAILURES = 5
"""Failures in a row, of one kind of step."""

STUCK_S = 300.0
"""Longer than any client waits for a step."""


class UnhealthyError(RuntimeError):
    """The replica must be replaced."""


class Health:
    """Counts failures in a row, separately for each kind of step: decoding may fail while prompts can be read.

    Several threads may use it.

    Args:
        harmless: errors that are no failures, in addition to those of invalid requests.
    """

    def __init__(self, *harmless: type[Exception]) -> None:
        self.harmless: tuple[type[Exception], ...] = (InputError, OverloadedError, *harmless)
        self.failures: Counter[str] = Counter()
        self.last_error: Exception | None = None
        self.under_way: dict[object, float] = {}
        """For each running step, the time of its start or its last progress."""

    @contextmanager
    def step(self, kind: str) -> Iterator[Callable[[], None]]:
        """Run one step of the work, which fails if the block raises; a long step calls the yielded function on
        progress."""
        step = object()

        def gets_on() -> None:
            self.under_way[step] = time.monotonic()

        gets_on()
        try:
            yield gets_on
        except Exception as error:
            if not isinstance(error, self.harmless):
                self.failures[kind] += 1
                self.last_error = error
            raise
        else:
            self.failures[kind] = 0
        finally:
            del self.under_way[step]

    def check(self) -> None:
        """Check the replica.

        Raises:
            UnhealthyError: MOST_FAILURES steps of a kind have failed in a row, or one makes no progress.
        """
        for kind, count in list(self.failures.items()):
            if count >= MOST_FAILURES:
                raise UnhealthyError(f"the last {count} steps failed ({kind}), at last with {self.last_error!r}")
        if any(time.monotonic() - began > STUCK_S for began in list(self.under_way.values())):
            raise UnhealthyError(f"a step has not got on for {STUCK_S:g} s")
