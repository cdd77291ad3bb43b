"""Intervals, tests and verdicts against references that are computed in another way."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from voicechat_tune.report.statistics import (
    Estimate,
    compare_with,
    estimate,
    holm,
    least_p,
    mean_interval,
    sign_flip_p,
    verdict_of,
)

MARGIN = 0.01

# Losses to four places: differences of them tie as often as real ones do, and more.
losses = st.integers(-300, 300).map(lambda value: 1.6 + value / 10_000)


@st.composite
def paired_losses(draw, least=2, most=9):
    """A baseline and a variant over the same seeds."""
    seeds = draw(st.lists(st.integers(0, 1000), min_size=least, max_size=most, unique=True))
    return {seed: draw(losses) for seed in seeds}, {seed: draw(losses) for seed in seeds}


def compare(baseline, variant):
    return compare_with(baseline, {"variant": variant}, MARGIN)["variant"]


def enumerated_p(differences):
    """By the definition: the share of all assignments of signs whose mean is at least as far from 0."""
    observed = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) for signs in flips]
    return np.mean([total >= observed - 1e-12 for total in sums])


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_sign_flips_equal_their_enumeration(values):
    assert sign_flip_p(values) == pytest.approx(enumerated_p(values))


@pytest.mark.parametrize(("seeds", "p"), [(1, 1), (5, 0.0625), (6, 0.03125), (8, 0.0078125), (14, 2 / 2**14)])
def test_differences_of_one_sign_reach_the_least_p(seeds, p):
    assert sign_flip_p([0.1 + seed / 100 for seed in range(seeds)]) == pytest.approx(p)
    assert least_p(seeds) == pytest.approx(p)


def test_many_seeds_are_sampled_and_near_the_t_test():
    differences = np.random.default_rng(3).normal(0.004, 0.01, 24).tolist()
    assert sign_flip_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert sign_flip_p([1.0] * 24) == pytest.approx(least_p(24))


@pytest.mark.parametrize(
    ("given_p", "corrected"),
    [
        # Holm by hand: sorted p times 3, 2, 1, never falling.
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.9], [0.03, 0.04, 0.9]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(given_p, corrected):
    assert holm(given_p) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_none_and_bonferroni(p_values):
    for plain, corrected in zip(p_values, holm(p_values), strict=True):
        assert plain <= corrected <= min(1, len(p_values) * plain)


def test_the_interval_equals_a_bootstrap_by_hand():
    samples = np.random.default_rng(5).normal(1.6, 0.02, 8)
    tail = stats.norm.cdf(-np.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
    means = samples[np.random.default_rng(1).integers(0, 8, (200_000, 8))].mean(1)
    assert mean_interval(samples) == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=0.001)


def test_the_interval_of_many_samples_is_the_plain_one():
    samples = np.random.default_rng(5).normal(1.6, 0.02, 400)
    plain = stats.bootstrap((samples,), np.mean, method="percentile", rng=2).confidence_interval
    assert mean_interval(samples) == pytest.approx((plain.low, plain.high), abs=0.0003)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    # All experiments at once: the same seeds are resampled in each.
    samples = np.random.default_rng(7).normal(0, 1, (8, 1000))
    low, high = mean_interval(samples)
    assert 0.92 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


def test_columns_are_resampled_together():
    samples = np.random.default_rng(7).normal(0, 1, (6, 3))
    low, high = mean_interval(samples)
    for column in range(3):
        assert (low[column], high[column]) == pytest.approx(mean_interval(samples[:, column]))


@given(st.lists(losses, min_size=2, max_size=10))
@settings(max_examples=25, deadline=None)
def test_the_interval_contains_the_mean_and_stays_within_the_samples(samples):
    known = estimate(samples)
    assert min(samples) - 1e-9 <= known.low <= known.mean + 1e-9
    assert known.mean - 1e-9 <= known.high <= max(samples) + 1e-9


def test_one_sample_has_no_interval_and_none_no_estimate():
    assert estimate([1.5]) == Estimate(1.5, None, None)
    for refused in (lambda: estimate([]), lambda: mean_interval(np.array([1.0])), lambda: sign_flip_p([])):
        with pytest.raises(ValueError, match="at least"):
            refused()


@given(paired_losses())
@settings(max_examples=30, deadline=None)
def test_swapping_the_two_turns_the_difference_round(pair):
    baseline, variant = pair
    there, back = compare(baseline, variant), compare(variant, baseline)
    assert there.estimate.mean == pytest.approx(-back.estimate.mean)
    assert (there.estimate.low, there.estimate.high) == pytest.approx((-back.estimate.high, -back.estimate.low))
    assert there.p == pytest.approx(back.p)
    opposite = {"better": "worse", "worse": "better"}
    assert back.verdict == opposite.get(there.verdict, there.verdict)


@given(paired_losses(), st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_runs_does_not_matter(pair, random):
    baseline, variant = pair
    order = list(variant)
    random.shuffle(order)
    assert compare(baseline, {seed: variant[seed] for seed in order}) == compare(baseline, variant)


@given(paired_losses())
@settings(max_examples=30, deadline=None)
def test_p_is_within_its_bounds_and_the_verdict_says_what_stands_behind_it(pair):
    baseline, variant = pair
    difference = compare(baseline, variant)
    known, seeds = difference.estimate, len(baseline)
    assert 2 / 2**seeds - 1e-12 <= difference.p <= difference.corrected_p <= 1
    if difference.verdict == "better":
        assert known.high < 0
        assert difference.corrected_p < 0.05
    if difference.verdict == "worse":
        assert known.low > 0
        assert difference.corrected_p < 0.05
    if difference.verdict == "equivalent":
        assert -MARGIN <= known.low <= known.high <= MARGIN
    if seeds < 6:
        assert difference.verdict == "undecided"


@given(paired_losses(least=6), st.floats(0.05, 1))
@settings(max_examples=20, deadline=None)
def test_a_shift_that_is_larger_than_the_noise_is_seen(pair, shift):
    baseline, noise = pair
    worse = {seed: baseline[seed] + shift + noise[seed] - 1.6 for seed in baseline}  # the noise is within ±0.03
    assert compare(baseline, worse).verdict == "worse"
    assert compare(worse, baseline).verdict == "better"


@pytest.mark.parametrize(
    ("low", "high", "corrected_p", "seeds", "verdict"),
    [
        (-0.05, -0.02, 0.03, 8, "better"),
        (0.02, 0.05, 0.03, 8, "worse"),
        (0.02, 0.05, 0.05, 8, "undecided"),
        (-0.02, 0.05, 0.03, 8, "undecided"),
        (-0.01, 0.01, 0.9, 8, "equivalent"),
        (0.002, 0.004, 0.01, 8, "equivalent"),
        (0.002, 0.011, 0.9, 8, "undecided"),
        (-0.001, 0.001, 0.9, 5, "undecided"),
        (None, None, 1.0, 1, "undecided"),
    ],
)
def test_verdicts(low, high, corrected_p, seeds, verdict):
    mean = 0.0 if low is None else (low + high) / 2
    assert verdict_of(Estimate(mean, low, high), corrected_p, seeds, MARGIN) == verdict


def test_only_shared_seeds_are_paired_and_the_family_is_corrected_together():
    baseline = {seed: 1.6 for seed in range(8)}
    variants = {
        "worse": {seed: 1.7 + seed / 1000 for seed in range(8)},
        "shorter": {seed: 1.7 + seed / 1000 for seed in range(1, 9)},
        "stranger": {99: 1.0},
    }
    compared = compare_with(baseline, variants, MARGIN)
    assert set(compared) == {"worse", "shorter"}
    assert compared["shorter"].seeds == list(range(1, 8))
    assert compared["worse"].corrected_p == pytest.approx(2 * 2 / 2**8)
    assert compared["shorter"].corrected_p == pytest.approx(2 / 2**7)
    assert {difference.verdict for difference in compared.values()} == {"worse"}
