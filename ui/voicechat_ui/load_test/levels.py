"""Send requests at their times, and measure each one.

There are two ways to send. A closed loop keeps a number of streams busy; each stream sends its next request when the
last one has ended. So a slow server gets fewer requests, and its waiting times look too good (coordinated omission). An
open loop sends at a fixed rate independent of the server, as users do, and measures from the moment when a request was
due.
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
"""The number of refusals after which a request ends as refused, also with `retry`."""

RETRY_AFTER_S = 1.0
"""The waiting time after a refusal without Retry-After."""

NOT_OPENAIS = (ValueError, LookupError, TypeError, AttributeError)
"""The exceptions when the answer is not in OpenAI's form."""


@dataclass
class Level:
    """One level of load, and its measurements so far."""

    streams: int | None = None
    """The number of streams of a closed loop."""
    rate: float | None = None
    """Requests per second of an open loop, at random moments (a Poisson process)."""
    requests: int | None = None
    """The total number; None to send until `seconds` are over, and then to wait for running requests."""
    seconds: float | None = None
    retry: bool = False
    """Send a refused request again after the time in Retry-After, as OpenAI's clients do."""
    seed: int = 0
    samples: list[Sample] = field(default_factory=list)
    """The samples of requests that have ended."""
    under_way: int = 0
    """The number of requests that have not ended."""
    began: float = 0.0

    def ends_before(self, number: int, moment: float) -> bool:
        """Return whether the level ends before the request of this number, at this moment in seconds from the start."""
        enough = self.requests is not None and number >= self.requests
        return enough or (self.seconds is not None and moment >= self.seconds)


async def run(level: Level, client: httpx.AsyncClient, target: Target, on_change: Callable[[], None]) -> None:
    """Send a level's requests and wait for all of them. After a cancellation the level has the samples so far.

    Args:
        level: the requests to send; this function appends its samples.
        client: has the server's address and the key.
        target: the endpoint and the content of the requests.
        on_change: this function calls it when a request starts or ends.
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
    """Yield the moments of a Poisson process, in seconds from its start."""
    generator, moment = random.Random(seed), 0.0
    while True:
        moment += generator.expovariate(rate)
        yield moment


async def measure(client: httpx.AsyncClient, target: Target, number: int, due: float, retry: bool) -> Sample:
    """Send one request and read its answer."""
    sample = Sample(due=due, sent=time.perf_counter())
    while True:
        try:
            async with client.stream("POST", target.path, **target.content(number)) as response:
                sample.status = response.status_code
                if response.status_code in REFUSED:
                    await response.aread()
                    sample.outcome = "refused"
                    sample.refusals += 1
                    retry_after = response.headers.get("retry-after")
                    sample.refusals_without_retry_after += retry_after is None
                    if retry and sample.refusals < MOST_REFUSALS:
                        await asyncio.sleep(seconds_to_wait(retry_after))
                        continue
                elif response.status_code != 200:
                    sample.outcome, sample.error = "failed", (await response.aread()).decode(errors="replace")
                else:
                    sample.outcome = "done" if await target.read(response, sample) else "lost"
                    sample.error = "" if sample.outcome == "done" else "the answer is not complete"
        except httpx.HTTPError as error:  # no connection, a lost connection, or a timeout
            sample.outcome, sample.error = "lost", repr(error)
        except AnswerError as error:
            sample.outcome, sample.error = "failed", str(error)
        except NOT_OPENAIS as error:
            sample.outcome, sample.error = "failed", f"the answer is not in OpenAI's form: {error!r}"
        sample.ended = time.perf_counter()
        return sample


def seconds_to_wait(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or RETRY_AFTER_S), 0.0)
    except ValueError:  # HTTP also allows a date
        return RETRY_AFTER_S


async def run_levels(
    levels: Sequence[Level],
    endpoint: EndpointName,
    url: str,
    key: str,
    on_change: Callable[[Level], None],
    **wanted: Any,
) -> None:
    """Run one level after the other. After a cancellation the levels have the samples so far.

    Args:
        levels: the requests to send; this function appends their samples.
        endpoint: the endpoint to load.
        url: the server's base URL, with /v1.
        key: the API key.
        on_change: this function calls it with a level when one of the level's requests starts or ends.
        wanted: the other arguments of `choose_target`.

    Raises:
        InputError: the same as from `choose_target`, or the server's answer is not in OpenAI's form.
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
            raise InputError(f"the answer from {url} is not in OpenAI's form: {error!r}") from error
        for level in levels:
            await run(level, client, target, functools.partial(on_change, level))
