"""Starting up, when it goes wrong: what the person at the terminal is told."""

import shutil
import socket

import httpx
import pytest
import ray

from voicechat_platform.errors import InputError
from voicechat_serve import application
from voicechat_serve.application import DeploymentFailedError, DeploymentState
from voicechat_serve.application_file import APIArguments, Engines
from voicechat_serve.generation.served_model import ServedModel

TINY = APIArguments(whisper="tiny.en")


def test_a_port_in_use(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="--port"):
            application.deploy([(ServedModel(id="m", folder=tiny_model), Engines())], TINY, taken.getsockname()[1])


def test_a_model_whose_folder_is_gone(tmp_path, free_port):
    with pytest.raises(InputError, match="no folder"):
        application.deploy([(ServedModel(id="m", folder=tmp_path / "gone"), Engines())], TINY, free_port)


def test_a_model_that_cannot_load(tiny_model, tmp_path, free_port):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    states: dict[str, DeploymentState] = {}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        application.deploy([(ServedModel(id="broken", folder=tmp_path), Engines())], TINY, free_port)
        with pytest.raises(DeploymentFailedError, match=r"model broken: .*InputError: .*no weights in \*\.safetensors"):
            application.wait_until_ready(lambda seen: states.update({state.name: state for state in seen}))
        assert states["model broken"].state == "failed"
        assert set(states) == {"model broken", "transcription", "synthesis", "api", "front"}
        ready = httpx.get(f"http://127.0.0.1:{free_port}/ready", timeout=30)
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        assert "model broken" in ready.json()["not_ready"]
        # A restart would not help.
        assert httpx.get(f"http://127.0.0.1:{free_port}/health", timeout=30).status_code == 200
        # Without a page, the root is an unknown address like any other.
        root = httpx.get(f"http://127.0.0.1:{free_port}/", timeout=30)
        assert root.status_code == 404
        assert root.json()["error"]["type"] == "invalid_request_error"
    finally:
        application.stop()
        ray.shutdown()
