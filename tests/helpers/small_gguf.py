"""Bytes of a GGUF file of our own choice, possible or impossible. `gguf.GGUFWriter` writes possible ones only."""

import struct
from typing import Any

TYPES = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q")}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
FLOAT32 = 0

KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Small",
    "general.file_type": ("u32", 7),
    "llama.context_length": ("u32", 64),
    "llama.block_count": ("u32", 2),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "<end>", "ab"],
    "tokenizer.ggml.token_type": ("i32", [1, 1, 3, 1]),
    "tokenizer.ggml.eos_token_id": ("u32", 2),
    "tokenizer.chat_template": "{{ messages[0].content }}",
}
TENSORS = {"token_embd.weight": ([8, 4], FLOAT32, 128), "output_norm.weight": ([8], FLOAT32, 32)}
"""Name -> shape, type, bytes of data."""


def small_gguf(
    keys: dict[str, Any] = KEYS, tensors: dict[str, tuple[list[int], int, int]] = TENSORS, version: int = 3
) -> bytes:
    """Return a file.

    Args:
        keys: the values are a text, a list of texts, or (type, a number or a list of numbers).
    """
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, value in keys.items():
        header += text(key) + typed(value)
    data = b""
    for name, (shape, kind, length) in tensors.items():
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += padded(b"\1" * length)
    return padded(header) + data


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    number, form = TYPES[value[0]]
    if isinstance(value[1], list):
        return struct.pack("<IIQ", ARRAY, number, len(value[1])) + b"".join(struct.pack(form, n) for n in value[1])
    return struct.pack("<I", number) + struct.pack(form, value[1])


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
