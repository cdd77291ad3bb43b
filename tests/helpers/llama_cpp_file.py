"""A GGUF file in the real llama.cpp: its logits and its tokens."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from voicechat_serve.generation.engines.llama_cpp.library import Batch, library

FLOAT32 = FLASH_ATTENTION_OFF = 0


class LlamaCppFile:
    """A loaded model; `opened` makes one."""

    def __init__(self, model: int):
        self.model = model
        self.vocabulary = library().llama_model_get_vocab(model)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits of all positions, with a float32 cache."""
        lib = library()
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = 256, 2, 2
        params.flash_attn_type, params.type_k, params.type_v = FLASH_ATTENTION_OFF, FLOAT32, FLOAT32
        context = lib.llama_init_from_model(self.model, params)
        assert context
        size, count = lib.llama_vocab_n_tokens(self.vocabulary), len(ids)
        try:
            tokens = (ctypes.c_int32 * count)(*ids)
            positions = (ctypes.c_int32 * count)(*range(count))
            sequences = (ctypes.c_int32 * count)(*[1] * count)
            zero = ctypes.c_int32(0)
            members = (ctypes.c_void_p * count)(*[ctypes.addressof(zero)] * count)
            wanted = (ctypes.c_int8 * count)(*[1] * count)
            pointers = [ctypes.cast(part, ctypes.c_void_p) for part in (positions, sequences, members, wanted)]
            assert lib.llama_decode(context, Batch(count, ctypes.cast(tokens, ctypes.c_void_p), None, *pointers)) == 0
            flat = torch.tensor(lib.llama_get_logits(context)[: count * size])
            return flat.view(count, size)
        finally:
            lib.llama_free(context)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = library().llama_tokenize(self.vocabulary, data, len(data), ids, room, True, True)
        assert count >= 0
        return ids[:count]

    def decode(self, ids: Sequence[int]) -> str:
        pieces = []
        for token in ids:
            piece = ctypes.create_string_buffer(256)
            count = library().llama_token_to_piece(self.vocabulary, token, piece, 256, 0, True)
            pieces.append(piece.raw[:count])
        return b"".join(pieces).decode()

    def metadata(self, key: str) -> str | None:
        value = ctypes.create_string_buffer(4096)
        count = library().llama_model_meta_val_str(self.model, key.encode(), value, 4096)
        return value.value.decode() if count >= 0 else None

    def chat_template(self) -> str | None:
        template = library().llama_model_chat_template(self.model, None)
        return template.decode() if template else None

    def ends_reply(self, token: int) -> bool:
        return library().llama_vocab_is_eog(self.vocabulary, token)


@contextmanager
def opened(path: Path) -> Iterator[LlamaCppFile]:
    params = library().llama_model_default_params()
    params.n_gpu_layers = 0
    model = library().llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {path}"
    try:
        yield LlamaCppFile(model)
    finally:
        library().llama_model_free(model)
