"""A small text written as a play."""

import pytest


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))
    return path
