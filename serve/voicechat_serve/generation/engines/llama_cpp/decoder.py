"""llama.cpp under the engine of all models: its batches, and its cache with one sequence for each slot.

Letters: b row of the batch (one request), t query position, v vocabulary.

A sequence has its own part of the cache (not `kv_unified`): in one cache for all, a token of one of 32 requests would
be compared with the tokens of the 31 others, and masked.

llama.cpp adds an adapter (LoRA) to a whole call, not to a sequence. So a decoding step makes one call for each adapter
in use, with the rows of that adapter.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.interface import CACHE_BYTES, LONGEST_CONTEXT, slots_within
from voicechat_serve.generation.engines.llama_cpp.adapters import Adapters
from voicechat_serve.generation.engines.llama_cpp.batch import TokenBatch
from voicechat_serve.generation.engines.llama_cpp.library import reason
from voicechat_serve.generation.engines.llama_cpp.model import LlamaModel

BATCH_TOKENS = 512
"""The most tokens of one call."""

BATCH_LOGITS = 64
"""The most tokens of one call with logits: llama.cpp reserves memory for them, and a vocabulary may have 200,000."""


class LlamaCppDecoder:
    """A `Decoder` of llama.cpp.

    Args:
        path: the GGUF file.
        slots: the most decoding requests; None for as many as `cache_bytes` hold.
        context: the most positions of a request; None for the model's own, `LONGEST_CONTEXT` at most.
        cache_bytes: the size of the cache.
        threads: CPU threads of one step.
        gpu_layers: layers on the GPU; -1 for all.

    Raises:
        InputError: llama.cpp cannot run the file.
    """

    device = "cpu"

    def __init__(
        self,
        path: Path,
        *,
        slots: int | None = None,
        context: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        threads: int = 1,
        gpu_layers: int = 0,
    ):
        self.model = LlamaModel(path, gpu_layers)
        self.llama = self.model.llama
        self.context = min(self.model.context, context or LONGEST_CONTEXT)
        self.slots = slots or slots_within(cache_bytes, self.model.cache_bytes_per_token * self.context)
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.slots * self.context, self.slots
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_outputs_max = params.n_outputs_max_per_seq = BATCH_LOGITS
        params.n_threads = params.n_threads_batch = threads
        try:
            self.pointer = self.model.start(params)
        except InputError:
            self.model.close()
            raise
        # llama.cpp rounds a sequence's part of the cache up.
        assert self.llama.llama_n_ctx_seq(self.pointer) >= self.context
        self.memory = self.llama.llama_get_memory(self.pointer)
        self.size = self.llama.llama_vocab_n_tokens(self.model.vocabulary)
        self.sequences = list(range(self.slots))
        """The sequence of llama.cpp in each row."""
        self.adapters = Adapters(self.model)
        self.adapter_of = [0] * self.slots
        """The adapter of each row."""
        self.batch = TokenBatch(BATCH_TOKENS)

    def prefill(self, row: int, ids_t: Tensor, start: int, every: bool = False) -> Tensor:
        """Read a prompt, or a piece of it, into a row from position `start` on; return (t, v) or (1, v) logits."""
        self.adapters.use(self.pointer, self.adapter_of[row])
        ids_n = ids_t.numpy()
        size = BATCH_LOGITS if every else BATCH_TOKENS
        logits = []
        for begin in range(0, len(ids_n), size):
            piece_n = ids_n[begin : begin + size]
            count = len(piece_n)
            self.batch.token_n[:count] = piece_n
            self.batch.position_n[:count] = np.arange(start + begin, start + begin + count)
            self.batch.sequence_n[:count] = self.sequences[row]
            self.batch.wanted_n[:count] = every
            self.batch.wanted_n[count - 1] = 1
            logits.append(self.run(count, count if every else 1))
            if every:
                logits[-1] = logits[-1].clone()  # the next call overwrites them
        return torch.cat(logits) if every else logits[-1]

    def decode(self, ids_b: Tensor, positions_b: Tensor, width: int) -> Tensor:
        """Decode one more token for each of the first b rows; return (b, v) logits, valid until the next call."""
        adapters = self.adapter_of[: len(ids_b)]
        if len(set(adapters)) == 1:
            return self.decode_rows(range(len(ids_b)), ids_b, positions_b)
        logits_bv = torch.empty(len(ids_b), self.size)
        for adapter in sorted(set(adapters)):
            rows = [row for row, its in enumerate(adapters) if its == adapter]
            logits_bv[rows] = self.decode_rows(rows, ids_b[rows], positions_b[rows])
        return logits_bv

    def decode_rows(self, rows: Sequence[int], ids_b: Tensor, positions_b: Tensor) -> Tensor:
        """Decode one more token for each of the rows, which have one adapter; return (b, v) logits, valid until the
        next call."""
        self.adapters.use(self.pointer, self.adapter_of[rows[0]])
        count = len(rows)
        sequences_n = np.array([self.sequences[row] for row in rows])
        # llama.cpp computes sequences together only while their numbers follow each other.
        order_n = np.argsort(sequences_n)
        self.batch.token_n[:count] = ids_b.numpy()[order_n]
        self.batch.position_n[:count] = positions_b.numpy()[order_n]
        self.batch.sequence_n[:count] = sequences_n[order_n]
        self.batch.wanted_n[:count] = 1
        logits_bv = self.run(count, count)
        is_in_order = (order_n[:-1] < order_n[1:]).all()
        return logits_bv if is_in_order else logits_bv[torch.from_numpy(np.argsort(order_n))]

    def run(self, num_tokens: int, num_logits: int) -> Tensor:
        """Run the prepared batch; return (num_logits, v) logits, valid until the next call."""
        with self.adapters.changing:
            status = self.llama.llama_decode(self.pointer, self.batch.first(num_tokens))
        if status == -1:
            raise IndexError("a token id is not one of the model's")
        if status:
            raise RuntimeError(f"llama.cpp's decode failed with {status}: {reason()}")
        logits = self.llama.llama_get_logits(self.pointer)
        return torch.from_numpy(np.ctypeslib.as_array(logits, (num_logits, self.size)))

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy what one row holds over another; `keep` shortens it."""
        one, other = self.sequences[source], self.sequences[target]
        self.llama.llama_memory_seq_rm(self.memory, other, -1, -1)
        self.llama.llama_memory_seq_cp(self.memory, one, other, -1, -1)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two rows."""
        for of_row in (self.sequences, self.adapter_of):
            of_row[one], of_row[other] = of_row[other], of_row[one]

    def adapt(self, row: int, adapter: int) -> None:
        """Compute a row with an adapter from now on; 0 for none."""
        self.adapter_of[row] = adapter

    def add_adapter(self, path: Path) -> int:
        """Load an adapter, and return its number. Errors as in `Adapters.add`."""
        return self.adapters.add(path)

    def remove_adapter(self, adapter: int) -> None:
        """Free an adapter before the next call."""
        self.adapters.remove(adapter)

    def keep(self, row: int, length: int) -> int:
        """Forget what a row holds after its first `length` positions. A recurrent state cannot go back, and the whole
        row is forgotten then."""
        sequence = self.sequences[row]
        if length and self.llama.llama_memory_seq_rm(self.memory, sequence, length, -1):
            return length
        self.llama.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return 0

    def close(self) -> None:
        self.llama.llama_free(self.pointer)
        self.model.close()
