"""The running services that a benchmark asks."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from voicechat_platform.cluster import start_ray, stop_ray
from voicechat_serve import application
from voicechat_serve.application_file import APIArguments, Engines
from voicechat_serve.generation.served_model import ServedModel


@contextmanager
def running_service(model: ServedModel) -> Iterator[str]:
    """HOST:PORT of services with one language model, tiny.en and hibari; gone after the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_ray()
    try:
        application.deploy([(model, Engines())], APIArguments(whisper="tiny.en"), port)
        application.wait_until_ready()
        yield f"127.0.0.1:{port}"
    finally:
        application.stop()
        stop_ray()
