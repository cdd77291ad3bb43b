"""The registry as an MLflow server: its files fetched once, and what is said while it is away."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from voicechat_platform import registry as registry_module
from voicechat_platform.errors import RegistryError
from voicechat_platform.model_store import find_checkpoint
from voicechat_platform.registry import NoSuchVersionError, Registry, Version
from voicechat_platform.settings import Settings

FETCHER = """
import sys
from voicechat_platform.registry import Registry
version = Registry().version("romeo", 1)
print("ready", flush=True)
sys.stdin.readline()
print(version.checkpoint())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(new_database)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its workers are ended with it
    )
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def registry_at(uri: str, home: Path, patch: pytest.MonkeyPatch) -> Registry:
    patch.setattr(registry_module, "settings", lambda: Settings(home=home, registry_uri=uri))
    return Registry()


@pytest.fixture(scope="module")
def version(server, small_checkpoint, tmp_path_factory) -> Version:
    with pytest.MonkeyPatch.context() as patch:
        registry = registry_at(server, tmp_path_factory.mktemp("home"), patch)
        return registry.record("sweep", "a", {}, [], small_checkpoint)


def test_processes_fetch_a_version_once_and_none_sees_half_of_it(server, version, small_checkpoint, tmp_path):
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path), "VOICECHAT_REGISTRY_URI": server}
    fetchers = [
        subprocess.Popen(
            [sys.executable, "-c", FETCHER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert {fetcher.stdout.readline() for fetcher in fetchers} == {"ready\n"}
    (folder,) = {fetcher.communicate("go\n")[0].strip() for fetcher in fetchers}
    assert Path(folder).parent == tmp_path / "registry" / "versions"
    assert list(Path(folder).parent.iterdir()) == [Path(folder)]
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in small_checkpoint.iterdir() if path.is_file()
    }


def test_a_fetch_that_breaks_off_leaves_nothing(server, version, tmp_path, monkeypatch):
    import mlflow.artifacts

    def half(artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        (Path(dst_path) / "checkpoint").mkdir(parents=True)
        (Path(dst_path) / "checkpoint" / "config.json").touch()
        raise mlflow.exceptions.MlflowException("the connection broke")

    registry_at(server, tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", half)
        with pytest.raises(RegistryError, match="the connection broke"):
            version.checkpoint()
    assert list((tmp_path / "registry" / "versions").iterdir()) == []
    assert (version.checkpoint() / "run.json").exists()
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", half)
    assert (version.checkpoint() / "run.json").exists()  # it is there, and asks for nothing


def test_what_is_not_there_is_another_error_than_a_registry_that_is_away(server, version, tmp_path, monkeypatch):
    registry = registry_at(server, tmp_path, monkeypatch)
    for name in ("romeo", "juliet", "it's", "a/b", 'a"b'):
        with pytest.raises(NoSuchVersionError, match="no model version"):
            registry.version(name, 7)


@pytest.mark.parametrize("kind", ["refused", "answers nonsense", "no such host"])
def test_a_registry_that_is_away(tmp_path, monkeypatch, kind, httpserver_of_nonsense):
    uri = {
        "refused": "http://user:secret@127.0.0.1:9",
        "answers nonsense": httpserver_of_nonsense,
        "no such host": "http://registry.invalid",
    }[kind]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = registry_at(uri, tmp_path, monkeypatch)
    asks = [
        lambda: registry.version("romeo", 1),
        registry.versions,
        registry.champions,
        lambda: registry.roll_back("romeo"),
        lambda: find_checkpoint("romeo"),
        lambda: find_checkpoint("romeo@1"),
    ]
    for ask in asks:
        with pytest.raises(RegistryError, match=r"the registry at .* does not answer as it should") as told:
            ask()
        assert "secret" not in str(told.value).partition("as it should")[0]


@pytest.fixture
def httpserver_of_nonsense() -> Iterator[str]:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<html>nothing here</html>")

        do_POST = do_GET  # noqa: N815 (the library's name)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Nonsense)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_damaged_database_is_told(tmp_path, monkeypatch):
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "mlflow.db").write_text("Ay me! " * 1000)
    with pytest.raises(RegistryError, match=r"the registry in .* does not answer as it should"):
        registry_at("", tmp_path, monkeypatch).versions()
