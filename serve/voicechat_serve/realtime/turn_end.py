"""Whether a turn is over, from its sound and its words, and how long a silence must be until it ends.

A silence that lasts is itself a sign: of the pauses in the middle of turns, few are long. With the probability p before
the silence, the odds that the turn is over after t seconds of it are p / ((1 - p) S(t)), where S(t) is the share of
such pauses that last longer. The turn ends when these odds reach a limit: how many times worse it is to cut a person
off than to wait (a decision by expected cost, as in Raux & Eskenazi 2009, "A Finite-State Turn-Taking Model for Spoken
Dialog Systems", NAACL).
"""

import math
from dataclasses import dataclass

LEAST = 1e-4
"""Probabilities of the models are limited to this distance from 0 and 1."""

LONGER_THAN_600_MS, EXPONENT = 0.217, 1.45
"""S(t) of the pauses of people who speak to agents: S(0.6 s), and S(t) is a power of t. Fitted to what silence alone
cuts off at 0.3, 0.6, 1.0 and 1.6 s in the published results of eot-bench (56%, 22%, 10%, 5%;
https://github.com/livekit/eot-bench)."""


@dataclass(frozen=True)
class Weights:
    """Of a logistic regression: of the two models' logits, and a constant. benchmarks/turn_end.py fits them."""

    sound: float
    words: float
    constant: float


BOTH = Weights(sound=0.124, words=1.05, constant=4.9)
SOUND = Weights(sound=0.284, words=0.0, constant=-0.447)
WORDS = Weights(sound=0.0, words=1.062, constant=5.219)


@dataclass(frozen=True)
class Patience:
    """How long a silence must be that ends a turn."""

    least_ms: int
    most_ms: int
    unknown_ms: int
    """Where no model gives a probability."""
    odds: float
    """That the turn is over, when it ends."""

    def silence_ms(self, probability: float | None) -> int:
        """Return the length of the silence.

        Args:
            probability: that the turn is over, as the silence begins; None if it is not known.
        """
        if probability is None:
            return self.unknown_ms
        still_ms = 600 * (LONGER_THAN_600_MS * self.odds * (1 - probability) / probability) ** (1 / EXPONENT)
        return round(min(max(still_ms, self.least_ms), self.most_ms))


EAGERNESS = {
    "low": Patience(600, 3000, 1200, 15),
    "medium": Patience(300, 1500, 700, 5),
    "high": Patience(300, 1000, 500, 2),
}


def end_probability(sound: float | None, words: float | None) -> float | None:
    """Return the calibrated probability, 0 to 1, that a turn is over at the beginning of a silence; None if neither is
    known.

    Args:
        sound: Smart Turn's.
        words: the probability that a sentence ends after the words.
    """
    if sound is None and words is None:
        return None
    weights = WORDS if sound is None else SOUND if words is None else BOTH
    score = weights.constant + weights.sound * logit(sound) + weights.words * logit(words)
    return 1 / (1 + math.exp(-score))


def logit(probability: float | None) -> float:
    limited = min(max(0.5 if probability is None else probability, LEAST), 1 - LEAST)
    return math.log(limited / (1 - limited))
