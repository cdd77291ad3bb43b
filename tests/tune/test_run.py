"""Sweeps on a real Ray: trials in the registry; a killed trial, a killed driver, an interrupted one; faults."""

import errno
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from voicechat_platform.errors import InputError
from voicechat_platform.registry import Registry
from voicechat_tune.running.disk import is_disk_full
from voicechat_tune.running.run import locked, run_sweep
from voicechat_tune.running.storage import Storage
from voicechat_tune.running.sweep_index import is_running, open_study
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.study import Trial
from voicechat_tune.search.sweep_file import SweepFile, read_sweep

SWEEP = """\
name: small
recipe:
  name: small
  corpus: {{source: {play}}}
  model: {{layers: 1, heads: 2, width: 32, context: 32}}
  training: {{steps: {steps}, batch_size: 4, evaluate_every: {every}, warmup_steps: 5}}
search:
  model.attention: {{choice: [standard, metric]}}
  model.metric: {{choice: [symmetric, signed_diagonal], when: {{model.attention: metric}}}}
  training.learning_rate: {{loguniform: [0.001, 0.02]}}
first:
  - {{model.attention: standard}}
  - {{model.attention: metric}}
trials: 4
scheduler: {{grace_steps: {every}, reduction_factor: 2}}
"""


@pytest.fixture
def sweep_file(tmp_path, play):
    def write(steps: int, every: int, more: str = "") -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(SWEEP.format(play=play, steps=steps, every=every) + more)
        return path

    return write


def trials_in(tmp_path, home: str = "home") -> list[Trial]:
    folder = tmp_path / home / "sweeps" / "small"
    return open_study(str(folder)).trials() if (folder / JOURNAL).exists() else []


def steps_seen(tmp_path) -> list[int]:
    return [run.step for trial in trials_in(tmp_path) for run in trial.runs]


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def trial_processes(driver: subprocess.Popen) -> list[psutil.Process]:
    processes = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in processes if process.is_running() and process.name() == "ray::ImplicitFunc.train"]


def kill_after(steps: int, driver: subprocess.Popen, tmp_path) -> None:
    """Kill a sweep's driver once its runs have taken so many steps; Ray's processes follow it."""
    wait_for(lambda: sum(steps_seen(tmp_path)) >= steps or driver.poll() is not None)
    descendants = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    psutil.wait_procs(descendants, timeout=30)


def decisions(trials: list[Trial]) -> list[tuple]:
    return [(trial.point, trial.state, trial.loss, [run.step for run in trial.runs]) for trial in trials]


def test_a_sweep_ends_in_the_registry_with_a_champion(sweep_file, voicechat, voicechat_here, shared_ray, tmp_path):
    path = sweep_file(60, 20)
    run = voicechat("sweep", path, "--promote", "--json", "--tensorboard")
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    trials = trials_in(tmp_path)
    assert len(trials) == 4
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    finished = [trial for trial in trials if trial.state == "finished"]
    versions = json.loads(stdout)
    assert len(versions) == len(finished) >= 1
    assert versions[0]["nats_per_character"] == pytest.approx(min(trial.loss for trial in finished))
    assert "trial 1: attention standard, learning_rate" in stderr
    assert "validation loss" in stderr
    listed = json.loads(voicechat_here("models", "--json").stdout)
    assert [version["version"] for version in listed if version["is_champion"]] == [versions[0]["version"]]
    folder = tmp_path / "home" / "sweeps" / "small"
    kept = {path.parent.name for path in folder.glob("runs/*/last")}
    assert kept == {f"{trial.number:04}" for trial in finished}, "the checkpoints of stopped trials are deleted"
    assert not list(folder.glob("runs/*/previous"))
    assert len(list(folder.glob("tensorboard/*/events*"))) == 4
    rows = json.loads(voicechat_here("trials", "small", "--json").stdout)
    assert [row["loss"] for row in rows] == [trial.loss for trial in trials]
    shown = voicechat_here("trial", "small", "2").stdout
    assert "model.attention: metric" in shown
    assert "step 20: validation" in shown
    assert "tokens/s beside other runs" in shown
    assert {e["flops_utilization"] for trial in trials for run in trial.runs for e in run.evaluations} == {None}
    assert "begins" in shown
    assert run_sweep(read_sweep(path), extend=1).complete
    assert decisions(trials_in(tmp_path)[:4]) == decisions(trials)
    assert trials_in(tmp_path)[4].state in ("finished", "stopped")


@pytest.mark.nightly  # a node's death (test_cluster.py) goes the same way every day
def test_a_killed_trial_goes_on_from_its_checkpoint(sweep_file, voicechat, tmp_path):
    run = voicechat("sweep", sweep_file(2000, 500), "--json")
    wait_for(lambda: any(steps_seen(tmp_path)) and trial_processes(run))
    trial_processes(run)[0].kill()
    _, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    assert "was interrupted and will continue" in stderr
    trials = trials_in(tmp_path)
    assert len(trials) == 4
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    logs = [(path.read_text()) for path in (tmp_path / "home" / "sweeps" / "small").glob("runs/*/log.txt")]
    assert any(log.count("begins") > 1 for log in logs), "the killed run began again"


@pytest.mark.nightly  # test_exact_resume.py breaks sweeps off at every place, without processes
def test_a_sweep_whose_driver_is_killed_ends_as_one_that_was_not(sweep_file, voicechat, tmp_path):
    path = sweep_file(300, 50, "concurrent: 1\n")
    whole = voicechat("sweep", path, home="whole")
    whole.communicate(timeout=300)
    kill_after(100, voicechat("sweep", path), tmp_path)
    kill_after(450, voicechat("sweep", path), tmp_path)
    run = voicechat("sweep", path, "--resume", "--json")
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    assert "continuing the sweep" in stderr
    assert decisions(trials_in(tmp_path)) == decisions(trials_in(tmp_path, "whole"))
    assert len(json.loads(stdout)) == sum(trial.state == "finished" for trial in trials_in(tmp_path))


def test_an_interrupted_sweep_keeps_its_trials_and_goes_on(sweep_file, voicechat, shared_ray, home, tmp_path):
    path = sweep_file(400, 100, "concurrent: 1\n")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("scheduler")))
    run = voicechat("sweep", path)  # one after the other, none stopped: much is left when the first has finished
    wait_for(lambda: any(trial.state == "finished" for trial in trials_in(tmp_path)))
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 130, stderr
    assert "finished trials are kept" in stderr
    kept = {str(version) for version in Registry().versions()}
    assert kept
    outcome = run_sweep(read_sweep(path))
    assert outcome.complete
    assert kept <= {str(version) for version in outcome.finished}
    assert all(trial.state in ("finished", "stopped") for trial in trials_in(tmp_path))


@pytest.mark.nightly  # Ray Train starts six processes; test_distributed.py has workers every day
def test_a_trial_of_two_workers(sweep_file, shared_ray, home, tmp_path):
    assert run_sweep(one_trial(sweep_file(20, 10, "workers_per_trial: 2\ncpus_per_trial: 1\n"))).complete
    (trial,) = trials_in(tmp_path)
    assert (trial.state, trial.runs[0].step) == ("finished", 20)


def test_a_trial_of_three_seeds(sweep_file, shared_ray, home, tmp_path):
    assert run_sweep(one_trial(sweep_file(20, 10, "seeds: 3\n"))).complete
    (trial,) = trials_in(tmp_path)
    assert [run.key.seed_index for run in trial.runs] == [0, 1, 2]
    losses = [run.loss for run in trial.runs]
    assert len(set(losses)) == 3
    assert trial.loss == pytest.approx(sum(losses) / 3)


def test_a_limit_ends_a_sweep(sweep_file, shared_ray, home, tmp_path):
    outcome = run_sweep(read_sweep(sweep_file(5000, 10, "limits: {cost: 1}\nprice: {cpu_hour: 500}\n")))
    assert not outcome.complete
    assert "limits.cost (1) is reached" in outcome.reason
    assert any(trial.state == "unfinished" and trial.runs for trial in trials_in(tmp_path))


def one_trial(path: Path) -> SweepFile:
    return read_sweep(path).model_copy(update={"trials": 1})


def test_a_loss_that_is_no_number_fails_the_trial_and_not_the_sweep(
    sweep_file, voicechat_here, shared_ray, tmp_path, capsys
):
    path = sweep_file(40, 20)
    text = path.read_text().replace("training: {", "training: {optimizer: adamw, gradient_clip: 1.0e+30, ")
    search = "  training.weight_decay: {choice: [0.1, 1.0e+38]}\nfirst:\n  - {training.weight_decay: 1.0e+38}\n"
    path.write_text(text.replace("first:\n", search).replace("trials: 4", "trials: 3"))
    assert run_sweep(read_sweep(path)).failed >= 1
    states = [trial.state for trial in trials_in(tmp_path)]
    assert states[0] == "failed"
    assert "finished" in states
    assert "trial 1 failed: the loss became" in capsys.readouterr().err
    assert "the loss became" in voicechat_here("trial", "small", "1").stdout


def test_faults_are_said_at_once(sweep_file, shared_ray, home, tmp_path):
    with pytest.raises(InputError, match="cpus_per_trial is 64, but this machine has 2 CPUs"):
        run_sweep(one_trial(sweep_file(20, 10, "cpus_per_trial: 64\n")))
    assert run_sweep(one_trial(sweep_file(20, 10))).complete, "nothing had run: the file may be mended"
    with pytest.raises(InputError, match="from a different file") as refused:
        run_sweep(read_sweep(sweep_file(30, 10)))
    assert "recipe.training.steps: 20 -> 30" in str(refused.value)
    assert "trials: 1 -> 4" in str(refused.value)
    nowhere = "storage: s3://no-such-bucket/x?endpoint_override=127.0.0.1:9&scheme=http\n"
    with pytest.raises(InputError, match="cannot store results"):
        run_sweep(read_sweep(sweep_file(20, 10, nowhere)))


def test_what_has_not_begun_is_said(sweep_file, voicechat_here):
    resumed = voicechat_here("sweep", sweep_file(20, 10), "--resume")
    assert resumed.returncode == 2
    assert "has not started" in resumed.stderr
    shown = voicechat_here("trials", "unheard-of")
    assert shown.returncode == 2
    assert "there is no sweep 'unheard-of'" in shown.stderr


def test_only_one_process_drives_a_sweep(tmp_path):
    program = "import sys; from pathlib import Path; from voicechat_tune.running.run import locked\n"
    program += "with locked(Path(sys.argv[1])): print('holds it', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "holds it\n"
    with pytest.raises(InputError, match=f"process {first.pid} runs the sweep"), locked(tmp_path):
        pass
    first.kill()
    first.wait()
    with locked(tmp_path):
        pass  # a killed one holds it no more


def test_a_sweep_begins_while_somebody_asks_whether_it_runs(tmp_path, monkeypatch):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(file, fcntl.LOCK_UN))
        with locked(tmp_path):
            assert is_running(tmp_path)


@pytest.mark.nightly
def test_results_go_to_s3_and_another_machine_goes_on_from_there(
    sweep_file, voicechat, tmp_path, s3_server, credentials
):
    uri = f"s3://results/sweeps?endpoint_override={s3_server}&scheme=http"
    path = sweep_file(900, 300, f"storage: {uri}\nconcurrent: 1\n")
    run = voicechat("sweep", path)
    wait_for(lambda: any(trial.state == "finished" for trial in trials_in(tmp_path)))
    wait_for(lambda: any(trial.state == "unfinished" and trial.runs for trial in trials_in(tmp_path)))
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 130, stderr
    before = decisions([trial for trial in trials_in(tmp_path) if trial.state != "unfinished"])
    shutil.rmtree(tmp_path / "home" / "sweeps")  # the machine is gone, and its successor has an empty folder
    run = voicechat("sweep", path, "--resume", "--json")
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    trials = trials_in(tmp_path)
    assert decisions(trials)[: len(before)] == before
    finished = [trial for trial in trials if trial.state == "finished"]
    assert len(json.loads(stdout)) == len(finished)
    store = Storage(uri)
    kept = {name for name in store.names("small/runs") if len(store.names(f"small/runs/{name}")) > 1}
    assert kept == {f"{trial.number:04}" for trial in finished}
    for name in kept:
        held = [entry.partition("-")[0] for entry in store.names(f"small/runs/{name}")]
        assert sorted(held) == ["best", "last", "log.txt"]
    assert "the run continues from step" in "".join(
        voicechat("trial", "small", trial.number).communicate(timeout=60)[0] for trial in trials
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB, and a way to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; test_a_full_disk_is_known_from_other_faults covers the rest")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.nightly
def test_a_full_disk_stops_the_sweep_which_goes_on_when_there_is_room(sweep_file, voicechat, tmp_path, small_disk):
    folder, enlarge = small_disk
    path = sweep_file(60, 20)
    path.write_text(path.read_text().replace("width: 32", "width: 256"))
    run = voicechat("sweep", path, home="disk/home")
    _, stderr = run.communicate(timeout=120)
    assert run.returncode in (1, 2), stderr
    assert f"the disk is full at {folder}/home/sweeps/small" in stderr
    enlarge()
    run = voicechat("sweep", path, home="disk/home")
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 0, stderr
    assert all(trial.state in ("finished", "stopped") for trial in trials_in(tmp_path, "disk/home"))


def test_a_full_disk_is_known_from_other_faults(tmp_path):
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"), tmp_path)


def test_a_population_trains_on_from_its_best_and_is_written_up(sweep_file, voicechat_here, shared_ray, tmp_path):
    path = sweep_file(60, 20, "limits: {hours: 1}\n")
    text = path.read_text()
    text = text[: text.index("search:")] + (
        "search:\n  training.learning_rate: {loguniform: [0.001, 0.02]}\n"
        "trials: 4\nscheduler: {kind: pbt, population: 4, interval_steps: 20}\n"
    )
    path.write_text(text)
    estimated = json.loads(voicechat_here("sweep", path, "--dry-run", "--json").stdout)
    assert estimated["runs"] == 4
    assert all(point["minutes"] > 0 for point in estimated["points"])
    assert not trials_in(tmp_path), "nothing has run"
    outcome = run_sweep(read_sweep(path))
    assert outcome.complete
    trials = trials_in(tmp_path)
    assert [trial.lineage["generation"] for trial in trials] == [1] * 4 + [2] * 4 + [3] * 4
    assert [trial.runs[0].step for trial in trials] == [20] * 4 + [40] * 4 + [60] * 4
    for before, after in ((trials[:4], trials[4:8]), (trials[4:8], trials[8:])):
        worst, best = max(before, key=lambda trial: trial.loss), min(before, key=lambda trial: trial.loss)
        assert after[before.index(worst)].lineage["parent"] == best.number
        assert after[before.index(best)].point == best.point
    assert len(outcome.finished) == 4, "the last generation is in the registry"
    folder = tmp_path / "home" / "sweeps" / "small"
    kept = sorted(path.parent.name for path in folder.glob("runs/*/last"))
    assert kept == [f"{number:04}" for number in range(5, 13)], "what nobody goes on from is deleted"
    shown = voicechat_here("report", "small", "--out", tmp_path / "report").stdout
    assert Path(shown.strip()).exists()
    assert "Of 12 trials" in (tmp_path / "report" / "report.md").read_text()
