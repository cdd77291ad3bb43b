"""The arrays of one call of llama.cpp: tokens with their positions, their sequences, and whose outputs are wanted."""

import numpy as np

from voicechat_serve.generation.engines.llama_cpp.library import Batch


class TokenBatch:
    """Arrays of (size,), of which a call reads the first entries.

    Args:
        size: the most tokens of a call.
    """

    def __init__(self, size: int):
        self.token_n, self.position_n, self.sequence_n = np.zeros((3, size), np.int32)
        self.wanted_n = np.zeros(size, np.int8)
        """Whether the output of each token is wanted."""
        self.one_n = np.ones(size, np.int32)
        """The number of sequences of each token."""
        places_n = np.arange(size, dtype=np.uint64)
        self.addresses_n = (self.sequence_n.ctypes.data + self.sequence_n.itemsize * places_n).astype(np.uint64)
        """Of each token's list of sequences."""
        self.structure = Batch(
            token=self.token_n.ctypes.data,
            pos=self.position_n.ctypes.data,
            n_seq_id=self.one_n.ctypes.data,
            seq_id=self.addresses_n.ctypes.data,
            logits=self.wanted_n.ctypes.data,
        )

    def first(self, count: int) -> Batch:
        """Return llama.cpp's structure for the first tokens."""
        self.structure.n_tokens = count
        return self.structure
