"""`voicechat serve` under load while versions are promoted and its processes are killed: nobody goes unanswered."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from voicechat_platform import registry as registry_module
from voicechat_platform.registry import Registry
from voicechat_platform.settings import Settings, settings
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data

APPLICATION = """\
applications:
  - name: api
    route_prefix: /v1
    import_path: voicechat_serve.application:api
    args: {whisper: tiny.en}
"""

MODEL = "romeo"


def voicechat(home: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "voicechat_ui.cli", *arguments],
        env={**os.environ, "VOICECHAT_HOME": str(home), "VOICECHAT_CPUS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def answer_of(home: Path, *arguments: str) -> str:
    command = voicechat(home, *arguments)
    output, _ = command.communicate(timeout=120)
    assert command.returncode == 0, output
    return output


def record_versions(home: Path, count: int) -> None:
    """So many versions of a small model, none like the other; the first one promoted."""
    (home / "play.txt").write_text("ROMEO:\nAy me!\n\nJULIET:\nO Romeo, wherefore art thou?\n\n" * 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "settings", lambda: Settings(home=home))
        for number in range(count):
            recipe = Recipe.model_validate(
                {
                    "name": MODEL,
                    "corpus": {"source": str(home / "play.txt")},
                    "model": {"layers": 2, "heads": 2, "width": 32, "context": 256, "attention": "metric"},
                    "training": {"steps": 4 + 2 * number, "evaluate_every": 2, "warmup_steps": 1},
                }
            )
            training = Training(recipe, load_data(recipe))
            list(training.evaluations())
            training.save(home / f"run-{number}")
            version = Registry().record("tests", f"run-{number}", {}, [], home / f"run-{number}")
            if not number:
                Registry().promote(version)


@dataclass
class Service:
    home: Path
    url: str
    process: subprocess.Popen

    def processes(self, name: str) -> list[psutil.Process]:
        """Ray's processes whose title has this name."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def client(self, retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=retries, timeout=60)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(settings().folder("models"))
    record_versions(home, 3)
    (home / "application.yaml").write_text(APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = voicechat(home, "serve", "--port", str(port), "--application", str(home / "application.yaml"))
    service = Service(home, f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + 180
        while not is_ready(service.url):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "not ready in 180 s"
            time.sleep(0.5)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


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
    answer = await client.completions.create(model=MODEL, prompt="ROMEO:\n", max_tokens=60)
    assert answer.choices[0].finish_reason in ("length", "stop")
    answers.fingerprints.append(answer.system_fingerprint)


async def ask_stream(client: openai.AsyncOpenAI, answers: Answers) -> None:
    """Streams are not begun again by anybody: an error is a clean end, silence would be none."""
    ending = "nothing"
    try:
        stream = await client.completions.create(model=MODEL, prompt="ROMEO:\n", max_tokens=200, stream=True)
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
        (replica,) = service.processes(f"model {MODEL}")
        await asyncio.to_thread(answer_of, service.home, "promote", "romeo@2")
        await until(lambda: answers.fingerprints[-1] == "romeo@2")
        output = await asyncio.to_thread(answer_of, service.home, "rollback", MODEL)
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
        (f"model {MODEL}", 0),
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
    assert is_ready(service.url) or await until(lambda: is_ready(service.url))
