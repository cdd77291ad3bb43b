"""What a language-model deployment is told to serve. Plain values: an application file is checked without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EngineName = Literal["auto", "torch", "ctranslate2", "vllm"]
"""auto: CTranslate2 for a folder that its converter wrote, torch for every other."""

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 on a GPU, float32 on a CPU. Of torch and vllm; CTranslate2 computes in int8 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    id: str
    """The name that clients ask for."""
    folder: Path
    """A Hugging Face model directory, or one that CTranslate2's converter wrote (with model.bin)."""
    version: int | None = None
    """Which version of the registry's model `id` the folder holds; None where it is no model of the registry."""
    engine: EngineName = "auto"
    precision: Precision = "auto"
    threads: int = 1
    """CPU threads of one decode step; a small model's step is too short to share."""
