"""The settings of a language-model deployment, as plain values: the check of an application file needs no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voicechat_serve.generation.introduction import Introduction, Words
from voicechat_serve.operations.upstream_key import upstream_key

EngineName = Literal["auto", "llamacpp", "torch", "vllm", "openai"]
"""auto: llamacpp for a GGUF file, and the faster of llamacpp and torch for a folder (engines/choice.py). openai: the
model runs elsewhere."""

Task = Literal["text", "embeddings"]
"""What a model makes: the continuation of a text and answers in a chat, or vectors of texts."""

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 on a GPU, float32 on a CPU. For torch and vllm; a GGUF file has its own."""

Device = Literal["auto", "cpu", "cuda"]
"""auto: a GPU if the engine finds one."""

MAX_TOKENS = 1024
"""Tokens of an answer whose request sets no limit: half a minute of a fast model, several minutes of speech."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How to run a model."""

    engine: EngineName = "auto"
    precision: Precision = "auto"
    device: Device = "auto"
    threads: int = 0
    """CPU threads of one decoding step; 0 for as many as suit the model."""
    gpu_layers: int = -1
    """Layers of a GGUF file on the GPU, if there is one; -1 for all."""
    context: int | None = None
    """The most positions of a request; None for the model's own, within a limit."""
    cache_gib: float = 1.0
    """The size of the cache; it decides how many requests decode together."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A model of another server, which speaks OpenAI's API."""

    url: str
    """The base URL, such as http://127.0.0.1:11434/v1."""
    model: str
    """The model's name there."""
    key_env: str = ""
    """The environment variable with the key; empty for a server without keys."""

    def key(self) -> str:
        """Return the key from this process's environment.

        Raises:
            InputError: the variable is not set, or its value cannot be sent.
        """
        return upstream_key(self.key_env, self.url) if self.key_env else "none"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    id: str
    """The model's name in requests."""
    task: Task = "text"
    path: Path | None = None
    """A Hugging Face model directory, or a GGUF file; None for a model elsewhere."""
    remote: Remote | None = None
    """A model elsewhere."""
    version: int | None = None
    """The version of the registry's model `id` in the folder; None if it is no model of the registry."""
    is_packaged: bool = False
    """Whether it comes with this project."""
    options: EngineOptions = EngineOptions()
    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of `Sampling` that apply if a request does not set them, before the defaults of the model's own files."""
    max_tokens: int = MAX_TOKENS
    """The most tokens of an answer in a chat whose request sets no limit."""
    words: Words = field(default_factory=Words)
    """What the application file says of it, for the introduction of later versions."""
    introduction: Introduction = field(default_factory=Introduction)
    adapters: tuple["ServedModel", ...] = ()
    """Fine-tunes of this model (LoRA) that share its memory. The `path` of each is a checkpoint with an adapter, a
    folder of peft's, or a GGUF file."""
    base: str = ""
    """For an adapter of the registry: the name of the model that its versions adapt."""
