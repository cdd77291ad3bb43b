"""The formats of numbers in a report."""

from typing import Any

from voicechat_tune.report.statistics import Estimate

NOTHING = "–"
"""The text for a value that was not measured."""


def loss(value: float | None) -> str:
    """Return nats per token with four decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """Return a difference of losses with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def with_interval(estimate: Estimate) -> str:
    """Return a mean loss and its interval."""
    if estimate.low is None or estimate.high is None:
        return loss(estimate.mean)
    return f"{loss(estimate.mean)} [{loss(estimate.low)}, {loss(estimate.high)}]"


def signed_with_interval(estimate: Estimate) -> str:
    """Return a mean difference and its interval."""
    if estimate.low is None or estimate.high is None:
        return signed(estimate.mean)
    return f"{signed(estimate.mean)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def equals_p(value: float) -> str:
    """Return p and its value for a sentence, without a line break between them."""
    return "p below 0.0001" if value < 0.0001 else f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{p_value(value)}"


def count(value: float | None) -> str:
    """Return a whole number with separated thousands."""
    return NOTHING if value is None else f"{value:,.0f}"


def setting(value: Any) -> str:
    """Return a value of a recipe's field."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def amount(value: float) -> str:
    """Return a measured quantity of any size."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(number: int, noun: str) -> str:
    """Return the number and its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(items: list[str]) -> str:
    """Return items for a sentence: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def quoted(name: str) -> str:
    """Return a variant's name in quotes for a sentence, because names contain commas."""
    return f"“{name}”"


def field_words(name: str) -> str:
    """Return a fact's or objective's name in words."""
    return name.replace("_per_", "/").replace("_", " ")
