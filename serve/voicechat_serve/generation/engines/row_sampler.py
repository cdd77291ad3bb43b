"""Sample one token for every row of a batch, each by its own request's rules and random numbers.

Letters: b row (one request), v vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voicechat_serve.generation.engines.constraint import Constraint, masked
from voicechat_serve.generation.engines.interface import Sampling, Score

SHORTLIST = 256
"""Tokens that usually hold the whole top_p: to find them is twenty times faster than to sort a vocabulary."""


@dataclass(frozen=True)
class SampledRow:
    """The inputs of a row's choice, in addition to its logits."""

    sampling: Sampling
    generator: random.Random
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    """The tokens generated so far."""
    top_scores: int | None = None
    constraint: Constraint | None = None
    """Allows only some tokens."""
    room: int = 0
    """The most tokens of the answer, for the constraint."""


class RowSampler:
    """The sampling rules of a batch's rows, prepared as tensors once for all steps.

    Each row has its own random generator and draws one number per token, so that other requests never change its
    tokens.
    """

    def __init__(self, rows: Sequence[SampledRow], device: torch.device | str = "cpu"):
        samplings = [row.sampling for row in rows]
        self.rows, self.device = rows, device
        self.generators = [row.generator for row in rows]
        self.greedy = all(sampling.greedy for sampling in samplings)
        self.truncates = any(sampling.top_p < 1 or sampling.top_k > 0 for sampling in samplings)
        self.has_floor = any(sampling.min_p > 0 for sampling in samplings)
        self.repeats = any(sampling.repetition_penalty != 1 for sampling in samplings)
        self.counts = any(sampling.frequency_penalty or sampling.presence_penalty for sampling in samplings)
        self.penalises = self.repeats or self.counts
        self.scored = [place for place, row in enumerate(rows) if row.top_scores is not None]
        self.constrained = [place for place, row in enumerate(rows) if row.constraint is not None]
        self.constraints = [row.constraint for row in rows if row.constraint is not None]
        self.biases = [
            (place, token_id, bias)
            for place, sampling in enumerate(samplings)
            for token_id, bias in sampling.logit_bias
        ]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        self.greedy_b = torch.tensor([sampling.greedy for sampling in samplings], device=device)
        self.temperature_b1 = column([1.0 if sampling.greedy else sampling.temperature for sampling in samplings])
        self.top_p_b1 = column([sampling.top_p for sampling in samplings])
        self.top_k_b1 = column([sampling.top_k or float("inf") for sampling in samplings])
        self.min_p_b1 = column([sampling.min_p for sampling in samplings])
        self.repetition_b1 = column([sampling.repetition_penalty for sampling in samplings])
        self.frequency_b1 = column([sampling.frequency_penalty for sampling in samplings])
        self.presence_b1 = column([sampling.presence_penalty for sampling in samplings])
        self.bias_bv: Tensor | None = None
        self.counts_bv: Tensor
        self.seen_bv: Tensor

    def choose(self, logits_bv: Tensor) -> Tensor:
        """Return (b,) token ids, which the penalties and the constraints take as their rows' next ones."""
        adjusted_bv = self.adjusted(logits_bv) if self.penalises or self.biases else logits_bv
        if self.constrained:
            adjusted_bv = masked(adjusted_bv, self.constrained, self.constraints)
        ids_b = self.drawn(adjusted_bv)
        for place, constraint in zip(self.constrained, self.constraints, strict=True):
            row = self.rows[place]
            ids_b[place] = constraint.accept(int(ids_b[place]), row.room - len(row.answer_ids) - 1)
        if self.penalises:
            ones_b1 = torch.ones(len(self.rows), 1, device=self.device)
            self.counts_bv.scatter_add_(1, ids_b[:, None], ones_b1)
        return ids_b

    def drawn(self, logits_bv: Tensor) -> Tensor:
        greedy_ids_b = logits_bv.argmax(-1)
        if self.greedy:
            return greedy_ids_b
        probabilities_bv = torch.softmax(logits_bv.float() / self.temperature_b1, -1)
        if self.has_floor:
            floor_b1 = self.min_p_b1 * probabilities_bv.amax(-1, keepdim=True)
            probabilities_bv = probabilities_bv * (probabilities_bv >= floor_b1)
        if self.truncates:
            probabilities_bv = probabilities_bv * (probabilities_bv >= self.least_kept(probabilities_bv))
        # Always in the vocabulary's order: a row must draw the same token when a neighbour makes the batch sort.
        cumulated_bv = probabilities_bv.double().cumsum(-1)
        draws = [generator.random() for generator in self.generators]
        draws_b1 = torch.tensor(draws, dtype=torch.float64, device=self.device)[:, None]
        # right=True: a token of probability 0 is never drawn, not even by a draw of exactly 0.
        places_b1 = torch.searchsorted(cumulated_bv, draws_b1 * cumulated_bv[:, -1:], right=True)
        drawn_ids_b = places_b1[:, 0].clamp(max=logits_bv.shape[-1] - 1)
        return torch.where(self.greedy_b, greedy_ids_b, drawn_ids_b)

    def adjusted(self, logits_bv: Tensor) -> Tensor:
        """Return logits with biases and penalties; rows without any keep theirs, bit for bit."""
        if self.bias_bv is None:
            self.lay_out(logits_bv.shape[-1])
            assert self.bias_bv is not None
        adjusted_bv = logits_bv.float()
        if self.repeats:
            seen_bv = self.seen_bv | (self.counts_bv > 0)
            factor_bv = torch.where(adjusted_bv > 0, 1 / self.repetition_b1, self.repetition_b1)
            adjusted_bv = torch.where(seen_bv, adjusted_bv * factor_bv, adjusted_bv)
        if self.counts:
            adjusted_bv = adjusted_bv - self.frequency_b1 * self.counts_bv - self.presence_b1 * (self.counts_bv > 0)
        return adjusted_bv + self.bias_bv if self.biases else adjusted_bv

    def lay_out(self, vocabulary: int) -> None:
        """Prepare tables with the width of the vocabulary, which only few batches need."""
        shape = (len(self.rows), vocabulary)
        bias_bv, counts_bv, seen_bv = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        for place, token_id, bias in self.biases:
            bias_bv[place, token_id] += bias
        if self.penalises:
            for place, row in enumerate(self.rows):
                if row.sampling.repetition_penalty != 1:
                    seen_bv[place, torch.tensor(row.prompt_ids)] = True
                answer_ids = torch.tensor(row.answer_ids, dtype=torch.long)
                counts_bv[place] = torch.bincount(answer_ids, minlength=vocabulary).float()
        self.bias_bv, self.counts_bv, self.seen_bv = (x.to(self.device) for x in (bias_bv, counts_bv, seen_bv))

    def least_kept(self, probabilities_bv: Tensor) -> Tensor:
        """Return (b, 1) the least probability among a row's top_k, and then among the top_p of these.

        Tokens of equal probability stay together. So a row keeps the same tokens, whether its neighbours need the whole
        vocabulary sorted or only the likeliest tokens of each row.
        """
        size = probabilities_bv.shape[-1]
        cuts_b1 = (self.top_p_b1 < 1) | (self.top_k_b1 < size)
        for width in (min(SHORTLIST, size), size):
            sorted_bk = probabilities_bv.topk(width, -1).values
            ranks_k = torch.arange(width, device=self.device)
            in_top_k_bk = ranks_k < self.top_k_b1
            sorted_bk = sorted_bk * in_top_k_bk
            limited_b1 = self.top_k_b1 <= width
            whole_b1 = torch.where(limited_b1, sorted_bk.sum(-1, keepdim=True), probabilities_bv.sum(-1, keepdim=True))
            before_bk = sorted_bk.cumsum(-1) - sorted_bk
            # The likeliest token always stays; a row without a cut loses nothing to rounding.
            kept_bk = (before_bk < self.top_p_b1 * whole_b1) | (ranks_k == 0) | (self.top_p_b1 >= 1)
            count_b1 = (kept_bk & in_top_k_bk).sum(-1, keepdim=True)
            # A cut behind the shortlist, or a top_k that is longer, needs the whole vocabulary.
            if width == size or bool((~cuts_b1 | limited_b1 | ((self.top_k_b1 > size) & (count_b1 < width))).all()):
                break
        return sorted_bk.gather(-1, count_b1 - 1) * cuts_b1

    def scores(self, logits_bv: Tensor, ids_b: Tensor) -> dict[int, Score]:
        """Return scores by row, for the rows that request them."""
        if not self.scored:
            return {}
        found = scores_of(logits_bv[self.scored], ids_b[self.scored], max(self.tops))
        return {
            place: Score(score.id, score.logprob, score.top[: self.rows[place].top_scores])
            for place, score in zip(self.scored, found, strict=True)
        }

    @property
    def tops(self) -> list[int]:
        return [row.top_scores for row in self.rows if row.top_scores is not None]


def scores_of(logits_bv: Tensor, ids_b: Tensor, top: int) -> list[Score]:
    """Return the model's score of the token in each row, and of this number of the likeliest tokens."""
    logprobs_bv = torch.log_softmax(logits_bv.float(), -1)
    own_b = logprobs_bv.gather(1, ids_b[:, None])[:, 0].tolist()
    values, ids = logprobs_bv.topk(min(top, logits_bv.shape[-1]), -1)
    tops = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [Score(*score) for score in zip(ids_b.tolist(), own_b, tops, strict=True)]
