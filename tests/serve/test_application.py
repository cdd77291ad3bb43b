"""Starting up, when it goes wrong: what the person at the terminal is told; in test_front.py, of a broken model too."""

import socket

import pytest

from voicechat_platform.errors import InputError
from voicechat_serve import application
from voicechat_serve.application_file import APIArguments, Engines
from voicechat_serve.generation.served_model import ServedModel

TINY = APIArguments(whisper="tiny.en")


def test_a_port_in_use(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="--port"):
            application.deploy([(ServedModel(id="m", path=tiny_model), Engines())], TINY, taken.getsockname()[1])


def test_a_model_whose_folder_is_gone(tmp_path, free_port):
    with pytest.raises(InputError, match="has no files"):
        application.deploy([(ServedModel(id="m", path=tmp_path / "gone"), Engines())], TINY, free_port)
