"""`voicechat serve` under load while versions are promoted and its processes are killed: nobody goes unanswered."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import openai
import psutil
import pytest

from running_service import CHAMPION, Service, answer_of


@dataclass
class Answers:
    """What the clients of a load have met."""

    fingerprints: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    """How each stream ended: with a finish reason, or an error's code."""
    failures: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.fingerprints) + len(self.streams) + len(self.failures)


async def ask_whole(client: openai.AsyncOpenAI, answers: Answers) -> None:
    answer = await client.completions.create(model=CHAMPION, prompt="ROMEO:\n", max_tokens=60)
    assert answer.choices[0].finish_reason in ("length", "stop")
    answers.fingerprints.append(answer.system_fingerprint)


async def ask_stream(client: openai.AsyncOpenAI, answers: Answers) -> None:
    """Streams are not begun again by anybody: an error is a clean end, silence would be none."""
    ending = "nothing"
    try:
        stream = await client.completions.create(model=CHAMPION, prompt="ROMEO:\n", max_tokens=200, stream=True)
        async for chunk in stream:
            ending = chunk.choices[0].finish_reason or ending
    except openai.APIError as error:  # the client's form of an error event, and of an error before the first one
        ending = error.code or type(error).__name__
    answers.streams.append(ending)


@contextlib.asynccontextmanager
async def load(service: Service, retries: int, streams: int = 0, clients: int = 4) -> AsyncIterator[Answers]:
    """Clients that ask without a pause while the block runs."""
    answers, stopping = Answers(), asyncio.Event()
    client = service.client(retries)

    async def ask_on(ask) -> None:
        while not stopping.is_set():
            try:
                await ask(client, answers)
            except Exception as error:
                answers.failures.append(f"{type(error).__name__}: {error}")

    tasks = [asyncio.create_task(ask_on(ask_stream if number < streams else ask_whole)) for number in range(clients)]
    try:
        yield answers
    finally:
        stopping.set()
        await asyncio.gather(*tasks)
        await client.close()


async def until(condition, timeout_s: float = 90) -> float:
    """Seconds until the condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def test_a_promoted_version_is_served_in_place_and_rolled_back(service):
    async with load(service, retries=0, streams=2) as answers:
        await until(lambda: "romeo@1" in answers.fingerprints)
        (replica,) = service.processes(f"model {CHAMPION}")
        await asyncio.to_thread(answer_of, service.home, "promote", "romeo@2")
        await until(lambda: answers.fingerprints[-1] == "romeo@2")
        output = await asyncio.to_thread(answer_of, service.home, "rollback", CHAMPION)
        assert "romeo@1" in output
        await until(lambda: answers.fingerprints[-1] == "romeo@1")
    assert answers.failures == []
    assert set(answers.streams) <= {"length", "stop"}
    assert replica.is_running()  # no process was replaced


async def test_every_version_has_an_address(service):
    client = service.client()
    scores = set()
    for number in (1, 2, 3):
        answer = await client.completions.create(
            model=f"romeo@{number}", prompt="ROMEO:\n", max_tokens=4, temperature=0, logprobs=0
        )
        assert answer.system_fingerprint == f"romeo@{number}"
        scores.add(tuple(answer.choices[0].logprobs.token_logprobs))
    assert len(scores) == 3
    assert (await client.models.retrieve("romeo@3")).id == "romeo@3"
    for ask in (client.models.retrieve("romeo@9"), client.completions.create(model="romeo@9", prompt="a")):
        with pytest.raises(openai.NotFoundError, match="romeo@9"):
            await ask


@pytest.mark.parametrize(
    ("victim", "retries"),
    [
        (f"model {CHAMPION}", 0),
        pytest.param("ServeReplica:api:api", 10, marks=pytest.mark.nightly),
        pytest.param("ProxyActor", 10, marks=pytest.mark.nightly),
    ],
)
async def test_a_killed_process_costs_no_whole_answer(service, victim, retries):
    """The language model's replica, the API's, and the proxy; connections that break are the client's to retry."""
    async with load(service, retries, streams=2, clients=6) as answers:
        await until(lambda: len(answers.fingerprints) >= 4 and answers.streams)
        (process,) = service.processes(victim)
        process.kill()
        killed = len(answers)
        await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        recovery_s = await until(lambda: len(service.processes(victim)) == 1 and len(answers) >= killed + 12)
    print(json.dumps({"killed": victim, "answered_again_after_s": round(recovery_s, 1)}))
    assert answers.failures == []
    assert set(answers.streams) <= {"length", "stop", "unavailable", "APIConnectionError", "APIError"}
    assert service.is_ready() or await until(lambda: service.is_ready())
