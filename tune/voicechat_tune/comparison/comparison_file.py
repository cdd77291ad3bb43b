"""The comparison file: the variants, the sizes, the tuning of each variant, and the number of seeds."""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from voicechat_platform.strict_yaml import Name, PathText, Strict, read_yaml
from voicechat_platform.training.recipe import ModelRecipe, Recipe
from voicechat_tune.report.findings import Table
from voicechat_tune.search.space import Value
from voicechat_tune.search.sweep_file import MOST_POINTS, Price, SweepFile, check_fits, with_fields

MOST_SEEDS = 1000
VariantName = Annotated[str, Field(min_length=1, max_length=60)]


class ComparisonFile(Strict):
    name: Name
    """Lower case, digits, hyphens; the names of its two sweeps begin with it."""
    title: str = Field(default="", max_length=200)
    """The title of the report."""
    recipe: Recipe = Recipe()
    """The common recipe of all variants; its seed is the tuning's, and the seeds after it are the comparison's."""
    variants: dict[VariantName, dict[str, Value]] = Field(min_length=2, max_length=100)
    """For each name, the changes: dotted fields of the recipe's model, {} for none."""
    baseline: str
    """The variant with which the others are compared, and whose size they get."""
    tables: list[Table] = Field(default=["equal width", "equal parameters", "equal FLOPs"], min_length=1)
    """equal width: the variants as they are. For the other tables, the MLP of a variant becomes wider or narrower,
    until the variant has the baseline's parameters or training FLOPs."""
    tuning: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(min_length=1)
    """Dotted fields of the recipe's training, and the values to try for each variant, in all combinations."""
    seeds: int = Field(default=8, ge=2, le=MOST_SEEDS)
    """Fresh seeds for each variant: with n seeds and m variants beside the baseline the least p is 2m / 2ⁿ."""
    margin: float = Field(default=0.01, gt=0, le=100)
    """In nats per token: smaller differences count as none."""
    prompt: str = Field(default="The meaning of life is", min_length=1, max_length=10_000)
    """The beginning of each variant's sample in the report."""
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
                raise ValueError(f"tuning.{field}: each value may be there only once; got {values}")
        if (runs := len(self.variants) * math.prod(map(len, self.tuning.values()))) > MOST_POINTS:
            raise ValueError(f"tuning: {runs:,} runs of all combinations and variants; {MOST_POINTS:,} is the most")
        if (runs := len(self.variants) * len(self.tables) * self.seeds) > MOST_POINTS:
            raise ValueError(f"seeds: {runs:,} runs of all seeds, variants and tables; {MOST_POINTS:,} is the most")
        if len(set(self.tables)) < len(self.tables):
            raise ValueError(f"tables: each table may be there only once; got {', '.join(self.tables)}")
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


def read_comparison(path: Path) -> ComparisonFile:
    """Read and validate a comparison file.

    Raises:
        InputError: with file, line and field of each fault.
    """
    return read_yaml(path, ComparisonFile)
