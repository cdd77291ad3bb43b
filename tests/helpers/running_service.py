"""`voicechat serve` as a process of its own, over a home with three versions of a model."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

import voicechat_while_watched
from voicechat_platform import registry as registry_module
from voicechat_platform.registry import Registry
from voicechat_platform.settings import Settings
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data

APPLICATION = """\
applications:
  - name: api
    route_prefix: /v1
    import_path: voicechat_serve.application:api
    args:
      whisper: tiny.en
      models:
        - {{id: shakespeare, source: {shakespeare}}}
        - {{id: smollm2-135m-instruct, context: 2048}}
        - {{id: vectors, source: smollm2-135m-instruct, task: embeddings, context: 256}}
"""

CHAMPION = "romeo"
"""The model with three versions, of which the first one is promoted."""


@dataclass
class Service:
    home: Path
    url: str
    process: subprocess.Popen

    def processes(self, name: str) -> list[psutil.Process]:
        """The service's processes whose title has this name."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def cpu_seconds(self, name: str) -> float:
        """What these processes have computed."""
        times = [process.cpu_times() for process in self.processes(name)]
        assert times, name
        return sum(each.user + each.system for each in times)

    async def at_work(self, name: str, answering: asyncio.Task) -> None:
        """Returns when these processes compute the answer that is awaited."""
        before = self.cpu_seconds(name)
        while self.cpu_seconds(name) < before + 1:
            assert not answering.done()
            await asyncio.sleep(0.1)

    async def cpu_seconds_until_idle(self, name: str) -> float:
        """What these processes still compute before they rest; the test's own timeout ends what never does."""
        before = last = self.cpu_seconds(name)
        while True:
            await asyncio.sleep(1)
            if (now := self.cpu_seconds(name)) - last < 0.1:
                return now - before
            last = now

    def logs(self) -> Path:
        """Ray's folder of them."""
        (raylet,) = self.processes("/raylet/raylet ")
        (folder,) = re.findall(r"--session_dir=(\S+)", " ".join(raylet.cmdline()))
        return Path(folder) / "logs"

    def client(self, retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=retries, timeout=60)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running_service(home: Path, shakespeare: Path, models: Path, port: int) -> Iterator[Service]:
    """The champion, the model in the folder `shakespeare`, SmolLM2 (also for embeddings), tiny.en and a voice.

    Args:
        home: an empty folder.
        models: where models are kept that were converted before.
    """
    (home / "models").symlink_to(models)
    record_versions(home, 3)
    application, output = home / "application.yaml", home / "output.txt"
    application.write_text(APPLICATION.format(shakespeare=shakespeare))
    command = [sys.executable, voicechat_while_watched.__file__, "serve", "--port", str(port)]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--application", str(application)],
            env=environment(home) | {"RAY_metrics_report_interval_ms": "1000"},  # every second and not every ten
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    service = Service(home, f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + 480
        while not service.is_ready():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, f"not ready in 480 s: {output.read_text()}"
            time.sleep(0.25)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "VOICECHAT_HOME": str(home), "VOICECHAT_CPUS": "2"}


def answer_of(home: Path, *arguments: str) -> str:
    """What the command `voicechat` writes."""
    done = subprocess.run(
        [sys.executable, "-m", "voicechat_ui.cli", *arguments],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def record_versions(home: Path, count: int) -> None:
    """So many versions of a small model, none like the other; the first one promoted."""
    (home / "play.txt").write_text("ROMEO:\nAy me!\n\nJULIET:\nO Romeo, wherefore art thou?\n\n" * 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "settings", lambda: Settings(home=home))
        for number in range(count):
            recipe = Recipe.model_validate(
                {
                    "name": CHAMPION,
                    "corpus": {"source": str(home / "play.txt")},
                    "model": {"layers": 2, "heads": 2, "width": 32, "context": 256, "attention": "metric"},
                    "training": {"steps": 2 + number, "batch_size": 2, "evaluate_every": 10, "warmup_steps": 1},
                }
            )
            training = Training(recipe, load_data(recipe))
            list(training.evaluations())
            training.save(home / f"run-{number}")
            version = Registry().record("tests", f"run-{number}", {}, [], home / f"run-{number}")
            if not number:
                Registry().promote(version)
