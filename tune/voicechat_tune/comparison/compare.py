"""Compare variants fairly: equal tuning for each, then fresh seeds, at equal width, parameters and FLOPs.

Two sweeps do the work, and both can be interrupted and continued. NAME-tuning tries every combination of choices for
every variant. NAME-seeds trains each variant with its best choices, on seeds that the tuning did not use.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from voicechat_platform.errors import InputError
from voicechat_platform.training.starting_point import load_data, make_model
from voicechat_platform.training.throughput import training_flops
from voicechat_tune.comparison.comparison_file import ComparisonFile
from voicechat_tune.report.findings import Findings, Table
from voicechat_tune.report.gather import comparison_findings
from voicechat_tune.running.run import Outcome, run_sweep
from voicechat_tune.running.run_files import sweep_folder
from voicechat_tune.running.salvage import salvage
from voicechat_tune.running.sweep_index import differences, open_study, point_to
from voicechat_tune.search.journal import JOURNAL, read_lines
from voicechat_tune.search.ranking import ranked
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile, with_fields

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The place of a run in the report."""

    table: Table
    variant: str


def run_comparison(comparison: ComparisonFile, salvaging: bool = False) -> Outcome:
    """Tune, then train the fresh seeds; finished work is not repeated.

    Args:
        salvaging: continue with the undamaged part of a sweep's journal or index.

    Returns:
        The outcome of the sweep that ended last; an incomplete one of the tuning, if that is interrupted.

    Raises:
        InputError: a variant cannot get the baseline's size, or the file has changed since the comparison began, in
            more than the number of seeds.
    """
    sizes(comparison)  # so that an impossible one gives its error before any training
    tuning, _ = tuning_sweep(comparison)
    outcome = run_points(tuning, may_grow=False, salvaging=salvaging)
    if not outcome.complete:
        return outcome
    seeds, _ = seeds_sweep(comparison)
    return run_points(seeds, may_grow=True, salvaging=salvaging)


def run_points(sweep: SweepFile, may_grow: bool, salvaging: bool) -> Outcome:
    """Run one of the two sweeps, or continue it.

    Args:
        may_grow: whether there may be additional points after those of its start, for other seeds.
    """
    folder = sweep_folder(sweep.name, sweep.storage)
    if salvaging:
        salvage(sweep)
    begun = bool(read_lines(folder / JOURNAL))
    if begun:
        point_to(folder, sweep.name)  # another home or head may have begun it
        study = study_of_points(sweep)
        if study.trials() and study.sweep.points != sweep.points and not may_grow:
            raise InputError(
                f"the comparison's file has other tuning choices or variants than when {sweep.name} began: bring the "
                f"old ones back, or give the comparison another name"
            )
    return run_sweep(sweep, force=begun)


def tuning_sweep(comparison: ComparisonFile) -> tuple[SweepFile, list[Place]]:
    points, places = [], []
    for choices in comparison.combinations():
        for variant, change in comparison.variants.items():
            points.append({**change, **choices})
            places.append(Place("tuning", variant))
    return comparison.sweep("tuning", points), places


def seeds_sweep(comparison: ComparisonFile) -> tuple[SweepFile, list[Place]]:
    """Return the runs to compare, seed by seed, so that a part of them is a smaller comparison.

    Raises:
        InputError: the tuning is incomplete.
    """
    best, mlp_widths = best_choices(comparison), sizes(comparison)
    points, places = [], []
    for number in range(1, comparison.seeds + 1):
        for table in comparison.tables:
            for variant, change in comparison.variants.items():
                if variant == comparison.baseline and table != "equal width":
                    continue  # the others get its size, so its runs are the same in every table
                seed = {"seed": comparison.recipe.seed + number}
                points.append({**change, **mlp_widths[table, variant], **best[variant], **seed})
                places.append(Place(table, variant))
    return comparison.sweep("seeds", points), places


def study_of_points(sweep: SweepFile) -> Study:
    """Return the study of a sweep whose trials are its points in order.

    Raises:
        InputError: the sweep has not begun, or ran another recipe or other points: the comparison's file has changed.
    """
    study = open_study(sweep.name)
    if study.trials() and (
        changes := differences(study.sweep.recipe.model_dump(), sweep.recipe.model_dump(), "recipe")
    ):
        raise InputError(
            f"the comparison's file has changed since {sweep.name} began:\n{changes}\n"
            f"bring the old one back, or give the comparison another name"
        )
    for trial, point in zip(study.trials(), sweep.points, strict=False):
        if trial.point != point:
            raise InputError(
                f"trial {trial.number} of the sweep {sweep.name} ran {trial.point}, not {point}: the comparison's file "
                f"has changed since; bring the old one back, or give the comparison another name"
            )
    return study


def best_choices(comparison: ComparisonFile) -> dict[str, dict[str, Any]]:
    """Return each variant's best choices in the tuning."""
    sweep, places = tuning_sweep(comparison)
    trials = study_of_points(sweep).trials()
    best: dict[str, dict[str, Any]] = {}
    for trial in ranked(trials[: len(places)], sweep):
        choices = {field: trial.point[field] for field in comparison.tuning}
        best.setdefault(places[trial.number - 1].variant, choices)
    missing = [variant for variant in comparison.variants if variant not in best]
    if missing or len(trials) < len(places):
        raise InputError(f"the tuning is not done: {', '.join(missing) or 'some runs'} are missing")
    return best


def sizes(comparison: ComparisonFile) -> dict[tuple[Table, str], dict[str, int]]:
    """Return, for each table and variant, the change that gives the variant the table's size."""
    tokenizer = load_data(comparison.recipe).tokenizer
    return {
        (table, variant): sized(comparison, table, variant, tokenizer)
        for table in comparison.tables
        for variant in comparison.variants
    }


def sized(comparison: ComparisonFile, table: Table, variant: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the MLP's width that gives a variant the baseline's parameters or FLOPs, which are both linear in it."""
    if table == "equal width" or variant == comparison.baseline:
        return {}

    def measure(change: dict[str, Any]) -> float:
        recipe = with_fields(comparison.recipe, change)
        with torch.device("meta"):
            model = make_model(recipe, tokenizer, None)
        return model.num_parameters() if table == "equal parameters" else training_flops(model, recipe.model.context)

    change = comparison.variants[variant]
    wanted = measure(comparison.variants[comparison.baseline])
    at_8, at_16 = (measure({**change, "model.mlp_width": width}) for width in (8, 16))
    width = round(8 + (wanted - at_8) * 8 / (at_16 - at_8))
    if width < 1:
        raise InputError(f"{variant} is larger than {comparison.baseline} even without an MLP: leave {table} out")
    return {"model.mlp_width": width}


def findings(comparison: ComparisonFile) -> Findings:
    """Return the results so far; an incomplete comparison gives a smaller one.

    Raises:
        InputError: the tuning is incomplete.
    """
    tuning, tuning_places = tuning_sweep(comparison)
    seeds, seeds_places = seeds_sweep(comparison)
    parts = [(study_of_points(tuning), tuning_places), (study_of_points(seeds), seeds_places)]
    placed = [
        (study, trial, place.table, place.variant)
        for study, places in parts
        for trial, place in zip(study.trials(), places, strict=False)
    ]
    return comparison_findings(
        placed,
        title=comparison.title or f"Comparison {comparison.name}",
        baseline=comparison.baseline,
        margin=comparison.margin,
        prompt=comparison.prompt,
        repeated=[table for table in comparison.tables if table != "equal width"],
    )
