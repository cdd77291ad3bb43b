"""Rules and random numbers of one row never touch another's."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from voicechat_serve.generation.engines import row_sampler
from voicechat_serve.generation.engines.interface import Sampling
from voicechat_serve.generation.engines.row_sampler import RowSampler, SampledRow

PROBABILITIES_V = torch.tensor([0.1, 0.4, 0.2, 0.3])


def drawn(*rules: Sampling, times: int = 4000) -> torch.Tensor:
    """(b, v) how often each token came."""
    sampler = RowSampler([SampledRow(rule, random.Random(seed), [], []) for seed, rule in enumerate(rules)])
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
        Sampling(min_p=0.6),
        Sampling(logit_bias=((1, -100.0), (0, 100.0))),
    )
    expected_bv = torch.tensor(
        [
            [0.1, 0.4, 0.2, 0.3],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 4 / 7, 0.0, 3 / 7],
            [0.0, 4 / 7, 0.0, 3 / 7],
            [0.0, 4 / 7, 0.0, 3 / 7],  # 0.7 of the 0.9 that three tokens share
            [1 / 30, 16 / 30, 4 / 30, 9 / 30],
            [0.0, 4 / 7, 0.0, 3 / 7],
            [1.0, 0.0, 0.0, 0.0],
        ]
    )
    assert torch.allclose(frequencies_bv, expected_bv, atol=0.03)


def test_a_row_draws_the_same_beside_a_row_that_sorts():
    alone = drawn(Sampling(), times=300)
    beside = drawn(Sampling(), Sampling(top_p=0.5), times=300)
    assert torch.equal(alone[0], beside[0])


def row(sampling: Sampling, prompt_ids=(), answer_ids=(), top_scores=None) -> SampledRow:
    return SampledRow(sampling, random.Random(0), prompt_ids, answer_ids, top_scores)


def logits_of(rows: int, vocabulary: int = 50) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 3


def test_repetition_penalty_is_that_of_transformers():
    logits_bv = logits_of(2)
    sampler = RowSampler([row(Sampling(repetition_penalty=1.7), [3, 5], [7]), row(Sampling())])
    expected_v = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 5, 7]]), logits_bv[:1].clone())[0]
    adjusted_bv = sampler.adjusted(logits_bv)
    assert torch.allclose(adjusted_bv[0], expected_v)
    assert torch.equal(adjusted_bv[1], logits_bv[1])  # a neighbour's penalty changes no bit


def test_frequency_and_presence_penalties_count_the_answer_as_it_grows():
    logits_bv = logits_of(1)
    answer_ids = [4, 4, 9]
    rules = Sampling(frequency_penalty=0.5, presence_penalty=0.25, temperature=0)
    sampler = RowSampler([row(rules, prompt_ids=[1, 2], answer_ids=answer_ids)])
    for _ in range(5):
        counts_v = torch.bincount(torch.tensor(answer_ids), minlength=50)
        expected_v = logits_bv[0] - 0.5 * counts_v - 0.25 * (counts_v > 0)
        assert torch.allclose(sampler.adjusted(logits_bv)[0], expected_v)
        answer_ids.append(int(sampler.choose(logits_bv)))
        assert answer_ids[-1] == int(expected_v.argmax())


def test_min_p_keeps_what_transformers_keeps():
    logits_bv = logits_of(1)
    kept_v = MinPLogitsWarper(0.001)(None, logits_bv.clone())[0].isfinite()
    drawn_ids = {
        int(RowSampler([SampledRow(Sampling(min_p=0.001), random.Random(seed), [], [])]).choose(logits_bv))
        for seed in range(500)
    }
    assert drawn_ids <= set(kept_v.nonzero()[:, 0].tolist())
    assert 1 < len(drawn_ids) < 50


def test_scores_are_the_models_own_log_probabilities():
    logits_bv = logits_of(3)
    biased = Sampling(logit_bias=((6, 100.0),))
    rows = [row(Sampling(temperature=0.1), top_scores=2), row(Sampling()), row(biased, top_scores=0)]
    sampler = RowSampler(rows)
    ids_b = sampler.choose(logits_bv)
    scores = sampler.scores(logits_bv, ids_b)
    assert set(scores) == {0, 2}
    logprobs_bv = logits_bv.log_softmax(-1)
    for place, score in scores.items():
        assert score.logprob == float(logprobs_bv[place, ids_b[place]])
    values, ids = logprobs_bv[0].topk(2)
    assert scores[0].top == tuple(zip(ids.tolist(), values.tolist(), strict=True))
    assert scores[2].id == 6
    assert scores[2].top == ()


@given(
    rules=st.lists(
        st.builds(
            Sampling, top_k=st.sampled_from([0, 1, 3, 20, 45]), top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1])
        ),
        min_size=1,
        max_size=4,
    ),
    scale=st.sampled_from([0.01, 1, 30]),
)
def test_a_shortlist_keeps_what_the_whole_vocabulary_keeps(rules, scale):
    probabilities_bv = (logits_of(len(rules)) * scale).softmax(-1)
    sampler = RowSampler([row(rule) for rule in rules])
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        for width in (4, 50):
            patch.setattr(row_sampler, "SHORTLIST", width)
            likely_bv = probabilities_bv >= sampler.least_kept(probabilities_bv)
            kept.append(likely_bv & (probabilities_bv > 0))  # a probability of 0 is never drawn
    assert torch.equal(*kept)
    for place, rule in enumerate(rules):
        if rule.top_k and rule.top_p == 1:
            assert kept[0][place].sum() == min(rule.top_k, int((probabilities_bv[place] > 0).sum()))
        if not rule.top_k:
            assert probabilities_bv[place][kept[0][place]].sum() >= rule.top_p - 1e-5
