"""Comparing variants fairly: the same tuning for each, then fresh seeds, at equal width, parameters and FLOPs.

Two sweeps do the work and can be broken off and gone on with: NAME-tuning tries every combination of choices for every
variant; NAME-seeds trains each variant with its best ones, from seeds that the tuning never saw.
"""

import itertools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerFast

from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import Name, PathText, Strict, read_yaml
from voicechat_platform.training.recipe import ModelRecipe, Recipe
from voicechat_platform.training.starting_point import load_data, make_model
from voicechat_platform.training.throughput import training_flops
from voicechat_tune.notes import differences, open_study, point_to
from voicechat_tune.report.findings import Findings, Table
from voicechat_tune.report.gather import comparison_findings
from voicechat_tune.run import Outcome, run_sweep
from voicechat_tune.run_files import sweep_folder
from voicechat_tune.space import Value
from voicechat_tune.study import JOURNAL, Study
from voicechat_tune.sweep_file import MOST_POINTS, Price, SweepFile, check_fits, with_fields

log = logging.getLogger(__name__)

MOST_SEEDS = 1000
VariantName = Annotated[str, Field(min_length=1, max_length=60)]


class ComparisonFile(Strict):
    name: Name
    """Lower case, digits, hyphens; what its two sweeps are called by."""
    title: str = Field(default="", max_length=200)
    """Of the report."""
    recipe: Recipe = Recipe()
    """What all variants share; its seed is the tuning's, the seeds after it are the comparison's."""
    variants: dict[VariantName, dict[str, Value]] = Field(min_length=2, max_length=100)
    """By name, what each changes: dotted fields of the recipe's model, {} for nothing."""
    baseline: str
    """The variant that the others are compared with, and whose size they are brought to."""
    tables: list[Table] = Field(default=["equal width", "equal parameters", "equal FLOPs"], min_length=1)
    """equal width: the variants as they are. The others widen or narrow a variant's MLP until it has the baseline's
    parameters, or needs its training FLOPs."""
    tuning: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(min_length=1)
    """Dotted fields of the recipe's training and the values that each variant tries, all combinations of them."""
    seeds: int = Field(default=8, ge=2, le=MOST_SEEDS)
    """Fresh ones for each variant: with n seeds and m variants beside the baseline the least p is 2m / 2ⁿ."""
    margin: float = Field(default=0.01, gt=0, le=100)
    """In nats per token: differences within it count as none."""
    prompt: str = Field(default="The meaning of life is", min_length=1, max_length=10_000)
    """What every variant goes on from, for the report."""
    cpus_per_trial: float = Field(default=1, gt=0, le=10_000)
    gpus_per_trial: float = Field(default=0, ge=0, le=10_000)
    storage: PathText | None = None
    price: Price = Price()

    @model_validator(mode="after")
    def parts_must_fit_together(self) -> "ComparisonFile":
        if self.baseline not in self.variants:
            raise ValueError(f"baseline {self.baseline!r} is not among the variants: {', '.join(self.variants)}")
        if "tuning" in self.tables or "equal width" not in self.tables:
            raise ValueError("tables: equal width, and if wanted equal parameters and equal FLOPs")
        for field, values in self.tuning.items():
            if not field.startswith("training.") and field != "model.dropout":
                raise ValueError(f"tuning.{field}: only fields of training, and model.dropout, are tuned")
            if field == "training.steps":
                raise ValueError(f"tuning.{field}: all runs have the same steps")
            if len(set(values)) < len(values):
                raise ValueError(f"tuning.{field}: a value stands there twice: {values}")
        if (runs := len(self.variants) * math.prod(map(len, self.tuning.values()))) > MOST_POINTS:
            raise ValueError(f"tuning: {runs:,} runs of all combinations and variants; {MOST_POINTS:,} is the most")
        if (runs := len(self.variants) * len(self.tables) * self.seeds) > MOST_POINTS:
            raise ValueError(f"seeds: {runs:,} runs of all seeds, variants and tables; {MOST_POINTS:,} is the most")
        if len(set(self.tables)) < len(self.tables):
            raise ValueError(f"tables: none twice; got {', '.join(self.tables)}")
        if self.recipe.seed + self.seeds >= 2**32:
            raise ValueError(f"recipe.seed: the last of {self.seeds} seeds after it has over 32 bits")
        self.check_variants()
        return self

    def check_variants(self) -> None:
        models: dict[ModelRecipe, str] = {}
        for name, change in self.variants.items():
            if name != name.strip() or not name.isprintable():
                raise ValueError(f"variants.{name!r}: a name has no line breaks, and no spaces around it")
            foreign = [field for field in change if not field.startswith("model.")]
            if foreign:
                raise ValueError(f"variants.{name}: only fields of the model differ, not {', '.join(foreign)}")
            for choices in self.combinations():
                check_fits(self.recipe, {**change, **choices}, f"variants.{name}")
            if "model.context" in change:
                raise ValueError(f"variants.{name}: model.context is what all share: give it in the recipe")
            if "model.mlp_width" in change and self.tables != ["equal width"]:
                raise ValueError(
                    f"variants.{name}: model.mlp_width is what {self.tables[-1]} sets: leave one of them out"
                )
            if both := sorted(set(change) & set(self.tuning)):
                raise ValueError(f"variants.{name}: {both[0]} is tuned: leave it out of the variant or of tuning")
            model = with_fields(self.recipe, change).model
            if model in models:
                raise ValueError(f"variants.{name}: is the same model as {models[model]}")
            models[model] = name

    def combinations(self) -> list[dict[str, Value]]:
        return [dict(zip(self.tuning, values, strict=True)) for values in itertools.product(*self.tuning.values())]

    def sweep(self, kind: str, points: list[dict[str, Any]]) -> SweepFile:
        return SweepFile(
            name=f"{self.name}-{kind}",
            recipe=self.recipe,
            points=points,
            cpus_per_trial=self.cpus_per_trial,
            gpus_per_trial=self.gpus_per_trial,
            storage=self.storage,
            price=self.price,
        )


@dataclass(frozen=True)
class Place:
    """Where a run belongs in the report."""

    table: Table
    variant: str


def read_comparison(path: Path) -> ComparisonFile:
    """The comparison file, checked.

    Raises:
        InputError: with file, line and field of each fault.
    """
    return read_yaml(path, ComparisonFile)


def run_comparison(comparison: ComparisonFile) -> Outcome:
    """Tune, then train the fresh seeds; what is done already is not done again.

    Returns:
        The outcome of the sweep that ended last; an incomplete one of the tuning, if that is broken off.

    Raises:
        InputError: a variant cannot be brought to the baseline's size, or the file has changed since the comparison
            began, in more than the number of seeds.
    """
    sizes(comparison)  # so that an impossible one is said before anything is trained
    tuning, _ = tuning_sweep(comparison)
    outcome = run_points(tuning, may_grow=False)
    if not outcome.complete:
        return outcome
    seeds, _ = seeds_sweep(comparison)
    return run_points(seeds, may_grow=True)


def run_points(sweep: SweepFile, may_grow: bool) -> Outcome:
    """Run one of the two sweeps, or go on with it.

    Args:
        may_grow: whether there may be more points than it began with, after those: other seeds.
    """
    folder = sweep_folder(sweep.name, sweep.storage)
    begun = (folder / JOURNAL).exists()
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
    """The runs that are compared, seed by seed, so that a part of them is a smaller comparison.

    Raises:
        InputError: the tuning is not done.
    """
    best, mlp_widths = best_choices(comparison), sizes(comparison)
    points, places = [], []
    for number in range(1, comparison.seeds + 1):
        for table in comparison.tables:
            for variant, change in comparison.variants.items():
                if variant == comparison.baseline and table != "equal width":
                    continue  # it is what the others are brought to: its runs are the same in every table
                seed = {"seed": comparison.recipe.seed + number}
                points.append({**change, **mlp_widths[table, variant], **best[variant], **seed})
                places.append(Place(table, variant))
    return comparison.sweep("seeds", points), places


def study_of_points(sweep: SweepFile) -> Study:
    """The memory of a sweep, whose trials are its points in their order.

    Raises:
        InputError: it has not begun, or ran another recipe or other points: the comparison's file has changed since.
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
    """What each variant did best with in the tuning."""
    sweep, places = tuning_sweep(comparison)
    trials = study_of_points(sweep).trials()
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for trial, place in zip(trials, places, strict=False):
        if trial.state != "finished" or trial.loss is None:
            continue
        if place.variant not in best or trial.loss < best[place.variant][0]:
            best[place.variant] = (trial.loss, {field: trial.point[field] for field in comparison.tuning})
    missing = [variant for variant in comparison.variants if variant not in best]
    if missing or len(trials) < len(places):
        raise InputError(f"the tuning is not done: {', '.join(missing) or 'some runs'} are missing")
    return {variant: choices for variant, (_, choices) in best.items()}


def sizes(comparison: ComparisonFile) -> dict[tuple[Table, str], dict[str, int]]:
    """By table and variant the change that brings the variant to the table's size."""
    tokenizer = load_data(comparison.recipe).tokenizer
    return {
        (table, variant): sized(comparison, table, variant, tokenizer)
        for table in comparison.tables
        for variant in comparison.variants
    }


def sized(comparison: ComparisonFile, table: Table, variant: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The MLP's width that brings a variant to the baseline's parameters or FLOPs, both straight lines in it."""
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
    """What is known so far; a comparison that is not whole yet is a smaller one.

    Raises:
        InputError: the tuning is not done.
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
