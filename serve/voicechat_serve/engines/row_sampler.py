"""Chooses one token for every row of a batch, each by its own request's rules and random numbers.

Letters: b row (one request), v vocabulary.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from voicechat_serve.engines.interface import Sampling


class RowSampler:
    """The sampling rules of a batch's rows, laid out as tensors once and used at every step.

    Each row's random numbers come from a generator of its own, one number a token, so that what a request draws does
    not depend on the requests beside it.
    """

    def __init__(self, rows: Sequence[tuple[Sampling, random.Random]]):
        self.generators = [generator for _, generator in rows]
        self.greedy = all(sampling.greedy for sampling, _ in rows)
        self.truncated = any(sampling.top_p < 1 or sampling.top_k > 0 for sampling, _ in rows)

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values)[:, None]

        self.greedy_b = torch.tensor([sampling.greedy for sampling, _ in rows])
        self.temperature_b1 = column([1.0 if sampling.greedy else sampling.temperature for sampling, _ in rows])
        self.top_p_b1 = column([sampling.top_p for sampling, _ in rows])
        self.top_k_b1 = column([sampling.top_k or float("inf") for sampling, _ in rows])

    def choose(self, logits_bv: Tensor) -> Tensor:
        """(b,) token ids."""
        greedy_ids_b = logits_bv.argmax(-1)
        if self.greedy:
            return greedy_ids_b
        probabilities_bv = torch.softmax(logits_bv.float() / self.temperature_b1, -1)
        if self.truncated:
            probabilities_bv = probabilities_bv * self.kept(probabilities_bv)
        # Always in the vocabulary's order: a row must draw the same token when a neighbour makes the batch sort.
        cumulated_bv = probabilities_bv.double().cumsum(-1)
        draws_b1 = torch.tensor([generator.random() for generator in self.generators], dtype=torch.float64)[:, None]
        # right=True: a token of probability 0 is never drawn, not even by a draw of exactly 0.
        places_b1 = torch.searchsorted(cumulated_bv, draws_b1 * cumulated_bv[:, -1:], right=True)
        drawn_ids_b = places_b1[:, 0].clamp(max=logits_bv.shape[-1] - 1)
        return torch.where(self.greedy_b, greedy_ids_b, drawn_ids_b)

    def kept(self, probabilities_bv: Tensor) -> Tensor:
        """(b, v) whether each token is among its row's top_k, and then among the top_p of what those share."""
        sorted_bv, ids_bv = probabilities_bv.sort(dim=-1, descending=True, stable=True)
        ranks_v = torch.arange(probabilities_bv.shape[-1])
        sorted_bv = sorted_bv * (ranks_v < self.top_k_b1)
        before_bv = sorted_bv.cumsum(-1) - sorted_bv
        # The likeliest token always stays; a row that cuts nothing loses nothing to rounding.
        kept_bv = (before_bv < self.top_p_b1 * sorted_bv.sum(-1, keepdim=True)) | (ranks_v == 0) | (self.top_p_b1 >= 1)
        kept_bv &= ranks_v < self.top_k_b1
        return torch.zeros_like(kept_bv).scatter(-1, ids_bv, kept_bv)
