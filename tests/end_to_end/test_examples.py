"""The examples that train, as a newcomer runs them; tests/serve/test_api.py runs the clients against its server."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(home: Path, script: str, *arguments: str) -> str:
    environment = {**os.environ, "VOICECHAT_HOME": str(home), "VOICECHAT_CPUS": "2"}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_trained_and_writes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. The rat sat on the cat.\n" * 300)
    out = tmp_path / "model"
    said = run(tmp_path, "train_a_model.py", str(text), "--steps", "5", "--context", "16", "--out", str(out))
    assert "step 5: validation loss" in said
    assert (out / "model.safetensors").exists()
    assert len(said.partition("The ")[2]) > 100


def test_a_sweep_has_a_winner(tmp_path):
    said = run(tmp_path, "sweep.py", "--trials", "2", "--steps", "2")
    assert re.search(r"own-attention@\d  standard ", said)
    assert re.search(r"own-attention@\d  metric ", said)
    assert re.search(r"The winner is (standard|metric) attention", said)
