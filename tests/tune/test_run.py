"""Sweeps on a real Ray: trials in the registry, a killed trial, an interrupted driver."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SWEEP = """\
name: small
recipe:
  name: small
  corpus: {{source: {play}}}
  model: {{layers: 1, heads: 2, width: 32, context: 32}}
  training: {{steps: {steps}, batch_size: 4, evaluate_every: {every}, warmup_steps: 5}}
search:
  model.attention: {{choice: [standard, metric]}}
  training.learning_rate: {{loguniform: [0.001, 0.02]}}
first:
  - {{model.attention: standard}}
  - {{model.attention: metric}}
trials: 4
scheduler: {{grace_steps: {every}, reduction_factor: 2}}
"""


@pytest.fixture
def sweep_file(tmp_path):
    play = tmp_path / "play.txt"
    play.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))

    def write(steps: int, every: int) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(SWEEP.format(play=play, steps=steps, every=every))
        return path

    return write


@pytest.fixture
def voicechat(tmp_path):
    """Starts the command in a home of its own."""
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path / "home"), "VOICECHAT_CPUS": "2"}

    def start(*arguments) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "voicechat_ui.cli", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished_steps(tmp_path) -> list[int]:
    """The last step that each trial of the sweep reported."""
    results = (tmp_path / "home" / "sweeps" / "small").glob("*/result.json")
    return [json.loads(path.read_text().splitlines()[-1])["step"] for path in results if path.read_text().strip()]


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def trial_processes(driver: subprocess.Popen) -> list[psutil.Process]:
    processes = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in processes if process.is_running() and process.name() == "ray::ImplicitFunc.train"]


def test_a_sweep_ends_in_the_registry_with_a_champion(sweep_file, voicechat):
    run = voicechat("sweep", sweep_file(60, 20), "--promote", "--json")
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    versions = json.loads(stdout)
    assert len(versions) == 4
    assert {version["attention"] for version in versions} == {"standard", "metric"}
    losses = [version["nats_per_character"] for version in versions]
    assert losses == sorted(losses)
    assert "trial 1: attention standard, learning_rate" in stderr
    assert "validation loss" in stderr
    listed = json.loads(voicechat("models", "--json").communicate(timeout=60)[0])
    assert [version["version"] for version in listed if version["is_champion"]] == [versions[0]["version"]]


def test_a_killed_trial_goes_on_from_its_checkpoint(sweep_file, voicechat, tmp_path):
    run = voicechat("sweep", sweep_file(3000, 500), "--json")
    wait_for(lambda: finished_steps(tmp_path) and trial_processes(run))
    victim = trial_processes(run)[0]
    victim.kill()
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    assert len(json.loads(stdout)) == 4
    assert max(finished_steps(tmp_path)) == 3000
    killed = list((tmp_path / "home" / "sweeps" / "small").glob("*/error.txt"))
    assert killed, "the kill must have been noticed"
    for error in killed:
        steps = [json.loads(line)["step"] for line in (error.parent / "result.json").read_text().splitlines()]
        assert steps == sorted(set(steps)), "no step that was reported is trained again"


def test_an_interrupted_sweep_keeps_its_trials_and_goes_on(sweep_file, voicechat, tmp_path):
    path = sweep_file(400, 100)
    run = voicechat("sweep", path)
    wait_for(lambda: 400 in finished_steps(tmp_path))
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 130, stderr
    assert "what is finished is kept" in stderr
    kept = json.loads(voicechat("models", "--json").communicate(timeout=60)[0])
    assert 1 <= len(kept) < 4
    run = voicechat("sweep", path, "--json")
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    assert "going on with the sweep" in stderr
    versions = {version["version"] for version in json.loads(stdout)}
    assert len(versions) == 4
    assert {version["version"] for version in kept} <= versions


def test_what_the_machine_can_never_give_is_said_at_once(sweep_file, voicechat):
    path = sweep_file(20, 10)
    path.write_text(path.read_text() + "cpus_per_trial: 64\n")
    run = voicechat("sweep", path)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "cpus_per_trial is 64, but this machine has 2 CPUs" in stderr


def test_another_file_under_the_same_name_is_refused(sweep_file, voicechat):
    assert voicechat("sweep", sweep_file(20, 10)).wait(timeout=240) == 0
    run = voicechat("sweep", sweep_file(30, 10))
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "from a different file" in stderr
