"""Warm starts, and what a limit counts."""

import logging
from types import SimpleNamespace

import pytest
import torch

from voicechat_platform.errors import InputError
from voicechat_platform.training.loop import Training
from voicechat_platform.training.starting_point import load_data
from voicechat_tune.running import run
from voicechat_tune.running.driver import cost_of, reached_limit
from voicechat_tune.running.dry_run import timed
from voicechat_tune.running.retention import Retention
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial
from voicechat_tune.search.trials_table import trials_table


def sweep_of(name: str, high: float = 0.1, **fields) -> SweepFile:
    search = {"training.learning_rate": {"loguniform": [0.001, high]}}
    return SweepFile.model_validate({"name": name, "search": search, "trials": 5, **fields})


def finish(study: Study, rates: list[float]) -> None:
    import optuna

    for number, rate in enumerate(rates, 1):
        copy = optuna.create_study()
        copy.enqueue_trial({"training.learning_rate": rate})
        trial = copy.ask()
        trial.suggest_float("training.learning_rate", 0.001, 0.1, log=True)
        study.begin_trial(copy.trials[0], {"training.learning_rate": rate})
        study.end_run(RunKey(number), "finished", facts={"validation_loss": rate, "parameters": 1.0})


def test_a_warm_start_knows_the_earlier_trials_that_fit_and_counts_them_not(tmp_path):
    earlier = Study(tmp_path / "earlier", sweep_of("earlier"))
    finish(earlier, [0.002, 0.02, 0.08])
    later = Study(tmp_path / "later", sweep_of("later", high=0.05))
    assert later.warm_start(earlier) == 2
    assert later.warm_start(earlier) == 2, "again after a kill"
    assert [found.values for found in later.frozen()] == [[0.002], [0.02]]
    assert later.trials() == []
    assert later.begin_trial(None, {}).number == 1


def test_a_warm_start_of_which_nothing_fits_is_refused(tmp_path, monkeypatch):
    earlier = Study(tmp_path / "earlier", sweep_of("earlier"))
    finish(earlier, [0.02, 0.08])
    monkeypatch.setattr(run, "open_study", lambda name: earlier)
    for number, fields in enumerate(({"high": 0.01}, {"objectives": ["validation_loss", "parameters"]})):
        sweep = sweep_of("later", warm_start="earlier", **fields)
        with pytest.raises(InputError, match="warm_start: no finished trial of earlier has the fields, values and obj"):
            run.warm_start(sweep, Study(tmp_path / str(number), sweep))


def trial_of(seconds: float) -> Trial:
    return Trial(1, {}, "unfinished", [Run(RunKey(1), [{"step": 1, "spent": seconds}])], {})


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        ({"hours": 1}, "limits.hours (1) is reached"),
        ({"hours": 3}, ""),
        ({"gpu_hours": 0.9}, "limits.gpu_hours (0.9) is reached"),
        ({"gpu_hours": 1.1}, ""),
        ({"cost": 5.9}, "limits.cost (5.9) is reached"),
        ({"cost": 6.1}, ""),
    ],
)
def test_limits_count_all_runs_workers_and_machines(limits, reached):
    """An hour of two runs, each of two workers with a quarter of a GPU: 1 GPU-hour, 4 CPU-hours."""
    sweep = sweep_of(
        "s", limits=limits, price={"gpu_hour": 4, "cpu_hour": 0.5}, workers_per_trial=2, gpus_per_trial=0.25
    )
    trials = [trial_of(3600), trial_of(3600)]
    assert cost_of(sweep, trials) == pytest.approx(6)
    assert reached_limit(sweep, seconds=2 * 3600, clock=2 * 3600) == reached


def ended(number: int, ending: str | None, lineage: dict[str, int], *, with_facts: bool) -> Trial:
    facts = {"validation_loss": 3.5} if with_facts else {}
    runs = [Run(RunKey(number), [{"step": 1, "spent": 1.0, "validation_loss": 3.6}], ending, facts=facts)]
    return Trial(number, {}, ending or "unfinished", runs, lineage)


def losses_shown(sweep: SweepFile, trials: list[Trial]) -> tuple[list[str], str | None]:
    table = trials_table("", trials, sweep)
    (column,) = (column for column in table.columns if column.header == "validation loss")
    return list(column.cells), table.caption


def test_losses_over_some_windows_are_marked_beside_those_over_all():
    endings = ["finished", "stopped", "failed", None]
    trials = [ended(number, how, {}, with_facts=how == "finished") for number, how in enumerate(endings, 1)]
    losses, caption = losses_shown(sweep_of("s"), trials)
    assert losses == ["3.5000", "≈ 3.6000", "≈ 3.6000", "≈ 3.6000"]
    assert "over some of the validation windows" in caption
    assert losses_shown(sweep_of("s"), trials[:1]) == (["3.5000"], None)
    all_windows = sweep_of("s", recipe={"training": {"evaluation_windows": None}})
    assert losses_shown(all_windows, trials) == (["3.5000", "3.6000", "3.6000", "3.6000"], None)


def test_a_populations_intervals_are_marked_but_the_last():
    scheduler = {"kind": "pbt", "population": 2, "interval_steps": 1000}  # of 2000 steps
    trials = [ended(number, "finished", {"generation": number}, with_facts=True) for number in (1, 2)]
    assert losses_shown(sweep_of("s", scheduler=scheduler, trials=2), trials)[0] == ["≈ 3.5000", "3.5000"]


@pytest.mark.parametrize(("fields", "threads"), [({"cpus_per_trial": 3}, 3), ({"workers_per_trial": 2}, 1)])
def test_a_dry_run_is_timed_with_what_a_run_has(fields, threads, monkeypatch):
    """Its threads, and of several workers one's share of the batch."""
    recipe = {
        "sorting": {"digits": 10},
        "model": {"layers": 1, "heads": 2, "width": 16, "context": 12},
        "training": {"steps": 4, "batch_size": 8, "warmup_steps": 1},
    }
    sweep = sweep_of("s", recipe=recipe, **fields)
    before, seen, take_step = torch.get_num_threads(), set(), Training.take_step

    def watched(training: Training) -> torch.Tensor:
        seen.add((torch.get_num_threads(), training.recipe.training.batch_size, training.device.type))
        return take_step(training)

    monkeypatch.setattr(Training, "take_step", watched)
    assert timed(sweep, sweep.recipe, load_data(sweep.recipe)) > 0
    assert seen == {(threads, 8 // sweep.workers_per_trial, "cpu")}
    assert torch.get_num_threads() == before


def test_a_backup_that_fails_is_logged_and_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("voicechat_tune.running.retention.Registry", lambda: None)
    sweep = sweep_of("s")
    retention = Retention(sweep, Study(tmp_path / "s", sweep), tmp_path / "s", "s-1")
    put: list[str] = []

    def put_file(local, name):
        if not put:
            put.append("")
            raise InputError("the bucket is gone")
        put.append(name)

    retention.files.store = SimpleNamespace(put_file=put_file)
    with caplog.at_level(logging.DEBUG, "voicechat_tune.running.retention"):
        retention.schedule()
        retention.worker.submit(lambda: None).result()  # its only thread is through with it
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (
        "could not be registered or backed up yet; the next attempt follows later: the bucket is gone"
        in warning.getMessage()
    )
    assert any(record.exc_info for record in caplog.records), "the whole error can be found"
    retention.finish()
    assert f"s/{JOURNAL}" in put


def test_a_last_backup_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("voicechat_tune.running.retention.Registry", lambda: None)
    sweep = sweep_of("s")
    retention = Retention(sweep, Study(tmp_path / "s", sweep), tmp_path / "s", "s-1")

    def put_file(local, name):
        raise InputError("the bucket is gone")

    retention.files.store = SimpleNamespace(put_file=put_file)
    with pytest.raises(InputError, match="the bucket is gone"):
        retention.finish()
