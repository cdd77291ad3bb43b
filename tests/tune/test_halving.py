"""Our rungs against Ray's own, and where Hyperband's begin."""

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from voicechat_tune.search.halving import Rungs, rungs_of
from voicechat_tune.search.study import Run, RunKey, Trial
from voicechat_tune.search.sweep_file import SweepFile


def sweep_of(**scheduler) -> SweepFile:
    return SweepFile.model_validate(
        {
            "name": "s",
            "recipe": {"training": {"steps": 81, "warmup_steps": 1}},
            "search": {"training.learning_rate": {"uniform": [0.1, 0.2]}},
            "trials": 30,
            "scheduler": scheduler,
        }
    )


@settings(max_examples=50, deadline=None)
@given(
    losses=st.lists(st.lists(st.floats(0, 10), min_size=27, max_size=27), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    factor=st.sampled_from([2, 3]),
)
def test_decisions_equal_those_of_rays_scheduler(losses, order, factor):
    """Reports every three steps, the trials' mixed at random."""
    sweep = sweep_of(grace_steps=3, reduction_factor=factor)
    bracket = _Bracket(3, 81, factor, 0)
    runs = [Run(RunKey(n)) for n in range(1, len(losses) + 1)]
    rungs = Rungs(sweep, [])
    going, reports = set(range(len(runs))), 0
    while going:
        index = order.choice(sorted(going))
        run = runs[index]
        step = run.step + 3
        if step >= 81:
            going.discard(index)
            continue
        loss = losses[index][step // 3]
        run.evaluations.append({"step": step, "selection_loss": loss, "order": reports})
        reports += 1
        ray_says = bracket.on_result(SimpleNamespace(trial_id=index), step, -loss)
        stops = rungs.falls_behind(run, step)
        assert stops == (ray_says == "STOP")
        trials = [Trial(run.key.trial, {}, "unfinished", [run], {}) for run in runs]
        assert Rungs(sweep, trials).falls_behind(run, step) == stops, "again after a kill"
        if stops:
            going.discard(index)


def test_hyperband_begins_at_another_rung_with_each_trial():
    sweep = sweep_of(kind="hyperband", grace_steps=3)
    assert [rungs_of(sweep, number) for number in range(1, 6)] == [
        [3, 9, 27, 81],
        [9, 27, 81],
        [27, 81],
        [81],
        [3, 9, 27, 81],
    ]


def test_later_seeds_are_never_judged():
    sweep = sweep_of(grace_steps=3)
    evaluation = {"step": 3, "selection_loss": 1.0, "order": 0}
    first = Trial(1, {}, "unfinished", [Run(RunKey(1), [evaluation])], {})
    worse = {"step": 3, "selection_loss": 2.0, "order": 1}
    second = Trial(2, {}, "unfinished", [Run(RunKey(2), [worse]), Run(RunKey(2, 1), [{**worse, "order": 2}])], {})
    rungs = Rungs(sweep, [first, second])
    assert rungs.falls_behind(second.runs[0], 3)
    assert not rungs.falls_behind(second.runs[1], 3)
