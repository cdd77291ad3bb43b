"""A small text written as a play, and a checkpoint of a model that has seen little."""

from pathlib import Path

import pytest
import torch

from small_run import train_small
from voicechat_platform.registry import make_database

torch.set_num_threads(1)  # models this small only wait for a second thread


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """Of a run of four steps."""
    return train_small(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def new_database(tmp_path_factory) -> bytes:
    """The registry's file when nothing is registered; MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    make_database(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))
    return path
