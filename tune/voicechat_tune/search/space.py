"""The search space: the possible values of each field, and the branch of the space in which the field exists."""

import math
from typing import Annotated, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from pydantic import Field, model_validator

from voicechat_platform.strict_yaml import Strict

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Value = str | Whole | float | bool


class Parameter(Strict):
    """The possible values of one field: exactly one of choice, int, uniform, loguniform and fixed."""

    choice: list[Value] | None = Field(default=None, min_length=1, max_length=1000)
    """One of these values."""
    integer: Annotated[tuple[Whole, Whole], Field(strict=False)] | None = Field(default=None, alias="int")
    """A whole number between the two, both included."""
    uniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Any number between the two."""
    loguniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Any number between the two, uniform on a logarithmic scale."""
    fixed: Value | None = None
    """Always this value; useful in a branch."""
    when: dict[str, Value | Annotated[list[Value], Field(min_length=1)]] = Field(default={})
    """The branch: the field exists only if fields above it have these values, such as {model.attention: metric}."""

    @model_validator(mode="after")
    def exactly_one(self) -> "Parameter":
        kinds: dict[str, Any] = {
            "choice": self.choice,
            "int": self.integer,
            "uniform": self.uniform,
            "loguniform": self.loguniform,
        }
        kinds["fixed"] = self.fixed
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)}; got {', '.join(given) or 'none'}")
        bounds = self.integer or self.uniform or self.loguniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the first bound must be less than the second; got {bounds[0]} and {bounds[1]}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("the bounds of loguniform must be positive")
        if bounds and not math.isfinite(bounds[1] - bounds[0]):
            raise ValueError(f"the bounds are too far apart: {bounds[0]} and {bounds[1]}")
        if self.choice and len(set(self.choice)) < len(self.choice):
            raise ValueError(f"choice: a value is listed twice: {self.choice}")
        return self

    def examples(self) -> list[Any]:
        """Return values for a check of the recipe: all choices, or the bounds and a number that is not whole."""
        if self.fixed is not None:
            return [self.fixed]
        if self.choice or self.integer:
            return list(self.choice or self.integer or ())
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return [low, high, low + (high - low) / 3.7]

    def allows(self, value: Any) -> bool:
        if self.fixed is not None:
            return value == self.fixed
        if self.choice is not None:
            return value in self.choice
        low, high = self.integer or self.uniform or self.loguniform or (0.0, 0.0)
        return isinstance(value, int if self.integer else int | float) and low <= value <= high

    def exists_in(self, point: dict[str, Any]) -> bool:
        """Return whether the point is in the parameter's branch."""
        return all(point.get(field) in as_list(values) for field, values in self.when.items())

    def settles(self) -> dict[str, Any]:
        """Return the first values of the branch's fields; a point with one of the examples needs them."""
        return {field: as_list(values)[0] for field, values in self.when.items()}

    def draw(self, field: str, trial: optuna.Trial) -> Any:
        if self.fixed is not None:
            return self.fixed
        if self.choice is not None:
            return trial.suggest_categorical(field, self.choice)
        if self.integer is not None:
            return trial.suggest_int(field, *self.integer)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return trial.suggest_float(field, low, high, log=self.loguniform is not None)

    def distribution(self) -> BaseDistribution:
        """Return the distribution of `draw`, for a parameter that is not fixed."""
        if self.choice is not None:
            return CategoricalDistribution(self.choice)
        if self.integer is not None:
            return IntDistribution(*self.integer)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return FloatDistribution(low, high, log=self.loguniform is not None)


Space = Annotated[dict[str, Parameter], Field(description="Dotted fields and their possible values")]


def grid_size(space: dict[str, Parameter]) -> int:
    """Return the number of combinations, without regard to branches."""
    counts = (p.integer[1] - p.integer[0] + 1 if p.integer else len(p.choice or [0]) for p in space.values())
    return math.prod(counts)


def draw_point(space: dict[str, Parameter], trial: optuna.Trial) -> dict[str, Any]:
    """Draw one point, parameter after parameter; skip a parameter if the point is outside its branch."""
    point: dict[str, Any] = {}
    for field, parameter in space.items():
        if parameter.exists_in(point):
            point[field] = parameter.draw(field, trial)
    return point


def drawn_part(space: dict[str, Parameter], point: dict[str, Any]) -> dict[str, Any]:
    """Return a point without its fixed fields, which samplers do not have."""
    return {field: value for field, value in point.items() if space[field].fixed is None}


def known_in(space: dict[str, Parameter], trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Convert trials, perhaps of an earlier space, into trials of this space; skip trials with other fields or values.

    Without the conversion, a sampler draws a field at random if a known trial lacks it or has other bounds for it.
    """
    distributions = {field: parameter.distribution() for field, parameter in space.items() if parameter.fixed is None}
    known = []
    for trial in trials:
        point: dict[str, Any] = {}
        for field, parameter in space.items():
            if parameter.exists_in(point):
                point[field] = trial.params.get(field) if parameter.fixed is None else parameter.fixed
        drawn = drawn_part(space, point)
        if drawn != trial.params or not all(space[field].allows(value) for field, value in drawn.items()):
            continue
        own = {field: distributions[field] for field in drawn}
        if own != trial.distributions:
            trial = create_trial(
                state=trial.state,
                params=trial.params,
                distributions=own,
                values=trial.values,
                intermediate_values=trial.intermediate_values,
                user_attrs=trial.user_attrs,
            )
        known.append(trial)
    return known


def check_branches(space: dict[str, Parameter]) -> None:
    """Check the branches.

    Raises:
        ValueError: a branch depends on a field that is not above it, or on a value that the field never has.
    """
    above: dict[str, Parameter] = {}
    for field, parameter in space.items():
        for on, values in parameter.when.items():
            if on not in above:
                raise ValueError(f"search.{field}.when: {on} must be a search field above {field}")
            for value in as_list(values):
                if not above[on].allows(value):
                    raise ValueError(f"search.{field}.when: {on} is never {value}")
        above[field] = parameter


def check_first(space: dict[str, Parameter], first: list[dict[str, Any]]) -> None:
    """Check the points of `first`.

    Raises:
        ValueError: a point is not in the search space.
    """
    for index, point in enumerate(first):
        for field, value in point.items():
            if field not in space:
                raise ValueError(f"first.{index}: {field} is not a search field; these are: {', '.join(space)}")
            if not space[field].allows(value):
                raise ValueError(f"first.{index}: search.{field} does not allow the value {value}")
            missing = [on for on in space[field].when if on not in point]
            if missing:
                raise ValueError(f"first.{index}: {field} needs {', '.join(missing)} too, because of its when")
            if not space[field].exists_in(point):
                raise ValueError(f"first.{index}: {field} exists only when {space[field].when}")


def as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]
