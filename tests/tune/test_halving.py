"""Our rungs against Ray's own, and where Hyperband's begin."""

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from voicechat_tune.halving import falls_behind, rungs_of
from voicechat_tune.study import Run, RunKey, Trial
from voicechat_tune.sweep_file import SweepFile


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
    trials = [Trial(n, {}, "unfinished", [Run(RunKey(n))], {}) for n in range(1, len(losses) + 1)]
    going, reports = set(range(len(trials))), 0
    while going:
        index = order.choice(sorted(going))
        run = trials[index].runs[0]
        step = run.step + 3
        if step >= 81:
            going.discard(index)
            continue
        loss = losses[index][step // 3]
        run.evaluations.append({"step": step, "selection_loss": loss, "order": reports})
        reports += 1
        ray_says = bracket.on_result(SimpleNamespace(trial_id=index), step, -loss)
        stops = falls_behind(sweep, trials, run)
        assert stops == (ray_says == "STOP")
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
    assert falls_behind(sweep, [first, second], second.runs[0])
    assert not falls_behind(sweep, [first, second], second.runs[1])
