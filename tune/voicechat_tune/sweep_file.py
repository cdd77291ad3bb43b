"""The sweep file: a recipe, what to vary in it, and how to search. Checked whole before Ray starts."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import Strict, read_yaml, validate
from voicechat_platform.training.recipe import Recipe


class Distribution(Strict):
    """What one parameter may be: exactly one of the four."""

    choice: list[str | int | float | bool] | None = Field(default=None, min_length=1)
    """One of these values."""
    integer: tuple[int, int] | None = None
    """A whole number from the first to the second, both included."""
    uniform: tuple[float, float] | None = None
    """Any number between the two."""
    loguniform: tuple[float, float] | None = None
    """Any number between the two, each factor of ten as likely as another."""

    @model_validator(mode="after")
    def exactly_one(self) -> "Distribution":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"give exactly one of {names}; got {', '.join(given) or 'none'}")
        bounds = self.integer or self.uniform or self.loguniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the first bound must be less than the second; got {bounds[0]} and {bounds[1]}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("the bounds of loguniform must be positive")
        return self

    def examples(self) -> list[Any]:
        """Values that must all be possible for the distribution to be: its bounds, and one that is no whole number."""
        if self.choice or self.integer:
            return list(self.choice or self.integer or ())
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return [low, high, low + (high - low) / 3.7]

    def allows(self, value: Any) -> bool:
        if self.choice is not None:
            return value in self.choice
        low, high = self.integer or self.uniform or self.loguniform or (0.0, 0.0)
        return isinstance(value, int if self.integer else int | float) and low <= value <= high


class Asha(Strict):
    """Asynchronous successive halving (arXiv 1810.05934): stops trials that are behind at a rung."""

    grace_steps: int = Field(ge=1)
    """No trial is stopped before this many steps: the first rung."""
    reduction_factor: float = Field(default=3, gt=1)
    """Of the trials that reach a rung, one in so many goes on."""


class SweepFile(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Lower case, digits, hyphens; the folder of the sweep and the experiment in the registry."""
    recipe: Recipe = Recipe()
    """What every trial shares."""
    search: dict[str, Distribution] = Field(min_length=1)
    """Dotted fields of the recipe's model and training, such as training.learning_rate, and what each may be."""
    first: list[dict[str, Any]] = Field(default=[])
    """Points to begin with; a parameter that is left out is drawn."""
    trials: int = Field(ge=1)
    scheduler: Asha | None = None
    """None lets every trial run to its end."""
    cpus_per_trial: float = Field(default=1, gt=0)
    gpus_per_trial: float = Field(default=0, ge=0)
    seed: int = Field(default=1, ge=0)
    """Of the sampler."""

    @model_validator(mode="after")
    def search_must_fit_the_recipe(self) -> "SweepFile":
        for field, distribution in self.search.items():
            if not field.startswith(("model.", "training.")):
                raise ValueError(f"search.{field}: only fields of model and training can be searched")
            if field == "training.steps":
                raise ValueError("search.training.steps: all trials have the same steps; the scheduler stops the worse")
            for value in distribution.examples():
                check_fits(self.recipe, {field: value}, f"search.{field}")
        for index, point in enumerate(self.first):
            for field, value in point.items():
                if field not in self.search:
                    raise ValueError(f"first.{index}: {field} is not searched; searched are {', '.join(self.search)}")
                if not self.search[field].allows(value):
                    raise ValueError(f"first.{index}: {field} = {value} is not among what search.{field} allows")
            check_fits(self.recipe, point, f"first.{index}")
        if self.scheduler and self.scheduler.grace_steps > self.recipe.training.steps:
            raise ValueError(
                f"scheduler.grace_steps ({self.scheduler.grace_steps}) must not exceed recipe.training.steps "
                f"({self.recipe.training.steps})"
            )
        return self

    def recipe_for(self, point: dict[str, Any]) -> Recipe:
        """The recipe with a point of the search space filled in."""
        return with_fields(self.recipe, point)


def check_fits(recipe: Recipe, point: dict[str, Any], where: str) -> None:
    try:
        with_fields(recipe, point)
    except InputError as error:
        raise ValueError(f"{where} = {', '.join(str(value) for value in point.values())}: {error}") from None


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
    package = Path(__file__).parent
    installed = package / "sweeps" / "quickstart.yaml"
    return installed if installed.exists() else package.parent / "sweeps" / "quickstart.yaml"
