"""The dry run of a sweep: some of its points with their estimated time, memory and cost, without a whole training."""

import time
from typing import Any

import optuna
import torch
from rich.table import Table
from transformers import PreTrainedModel

from voicechat_platform.cluster import start_ray
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import find_start, load_data, make_model
from voicechat_platform.training.throughput import training_flops
from voicechat_tune.running.resources import check_resources
from voicechat_tune.running.run_files import object_store
from voicechat_tune.search.samplers import listed_points, make_sampler, trials_of
from voicechat_tune.search.space import draw_point, drawn_part
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials_table import shown

SHOWN = 8
STEPS_TIMED = 3


def estimate(sweep: SweepFile) -> tuple[dict[str, Any], list[Table]]:
    """Return the estimates as facts and as tables, for listed points or for the sampler's first points.

    The models are built without memory for their weights. The time is measured on this machine for a few steps of the
    first point, with a run's threads and without other runs, and scaled by each model's FLOPs. The estimate assumes
    that no scheduler stops a run.

    Raises:
        InputError: a point is impossible, the data cannot be read, the storage cannot be written, or no machine has
            the resources for a run.
    """
    if store := object_store(sweep):
        store.check_writable()
    start_ray()
    check_resources(sweep)
    points = listed_points(sweep) or drawn_points(sweep)
    recipes = [sweep.recipe_for(point) for point in points]
    data = load_data(sweep.recipe)
    start = find_start(sweep.recipe)
    models = [make_model(recipe, data.tokenizer, None, start) if start else on_meta(recipe, data) for recipe in recipes]
    flops = [training_flops(model, recipe.model.context) for model, recipe in zip(models, recipes, strict=True)]
    step_seconds = timed(sweep, recipes[0], data) / flops[0]
    rows = []
    for point, recipe, model, count in zip(points, recipes, models, flops, strict=True):
        seconds = step_seconds * count * recipe.training.steps
        rows.append(
            {
                "point": point,
                "parameters": model.num_parameters(),
                "memory_mib": memory(model, recipe) / 2**20,
                "minutes": seconds / 60,
            }
        )
    runs = trials_of(sweep) * sweep.seeds // sweep.generations()
    hours = runs * sum(row["minutes"] for row in rows) / len(rows) / 60
    facts = {
        "trials": trials_of(sweep),
        "runs": runs,
        "run_hours": round(hours, 3),
        "cost": round(hours * sweep.hourly_cost(), 2),
        "scheduler": sweep.scheduler.describe(sweep) if sweep.scheduler else "Each run trains to its last step.",
        "points": rows,
    }
    return facts, tables(facts, rows[:SHOWN])


def drawn_points(sweep: SweepFile) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=make_sampler(sweep, 0))
    for point in sweep.first:
        study.enqueue_trial(drawn_part(sweep.search, point))
    return [draw_point(sweep.search, study.ask()) for _ in range(min(SHOWN, sweep.trials or SHOWN))]


def on_meta(recipe: Recipe, data: TrainingData) -> PreTrainedModel:
    with torch.device("meta"):
        return make_model(recipe, data.tokenizer, data.reply_stops)


def timed(sweep: SweepFile, recipe: Recipe, data: TrainingData) -> float:
    """Return the seconds of one step: the fastest of a few after the first, with a run's threads, and its GPU if any.

    With several workers, the measured batch is the share of one worker.
    """
    share = recipe.training.model_copy(update={"batch_size": recipe.training.batch_size // sweep.workers_per_trial})
    training = Training(
        recipe.model_copy(update={"training": share}),
        data,
        device=None if sweep.gpus_per_trial else torch.device("cpu"),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(sweep.threads())
    try:
        training.take_step()
        best = float("inf")
        for _ in range(min(STEPS_TIMED, recipe.training.steps)):
            began = time.perf_counter()
            training.take_step().item()
            best = min(best, time.perf_counter() - began)
        return best
    finally:
        torch.set_num_threads(threads)


def memory(model: PreTrainedModel, recipe: Recipe) -> float:
    """Estimate the bytes of one training step: weights, gradients, the optimizer's moments, and activations.

    For each token and layer, the backward pass needs about sixteen vectors of the model's width and three of the MLP's
    width, and for each token also three rows of logits. This is a rough count, in float32.
    """
    config = model.config
    moments = 2 if recipe.training.optimizer == "adamw" else 1
    tokens = recipe.training.batch_size // recipe.training.accumulate * recipe.model.context
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    kept = config.num_hidden_layers * (16 * width + 3 * inner) + 3 * config.vocab_size
    return 4.0 * (model.num_parameters() * (2 + moments) + tokens * kept)


def tables(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[Table]:
    fields = list(dict.fromkeys(field for row in rows for field in row["point"]))
    points = Table(title=f"{len(rows)} of {facts['trials']} points")
    for name in [field.rpartition(".")[2].replace("_", " ") for field in fields]:
        points.add_column(name, justify="right", overflow="fold")
    for name in ("parameters", "memory", "time here"):
        points.add_column(name, justify="right")
    for row in rows:
        points.add_row(
            *(shown(row["point"].get(field, "")) for field in fields),
            f"{row['parameters']:,}",
            f"{row['memory_mib']:,.0f} MiB",
            f"{row['minutes']:.1f} min",
        )
    whole = Table(title="the whole sweep, if no run is stopped early")
    for name in ("runs", "hours of training", "cost"):
        whole.add_column(name, justify="right")
    whole.add_row(str(facts["runs"]), f"{facts['run_hours']:.2f}", f"{facts['cost']:.2f}")
    whole.caption = facts["scheduler"]
    return [points, whole]
