"""When requests are sent, and what is measured of each.

Two ways to send: a closed loop keeps so many streams busy, each of which sends its next request when the last one has
ended, so a slow server is asked less (and looks better than its users find it: coordinated omission); an open loop
sends at its own rate whatever the server does, as people do, and measures from the moment a request was due.
"""

import asyncio
import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from voicechat_platform.errors import InputError
from voicechat_ui.load_test.targets import AnswerError, EndpointName, Sample, Target, choose_target

READ_TIMEOUT_S, CONNECT_TIMEOUT_S = 300, 10

REFUSED = (429, 503)
MOST_REFUSALS = 20
"""After so many a request is given up, also by those who retry."""

RETRY_AFTER_S = 1.0
"""How long to wait after a refusal that does not say."""

NOT_OPENAIS = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer of another form raises."""


@dataclass
class Level:
    """One level of load, and what has been measured of it so far."""

    streams: int | None = None
    """Of a closed loop."""
    rate: float | None = None
    """Of an open loop: requests a second, at random (a Poisson process)."""
    requests: int | None = None
    """How many in all; or until `seconds` are over, when requests under way are still waited for."""
    seconds: float | None = None
    retry: bool = False
    """Whether a refused request waits as long as it is told and is sent again, as OpenAI's clients do."""
    seed: int = 0
    samples: list[Sample] = field(default_factory=list)
    """Of requests that have ended."""
    under_way: int = 0
    """Requests that have not ended."""
    began: float = 0.0

    def ends_before(self, number: int, moment: float) -> bool:
        """Whether the request of that number, at so many seconds from the beginning, is one too many."""
        enough = self.requests is not None and number >= self.requests
        return enough or (self.seconds is not None and moment >= self.seconds)


async def run(level: Level, client: httpx.AsyncClient, target: Target, on_change: Callable[[], None]) -> None:
    """Sends a level's requests and waits for all of them; cancelled, it leaves what has been measured in the level.

    Args:
        level: what to send; its samples are filled.
        client: with the server's address and the key.
        target: what to ask.
        on_change: called whenever a request begins or ends.
    """
    level.began = time.perf_counter()
    numbers = itertools.count()

    async def send(number: int, due: float) -> None:
        level.under_way += 1
        on_change()
        level.samples.append(await measure(client, target, number, due, level.retry))
        level.under_way -= 1
        on_change()

    async def stream() -> None:
        while not level.ends_before(number := next(numbers), (now := time.perf_counter()) - level.began):
            await send(number, now)

    async with asyncio.TaskGroup() as tasks:
        if level.rate is None:
            for _ in range(level.streams or 1):
                tasks.create_task(stream())
        else:
            for number, offset in zip(numbers, arrivals(level.rate, level.seed), strict=False):
                if level.ends_before(number, offset):
                    break
                await asyncio.sleep(level.began + offset - time.perf_counter())
                tasks.create_task(send(number, level.began + offset))


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process, in seconds from its beginning."""
    generator, moment = random.Random(seed), 0.0
    while True:
        moment += generator.expovariate(rate)
        yield moment


async def measure(client: httpx.AsyncClient, target: Target, number: int, due: float, retry: bool) -> Sample:
    """Sends one request and reads its answer."""
    sample = Sample(due=due, sent=time.perf_counter())
    while True:
        try:
            async with client.stream("POST", target.path, **target.content(number)) as response:
                sample.status = response.status_code
                if response.status_code in REFUSED:
                    await response.aread()
                    sample.outcome = "refused"
                    sample.refusals += 1
                    told = response.headers.get("retry-after")
                    sample.refusals_without_retry_after += told is None
                    if retry and sample.refusals < MOST_REFUSALS:
                        await asyncio.sleep(seconds_to_wait(told))
                        continue
                elif response.status_code != 200:
                    sample.outcome, sample.error = "failed", (await response.aread()).decode(errors="replace")
                else:
                    sample.outcome = "done" if await target.read(response, sample) else "lost"
                    sample.error = "" if sample.outcome == "done" else "the answer has no end"
        except httpx.HTTPError as error:  # no connection, one that broke, or a timeout
            sample.outcome, sample.error = "lost", repr(error)
        except AnswerError as error:
            sample.outcome, sample.error = "failed", str(error)
        except NOT_OPENAIS as error:
            sample.outcome, sample.error = "failed", f"the answer has not OpenAI's form: {error!r}"
        sample.ended = time.perf_counter()
        return sample


def seconds_to_wait(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or RETRY_AFTER_S), 0.0)
    except ValueError:  # a date, which HTTP allows too
        return RETRY_AFTER_S


async def run_levels(
    levels: Sequence[Level],
    endpoint: EndpointName,
    url: str,
    key: str,
    on_change: Callable[[Level], None],
    **wanted: Any,
) -> None:
    """Runs one level after the other; cancelled, it leaves in the levels what has been measured.

    Args:
        levels: what to send; their samples are filled.
        endpoint: which one to load.
        url: the server's, with its /v1.
        key: sent as every client sends it.
        on_change: called with a level whenever one of its requests begins or ends.
        wanted: the other arguments of `choose_target`.

    Raises:
        InputError: as `choose_target`.
    """
    client = httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )
    async with client:
        try:
            target = await choose_target(client, endpoint, **wanted)
        except InputError:
            raise
        except NOT_OPENAIS as error:
            raise InputError(f"what answers at {url} has not OpenAI's form: {error!r}") from error
        for level in levels:
            await run(level, client, target, functools.partial(on_change, level))
