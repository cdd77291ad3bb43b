"""Few variants of our GPT in which every two settings that can stand together do so at least once (pairwise testing).

Most faults need one setting, or two together; all combinations would be hundreds.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from voicechat_platform.models.configuration import CHOICES, OWN_FIELDS

FIELDS: dict[str, tuple] = {**CHOICES, "qk_norm": (False, True)}


def pairwise(**fixed: Any) -> list[dict[str, Any]]:
    """Variants that have the fixed settings and, between them, every possible pair of the others' values.

    Greedy: the next one is that with the most pairs which no earlier one has.
    """
    candidates = {name_of(variant): variant for variant in all_variants() if fixed.items() <= variant.items()}
    missing = {name: pairs_of(variant) for name, variant in candidates.items()}
    chosen = []
    while missing:
        name = max(missing, key=lambda name: len(missing[name]))
        covered = missing[name]
        missing = {other: left for other, pairs in missing.items() if (left := pairs - covered)}
        chosen.append(candidates[name])
    return chosen


def all_variants() -> Iterator[dict[str, Any]]:
    for attention in FIELDS["attention"]:
        choices = {field: values for field, values in FIELDS.items() if attention == "metric" or not is_metrics(field)}
        choices["attention"] = (attention,)
        for values in itertools.product(*choices.values()):
            yield dict(zip(choices, values, strict=True))


def is_metrics(field: str) -> bool:
    """Whether only metric attention has the field."""
    return field in OWN_FIELDS["metric"]


def pairs_of(variant: dict[str, Any]) -> frozenset:
    return frozenset(itertools.combinations(variant.items(), 2))


def name_of(variant: dict[str, Any]) -> str:
    return ", ".join("qk-norm" if value is True else str(value) for value in variant.values() if value is not False)
