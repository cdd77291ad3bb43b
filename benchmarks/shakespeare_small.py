"""How well small models learn Tiny Shakespeare by characters: our recipe and variants, beside GPT-2's with AdamW.

    python benchmarks/shakespeare_small.py                       # one seed of three models: 8 minutes
    python benchmarks/shakespeare_small.py --full                # three seeds of every variant, many hours
    python benchmarks/shakespeare_small.py --seeds 3 --only standard --corpus input.txt

At most 0.81 million parameters, context 64, batch 12, 2,000 steps; the loss over the whole validation split in
non-overlapping windows of 64, in nats per character. The peer is transformers' GPT2LMHeadModel with nanoGPT's recipe
for this task (AdamW 1e-3, cosine to 1e-4, no dropout, windows with replacement). "equal width" leaves a variant its
fewer parameters; "equal parameters" widens its MLP until it has the standard model's. Two runs go at a time, one thread
each.

Letters: b batch, t position.
"""

import argparse
import logging
import math
import multiprocessing
import statistics
import time
from typing import Any

import torch
from reporting import bar, report
from torch.nn.utils import clip_grad_norm_
from transformers import GPT2Config, GPT2LMHeadModel

from voicechat_platform.corpora.corpus import windows_of
from voicechat_platform.training.evaluation import loss_sum, mean_loss
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data, make_model

CONTEXT, BATCH, STEPS = 64, 12, 2000
PEER = "GPT2LMHeadModel, AdamW"
STANDARD = "standard"
VARIANTS: dict[str, dict[str, Any]] = {
    STANDARD: {},
    "standard, K=V": {"values": "tied"},
    "shared-QK, tied": {"attention": "metric", "metric": "identity"},
    "signed diagonal, tied": {"attention": "metric", "metric": "signed_diagonal"},
    "symmetric, tied": {"attention": "metric"},
    "symmetric, separate": {"attention": "metric", "values": "separate"},
    "positive definite, tied": {"attention": "metric", "metric": "positive_definite"},
    "general, tied": {"attention": "metric", "metric": "general"},
    "low rank + diagonal, tied": {"attention": "metric", "metric": "low_rank"},
    "shared P, tied": {"attention": "metric", "projection": "shared"},
    "one metric for all layers, tied": {"attention": "metric", "metric_sharing": "model"},
    "QK-norm, tied": {"attention": "metric", "qk_norm": True},
}
VARIANTS |= {
    f"{name}, learned positions": {**VARIANTS[name], "positions": "learned"} for name in (STANDARD, "symmetric, tied")
}


def recipe_for(name: str, equal_parameters: bool, corpus: str, seed: int, steps: int) -> Recipe:
    shape: dict[str, Any] = {"layers": 6, "heads": 4, "width": 104, "context": CONTEXT, "mlp": "relu_squared"}
    shape["rope_theta"] = 200.0
    values = {
        "seed": seed,
        "corpus": {"source": corpus},
        "model": {**shape, **VARIANTS[name]},
        "training": {
            "steps": steps,
            "batch_size": BATCH,
            "learning_rate": 0.004,
            "adamw_learning_rate": 0.008,
            "warmup_steps": 100,
            "evaluate_every": steps,
        },
    }
    recipe = Recipe.model_validate(values)
    if equal_parameters:
        missing = parameters(Recipe.model_validate({**values, "model": shape})) - parameters(recipe)
        values["model"]["mlp_width"] = 4 * 104 + round(missing / (2 * 104 * 6))
    return Recipe.model_validate(values)


def parameters(recipe: Recipe) -> int:
    tokenizer = load_data(recipe).tokenizer
    with torch.device("meta"):
        return make_model(recipe, tokenizer, None).num_parameters()


def run(job: tuple[str, bool, str, int, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, equal_parameters, corpus, seed, steps = job
    started = time.perf_counter()
    if name == PEER:
        logging.getLogger("transformers").setLevel(logging.ERROR)  # its end token is not in our vocabulary
        loss, count = run_peer(corpus, seed, steps)
    else:
        recipe = recipe_for(*job)
        training = Training(recipe, load_data(recipe))
        (evaluation,) = training.evaluations()
        loss, count = evaluation.validation_loss, training.model.num_parameters()
    found = {"model": name, "equal": "parameters" if equal_parameters else "width", "seed": seed}
    found |= {"parameters": count, "nats_per_character": loss, "seconds": time.perf_counter() - started}
    print(found, flush=True)
    return found


def run_peer(corpus: str, seed: int, steps: int) -> tuple[float, int]:
    """nanoGPT's model and recipe for a laptop, with transformers' GPT-2 for the model."""
    data = load_data(Recipe.model_validate({"corpus": {"source": corpus}}))
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(data.tokenizer), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        fused=True,
    )
    generator = torch.Generator().manual_seed(seed)
    tokens = data.train_tokens
    for step in range(steps):
        progress = max(0.0, (step - 100) / (steps - 100))
        rate = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi * progress))
        starts_b = torch.randint(len(tokens) - CONTEXT, (BATCH,), generator=generator)
        window_bt = tokens[starts_b[:, None] + torch.arange(CONTEXT + 1)].long()
        (loss_sum(model, window_bt[:, :-1], window_bt[:, 1:]) / (BATCH * CONTEXT)).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return mean_loss(model, windows_of(data.validation_tokens, CONTEXT)), model.num_parameters()


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model, its seeds together."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in found:
        groups.setdefault((each["model"], each["equal"]), []).append(each)
    rows = []
    for (name, equal), runs in groups.items():
        losses = [each["nats_per_character"] for each in runs]
        rows.append(
            {
                "model": name,
                "equal": equal,
                "parameters": runs[0]["parameters"],
                "seeds": len(runs),
                "nats/character": statistics.mean(losses),
                "lowest": min(losses),
                "highest": max(losses),
                "seconds": statistics.mean(each["seconds"] for each in runs),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="tiny-shakespeare", help="a copy of the file; fetched by default")
    parser.add_argument("--seeds", type=int, help="1; with --full 3")
    parser.add_argument("--full", action="store_true", help="every variant, at equal width and equal parameters")
    parser.add_argument("--only", nargs="*", help="models by name", choices=[PEER, *VARIANTS])
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    everything = [PEER, *VARIANTS] if arguments.full else [PEER, STANDARD, "symmetric, tied"]
    names = arguments.only or everything
    seeds = range(1, (arguments.seeds or (3 if arguments.full else 1)) + 1)
    jobs = [
        (name, equal, arguments.corpus, seed, arguments.steps)
        for name in names
        for equal in (False, True)
        for seed in seeds
        if not equal or (arguments.full and name not in (PEER, STANDARD))
    ]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rows = summary(pool.map(run, jobs, chunksize=1))
    standard = [row for row in rows if row["model"] == STANDARD]
    report(
        "shakespeare_small",
        rows,
        [
            bar("standard, nats/character", standard[0]["nats/character"], 1.57),
            bar("standard, million parameters", standard[0]["parameters"] / 1e6, 0.81),
        ]
        if standard
        else [],
    )


if __name__ == "__main__":
    main()
