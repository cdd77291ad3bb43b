"""A GGUF file in llama.cpp: its weights or its vocabulary alone, and its description."""

import ctypes
from pathlib import Path

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.llama_cpp.library import ContextParams, last_words, library, reason

HALF_PRECISION_BYTES = 2

LONGEST_TEXT = 2**20
"""The most bytes of one entry of a file's description: a chat template has a few thousand."""


class LlamaModel:
    """A model of llama.cpp.

    Args:
        path: the GGUF file.
        gpu_layers: layers on the GPU; -1 for all, if llama.cpp finds one.
        vocabulary_only: load no weights.

    Raises:
        InputError: llama.cpp does not read the file.
    """

    def __init__(self, path: Path, gpu_layers: int = 0, vocabulary_only: bool = False):
        self.path, self.llama = path, library()
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = gpu_layers, vocabulary_only
        last_words.clear()
        self.pointer = self.llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise InputError(f"llama.cpp cannot read {path}: {reason()}")
        self.vocabulary = self.llama.llama_model_get_vocab(self.pointer)

    def start(self, params: ContextParams) -> int:
        """Return a context of llama.cpp for the model.

        Raises:
            InputError: llama.cpp cannot run the file.
        """
        last_words.clear()
        pointer = self.llama.llama_init_from_model(self.pointer, params)
        if not pointer:
            raise InputError(f"llama.cpp cannot run {self.path}: {reason()}")
        return pointer

    def described(self, key: str) -> str | None:
        """Return an entry of the file's description as text, or None if it has no such entry."""
        length = self.llama.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if not 0 <= length <= LONGEST_TEXT:
            return None
        text = ctypes.create_string_buffer(length + 1)
        self.llama.llama_model_meta_val_str(self.pointer, key.encode(), text, length + 1)
        return text.value.decode(errors="replace")

    @property
    def context(self) -> int:
        """The most positions that the model was trained with."""
        return self.llama.llama_model_n_ctx_train(self.pointer)

    @property
    def cache_bytes_per_token(self) -> int:
        """Of keys and values in half precision."""
        architecture = self.described("general.architecture")
        head = self.llama.llama_model_n_embd(self.pointer) // max(1, self.llama.llama_model_n_head(self.pointer))
        widths = [int(self.described(f"{architecture}.attention.{part}_length") or head) for part in ("key", "value")]
        heads = self.llama.llama_model_n_head_kv(self.pointer) or 1
        return self.llama.llama_model_n_layer(self.pointer) * heads * sum(widths) * HALF_PRECISION_BYTES

    def close(self) -> None:
        self.llama.llama_model_free(self.pointer)
