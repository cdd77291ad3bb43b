"""Optimizers: Muon for the matrices of the blocks, AdamW for everything else, and the learning-rate schedule.

Letters: n matrices of one shape, i rows, j columns.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from voicechat_platform.models.attention import FusedLinear
from voicechat_platform.training.recipe import TrainingRecipe


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with the update scaled to AdamW's size (arXiv 2502.16982).

    torch.optim.Muon takes a matrix at a time, a fused projection as one, and iterates in bfloat16, which is tens of
    times slower than float32 on a CPU without bfloat16 units. This one takes all matrices of one shape in a batched
    product, in float32 on a CPU. A test holds the two together.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                nesterov = weight.grad.lerp(momentum, group["momentum"])
                # Each of several matrices in one is orthogonalised alone.
                sizes = group["rows"] or weight.shape[0]
                for part, update in zip(weight.split(sizes), nesterov.split(sizes), strict=True):
                    by_shape[tuple(part.shape)].append((part, update, group))
        for shape, entries in by_shape.items():
            updates_nij = orthogonalise(torch.stack([update for _, update, _ in entries]))
            scale = 0.2 * math.sqrt(max(shape))
            for (part, _, group), update_ij in zip(entries, updates_nij, strict=True):
                part.mul_(1 - group["lr"] * group["weight_decay"])
                part.add_(update_ij, alpha=-group["lr"] * scale)


def orthogonalise(matrices_nij: Tensor) -> Tensor:
    """Each matrix's nearest orthogonal one, roughly: five Newton–Schulz steps with Muon's coefficients.

    Singular values end between about .7 and 1.2, which is as good as 1 for an update and much cheaper.
    """
    x_nij = matrices_nij.bfloat16() if matrices_nij.is_cuda else matrices_nij
    tall = x_nij.shape[-2] > x_nij.shape[-1]
    if tall:
        x_nij = x_nij.mT
    x_nij = x_nij / (torch.linalg.matrix_norm(x_nij, keepdim=True) + 1e-7)
    for _ in range(5):
        gram_nii = x_nij @ x_nij.mT
        correction_nii = torch.baddbmm(gram_nii, gram_nii, gram_nii, beta=-4.7750, alpha=2.0315)
        x_nij = torch.baddbmm(x_nij, correction_nii, x_nij, beta=3.4445)
    return (x_nij.mT if tall else x_nij).to(matrices_nij.dtype)


def make_optimizers(model: PreTrainedModel, recipe: TrainingRecipe) -> list[torch.optim.Optimizer]:
    """One AdamW, and with "muon" a Muon before it that takes the blocks' matrices; frozen weights are left out.

    Each group has its "peak" rate; `set_rates` sets the rate of a step.
    """
    matrices: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for module in model.modules():
        is_matrix = isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad  # Conv1D: GPT-2's
        if is_matrix and module is not model.get_output_embeddings():
            matrices[module.sizes if isinstance(module, FusedLinear) else ()].append(module.weight)
    taken = {id(weight) for weights in matrices.values() for weight in weights}
    others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in taken]
    groups = [{"params": weights, "rows": rows} for rows, weights in matrices.items()]
    peak, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "muon":
        plain = {"params": others, "weight_decay": 0.0, "peak": recipe.adamw_learning_rate or peak}
        return [
            Muon([{**group, "peak": peak} for group in groups], peak, weight_decay=decay),
            torch.optim.AdamW([plain], peak, betas=(0.9, 0.99), fused=True),
        ]
    all_matrices = [weight for weights in matrices.values() for weight in weights]
    parts = [
        {"params": all_matrices, "weight_decay": decay, "peak": peak},
        {"params": others, "weight_decay": 0.0, "peak": peak},
    ]
    return [torch.optim.AdamW(parts, peak, betas=(0.9, 0.99), fused=True)]


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, recipe: TrainingRecipe) -> None:
    """For the step counted from 0."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule_at(step, recipe)


def learning_rate_at(step: int, recipe: TrainingRecipe) -> float:
    return recipe.learning_rate * schedule_at(step, recipe)


def schedule_at(step: int, recipe: TrainingRecipe) -> float:
    """Share of the peak for the step counted from 0: a linear warm-up, then the recipe's schedule down to zero."""
    warmup, steps = recipe.warmup_steps, recipe.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    is_linear = recipe.schedule == "linear"
    decay_steps = steps - warmup if is_linear else min(recipe.decay_fraction * steps, steps - warmup)
    return min(1.0, (steps - step) / decay_steps)
