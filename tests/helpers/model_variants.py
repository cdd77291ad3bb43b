"""Few variants of our GPT in which every two settings that can stand together do so at least once (pairwise testing).

Most faults need one setting, or two together; all combinations would be hundreds.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from voicechat_platform.models import GPTConfig, GPTForCausalLM
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


LLAMA = {"positions": "rotary", "norm": "rms"}
FOLDABLE = [*pairwise(attention="standard", **LLAMA), *pairwise(attention="metric", qk_norm=False, **LLAMA)]
"""The variants that fold to a Llama."""


def random_model(variant: dict[str, Any], vocab_size: int = 50) -> GPTForCausalLM:
    """Return a tiny model of two layers with random weights."""
    torch.manual_seed(0)
    model = GPTForCausalLM(
        GPTConfig(vocab_size=vocab_size, hidden_size=32, num_attention_heads=2, num_hidden_layers=2, **variant)
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()
