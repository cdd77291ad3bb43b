"""What the driver does at each report does not grow with what the sweep remembers: counted in calls of functions."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from voicechat_platform.registry import Registry
from voicechat_platform.training.history import Evaluation
from voicechat_tune.running.driver import DrivenScheduler, DrivenSearch, Driver
from voicechat_tune.running.follow import Follower
from voicechat_tune.running.messages import REPORT, RunEnded
from voicechat_tune.running.retention import Retention, RetentionCallback
from voicechat_tune.search.samplers import trials_of
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial
from voicechat_tune.search.trials_table import trials_table

RATES = {"training.learning_rate": {"loguniform": [0.001, 0.1]}, "training.weight_decay": {"uniform": [0, 1]}}
KINDS = {
    "random": {
        "search": RATES,
        "sampler": "random",
        "trials": 300,
        "limits": {"hours": 9, "cost": 9},
        "price": {"cpu_hour": 1},
    },
    "three seeds": {"search": RATES, "sampler": "random", "trials": 100, "seeds": 3},
    "asha": {"search": RATES, "sampler": "random", "trials": 150, "scheduler": {"grace_steps": 1}, "steps": 3},
    "grid": {"search": {"training.batch_size": {"int": [1, 300]}}, "sampler": "grid"},
    "pbt": {
        "search": RATES,
        "scheduler": {"kind": "pbt", "population": 4, "interval_steps": 1},
        "trials": 4,
        "steps": 75,
    },
    "a long run": {"search": RATES, "sampler": "random", "trials": 1, "steps": 600},
}


def sweep_of(kind: str) -> SweepFile:
    fields = {"name": "s", "concurrent": 1, **KINDS[kind]}
    training = {"steps": fields.pop("steps", 1), "warmup_steps": 0, "evaluate_every": 1}
    return SweepFile.model_validate({**fields, "recipe": {"training": training}})


class AtOnce(Retention):
    """Does in this thread, where calls are counted, what it does in the background; the registry's time is its own."""

    def schedule(self) -> None:
        self.keep_all()

    def register(self, registry: Registry, trial: Trial, run: Run) -> None:
        self.discarded.add(run.key)


def reports(sweep: SweepFile, folder: Path) -> Iterator[None]:
    """Do as Ray Tune does, one run at a time; goes on after each report."""
    study = Study(folder, sweep)
    driver = Driver(sweep, study, trials_of(sweep), room=lambda: 1)
    search, scheduler = DrivenSearch(driver), DrivenScheduler(driver)
    callbacks = [Follower(sweep, driver), RetentionCallback(AtOnce(sweep, study, folder, "group"))]
    turn = 0
    while (config := search.suggest(str(turn))) != Searcher.FINISHED:
        trial = SimpleNamespace(trial_id=str(turn), config=config)
        for callback in callbacks:
            callback.on_trial_start(turn, [], trial)
        begins_at = study.trials()[config["trial"] - 1].lineage.get("generation", 1)
        for step in range(begins_at, (config["until"] or sweep.recipe.training.steps) + 1):
            loss = 1 + turn * 7919 % 101 / 100 + 1 / step
            result = {REPORT: Evaluation(step, loss, loss, loss, loss, 0.01, 1.0, 0.1, 1.0, 1.0)}
            stops = scheduler.on_trial_result(None, trial, result) == "STOP"
            for callback in callbacks:
                callback.on_trial_result(turn, [], trial, result)
            yield
            if stops:
                break
        else:
            scheduler.on_trial_result(None, trial, {REPORT: RunEnded("finished", facts={"validation_loss": loss})})
            yield
        for callback in callbacks:
            callback.on_trial_complete(turn, [], trial)
        turn += 1


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called in some work."""
    calls = 0

    def count_call(frame: object, event: str, function: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_costs_as_much_late_as_early(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    steps = reports(sweep_of(kind), tmp_path / "sweep")
    blocks = [calls_of(lambda: [next(steps) for _ in range(60)]) for _ in range(4)]
    assert blocks[3] < 1.1 * blocks[1], "per 60 reports, the early ones first"


def test_a_table_of_all_trials_takes_each_once():
    sweep = sweep_of("random")

    def calls(count: int) -> int:
        trials = [Trial(n, dict.fromkeys(RATES, n / 1e4), "unfinished", [], {}) for n in range(1, count + 1)]
        return calls_of(lambda: trials_table("", trials, sweep, {RunKey(count)}))

    calls(1)
    assert calls(800) < 4.4 * calls(200)
