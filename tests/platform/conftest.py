"""A small text written as a play, and a checkpoint of a model that has seen little."""

from pathlib import Path

import pytest

from small_run import train_small


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """Of a run of four steps."""
    return train_small(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))
    return path
