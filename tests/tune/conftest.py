"""What the sweeps of the tests have in common: the command, a play, and an S3 that lives in memory (moto's server)."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from voicechat_platform.cluster import start_ray, stop_ray
from voicechat_platform.settings import settings
from voicechat_ui.cli import main

torch.set_num_threads(1)  # models this small only wait for a second thread


@contextmanager
def s3(folder: Path, **environment: str) -> Iterator[str]:
    """The address of an S3 that lives in memory, with an empty bucket named "results"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.put(f"http://127.0.0.1:{port}/results").raise_for_status()
                break
            except httpx.TransportError:
                assert server.poll() is None, "moto's server has ended"
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    with s3(tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture
def start_s3():
    """For a server of one's own, with other settings: `with start_s3(folder, NAME="value") as address`."""
    return s3


@pytest.fixture
def credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def play(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("play") / "play.txt"
    path.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))
    return path


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One Ray in this process, of two CPUs, for all tests of a module that need no process of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOICECHAT_CPUS", "2")
        settings.cache_clear()
        start_ray()
    settings.cache_clear()
    yield
    stop_ray()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    """This process' home; the first of those where `voicechat` starts the command."""
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def voicechat_here(home, monkeypatch, capsys):
    """Runs the command to its end in this process, which has imported all that it needs; a shared Ray outlives it."""
    monkeypatch.setattr("voicechat_platform.cluster.stop_ray", lambda: None)

    def run(*arguments) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["voicechat", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def voicechat(tmp_path):
    """Starts the command in a home of its own; what a failed test leaves running is killed."""
    started: list[subprocess.Popen] = []

    def start(*arguments, home: str = "home", **environment: str) -> subprocess.Popen:
        given = {"VOICECHAT_HOME": str(tmp_path / home), "VOICECHAT_CPUS": "2", **environment}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "voicechat_ui.cli", *map(str, arguments)],
                env={**os.environ, **given},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
