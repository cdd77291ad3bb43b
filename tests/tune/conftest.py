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
