"""The sweep file: a recipe, the fields to vary, and the search method. It is checked completely before Ray starts."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from voicechat_platform.corpora.conversations import SUFFIX
from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import Name, PathText, Seed, Strict, read_yaml, validate
from voicechat_platform.training.recipe import Recipe
from voicechat_tune.search.schedulers import AnyScheduler
from voicechat_tune.search.space import Space, Value, check_branches, check_first, grid_size

Objective = Literal[
    "validation_loss", "parameters", "tokens_per_second", "cache_bytes_per_token", "valid_calls", "right_calls"
]
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "validation_loss": "minimize",
    "parameters": "minimize",
    "tokens_per_second": "maximize",
    "cache_bytes_per_token": "minimize",
    "valid_calls": "maximize",
    "right_calls": "maximize",
}
MOST_POINTS = 5_000
"""The limit for a list of points in a file: each point is checked before the sweep starts."""
MOST_TRIALS = 100_000


class Limits(Strict):
    """Limits over all starts of the sweep together. At a limit, no new run starts, and active runs stop at their next
    evaluation; they can be resumed."""

    hours: float | None = Field(default=None, gt=0, le=10**12)
    """Hours by the clock while the sweep runs."""
    gpu_hours: float | None = Field(default=None, gt=0, le=10**12)
    cost: float | None = Field(default=None, gt=0, le=10**12)
    """In the currency of `price`."""


class Price(Strict):
    """The prices of the machines, for estimates, the report, and `limits.cost`."""

    cpu_hour: float = Field(default=0, ge=0, le=10**12)
    gpu_hour: float = Field(default=0, ge=0, le=10**12)


class SweepFile(Strict):
    name: Name
    """Lower case, digits, hyphens. It also names the sweep's folder and its experiment in the registry."""
    recipe: Recipe = Recipe()
    """The fields that all trials share."""
    search: Space = Field(default={})
    """Dotted fields of the recipe's model and training, such as training.learning_rate, and their possible values."""
    first: list[dict[str, Value]] = Field(default=[], max_length=MOST_POINTS)
    """For a search: the first points to try. The sampler draws the parameters that a point does not give."""
    points: list[dict[str, Value]] = Field(default=[], max_length=MOST_POINTS)
    """In place of a search: exactly these points, as dotted fields and their values, in this order."""
    sampler: Literal["tpe", "gp", "cma_es", "random", "grid"] = "tpe"
    """tpe: tree-structured Parzen estimators, all fields of a branch together. gp: Gaussian process, without branches,
    and without a scheduler that stops runs. Both draw at random until ten trials have ended. cma_es: only numbers,
    without branches. random: at random. grid: each combination of choices, whole numbers and fixed values once."""
    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS)
    """The number of points to try; by default all for a grid or for `points`."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """The number of runs of each point, with seeds from recipe.seed on; a trial's loss is their mean. The scheduler
    decides only about the first run; if it stops that run, the trial has no others."""
    objectives: list[Objective] = Field(default=["validation_loss"], min_length=1)
    """The quantities to optimise, the validation loss first. Several objectives give a Pareto front of trials."""
    scheduler: AnyScheduler | None = None
    """Decides which runs stop early; without one, each run trains to its last step."""
    limits: Limits = Limits()
    price: Price = Price()
    cpus_per_trial: float = Field(default=1, gt=0, le=10_000)
    gpus_per_trial: float = Field(default=0, ge=0, le=10_000)
    """May be a fraction: 0.25 puts four runs on a GPU."""
    workers_per_trial: int = Field(default=1, ge=1, le=10_000)
    """Processes that share each batch of a run. Each has the CPUs and GPUs above."""
    concurrent: int | None = Field(default=None, ge=1, le=100_000)
    """The number of runs at a time; by default as many as the machines have resources for."""
    warm_start: PathText | None = None
    """The name of an earlier sweep. The sampler (tpe or gp) starts with its finished trials, if their fields and values
    are possible in this search."""
    storage: PathText | None = None
    """The place for results: a folder that all machines share, or a URI such as s3://bucket/sweeps; by default the
    sweep's folder in the home."""
    seed: Seed = 1
    """The sampler's seed."""

    @model_validator(mode="after")
    def search_must_fit_the_recipe(self) -> "SweepFile":
        if bool(self.search) == bool(self.points):
            raise ValueError("give either search (the fields to vary) or points (the exact points to run)")
        if self.points:
            if self.first or self.warm_start or self.sampler != "tpe":
                raise ValueError("first, warm_start and sampler belong to a search: leave them out with points")
            for index, point in enumerate(self.points):
                for field in point:
                    if field == "training.steps" or not (field.startswith(("model.", "training.")) or field == "seed"):
                        raise ValueError(f"points.{index}: {field} is the same for all trials; give it in the recipe")
                check_fits(self.recipe, point, f"points.{index}")
        else:
            check_branches(self.search)
            for field, parameter in self.search.items():
                if not field.startswith(("model.", "training.")):
                    raise ValueError(f"search.{field}: only fields of model and training can be searched")
                if field == "training.steps":
                    raise ValueError("search.training.steps: all trials have the same steps; see scheduler")
                for value in parameter.examples():
                    check_fits(self.recipe, {**parameter.settles(), field: value}, f"search.{field}")
            check_first(self.search, self.first)
            for index, point in enumerate(self.first):
                check_fits(self.recipe, point, f"first.{index}")
        return self

    @model_validator(mode="after")
    def parts_must_go_together(self) -> "SweepFile":
        if len(set(self.objectives)) < len(self.objectives) or self.objectives[0] != "validation_loss":
            raise ValueError(
                f"objectives: give validation_loss first, and no objective twice; got {', '.join(self.objectives)}"
            )
        if len(self.objectives) > 1 and (self.scheduler or self.sampler == "cma_es"):
            raise ValueError("several objectives need the sampler tpe, gp, random or grid, and no scheduler")
        if "tokens_per_second" in self.objectives and self.runs_share_machine():
            raise ValueError(
                "objectives: if runs share a machine, tokens_per_second depends on the other runs; set concurrent: 1, "
                "or gpus_per_trial: 1 or more"
            )
        corpus = self.recipe.corpus
        if self.wants_calls() and not (corpus.form == "dialogue" and corpus.source.endswith(SUFFIX)):
            raise ValueError(
                f"objectives: valid_calls and right_calls need conversations with tools: give recipe.corpus a source "
                f"*{SUFFIX} and form: dialogue"
            )
        if self.search:
            self.check_sampler()
        if self.sampler == "grid":
            if (combinations := grid_size(self.search)) > MOST_TRIALS:
                raise ValueError(
                    f"the grid has {combinations:,} points; the limit is {MOST_TRIALS:,}: vary fewer fields"
                )
            if any(p.uniform or p.loguniform for p in self.search.values()):
                raise ValueError("a grid needs a finite number of values: use choice, int or fixed")
            if self.first or self.warm_start:
                raise ValueError("a grid tries each point once: leave out first and warm_start")
        listed = [seed for point in self.points if isinstance(seed := point.get("seed"), int)]
        last_seed = max([self.recipe.seed, *listed]) + self.seeds - 1
        if last_seed >= 2**32:
            raise ValueError(
                f"recipe.seed: with seeds {self.seeds} the last seed is {last_seed}, which has more than 32 bits"
            )
        if self.trials is None and not self.points and self.sampler != "grid":
            raise ValueError("trials is missing: give the number of points to try")
        if self.limits.cost is not None and not self.hourly_cost():
            raise ValueError("limits.cost needs the price of a run's resources: give price.cpu_hour or price.gpu_hour")
        if self.workers_per_trial > 1 and self.storage is not None and "://" in self.storage:
            raise ValueError("the workers of a run share a folder: with workers_per_trial, storage must be a folder")
        if self.limits.gpu_hours is not None and not self.gpus_per_trial:
            raise ValueError("limits.gpu_hours has no effect, because gpus_per_trial is 0: leave it out")
        training = self.recipe.training
        if training.batch_size % (training.accumulate * self.workers_per_trial):
            raise ValueError(
                f"recipe.training.batch_size ({training.batch_size}) must be a multiple of accumulate "
                f"({training.accumulate}) times workers_per_trial ({self.workers_per_trial})"
            )
        if self.scheduler:
            self.scheduler.check(self)
        return self

    def wants_calls(self) -> bool:
        """Return whether an objective is a share of calls, over the conversations of the validation part."""
        return not {"valid_calls", "right_calls"}.isdisjoint(self.objectives)

    def check_sampler(self) -> None:
        """Refuse the fields that Optuna's sampler would draw at random or ignore, without a warning.

        Raises:
            ValueError: the sampler does not support one of the fields.
        """
        drawn = {field: parameter for field, parameter in self.search.items() if parameter.fixed is None}
        for field, parameter in drawn.items():
            if self.sampler == "cma_es" and (parameter.choice is not None or parameter.when):
                remedy = "for branches use tpe" if parameter.when else "for choices use tpe or gp"
                raise ValueError(f"search.{field}: cma_es searches only numbers, without branches; {remedy}")
            if self.sampler == "gp" and parameter.when:
                raise ValueError(f"search.{field}.when: gp would draw the fields of a branch at random; use tpe")
        if self.sampler in ("tpe", "gp", "cma_es") and not drawn:
            raise ValueError(f"search: all fields are fixed, so {self.sampler} has nothing to draw; use sampler: grid")
        if self.sampler == "gp" and self.scheduler and self.scheduler.stops_runs:
            raise ValueError(
                f"sampler: gp cannot learn from runs that a scheduler stops; use tpe, or leave out scheduler "
                f"({self.scheduler.kind})"
            )
        if self.warm_start and self.sampler not in ("tpe", "gp"):
            raise ValueError(
                f"warm_start: {self.sampler} does not use earlier trials; use tpe or gp, or leave out warm_start"
            )

    def recipe_for(self, point: dict[str, Any], seed_index: int = 0) -> Recipe:
        """Return the recipe of a point, with the seed of this index."""
        return with_fields(self.recipe, {**point, "seed": self.seed_of(point, seed_index)})

    def seed_of(self, point: dict[str, Any], seed_index: int) -> int:
        """Return the seed of a point's run."""
        return point.get("seed", self.recipe.seed) + seed_index

    def hourly_cost(self) -> float:
        """Return the cost of one run per hour, in the currency of `price`."""
        cpus, gpus = self.cpus_per_trial * self.price.cpu_hour, self.gpus_per_trial * self.price.gpu_hour
        return self.workers_per_trial * (cpus + gpus)

    def runs_share_machine(self) -> bool:
        """Return whether a run's speed depends on other runs: there are several at a time, and none has a whole GPU."""
        return self.concurrent != 1 and self.gpus_per_trial < 1

    def threads(self) -> int:
        """Return the number of threads of each training process."""
        return 1 if self.workers_per_trial > 1 else max(1, int(self.cpus_per_trial))

    def generations(self) -> int:
        """Return the number of consecutive trials that together train all steps; 1 except for a population."""
        return self.scheduler.generations(self) if self.scheduler else 1

    def ends_at(self, lineage: dict[str, int]) -> int | None:
        """Return the last step of a trial with this lineage; None for the recipe's last step."""
        return self.scheduler.ends_at(lineage) if self.scheduler else None


def check_fits(recipe: Recipe, point: dict[str, Any], where: str) -> None:
    try:
        with_fields(recipe, point)
    except InputError as error:
        shown = ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in point.items())
        raise ValueError(f"{where} ({shown}): {error}") from None


def with_fields(recipe: Recipe, point: dict[str, Any]) -> Recipe:
    """Return a copy of the recipe with other values of dotted fields; check it.

    Raises:
        InputError: a field is unknown, or a value is impossible.
    """
    values = recipe.model_dump()
    for dotted, value in point.items():
        *groups, last = dotted.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise InputError(f"{dotted}: {group} has no fields of its own")
        target[last] = value
    return validate(values, Recipe, "the recipe")


def read_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file.

    Raises:
        InputError: the file has faults; the message gives the file, line and field of each.
    """
    return read_yaml(path, SweepFile)


def quickstart() -> Path:
    """Return the packaged sweep that `voicechat up` runs if there is no model yet."""
    package = Path(__file__).parents[1]
    installed = package / "sweeps" / "quickstart.yaml"
    return installed if installed.exists() else package.parent / "sweeps" / "quickstart.yaml"
