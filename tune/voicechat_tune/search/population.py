"""Population based training (arXiv 1711.09846), a generation at a time.

Every member trains for an interval; then those among the worst quarter go on from the checkpoint of one of the best
quarter, with that one's choices changed a little. A member's interval is a trial of its own that names its parent. What
comes next is computed from the study and a seed, so that a sweep that goes on after a kill draws the same.
"""

from typing import Any

import numpy as np

from voicechat_tune.search.space import Parameter
from voicechat_tune.search.study import Trial
from voicechat_tune.search.sweep_file import SweepFile

FACTORS = (0.8, 1.25)
RESAMPLE = 0.25
"""How often a choice is drawn anew in place of being changed a little."""


def next_member(sweep: SweepFile, trials: list[Trial]) -> tuple[dict[str, Any], dict[str, int]] | None:
    """The next interval to train, as its point and its lineage; None until the generation before has ended.

    For generations after the first. A member whose interval failed is replaced as the worst are.
    """
    assert sweep.scheduler is not None
    assert sweep.scheduler.population is not None
    size = sweep.scheduler.population
    generation, member = divmod(len(trials), size)
    before = trials[(generation - 1) * size : generation * size]
    if any(trial.state == "unfinished" for trial in before):
        return None
    ranked = sorted(before, key=lambda trial: np.inf if trial.loss is None or trial.state == "failed" else trial.loss)
    group = max(1, size // 4)
    own = before[member]
    random = np.random.default_rng([sweep.seed, generation, member])
    parent, point = own, own.point
    if own in ranked[-group:] or own.state == "failed":
        parent = ranked[int(random.integers(group))]
        point = explored(sweep.search, parent.point, random)
    return point, {"member": member + 1, "generation": generation + 1, "parent": parent.number}


def explored(space: dict[str, Parameter], point: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """A point near another: each number times 0.8 or 1.25, within its bounds, each choice moved or drawn anew."""
    changed: dict[str, Any] = {}
    for field, value in point.items():
        parameter = space[field]
        anew = random.random() < RESAMPLE
        bounds = parameter.integer or parameter.uniform or parameter.loguniform
        if parameter.choice is not None:
            changed[field] = parameter.choice[int(random.integers(len(parameter.choice)))] if anew else value
        elif bounds is None:
            changed[field] = value
        else:
            low, high = bounds
            if parameter.loguniform and anew:
                moved = float(np.exp(random.uniform(np.log(low), np.log(high))))
            else:
                moved = float(random.uniform(low, high)) if anew else value * FACTORS[int(random.integers(2))]
            if parameter.integer and not anew and round(moved) == value:
                moved = value + (1 if moved > value else -1)
            moved = min(max(moved, low), high)
            changed[field] = round(moved) if parameter.integer else moved
    return changed
