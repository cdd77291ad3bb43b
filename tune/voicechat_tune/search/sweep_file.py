"""The sweep file: a recipe, what to vary in it, and how to search. Checked whole before Ray starts."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import Name, PathText, Seed, Strict, read_yaml, validate
from voicechat_platform.training.recipe import Recipe
from voicechat_tune.search.schedulers import AnyScheduler
from voicechat_tune.search.space import Space, Value, check_branches, check_first, grid_size

Objective = Literal["validation_loss", "parameters", "tokens_per_second", "cache_bytes_per_token"]
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "validation_loss": "minimize",
    "parameters": "minimize",
    "tokens_per_second": "maximize",
    "cache_bytes_per_token": "minimize",
}
MOST_POINTS = 5_000
"""That a file may list: each is checked before anything starts."""
MOST_TRIALS = 100_000


class Limits(Strict):
    """When to begin no more; over all sittings of the sweep. Running ones stop at their next evaluation, resumable."""

    hours: float | None = Field(default=None, gt=0, le=10**12)
    """Of the clock, while the sweep runs."""
    gpu_hours: float | None = Field(default=None, gt=0, le=10**12)
    cost: float | None = Field(default=None, gt=0, le=10**12)
    """In the currency of `price`."""


class Price(Strict):
    """What machines cost, for estimates, the report, and `limits.cost`."""

    cpu_hour: float = Field(default=0, ge=0, le=10**12)
    gpu_hour: float = Field(default=0, ge=0, le=10**12)


class SweepFile(Strict):
    name: Name
    """Lower case, digits, hyphens; the folder of the sweep and the experiment in the registry."""
    recipe: Recipe = Recipe()
    """What every trial shares."""
    search: Space = Field(default={})
    """Dotted fields of the recipe's model and training, such as training.learning_rate, and what each may be."""
    first: list[dict[str, Value]] = Field(default=[], max_length=MOST_POINTS)
    """Of a search: points to begin with; a parameter that is left out is drawn."""
    points: list[dict[str, Value]] = Field(default=[], max_length=MOST_POINTS)
    """In place of a search: exactly these points, dotted fields and their values, in this order."""
    sampler: Literal["tpe", "gp", "cma_es", "random", "grid"] = "tpe"
    """tpe: tree-structured Parzen estimators, all fields of a branch together. gp: Gaussian process, no branches, no
    scheduler that stops runs. Both draw at random until ten trials have ended. cma_es: numbers alone, no branches.
    grid: every combination of choices, whole numbers and fixed values, once."""
    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS)
    """Points to try; of a grid or of `points` all of them by default."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """Runs of each point, from recipe.seed on; a trial's loss is their mean. The scheduler looks at the first: where
    it is stopped, the others are spared."""
    objectives: list[Objective] = Field(default=["validation_loss"], min_length=1)
    """What is sought, the validation loss first; several give a Pareto set in place of one best trial."""
    scheduler: AnyScheduler | None = None
    """What decides which runs go on; None lets every run come to its end."""
    limits: Limits = Limits()
    price: Price = Price()
    cpus_per_trial: float = Field(default=1, gt=0, le=10_000)
    gpus_per_trial: float = Field(default=0, ge=0, le=10_000)
    """May be a fraction: .25 puts four runs on a GPU."""
    workers_per_trial: int = Field(default=1, ge=1, le=10_000)
    """Processes that share each batch of a run, each with the CPUs and GPUs above."""
    concurrent: int | None = Field(default=None, ge=1, le=100_000)
    """Runs at a time; by default as many as the machines have room for when the sweep begins."""
    warm_start: PathText | None = None
    """An earlier sweep's name: the sampler, tpe or gp, knows its finished trials from the start, those whose fields and
    values are of this search."""
    storage: PathText | None = None
    """Where results go: a folder that every machine shares, or a URI such as s3://bucket/sweeps; by default the
    sweep's folder in the home."""
    seed: Seed = 1
    """Of the sampler."""

    @model_validator(mode="after")
    def search_must_fit_the_recipe(self) -> "SweepFile":
        if bool(self.search) == bool(self.points):
            raise ValueError("give either search, what to vary, or points, exactly what to run")
        if self.points:
            if self.first or self.warm_start or self.sampler != "tpe":
                raise ValueError("points are run as they stand: first, warm_start and sampler belong to a search")
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
            raise ValueError(f"objectives: validation_loss first, and none twice; got {', '.join(self.objectives)}")
        if len(self.objectives) > 1 and (self.scheduler or self.sampler == "cma_es"):
            raise ValueError("several objectives go with tpe, gp, random or grid, and without a scheduler")
        if "tokens_per_second" in self.objectives and self.runs_share_machine():
            raise ValueError(
                "objectives: tokens_per_second of runs that share a machine measures how busy it is; give each run a "
                "machine of its own with concurrent: 1, or gpus_per_trial: 1 or more"
            )
        if self.search:
            self.check_sampler()
        if self.sampler == "grid":
            if (combinations := grid_size(self.search)) > MOST_TRIALS:
                raise ValueError(f"a grid of {combinations:,} points: {MOST_TRIALS:,} is the most; vary less")
            if any(p.uniform or p.loguniform for p in self.search.values()):
                raise ValueError("a grid needs values that can be counted: choice, int or fixed")
            if self.first or self.warm_start:
                raise ValueError("a grid tries everything once: leave first and warm_start out")
        listed = [seed for point in self.points if isinstance(seed := point.get("seed"), int)]
        last_seed = max([self.recipe.seed, *listed]) + self.seeds - 1
        if last_seed >= 2**32:
            raise ValueError(
                f"recipe.seed: with seeds {self.seeds} the last one is {last_seed}, which has over 32 bits"
            )
        if self.trials is None and not self.points and self.sampler != "grid":
            raise ValueError("trials is missing: how many points to try")
        if self.limits.cost is not None and not self.hourly_cost():
            raise ValueError("limits.cost needs a price of what a run uses: give price.cpu_hour or price.gpu_hour")
        if self.workers_per_trial > 1 and self.storage is not None and "://" in self.storage:
            raise ValueError("several workers of a run share a folder: with workers_per_trial give storage as one")
        if self.limits.gpu_hours is not None and not self.gpus_per_trial:
            raise ValueError("limits.gpu_hours never comes: gpus_per_trial is 0")
        training = self.recipe.training
        if training.batch_size % (training.accumulate * self.workers_per_trial):
            raise ValueError(
                f"recipe.training.batch_size ({training.batch_size}) must be a multiple of accumulate "
                f"({training.accumulate}) times workers_per_trial ({self.workers_per_trial})"
            )
        if self.scheduler:
            self.scheduler.check(self)
        return self

    def check_sampler(self) -> None:
        """Refuse what Optuna's sampler would quietly draw at random, or not look at.

        Raises:
            ValueError: the sampler cannot learn from what it is given.
        """
        drawn = {field: parameter for field, parameter in self.search.items() if parameter.fixed is None}
        for field, parameter in drawn.items():
            if self.sampler == "cma_es" and (parameter.choice is not None or parameter.when):
                remedy = "for branches take tpe" if parameter.when else "for choices take tpe or gp"
                raise ValueError(f"search.{field}: cma_es searches numbers without branches; {remedy}")
            if self.sampler == "gp" and parameter.when:
                raise ValueError(f"search.{field}.when: gp would draw a branch's fields at random; take tpe")
        if self.sampler in ("tpe", "gp", "cma_es") and not drawn:
            raise ValueError(f"search: everything is fixed, so {self.sampler} has nothing to draw; take sampler: grid")
        if self.sampler == "gp" and self.scheduler and self.scheduler.stops_runs:
            raise ValueError(
                f"sampler: gp learns nothing from runs that a scheduler stops; take tpe, or leave scheduler "
                f"({self.scheduler.kind}) out"
            )
        if self.warm_start and self.sampler not in ("tpe", "gp"):
            raise ValueError(
                f"warm_start: {self.sampler} does not look at earlier trials; take tpe or gp, or leave it out"
            )

    def recipe_for(self, point: dict[str, Any], seed_index: int = 0) -> Recipe:
        """The recipe with a point filled in, for the nth of its seeds."""
        return with_fields(self.recipe, {**point, "seed": self.seed_of(point, seed_index)})

    def seed_of(self, point: dict[str, Any], seed_index: int) -> int:
        """Of the nth run of a point."""
        return point.get("seed", self.recipe.seed) + seed_index

    def hourly_cost(self) -> float:
        """Of one run, in the currency of `price`."""
        cpus, gpus = self.cpus_per_trial * self.price.cpu_hour, self.gpus_per_trial * self.price.gpu_hour
        return self.workers_per_trial * (cpus + gpus)

    def runs_share_machine(self) -> bool:
        """Whether a run's speed depends on the other runs: several at a time, none with a whole GPU."""
        return self.concurrent != 1 and self.gpus_per_trial < 1

    def threads(self) -> int:
        """Of each process that trains."""
        return 1 if self.workers_per_trial > 1 else max(1, int(self.cpus_per_trial))

    def generations(self) -> int:
        """Into how many trials, one after the other, a run of all steps is cut; 1 but for a population."""
        return self.scheduler.generations(self) if self.scheduler else 1

    def ends_at(self, lineage: dict[str, int]) -> int | None:
        """The step at which a trial of that lineage ends; None for the recipe's last one."""
        return self.scheduler.ends_at(lineage) if self.scheduler else None


def check_fits(recipe: Recipe, point: dict[str, Any], where: str) -> None:
    try:
        with_fields(recipe, point)
    except InputError as error:
        shown = ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in point.items())
        raise ValueError(f"{where} ({shown}): {error}") from None


def with_fields(recipe: Recipe, point: dict[str, Any]) -> Recipe:
    """A copy of the recipe with dotted fields replaced, checked again.

    Raises:
        InputError: a field is unknown or a value impossible.
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
    """The sweep file, checked.

    Raises:
        InputError: with file, line and field of each fault.
    """
    return read_yaml(path, SweepFile)


def quickstart() -> Path:
    """The packaged sweep that `voicechat up` runs when there is no model yet."""
    package = Path(__file__).parents[1]
    installed = package / "sweeps" / "quickstart.yaml"
    return installed if installed.exists() else package.parent / "sweeps" / "quickstart.yaml"
