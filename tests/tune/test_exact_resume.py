"""A sweep broken off at any moment decides as one that was not: the study is all that it remembers."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from pydantic import TypeAdapter

from voicechat_platform.errors import InputError
from voicechat_platform.training.history import Evaluation
from voicechat_tune.running.driver import MOST_ATTEMPTS, Driver
from voicechat_tune.running.messages import RunEnded
from voicechat_tune.running.run import extended
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.samplers import Search, trials_of
from voicechat_tune.search.schedulers import SCHEDULERS
from voicechat_tune.search.schedulers.interface import NextTrial, Scheduler, SchedulerConfig
from voicechat_tune.search.space import Space
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import Limits, SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial

BRANCHES = {
    "model.attention": {"choice": ["standard", "metric"]},
    "model.metric": {"choice": ["symmetric", "signed_diagonal"], "when": {"model.attention": "metric"}},
    "training.learning_rate": {"loguniform": [0.001, 0.1]},
}
RATE = {"training.learning_rate": {"loguniform": [0.001, 0.1]}}
NUMBERS = {**RATE, "training.weight_decay": {"uniform": [0, 1]}}
LAYERS = {"model.layers": {"int": [1, 3]}}
Parameters = TypeAdapter(Space)
KINDS = {
    "tpe and asha": {"search": BRANCHES, "scheduler": {"grace_steps": 2, "reduction_factor": 2}, "trials": 14},
    "tpe and hyperband": {"search": BRANCHES, "scheduler": {"kind": "hyperband", "grace_steps": 2}, "trials": 12},
    "percentile": {
        "search": BRANCHES,
        "scheduler": {"kind": "percentile", "grace_steps": 4, "finished_trials": 2},
        "trials": 14,
    },
    "gp": {"search": NUMBERS, "sampler": "gp", "trials": 12},
    "cma-es and asha": {"search": NUMBERS, "sampler": "cma_es", "trials": 14, "scheduler": {"grace_steps": 2}},
    "random, three seeds": {"search": BRANCHES, "sampler": "random", "trials": 5, "seeds": 3},
    "grid": {"search": {"model.layers": {"int": [1, 3]}, "model.heads": {"choice": [1, 2]}}, "sampler": "grid"},
    "two objectives": {"search": BRANCHES, "trials": 13, "objectives": ["validation_loss", "parameters"]},
    "pbt": {
        "search": NUMBERS,
        "scheduler": {"kind": "pbt", "population": 4, "interval_steps": 4},
        "trials": 4,
    },
}


def sweep_of(kind: str) -> SweepFile:
    recipe = {"training": {"steps": 16, "warmup_steps": 1, "evaluate_every": 2}}
    return SweepFile.model_validate({"name": "s", "recipe": recipe, "concurrent": 1, **KINDS[kind]})


class Killed(BaseException):
    """Nothing that runs may catch it."""


class Machine:
    """Trains by a formula, one run at a time, and kills everything at one of the moments between two actions."""

    def __init__(self, sweep: SweepFile, folder: Path):
        self.sweep, self.folder = sweep, folder
        self.checkpoints: dict[RunKey, int] = {}
        self.losses: dict[tuple[RunKey, int], float] = {}

    def run(self, kill_at: int | None = None) -> list[Trial]:
        self.left = math.inf if kill_at is None else kill_at
        study = Study(self.folder, self.sweep)
        study.set = self.mortal(study.set)
        study.optuna.tell = self.mortal(study.optuna.tell)
        driver = Driver(self.sweep, study, trials_of(self.sweep), room=lambda: 1)
        turn = 0
        while not driver.is_over():
            self.moment()
            key, trial = driver.next_run()
            ray_id, turn = str(turn), turn + 1
            driver.start_run(ray_id, key)
            self.train(driver, ray_id, key, trial)
        written = Study(self.folder, self.sweep, writable=False)
        assert (study.trials(), study.next_order) == (written.trials(), written.next_order), "as the journal"
        assert study.seconds == pytest.approx(written.seconds)
        return study.trials()

    def train(self, driver: Driver, ray_id: str, key: RunKey, trial: Trial) -> None:
        until = self.sweep.ends_at(trial.lineage) or 16
        begins = until - 4 if self.sweep.ends_at(trial.lineage) else 0
        done = self.checkpoints.get(key, begins)
        for step in range(begins + 2, done + 1, 2):  # reported again, in case the driver did not hear
            if driver.on_report(ray_id, report(trial, key, step)):
                return
        for step in range(done + 2, until + 1, 2):
            self.moment()
            self.checkpoints[key] = step
            self.moment()
            if driver.on_report(ray_id, report(trial, key, step)):
                return
        self.moment()
        facts = {"validation_loss": loss_of(trial, key, until), "parameters": size_of(trial)}
        driver.on_report(ray_id, RunEnded("finished", facts=facts))

    def mortal(self, write):
        """A writing into the study before which everything may be killed."""

        def maybe(*arguments, **more):
            self.moment()
            return write(*arguments, **more)

        return maybe

    def moment(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def loss_of(trial: Trial, key: RunKey, step: int) -> float:
    point = {"training.learning_rate": 0.01, "training.weight_decay": 0.3, **trial.point}
    badness = abs(math.log(point["training.learning_rate"] / 0.01)) + point["training.weight_decay"]
    badness += (
        0.3 * (point.get("model.attention") == "metric") + 0.05 * key.seed_index + 0.1 * point.get("model.layers", 0)
    )
    return badness + 3 / step + 0.2 * math.sin(7 * badness + step)


def size_of(trial: Trial) -> float:
    return 100.0 - 10 * (trial.point.get("model.attention") == "metric")


def report(trial: Trial, key: RunKey, step: int) -> Evaluation:
    loss = loss_of(trial, key, step)
    return Evaluation(step, loss, loss, loss, loss, 0.01, 1.0, 0.1, 1.0, 1.0)


def decisions(trials: list[Trial]) -> list[tuple]:
    """All that a sweep decided, without its clocks."""
    return [
        (trial.number, trial.point, trial.lineage, trial.state, trial.loss, [run_facts(run) for run in trial.runs])
        for trial in trials
    ]


def run_facts(run: Run) -> tuple:
    return str(run.key), run.ending, run.step


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(kills=st.lists(st.integers(1, 120), min_size=1, max_size=4))
def test_a_broken_off_sweep_ends_as_a_whole_one(kind, kills, tmp_path_factory):
    sweep = sweep_of(kind)
    whole = Machine(sweep, tmp_path_factory.mktemp("whole")).run()
    machine = Machine(sweep, tmp_path_factory.mktemp("broken"))
    for kill_at in kills:
        try:
            machine.run(kill_at)
        except Killed:
            continue
    assert decisions(machine.run()) == decisions(whole)


@pytest.mark.parametrize("kind", ["tpe and asha", "tpe and hyperband", "percentile"])
def test_stopped_trials_are_pruned_for_optuna(kind, tmp_path):
    sweep = sweep_of(kind)
    trials = Machine(sweep, tmp_path).run()
    stopped = [trial.number for trial in trials if trial.state == "stopped"]
    assert stopped
    assert len(stopped) < len(trials)
    found = {trial.user_attrs["number"]: trial for trial in Study(tmp_path, sweep).frozen()}
    for number in stopped:
        assert found[number].state.name == "PRUNED"
        assert found[number].intermediate_values, "the sampler learns from where it was stopped"


LEARNING = {"tpe and asha": 10, "tpe and hyperband": 10, "two objectives": 10, "gp": 10, "cma-es and asha": 1}
"""How many trials must have ended before the sampler draws by what it has learned."""


@pytest.fixture
def drawn_alone(monkeypatch) -> list[tuple[int, str]]:
    """Fields that were drawn outside the sampler's joint model, each after how many ended trials."""
    seen = []
    for sampler in (optuna.samplers.RandomSampler, optuna.samplers.TPESampler):

        def spy(self, study, trial, name, distribution, original=sampler.sample_independent):
            ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            seen.append((len(ended), name))
            return original(self, study, trial, name, distribution)

        monkeypatch.setattr(sampler, "sample_independent", spy)
    return seen


@pytest.mark.parametrize("kind", LEARNING)
def test_once_a_sampler_has_learned_nothing_is_drawn_outside_its_model(kind, tmp_path, drawn_alone):
    sweep = sweep_of(kind)
    trials = Machine(sweep, tmp_path).run()
    assert len(trials) > LEARNING[kind]
    assert set(sweep.search) <= {name for _, name in drawn_alone}
    branch = {"model.attention": "metric"} if "model.metric" in sweep.search else {}
    _, point = Search(sweep.model_copy(update={"first": [branch]}), Study(tmp_path, sweep), Scheduler()).draw(0)
    assert set(point) == set(sweep.search)
    assert [(ended, name) for ended, name in drawn_alone if ended >= LEARNING[kind]] == []


def test_cma_es_learns_from_stopped_trials(tmp_path):
    """Of two numbers, six trials make a generation."""
    sweep = sweep_of("cma-es and asha")
    trials = Machine(sweep, tmp_path).run()
    assert sum(trial.state == "stopped" for trial in trials) > 1
    generations = [found.system_attrs.get("cma:generation") for found in Study(tmp_path, sweep).frozen()]
    assert generations == [None, *[0] * 6, *[1] * 6, 2]


def test_cma_es_searches_a_single_number_too(tmp_path, drawn_alone):
    sweep = sweep_of("cma-es and asha").model_copy(update={"search": Parameters.validate_python(RATE)})
    Machine(sweep, tmp_path).run()
    assert {ended for ended, _ in drawn_alone} == {0}


@pytest.mark.parametrize("kind", ["gp", "tpe and asha"])
def test_earlier_trials_of_other_bounds_and_fields_do_not_keep_a_field_out_of_the_model(kind, tmp_path, drawn_alone):
    """In a warm start, and where a sweep goes on with a changed file."""
    earlier = sweep_of(kind).model_copy(update={"scheduler": None, "search": Parameters.validate_python(NUMBERS)})
    Machine(earlier, tmp_path / "earlier").run()
    wider = {**NUMBERS, "training.learning_rate": {"loguniform": [0.0001, 0.2]}}
    later = earlier.model_copy(update={"search": Parameters.validate_python(wider)})
    study = Study(tmp_path / "later", later)
    assert study.warm_start(Study(tmp_path / "earlier", earlier, writable=False)) == earlier.trials
    drawn_alone.clear()
    Search(later, study, Scheduler()).draw(0)
    changed = Study(tmp_path / "earlier", later)
    Search(later, changed, Scheduler()).draw(earlier.trials)
    assert drawn_alone == []
    more = later.model_copy(update={"search": Parameters.validate_python({**NUMBERS, **LAYERS})})
    assert Study(tmp_path / "more", more).warm_start(changed) == 0


def test_the_sampler_learns_from_what_ran(tmp_path):
    """Against random search from the same seed: the mean of its later points is nearer to the best rate."""
    searched = sweep_of("tpe and asha").model_copy(update={"scheduler": None, "trials": 40})
    blind = searched.model_copy(update={"sampler": "random"})

    def distance(sweep: SweepFile, folder: str) -> float:
        trials = Machine(sweep, tmp_path / folder).run()[20:]
        return sum(abs(math.log(trial.point["training.learning_rate"] / 0.01)) for trial in trials)

    assert distance(searched, "tpe") < 0.7 * distance(blind, "random")


def test_every_scheduler_resumes_exactly():
    """By the tests above: a new one needs a sweep among KINDS."""
    schedulers = [sweep_of(kind).scheduler for kind in KINDS]
    assert {scheduler.kind for scheduler in schedulers if scheduler} == set(SCHEDULERS)


NEVER = {"kind": "ceiling", "bound": 0.0}


class Ceiling(SchedulerConfig):
    """ceiling: a run whose loss is above a bound is stopped; the first trial begins at a rate of its own."""

    kind: Literal["ceiling"] = "ceiling"
    bound: float
    stops_runs = True
    takes_more_trials = False

    def check(self, sweep):
        if sweep.sampler == "random":
            raise ValueError("ceiling goes without random")

    def describe(self, sweep):
        return f"ceiling stops runs above {self.bound:g}."

    def start(self, study):
        return BelowCeiling(self.bound)


class BelowCeiling(Scheduler):
    def __init__(self, bound: float):
        self.bound = bound

    def next_trial(self, trials):
        return NextTrial(None if trials else {"training.learning_rate": 0.01})

    def should_stop(self, run, step):
        loss = next(e["selection_loss"] for e in run.evaluations if e["step"] == step)
        return f"a loss of {loss:.3g} is above the ceiling" if loss > self.bound else ""


def test_a_new_scheduler_needs_a_class_and_a_line_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULERS, "ceiling", Ceiling)
    monkeypatch.setitem(KINDS, "new", {"search": RATE, "trials": 8, "scheduler": {"kind": "ceiling", "bound": 1.7}})
    sweep = sweep_of("new")
    whole = Machine(sweep, tmp_path / "whole").run()
    assert whole[0].point == {"training.learning_rate": 0.01}
    stopped = [trial.runs[0] for trial in whole if trial.state == "stopped"]
    assert 0 < len(stopped) < len(whole)
    assert all(run.evaluations[-1]["selection_loss"] > 1.7 for run in stopped)
    assert "above the ceiling" in stopped[0].message
    machine = Machine(sweep, tmp_path / "broken")
    with pytest.raises(Killed):
        machine.run(kill_at=40)
    assert decisions(machine.run()) == decisions(whole)
    assert SweepFile.model_validate(sweep.model_dump(mode="json", by_alias=True)) == sweep, "from a sweep's notes"
    with pytest.raises(InputError, match="ceiling has a fixed number of trials"):
        extended(sweep, Study(tmp_path / "whole", sweep), tmp_path, {"extended": 0}, 1)
    for fields, message in (
        ({"sampler": "random"}, "ceiling goes without random"),
        ({"sampler": "gp"}, r"leave out scheduler \(ceiling\)"),
        ({"scheduler": {"kind": "ceiling", "bound": 1, "grace_steps": 2}}, "grace_steps does not belong to ceiling"),
        ({"scheduler": {"kind": "floor"}}, "no scheduler 'floor'; give one of asha, .*, ceiling"),
    ):
        with pytest.raises(ValueError, match=message):
            SweepFile.model_validate({**sweep.model_dump(by_alias=True), **fields})


def test_a_journal_cut_in_a_line_is_mended(tmp_path):
    sweep = sweep_of("tpe and asha")
    machine = Machine(sweep, tmp_path)
    with pytest.raises(Killed):
        machine.run(kill_at=30)
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":6,"worker_id":"half a li')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(journal)  # of a writer that was killed
    assert decisions(machine.run()) == decisions(Machine(sweep, tmp_path / "whole").run())


def test_a_run_that_keeps_breaking_off_has_failed_and_one_that_gets_on_has_not(tmp_path):
    sweep = sweep_of("random, three seeds")
    study = Study(tmp_path, sweep)
    driver = Driver(sweep, study, 2, room=lambda: 1)
    for attempt in range(MOST_ATTEMPTS):
        key, trial = driver.next_run()
        assert key == RunKey(1)
        driver.start_run(str(attempt), key)
        driver.on_error(str(attempt), "killed", is_fault=True)
    assert study.trials()[0].state == "failed"
    for attempt in range(6):
        key, trial = driver.next_run()
        assert key == RunKey(2)
        driver.start_run(f"b{attempt}", key)
        assert not driver.on_report(f"b{attempt}", report(trial, key, 2 * attempt + 2))
        driver.on_error(f"b{attempt}", "killed", is_fault=True)
    assert study.trials()[1].state == "unfinished"


def finished(loss: float) -> RunEnded:
    return RunEnded("finished", facts={"validation_loss": loss})


def test_seeds_that_run_side_by_side_end_their_trial_with_the_last_of_them(tmp_path):
    sweep = sweep_of("random, three seeds")
    study = Study(tmp_path, sweep)
    driver = Driver(sweep, study, 1, room=lambda: 2)
    key, trial = driver.next_run()
    driver.start_run("a", key)
    assert driver.next_run() is None, "the others wait for the first"
    driver.on_report("a", report(trial, key, 2))
    driver.on_report("a", finished(1.0))
    keys = []
    for ray_id in ("b", "c"):
        key, trial = driver.next_run()
        driver.start_run(ray_id, key)
        driver.on_report(ray_id, report(trial, key, 2))
        keys.append(key)
    assert keys == [RunKey(1, 1), RunKey(1, 2)]
    driver.on_report("b", finished(2.0))
    assert study.trials()[0].state == "unfinished"
    driver.on_report("c", finished(6.0))
    assert (study.trials()[0].state, study.trials()[0].loss) == ("finished", 3.0)


def test_a_scheduler_stops_no_later_seed(tmp_path, monkeypatch):
    """A trial is compared by its first seed; the others are trained to their end."""
    monkeypatch.setitem(SCHEDULERS, "ceiling", Ceiling)
    monkeypatch.setitem(KINDS, "seeds", {"search": RATE, "trials": 1, "seeds": 2, "scheduler": NEVER})
    sweep = sweep_of("seeds")
    driver = Driver(sweep, Study(tmp_path, sweep), 1, room=lambda: 1)
    key, trial = driver.next_run()
    driver.start_run("a", key)
    driver.on_report("a", finished(1.0))
    key, trial = driver.next_run()
    assert key == RunKey(1, 1)
    driver.start_run("b", key)
    assert not driver.on_report("b", report(trial, key, 2))


def test_a_rung_that_is_reached_with_the_last_step_counts_before_a_kill_as_after(tmp_path):
    """Trial 1 has one evaluation, at its last step; trial 2 comes to the rung at step 2 behind it."""
    sweep = sweep_of("tpe and asha")
    study = Study(tmp_path, sweep)
    driver = Driver(sweep, study, 2, room=lambda: 2)
    for ray_id in ("a", "b"):
        driver.start_run(ray_id, driver.next_run()[0])
    second = study.trials()[1]
    assert not driver.on_report("a", Evaluation(16, 1.0, 1.0, 1.0, 1.0, 0.01, 1.0, 0.1, 1.0, 1.0))
    study.record(RunKey(2), {**asdict(report(second, RunKey(2), 2)), "selection_loss": 9.0, "spent": 1.0}, 1.0)
    assert Driver(sweep, Study(tmp_path, sweep, writable=False), 2, room=lambda: 2).should_stop(RunKey(2), 2)
    assert driver.should_stop(RunKey(2), 2)


def test_a_seed_that_fails_stops_the_others(tmp_path):
    sweep = sweep_of("random, three seeds")
    study = Study(tmp_path, sweep)
    driver = Driver(sweep, study, 1, room=lambda: 2)
    for ray_id in ("a", "b", "c"):
        key, trial = driver.next_run()
        driver.start_run(ray_id, key)
        if ray_id == "a":
            driver.on_report("a", finished(1.0))
    driver.on_report("b", RunEnded("failed", "no number"))
    assert study.trials()[0].state == "failed"
    assert driver.on_report("c", report(trial, key, 2)), "it has to stop"
    assert driver.is_over()


def test_a_used_up_limit_lets_nothing_begin(tmp_path):
    sweep = sweep_of("tpe and asha").model_copy(update={"limits": Limits(hours=1e-9)})
    driver = Driver(sweep, Study(tmp_path, sweep), 3, room=lambda: 1)
    assert driver.next_run() is None
    assert "limits.hours" in driver.stopping
    assert driver.is_over()
