"""Our rungs against Ray's own, and where Hyperband's begin."""

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from voicechat_tune.search.schedulers.halving import Asha, Hyperband
from voicechat_tune.search.trials import Run, RunKey, Trial


@settings(max_examples=50, deadline=None)
@given(
    losses=st.lists(st.lists(st.floats(0, 10), min_size=27, max_size=27), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    factor=st.sampled_from([2, 3]),
)
def test_decisions_equal_those_of_rays_scheduler(losses, order, factor):
    """Reports every three steps, the trials' mixed at random."""
    config = Asha(grace_steps=3, reduction_factor=factor)
    bracket = _Bracket(3, 81, factor, 0)
    runs = [Run(RunKey(n)) for n in range(1, len(losses) + 1)]
    study = SimpleNamespace(
        known=[Trial(run.key.trial, {}, "unfinished", [run], {}) for run in runs],
        sweep=SimpleNamespace(recipe=SimpleNamespace(training=SimpleNamespace(steps=81))),
    )
    scheduler = config.start(study)
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
        reason = scheduler.should_stop(run, step)
        assert bool(reason) == (ray_says == "STOP")
        assert config.start(study).should_stop(run, step) == reason, "again after a kill"
        if reason:
            going.discard(index)


def test_hyperband_begins_at_another_rung_with_each_trial():
    hyperband = Hyperband(grace_steps=3)
    assert [hyperband.rungs(81, number) for number in range(1, 6)] == [
        [3, 9, 27, 81],
        [9, 27, 81],
        [27, 81],
        [81],
        [3, 9, 27, 81],
    ]
