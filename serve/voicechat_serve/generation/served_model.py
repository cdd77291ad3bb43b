"""The settings of a language-model deployment, as plain values: the check of an application file needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EngineName = Literal["auto", "torch", "ctranslate2", "vllm"]
"""auto: CTranslate2 for a folder of its converter, torch for every other."""

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 on a GPU, float32 on a CPU. For torch and vllm; CTranslate2 computes in int8 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    id: str
    """The model's name in requests."""
    folder: Path
    """A Hugging Face model directory, or one of CTranslate2's converter (with model.bin)."""
    version: int | None = None
    """The version of the registry's model `id` in the folder; None if it is no model of the registry."""
    engine: EngineName = "auto"
    precision: Precision = "auto"
    threads: int = 1
    """CPU threads of one decoding step; the step of a small model is too short for several."""
