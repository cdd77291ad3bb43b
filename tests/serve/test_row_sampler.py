"""Rules and random numbers of one row never touch another's."""

import random

import torch

from voicechat_serve.engines.interface import Sampling
from voicechat_serve.engines.row_sampler import RowSampler

PROBABILITIES_V = torch.tensor([0.1, 0.4, 0.2, 0.3])


def drawn(*rules: Sampling, times: int = 4000) -> torch.Tensor:
    """(b, v) how often each token came."""
    sampler = RowSampler([(rule, random.Random(seed)) for seed, rule in enumerate(rules)])
    logits_bv = PROBABILITIES_V.log().expand(len(rules), -1)
    draws = torch.stack([sampler.choose(logits_bv) for _ in range(times)])
    return torch.stack([torch.bincount(column, minlength=4) for column in draws.T]) / times


def test_frequencies_are_the_probabilities_under_each_rows_own_rules():
    frequencies_bv = drawn(
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=2),
        Sampling(top_p=0.65),
        Sampling(top_k=3, top_p=0.7),
        Sampling(temperature=0.5),
    )
    expected_bv = torch.tensor(
        [
            [0.1, 0.4, 0.2, 0.3],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 4 / 7, 0.0, 3 / 7],
            [0.0, 4 / 7, 0.0, 3 / 7],
            [0.0, 4 / 7, 0.0, 3 / 7],  # .7 of the .9 that three tokens share
            [1 / 30, 16 / 30, 4 / 30, 9 / 30],
        ]
    )
    assert torch.allclose(frequencies_bv, expected_bv, atol=0.03)


def test_a_row_draws_the_same_beside_a_row_that_sorts():
    alone = drawn(Sampling(), times=300)
    beside = drawn(Sampling(), Sampling(top_p=0.5), times=300)
    assert torch.equal(alone[0], beside[0])
