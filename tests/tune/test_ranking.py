"""One order of a sweep's trials, and that tables, report, page and promotion all go by it."""

import math
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicechat_platform.registry import Version
from voicechat_tune.report.conclusion import conclude
from voicechat_tune.report.findings import Findings
from voicechat_tune.report.gather import runs_of, trials_of
from voicechat_tune.running import follow
from voicechat_tune.running.run import outcome
from voicechat_tune.search.ranking import best_first, ranked, winners
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial
from voicechat_tune.search.trials_table import trials_table
from voicechat_ui.tabs import sweeps_tab

SEARCH = {"training.learning_rate": {"loguniform": [0.001, 0.1]}}


def sweep_of(**fields) -> SweepFile:
    return SweepFile.model_validate({"name": "s", "search": SEARCH, "trials": 9, **fields})


def trial_of(number: int, *losses: float, state="finished", **lineage) -> Trial:
    runs = [Run(RunKey(number, i), [], "finished", "", {"validation_loss": loss}) for i, loss in enumerate(losses)]
    return Trial(number, {}, state, runs, lineage)


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def test_a_trial_counts_by_all_its_seeds_and_of_equal_ones_the_earlier_comes_first():
    trials = [trial_of(3, 2.0, 2.0), trial_of(1, 1.0, 3.5), trial_of(2, 2.2, 1.8)]
    assert numbers(ranked(trials, sweep_of(seeds=2))) == [2, 3, 1], "1 has the luckiest seed and the worst mean"
    assert [run.key.seed_index for run in best_first(trials[2])] == [1, 0]


def test_what_cannot_be_compared_has_no_rank():
    trials = [
        trial_of(1, 1.0, state="unfinished"),
        trial_of(2, 0.5, state="stopped"),
        trial_of(3, 0.4, state="failed"),
        trial_of(4, math.nan),
        trial_of(5),
        trial_of(6, 3.0),
    ]
    assert numbers(ranked(trials, sweep_of())) == [6]
    assert winners([], sweep_of()) == []


def test_only_the_last_generation_of_a_population_is_compared():
    scheduler = {"kind": "pbt", "population": 4, "interval_steps": 100}
    sweep = sweep_of(trials=4, scheduler=scheduler, recipe={"training": {"steps": 200, "evaluate_every": 100}})
    trials = [trial_of(1, 0.5, generation=1, member=1), trial_of(5, 0.9, generation=2, member=1)]
    assert numbers(ranked(trials, sweep)) == [5]


@given(st.lists(st.tuples(*[st.sampled_from([1.0, 2.0, 3.0])] * 3), max_size=8))
def test_winners_of_several_objectives_are_optunas_front(values):
    sweep = sweep_of(objectives=["validation_loss", "parameters", "tokens_per_second"], concurrent=1)
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    trials = []
    for number, (loss, parameters, speed) in enumerate(values, 1):
        facts = {"validation_loss": loss, "parameters": parameters, "tokens_per_second": speed}
        trials.append(Trial(number, {}, "finished", [Run(RunKey(number), [], "finished", "", facts)], {}))
        study.add_trial(optuna.trial.create_trial(values=[loss, parameters, speed]))
    front = [trial.number + 1 for trial in study.best_trials]
    assert sorted(numbers(winners(trials, sweep))) == front


@pytest.fixture
def study(tmp_path) -> Study:
    """Three trials of two seeds: 1 has the best seed, 2 the best last step, 3 the best checkpoints; 4 is half done."""
    study = Study(tmp_path, sweep_of(seeds=2))
    steps, speeds = iter(range(10**6)), {"spent": 1.0, "train_loss": 1.0, "tokens_per_second": 1.0}
    told = [((1.0, 3.0), (1.0, 3.0)), ((1.9, 1.9), (1.9, 1.9)), ((2.5, 2.5), (1.8, 1.8)), ((0.5,), (0.5,))]
    for last, best in told:
        number = study.begin_trial(None, {"training.learning_rate": 0.01 + next(steps) / 1000}).number
        for seed, (at_end, at_best) in enumerate(zip(last, best, strict=True)):
            key = RunKey(number, seed)
            evaluation = {"step": 10, "validation_loss": at_end, "selection_loss": at_end, "learning_rate": 0.1}
            evaluation |= speeds | {"nats_per_character": at_end, "flops_utilization": None, "seconds": 1.0}
            study.record(key, evaluation | {"peak_memory_mib": 1.0, "exact_match": None}, 1.0)
            study.end_run(key, "finished", facts={"validation_loss": at_best})
    return study


def test_tables_report_and_promotion_name_the_same_trial(study, monkeypatch):
    trials, sweep = study.trials(), study.sweep
    assert numbers(ranked(trials, sweep)) == [3, 2, 1]

    table = trials_table("", trials, sweep)
    assert [row.style for row in table.rows] == [None, None, "bold green", None]
    monkeypatch.setattr(follow, "MOST_ROWS", 2)
    assert numbers(follow.worth_showing(trials, sweep, {RunKey(4, 1)})) == [3, 4]

    runs = [run for trial in trials for run in runs_of(study, trial, "equal width", "standard")]
    findings = Findings("", "sweep", "", runs, trials=trials_of(study, trials))
    said = conclude(findings, []).summary
    assert said.startswith(
        "Of 4 trials, 3 finished and 1 unfinished. The best is trial 3 with a validation loss of 1.8000"
    )
    assert "The next is 0.1000 behind." in said
    assert [trial.number for trial in findings.trials] == [3, 2, 1, 4]

    kept = {run.key: str(run.key) for trial in trials for run in trial.runs}
    files = SimpleNamespace(mebibytes=lambda: 0.0)
    retention = SimpleNamespace(kept=kept, files=files, finish=lambda: None)
    assert outcome(study, 4, "", retention).finished == ["0003", "0003-2", "0002", "0002-2", "0001", "0001-2"]

    versions = [
        Version("m", number, "", False, f"s-123/{key}", "standard", 1, loss)
        for number, (key, loss) in enumerate([("0001", 1.0), ("0001-2", 3.0), ("0003", 1.8), ("0003-2", 1.8)], 1)
    ]
    monkeypatch.setattr(sweeps_tab, "registered_groups", lambda: {"s-123": versions})
    monkeypatch.setattr("voicechat_tune.running.sweep_index.known_sweeps", lambda: [])
    (row,), _ = sweeps_tab.find_sweeps()
    assert row.best == "1.8000 nats/character (trial 3)"


def test_a_loss_that_is_no_number_is_a_failure(tmp_path):
    study = Study(tmp_path, sweep_of())
    study.begin_trial(None, {})
    study.end_run(RunKey(1), "finished", facts={"validation_loss": math.inf})
    (trial,) = study.trials()
    assert (trial.state, trial.runs[0].ending) == ("failed", "failed")
    assert "not a number" in trial.runs[0].message
