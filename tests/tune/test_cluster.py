"""Sweeps on a real Ray cluster of several nodes on one machine: a node dies, a node is told to go, a job."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_training_state
from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings
from voicechat_tune.running import resources
from voicechat_tune.running.sweep_index import open_study
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Trial

TOKEN = "a-token-of-the-tests-that-is-long-enough"
SWEEP = """\
name: spread
recipe:
  name: spread
  corpus: {{source: {play}}}
  model: {{layers: 1, heads: 2, width: 32, context: 32}}
  training: {{steps: {steps}, batch_size: 4, evaluate_every: {every}, warmup_steps: 5}}
search:
  training.learning_rate: {{loguniform: [0.001, 0.02]}}
trials: {trials}
"""


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """A head that runs nothing; its token is this user's, which Ray keeps in a file."""
    with pytest.MonkeyPatch.context() as patch:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # Ray calls pip
        patch.setenv("PATH", path)
        subprocess.run(["ray", "get-auth-token", "--generate"], check=True, capture_output=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def cluster(shared_cluster) -> Cluster:
    """With two nodes of one CPU; what a test before has taken away is put back."""
    for _ in range(2 - len(shared_cluster.worker_nodes)):
        shared_cluster.add_node(num_cpus=1)
    shared_cluster.wait_for_nodes()
    shared_cluster.workers = list(shared_cluster.worker_nodes)
    return shared_cluster


@pytest.fixture
def sweep(tmp_path, play, cluster, voicechat):
    """Starts a sweep on the cluster."""

    def start(steps: int, every: int, trials: int, more: str = "", **environment: str) -> subprocess.Popen:
        path = tmp_path / "spread.yaml"
        path.write_text(SWEEP.format(play=play, steps=steps, every=every, trials=trials) + more)
        return voicechat("sweep", path, "--address", cluster.address, "--json", **environment)

    return start


def trials_in(tmp_path) -> list[Trial]:
    folder = tmp_path / "home" / "sweeps" / "spread"
    return open_study(str(folder)).trials() if (folder / JOURNAL).exists() else []


def log_of(tmp_path, number: int) -> str:
    return (tmp_path / "home" / "sweeps" / "spread" / "runs" / f"{number:04}" / "log.txt").read_text()


def wait_for(condition, driver: subprocess.Popen, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def test_a_node_dies_and_every_trial_is_accounted_for(sweep, cluster, tmp_path):
    driver = sweep(steps=1500, every=250, trials=3)
    wait_for(lambda: sum(trial.runs[0].step > 0 for trial in trials_in(tmp_path) if trial.runs) == 2, driver)
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    stdout, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert "was interrupted and will continue" in stderr
    trials = trials_in(tmp_path)
    assert [trial.state for trial in trials] == ["finished"] * 3
    assert [trial.runs[0].step for trial in trials] == [1500] * 3
    assert len(json.loads(stdout)) == 3
    assert any(log_of(tmp_path, number).count("begins") > 1 for number in (1, 2)), "one of them went on elsewhere"


@pytest.mark.nightly
def test_a_run_keeps_its_step_when_its_node_is_told_to_go(sweep, cluster, tmp_path):
    driver = sweep(steps=4000, every=2000, trials=1, more="concurrent: 1\n")
    log = tmp_path / "home" / "sweeps" / "spread" / "runs" / "0001" / "log.txt"
    wait_for(lambda: log.exists() and "begins" in log.read_text(), driver)
    node = node_of_the_trial(cluster)
    tell_to_go(cluster, node)
    wait_for(lambda: "is about to be preempted: saving step" in log.read_text(), driver)
    kept = int(log.read_text().partition("saving step ")[2].split()[0])
    wait_for(lambda: log.read_text().count("begins") == 2, driver)
    cluster.remove_node(node, allow_graceful=False)
    _, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert 0 < kept < 4000
    assert "the run continues from step" in log.read_text()
    went_on_at = int(log.read_text().partition("the run continues from step ")[2].split()[0])
    assert went_on_at in (kept, kept + 1), "the step that was under way is kept"
    assert trials_in(tmp_path)[0].state == "finished"


@pytest.mark.nightly
def test_workers_keep_their_step_when_the_node_of_one_is_told_to_go(sweep, cluster, tmp_path):
    driver = sweep(steps=6000, every=1000, trials=1, more="workers_per_trial: 2\n")
    last = tmp_path / "home" / "sweeps" / "spread" / "runs" / "0001" / "last"
    wait_for((last / "run.json").exists, driver)
    node = cluster.workers[1]  # each has one of the two workers
    tell_to_go(cluster, node)
    wait_for(lambda: "a worker's machine is about to be preempted" in log_of(tmp_path, 1), driver)
    assert load_training_state(last)["step"] % 1000, "a step between two evaluations is kept"
    cluster.add_node(num_cpus=1)
    cluster.remove_node(node, allow_graceful=False)
    _, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert [evaluation["step"] for evaluation in read_run(last)["history"]] == list(range(1000, 6001, 1000))
    assert trials_in(tmp_path)[0].state == "finished"


def tell_to_go(cluster: Cluster, node) -> None:
    subprocess.run(
        f"ray drain-node --address {cluster.address} --node-id {node.node_id} --reason DRAIN_NODE_REASON_PREEMPTION "
        f"--reason-message spot --deadline-remaining-seconds 300".split(),
        check=True,
        timeout=60,
    )


def node_of_the_trial(cluster: Cluster):
    """The node whose raylet has the trial's process below it."""
    for node in cluster.workers:
        raylet = node.all_processes["raylet"][0].process
        names = [child.name() for child in psutil.Process(raylet.pid).children(recursive=True)]
        if "ray::ImplicitFunc.train" in names:
            return node
    raise AssertionError("no node has a trial")


def test_what_no_node_can_give_is_said_at_once(sweep):
    driver = sweep(20, 10, 1, more="cpus_per_trial: 2\n")
    _, stderr = driver.communicate(timeout=90)
    assert driver.returncode == 2
    assert "cpus_per_trial is 2, but the cluster's largest machine has 1 CPUs" in stderr


AUTOSCALED = """
available_node_types:
  head: {resources: {CPU: 8}, max_workers: 0}
  small: {resources: {CPU: 4, GPU: 1}, max_workers: 3}
"""


@pytest.mark.parametrize("already", [0, 2])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cpus_per_trial": 4, "gpus_per_trial": 1}, None),
        ({"cpus_per_trial": 4, "gpus_per_trial": 1, "workers_per_trial": 3}, None),
        ({"cpus_per_trial": 5}, "cpus_per_trial is 5, but the cluster's largest machine has 4 CPUs"),
        ({"gpus_per_trial": 2}, "gpus_per_trial is 2, but the cluster's largest machine has 1 GPUs"),
        ({"gpus_per_trial": 1, "workers_per_trial": 4}, "needs 4 GPUs in total, but there are 3"),
    ],
)
def test_a_cluster_that_grows_says_at_once_what_it_can_never_give(monkeypatch, tmp_path, asked, message, already):
    (tmp_path / "cluster.yaml").write_text(AUTOSCALED)
    monkeypatch.setattr(resources, "CLUSTER_FILE", tmp_path / "cluster.yaml")
    monkeypatch.setattr(resources, "grows", lambda: True)
    head, warm = {"node:__internal_head__": 1.0}, {"CPU": 4.0, "GPU": 1.0}
    monkeypatch.setattr(resources, "alive", lambda: [head, *[warm] * already])
    monkeypatch.setattr(resources, "settings", lambda: Settings(ray_address="auto"))
    sweep = SweepFile.model_validate({"name": "s", "points": [{}], **asked})
    if message is None:
        resources.check_resources(sweep)
    else:
        with pytest.raises(InputError, match=message):
            resources.check_resources(sweep)


def test_a_cluster_of_ones_own_machines_is_waited_for_until_all_have_joined(monkeypatch, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("available_node_types: {local.cluster.node: {resources: {}, max_workers: 2}}")
    joined = [{"node:__internal_head__": 1.0}, {"CPU": 2}]  # the head, which gives nothing, and the first worker
    monkeypatch.setattr(resources, "CLUSTER_FILE", file)
    monkeypatch.setattr(resources, "grows", lambda: True)
    monkeypatch.setattr(resources, "alive", lambda: joined)
    monkeypatch.setattr(resources, "settings", lambda: Settings(ray_address="auto"))
    sweep = SweepFile.model_validate({"name": "s", "points": [{}], "cpus_per_trial": 4})
    resources.check_resources(sweep)
    joined.append({"CPU": 2})
    with pytest.raises(InputError, match="cpus_per_trial is 4, but the cluster's largest machine has 2 CPUs"):
        resources.check_resources(sweep)


def test_without_the_token_nobody_joins(sweep):
    driver = sweep(20, 10, 1, RAY_AUTH_TOKEN="another-token-that-is-not-the-clusters")
    _, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 2
    assert "the cluster's token" in stderr


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.nightly
def test_a_sweep_runs_as_a_job(monkeypatch, tmp_path, play):
    """`ray start` and `ray job submit`, as docs/clusters.md says it."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    path = tmp_path / "spread.yaml"
    path.write_text(SWEEP.format(play=play, steps=20, every=10, trials=2))
    port, dashboard, agent = free_ports(3)
    start = (
        f"ray start --head --port={port} --num-cpus=2 --block --dashboard-host=127.0.0.1 --dashboard-port={dashboard} "
        f"--dashboard-agent-listen-port={agent}"
    )
    with (tmp_path / "log").open("w") as log:
        head = subprocess.Popen(start.split(), stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        submit = f"ray job submit --address {address} -- voicechat sweep {path} --address auto --json"
        for _ in range(30):
            job = subprocess.run(submit.split(), capture_output=True, text=True, timeout=240)
            starting = ("Failed to connect", "try again later")
            if job.returncode == 0 or not any(words in job.stderr + job.stdout for words in starting):
                break
            time.sleep(2)
        assert job.returncode == 0, job.stdout + job.stderr
        assert "succeeded" in job.stdout
        assert [trial.state for trial in trials_in(tmp_path)] == ["finished"] * 2
    finally:
        descendants = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(timeout=30)
        for process in psutil.wait_procs(descendants, timeout=10)[1]:
            process.kill()
