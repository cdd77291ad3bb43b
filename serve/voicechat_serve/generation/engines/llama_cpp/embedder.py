"""llama.cpp as a model of embeddings: one vector for each text, several texts in one call.

Letters: n input, d dimension of a vector.

All texts of a call share one cache (`kv_unified`): otherwise llama.cpp would compute texts of different lengths in
several steps, and pool the tokens of each step alone. For the same reason no text is longer than a step.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.interface import EmptyPromptError, PromptTooLongError
from voicechat_serve.generation.engines.llama_cpp.batch import TokenBatch
from voicechat_serve.generation.engines.llama_cpp.library import last_words, reason
from voicechat_serve.generation.engines.llama_cpp.model import LlamaModel
from voicechat_serve.generation.vocabularies import GGUFVocabulary

LONGEST_INPUT = 2048
"""The most tokens of one input, if the application file sets none: the memory for a call grows with it."""

MOST_TOGETHER = 64
"""The most inputs of one call."""

CALL_TOKENS = 512
"""The most tokens of a call with several inputs: each is compared with the tokens of all, and masked."""

NO_POOLING, MEAN_POOLING, RANK_POOLING = "0", "1", "4"
"""llama.cpp's numbers."""


class LlamaCppEmbedder:
    """A model whose outputs become one vector for each input.

    Args:
        path: the GGUF file. It names the pooling; a file that names none, such as that of a chat model, has the mean of
            all tokens.
        context: the most tokens of an input; None for the model's own, `LONGEST_INPUT` at most.
        threads: CPU threads of one call.
        gpu_layers: layers on the GPU; -1 for all.

    Raises:
        InputError: llama.cpp cannot run the file, or the model has no vectors for texts.
    """

    def __init__(self, path: Path, *, context: int | None = None, threads: int = 1, gpu_layers: int = 0):
        self.model = LlamaModel(path, gpu_layers)
        self.llama = self.model.llama
        self.vocabulary = GGUFVocabulary(self.model)
        self.context = min(self.model.context, context or LONGEST_INPUT)
        try:
            self.pointer = self.start(path, threads)
        except InputError:
            self.model.close()
            raise
        self.memory = self.llama.llama_get_memory(self.pointer)
        """None for a model without a cache, such as BERT."""
        self.width = self.llama.llama_model_n_embd_out(self.model.pointer)
        """Of a vector."""
        # llama.cpp's decode of a model without a cache, such as BERT, is the same as its encode.
        has_encoder = self.llama.llama_model_has_encoder(self.model.pointer)
        self.compute = self.llama.llama_encode if has_encoder else self.llama.llama_decode

    def start(self, path: Path, threads: int) -> int:
        """Return llama.cpp's context for the model. Raises the errors of the class."""
        pooling = self.model.described(f"{self.model.described('general.architecture')}.pooling_type")
        if pooling == RANK_POOLING:
            raise InputError(f"{path} is a model that compares a question with a text (a reranker), and has no vectors")
        if all(has(self.model.pointer) for has in (self.llama.llama_model_has_encoder, self.has_decoder)):
            raise InputError(f"{path} has an encoder and a decoder: such models give no embeddings here")
        params = self.llama.llama_context_default_params()
        params.embeddings, params.kv_unified, params.n_seq_max = True, True, MOST_TOGETHER
        params.pooling_type = int(MEAN_POOLING if pooling in (None, NO_POOLING) else pooling)
        # Every token is an output, and one step has to compute the whole call.
        params.n_ctx = params.n_batch = params.n_ubatch = max(self.context, CALL_TOKENS)
        params.n_outputs_max = params.n_outputs_max_per_seq = params.n_batch
        params.n_threads = params.n_threads_batch = threads
        return self.model.start(params)

    def has_decoder(self, model: int) -> bool:
        return self.llama.llama_model_has_decoder(model)

    def tokens(self, given: str | list[int], place: int) -> list[int]:
        """Return the tokens of an input, those that the model adds to a text included; any thread may call this.

        Args:
            given: a text, or tokens.
            place: its place in the request, for the messages.

        Raises:
            EmptyPromptError: it has no token.
            PromptTooLongError: it is longer than the context.
            InputError: a token is none of the model's.
        """
        ids = self.vocabulary.encode(given) if isinstance(given, str) else given
        if not ids:
            raise EmptyPromptError(f"input {place} is empty, or the model knows none of its characters")
        if len(ids) > self.context:
            raise PromptTooLongError(
                f"input {place} has {len(ids):,} tokens, but the model's context is {self.context:,} tokens"
            )
        if (largest := max(ids)) >= self.vocabulary.size:
            raise InputError(f"input {place} has the token {largest}, but the model has {self.vocabulary.size:,}")
        return ids

    def fits(self, inputs: int, tokens: int) -> bool:
        """Return whether one call can compute so many inputs with so many tokens together."""
        return inputs == 1 or (inputs <= MOST_TOGETHER and tokens <= CALL_TOKENS)

    def embed(self, inputs: Sequence[list[int]]) -> np.ndarray:
        """Return (n, d) float32 vectors of length 1 for inputs that fit into one call, in their order."""
        lengths = [len(ids) for ids in inputs]
        batch = TokenBatch(sum(lengths))
        batch.token_n[:] = np.concatenate(inputs)
        batch.position_n[:] = np.concatenate([np.arange(length) for length in lengths])
        batch.sequence_n[:] = np.repeat(np.arange(len(inputs)), lengths)
        batch.wanted_n[:] = 1
        if self.memory:
            self.llama.llama_memory_clear(self.memory, False)
        last_words.clear()
        if status := self.compute(self.pointer, batch.first(len(batch.token_n))):
            raise RuntimeError(f"llama.cpp's embeddings failed with {status}: {reason()}")
        found = [self.llama.llama_get_embeddings_seq(self.pointer, place) for place in range(len(inputs))]
        return unit(np.stack([np.ctypeslib.as_array(vector, (self.width,)) for vector in found]))

    def close(self) -> None:
        self.llama.llama_free(self.pointer)
        self.model.close()


def unit(vectors_nd: np.ndarray) -> np.ndarray:
    """Return the vectors with length 1."""
    lengths_n1 = np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    return vectors_nd / np.maximum(lengths_n1, np.finfo(np.float32).tiny)
