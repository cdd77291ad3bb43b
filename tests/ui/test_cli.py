"""The `voicechat` command: exit codes, training, sampling, and what it says to bad input."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

from voicechat_platform.settings import Settings, settings
from voicechat_platform.training.history import Evaluation
from voicechat_ui.commands.options import join
from voicechat_ui.model_tasks import describe

RECIPE = """\
name: tiny
corpus: {{source: {play}}}
model: {{attention: metric, layers: 1, heads: 2, width: 16, context: 32}}
training: {{steps: 20, batch_size: 4, evaluate_every: 10, warmup_steps: 2}}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "play.txt").write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(500)))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(play=tmp_path / "play.txt"))
    return path


def test_train_evaluate_generate_promote(voicechat, recipe, tmp_path):
    result = voicechat("train", recipe)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("tiny@1: step ")
    assert "step 10: validation" in result.stderr

    evaluation = json.loads(voicechat("evaluate", "tiny@1", "--json").stdout)
    assert 0 < evaluation["nats_per_character"] < 5
    assert f"validation {evaluation['nats_per_token']:.4f} nats/token" in result.stdout

    texts = {voicechat("generate", "tiny@1", "--prompt", "SPEAKER", "--seed", "1").stdout for _ in range(2)}
    assert len(texts) == 1
    assert texts.pop().startswith("SPEAKER")

    refused = voicechat("promote", "tiny@1", "--require", "nats_per_character<=0.01", "--require", "tokens>=1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "nats_per_character<=0.01 is required" in " ".join(refused.stderr.split())
    assert "right_calls was not measured" in voicechat("promote", "tiny@1", "--require", "right_calls>=0.8").stderr
    assert "tiny@1 is the champion" in voicechat("promote", "tiny@1", "--require", "nats_per_character<=5").stdout
    listed = json.loads(voicechat("models", "--json").stdout)
    assert [(version["version"], version["is_champion"]) for version in listed] == [("tiny@1", True)]

    folded = tmp_path / "folded"
    assert voicechat("fold", "tiny@1", folded).returncode == 0
    assert json.loads((folded / "config.json").read_text())["model_type"] == "llama"
    assert "is not empty" in voicechat("fold", "tiny@1", folded).stderr
    assert voicechat("fold", "tiny@1", tmp_path / "tiny.gguf", "--format", "gguf").returncode == 0
    assert (tmp_path / "tiny.gguf").read_bytes().startswith(b"GGUF")
    rows = json.loads(voicechat("heads", "tiny@1", "--out", tmp_path / "heads", "--json").stdout)
    assert [(row["layer"], row["head"]) for row in rows] == [(0, 0), (0, 1)]
    pictures = {path.stem for path in (tmp_path / "heads").glob("*.png") if path.stat().st_size > 3000}
    assert pictures == {"spectra", "scores", "eigenbasis", "distances", "attention"}
    assert len(json.loads((tmp_path / "heads" / "heads.json").read_text())["heads"]) == 2

    again = voicechat("train", recipe)
    assert again.returncode == 2
    assert "already contains a run: continue it with --resume" in again.stderr


def test_a_peak_that_was_not_measured_is_left_out():
    told = Evaluation(10, 2.0, 2.1, 2.1, 2.1, 0.01, 900.0, 0.25, 100.0, 1.0)
    assert "900 tokens/s (25% of peak), 100 MiB" in describe(told)
    assert "900 tokens/s, 100 MiB" in describe(replace(told, flops_utilization=None))


def test_ctrl_c_keeps_the_step_and_resume_goes_on(recipe, voicechat, tmp_path):
    recipe.write_text(recipe.read_text().replace("steps: 20", "steps: 600").replace("every: 10", "every: 600"))
    command = [sys.executable, "-m", "voicechat_ui.cli", "train", str(recipe)]
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path / "home")}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    told = run.stderr.readline()
    assert "parameters to train" in told
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    step = int(re.search(r"stopped at step (\d+), with a checkpoint: continue with --resume", run.stderr.read())[1])
    assert step < 600
    result = voicechat("train", recipe, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"continuing from step {step}" in result.stderr
    assert "step 600: validation" in result.stderr


@pytest.mark.parametrize(
    "model",
    [
        "attention: standard, values: tied",
        "attention: metric, metric: signed_diagonal",
        "attention: metric, projection: shared, values: separate",
        "attention: metric, metric: low_rank, metric_sharing: model, mlp: relu_squared",
        "positions: learned, norm: layer, mlp: relu_squared",
    ],
)
def test_every_variant_trains_writes_folds_and_shows_its_heads(recipe, tmp_path, model, in_one_home):
    def told(*arguments) -> str:
        result = in_one_home(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    recipe.write_text(recipe.read_text().replace("attention: metric", model))
    best, folded = tmp_path / "run" / "best", tmp_path / "folded"
    assert re.match(r"tiny@\d: step ", told("train", recipe, "--out", tmp_path / "run"))
    assert "nats per character" in told("evaluate", best)
    told("fold", best, folded)
    texts = [told("generate", each, "--prompt", "SPEAKER", "--temperature", 0) for each in (best, folded)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("SPEAKER")
    assert len(json.loads(told("heads", best, "--json"))) == 2


def test_a_registry_that_is_not_there_is_told_before_anything_is_trained(recipe, tmp_path, voicechat):
    result = voicechat("train", recipe, "--out", tmp_path / "run", VOICECHAT_REGISTRY_URI="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "the registry at 127.0.0.1" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("uri", ["notaurl", "http://", "127.0.0.1:5000"])
def test_a_registry_whose_address_is_none_is_refused_by_name(uri):
    with pytest.raises(ValidationError, match="is written http://HOST:PORT; not"):
        Settings(registry_uri=uri)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "none.yaml"), "none.yaml: there is no such file"),
        (("sweep", "none.yaml"), "none.yaml: there is no such file"),
        (("promote", "tiny"), "write NAME@NUMBER"),
        (("promote", "tiny@1", "--require", "right_calls>0.8"), "write MEASURE>=NUMBER or MEASURE<=NUMBER"),
        (("promote", "tiny@1", "--tools", "t.jsonl"), "--tools is for --require"),
        (("evaluate", "tiny@1", "--constrained"), "--turns and --constrained belong to --tools"),
        (("promote", "other@1"), "no model version other@1; there are: none yet"),
        (("generate", "tiny"), "neither a folder, an added model nor one with a champion"),
        (("evaluate", "."), "is not a checkpoint"),
        (("up", "--whisper", "huge"), "'huge' is no folder and no OWNER/NAME of a hub"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_to_do(in_one_home, arguments, message):
    result = in_one_home(*arguments)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_the_command_is_a_process_of_its_own():
    """`main` as the shell starts it; the other tests call it."""
    command = [sys.executable, "-m", "voicechat_ui.cli"]
    result = subprocess.run([*command, "nonsense"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "No such command" in result.stderr


def test_a_wrong_recipe_is_refused_before_any_work(voicechat, recipe):
    recipe.write_text(recipe.read_text().replace("steps: 20", "stepps: 20"))
    result = voicechat("train", recipe)
    assert result.returncode == 2
    assert "tiny.yaml:4: training.stepps: unknown field; did you mean steps?" in result.stderr


def test_a_wrong_setting_names_its_variable(voicechat):
    result = voicechat("up", VOICECHAT_PORT="high")
    assert result.returncode == 2
    assert "VOICECHAT_PORT" in result.stderr


def test_a_port_in_use_is_said_before_anything_is_tuned(voicechat):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = voicechat("up", "--port", port)
        examined = voicechat("doctor", "--port", port)
    assert result.returncode == 2
    assert f"port {port} is in use; choose another with --port" in result.stderr
    assert examined.returncode == 1
    assert f"FAIL port {port} is in use" in examined.stderr
    assert "→ give another: voicechat up --port 8080" in examined.stderr


def test_doctor_finds_this_machine_sound(voicechat, free_port):
    port = free_port()
    result = voicechat("doctor", "--port", port)
    assert result.returncode == 0, result.stderr
    for finding in (
        "Python 3.",
        "packages",
        "Whisper base",
        "hibari-tts",
        "home folder",
        "memory",
        "devices: ",
        f"port {port} is free",
    ):
        assert finding in result.stderr


def test_an_address_counts_also_after_the_settings_were_read(monkeypatch):
    monkeypatch.setenv("VOICECHAT_RAY_ADDRESS", "local")
    settings.cache_clear()
    assert settings().ray_address == "local"
    join("10.0.0.1:6379")
    assert settings().ray_address == "10.0.0.1:6379"
    monkeypatch.undo()
    settings.cache_clear()
