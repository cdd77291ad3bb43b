"""How numbers are written in a report."""

from typing import Any

from voicechat_tune.report.statistics import Estimate

NOTHING = "–"
"""Stands for what was not measured."""


def loss(value: float | None) -> str:
    """Nats per token, to four places."""
    return NOTHING if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference of losses, with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def with_interval(estimate: Estimate) -> str:
    """A mean loss and its interval."""
    if estimate.low is None or estimate.high is None:
        return loss(estimate.mean)
    return f"{loss(estimate.mean)} [{loss(estimate.low)}, {loss(estimate.high)}]"


def signed_with_interval(estimate: Estimate) -> str:
    """A mean difference and its interval."""
    if estimate.low is None or estimate.high is None:
        return signed(estimate.mean)
    return f"{signed(estimate.mean)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def equals_p(value: float) -> str:
    """For a sentence: p and its value, which no line's end parts."""
    return "p below 0.0001" if value < 0.0001 else f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{p_value(value)}"


def count(value: float | None) -> str:
    """A whole number, with its thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def setting(value: Any) -> str:
    """A value of a recipe's field."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def amount(value: float) -> str:
    """A measured quantity of any size."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(number: int, noun: str) -> str:
    """The number and its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(items: list[str]) -> str:
    """Items in a sentence: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def quoted(name: str) -> str:
    """A variant's name in a sentence: names have commas in them."""
    return f"“{name}”"


def field_words(name: str) -> str:
    """A fact's or objective's name in words."""
    return name.replace("_per_", "/").replace("_", " ")
