"""Optimizers: Muon or NorMuon for the blocks' matrices, AdamW for all other parameters, and the learning-rate schedule.

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
    """Orthogonalised momentum (Jordan et al. 2024), with the update scaled to AdamW's size (arXiv 2502.16982).

    torch.optim.Muon takes one matrix at a time, and a fused projection as one matrix. It iterates in bfloat16, which is
    tens of times slower than float32 on a CPU without bfloat16 units. This class takes all matrices of one shape in a
    batched product, in float32 on a CPU. A test compares the two.

    Args:
        groups: each with its "rows": the heights of the matrices that its weights consist of, () for one matrix.
        row_decay: for NorMuon (arXiv 2510.05491): the decay of the running mean of each row's squared update. NorMuon
            divides the row by the root of that mean, so that all neurons learn equally fast. None for plain Muon.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        row_decay: float | None = None,
    ):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.row_decay = row_decay

    @torch.no_grad()
    def step(self, closure=None) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                    state["row_squares"] = torch.zeros_like(weight[:, :1])
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                nesterov = weight.grad.lerp(momentum, group["momentum"])
                # A weight may hold several matrices; each is orthogonalised separately.
                sizes = group["rows"] or weight.shape[0]
                parts = zip(weight.split(sizes), nesterov.split(sizes), state["row_squares"].split(sizes), strict=True)
                for part, update, row_squares in parts:
                    by_shape[tuple(part.shape)].append((part, update, row_squares, group))
        for shape, entries in by_shape.items():
            updates_nij = orthogonalise(torch.stack([update for _, update, _, _ in entries]))
            if self.row_decay is not None:
                row_squares = [squares for _, _, squares, _ in entries]
                updates_nij = normalise_rows(updates_nij, row_squares, self.row_decay)
            scale = 0.2 * math.sqrt(max(shape))
            for (part, _, _, group), update_ij in zip(entries, updates_nij, strict=True):
                part.mul_(1 - group["lr"] * group["weight_decay"])
                part.add_(update_ij, alpha=-group["lr"] * scale)


def normalise_rows(updates_nij: Tensor, row_squares: list[Tensor], decay: float) -> Tensor:
    """Divide each row by the root of its mean square, and keep the norm of each matrix; zeros stay zeros.

    Args:
        row_squares: the running means of each matrix, (i, 1); updated in place.
    """
    means_ni1 = updates_nij.square().mean(-1, keepdim=True)
    for running_i1, mean_i1 in zip(row_squares, means_ni1, strict=True):
        running_i1.lerp_(mean_i1, 1 - decay)
    even_nij = updates_nij / (torch.stack(row_squares).sqrt() + 1e-8)
    return even_nij * (matrix_norm(updates_nij) / matrix_norm(even_nij).clamp(min=1e-30))


def matrix_norm(x_nij: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x_nij, keepdim=True)


def orthogonalise(matrices_nij: Tensor) -> Tensor:
    """Return the approximate nearest orthogonal matrix of each: five Newton–Schulz steps with Muon's coefficients.

    The singular values end between about 0.7 and 1.2. For an update this is as good as 1, and much cheaper.
    """
    x_nij = matrices_nij.bfloat16() if matrices_nij.is_cuda else matrices_nij
    tall = x_nij.shape[-2] > x_nij.shape[-1]
    if tall:
        x_nij = x_nij.mT
    x_nij = x_nij / (matrix_norm(x_nij) + 1e-7)
    for _ in range(5):
        gram_nii = x_nij @ x_nij.mT
        correction_nii = torch.baddbmm(gram_nii, gram_nii, gram_nii, beta=-4.7750, alpha=2.0315)
        x_nij = torch.baddbmm(x_nij, correction_nii, x_nij, beta=3.4445)
    return (x_nij.mT if tall else x_nij).to(matrices_nij.dtype)


def make_optimizers(model: PreTrainedModel, recipe: TrainingRecipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices (unless the recipe says adamw) and AdamW for the rest, without frozen
    weights.

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
    if recipe.optimizer != "adamw":
        plain = {"params": others, "weight_decay": 0.0, "peak": recipe.adamw_learning_rate or peak}
        return [
            Muon(
                [{**group, "peak": peak} for group in groups],
                peak,
                weight_decay=decay,
                row_decay=0.95 if recipe.optimizer == "normuon" else None,
            ),
            torch.optim.AdamW([plain], peak, betas=(0.9, 0.99), fused=True),
        ]
    all_matrices = [weight for weights in matrices.values() for weight in weights]
    parts = [
        {"params": all_matrices, "weight_decay": decay, "peak": peak},
        {"params": others, "weight_decay": 0.0, "peak": peak},
    ]
    return [torch.optim.AdamW(parts, peak, betas=(0.9, 0.99), fused=True)]


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, recipe: TrainingRecipe) -> None:
    """Set the learning rates of the step, counted from 0."""
    share = schedule_at(step, recipe)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def learning_rate_at(step: int, recipe: TrainingRecipe) -> float:
    return recipe.learning_rate * schedule_at(step, recipe)


def schedule_at(step: int, recipe: TrainingRecipe) -> float:
    """Return the rate's share of the peak for the step, counted from 0: a linear warm-up, then the schedule."""
    warmup, steps = recipe.warmup_steps, recipe.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    fraction = 1.0 if recipe.schedule == "linear" else recipe.decay_fraction
    decay_steps = min(fraction * steps, steps - warmup)
    return min(1.0, (steps - step) / decay_steps)
