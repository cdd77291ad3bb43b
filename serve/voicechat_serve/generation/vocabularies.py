"""The vocabulary of a model, for its tokenizer: of a Hugging Face directory, or of a GGUF file in llama.cpp.

llama.cpp splits the text of a GGUF file by itself, because only it knows the rules of every such file.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.llama_cpp.model import LlamaModel

BYTE_PAIRS = 2
"""llama.cpp's type of vocabulary."""

CONTROL, STRIPS_LEFT, STRIPS_RIGHT = 1 << 3, 1 << 7, 1 << 8
WHOLE = CONTROL | 1 << 0 | 1 << 4
"""Attributes of llama.cpp's tokens. WHOLE: control tokens, unknown ones, and those that a model's makers added."""

LONGEST_PIECE = 8192
"""In characters."""


class Vocabulary(Protocol):
    size: int
    """The number of tokens."""
    special_ids: frozenset[int]
    """Tokens that stand for no text, such as the end of a turn."""

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Return the tokens of a text.

        Args:
            add_special: whether the model's first token (BOS) is added, if it has one. The text of a special token
                always becomes that token.
        """
        ...

    def places(self, text: str) -> list[int]:
        """Return the position of each token of `encode` in the text, in characters."""
        ...

    def decode(self, token_ids: Sequence[int], with_special: bool = False) -> str:
        """Return the text of tokens, without special ones, or with their texts."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text, perhaps a part of a character; nothing for a special
        token."""
        ...

    def name(self, token_id: int) -> str:
        """Return a token in the vocabulary's spelling."""
        ...

    def id_of(self, name: str) -> int | None:
        """Return the token of a special token's text, or None."""
        ...

    def marks_of(self, template: str | None) -> list[str]:
        """Return the texts that become special tokens, and those with which a chat template marks turns."""
        ...


class HuggingFaceVocabulary:
    """A `Vocabulary` of a tokenizer.json.

    Raises:
        InputError: the folder has no such file, or it is damaged.
    """

    def __init__(self, folder: Path):
        path = folder / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{folder} has no tokenizer.json: it is not a whole model directory")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers has no more specific error
            raise InputError(f"{path} is damaged: {error}") from error
        # A saved tokenizer may still pad or truncate as in training.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.size = self.tokenizer.get_vocab_size()
        tokens = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in tokens.items() if token.special)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special).ids

    def places(self, text: str) -> list[int]:
        places, end = [], 0
        for begin, next_end in self.tokenizer.encode(text).offsets:
            # Some tokenizers give a token's position without its leading spaces.
            places.append(end if end < begin and text[end:begin].isspace() else begin)
            end = max(end, next_end)
        return places

    def decode(self, token_ids: Sequence[int], with_special: bool = False) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=not with_special)

    @cached_property
    def is_byte_level(self) -> bool:
        return isinstance(self.tokenizer.decoder, ByteLevel)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return b""
        token = self.name(token_id)
        if self.is_byte_level and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        return (self.tokenizer.decode([token_id]) or token).encode()

    def name(self, token_id: int) -> str:
        return self.tokenizer.id_to_token(token_id) or ""

    def id_of(self, name: str) -> int | None:
        return self.tokenizer.token_to_id(name)

    def marks_of(self, template: str | None) -> list[str]:
        return [self.name(token_id) for token_id in self.special_ids]


class GGUFVocabulary:
    """A `Vocabulary` of a GGUF file; it takes no memory for the weights.

    Args:
        model: the file, opened with `vocabulary_only`.
    """

    def __init__(self, model: LlamaModel):
        self.model, self.llama, self.pointer = model, model.llama, model.vocabulary
        self.size = self.llama.llama_vocab_n_tokens(self.pointer)
        self.bos_id = self.llama.llama_vocab_bos(self.pointer)
        self.eos_id = self.llama.llama_vocab_eos(self.pointer)
        self.is_byte_pairs = self.llama.llama_vocab_type(self.pointer) == BYTE_PAIRS
        attributes = [self.llama.llama_vocab_get_attr(self.pointer, token_id) for token_id in range(self.size)]
        self.special_ids = frozenset(id for id, attribute in enumerate(attributes) if attribute & CONTROL)
        self.whole = {self.name(id): (id, its) for id, its in enumerate(attributes) if its & WHOLE and self.name(id)}
        """The tokens whose text always becomes that token, and their attributes."""
        longest_first = sorted(self.whole, key=len, reverse=True)
        self.any_whole = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.before, self.after = self.frame()
        """The tokens that the model wants before and after every text."""

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer: of the whole text, and of a turn."""
        return [id for id in range(self.size) if self.llama.llama_vocab_is_eog(self.pointer, id)]

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        ids = list(self.before) if add_special else []
        start, strips = 0, False
        # llama.cpp would search for each special token in the whole text, again and again.
        for found in self.any_whole.finditer(text) if self.any_whole else ():
            token_id, attribute = self.whole[found[0]]
            plain = text[start : found.start()]
            ids += self.encode_plain(plain.rstrip() if attribute & STRIPS_LEFT else plain, strips)
            ids.append(token_id)
            start, strips = found.end(), bool(attribute & STRIPS_RIGHT)
        return ids + self.encode_plain(text[start:], strips) + (self.after if add_special else [])

    def frame(self) -> tuple[list[int], list[int]]:
        whole, inner = self.tokenize("a", add_special=True), self.tokenize("a")
        if not inner:  # the model has no such letter
            return whole, []
        start = next(place for place in range(len(whole)) if whole[place : place + len(inner)] == inner)
        return whole[:start], whole[start + len(inner) :]

    def encode_plain(self, text: str, strips: bool) -> list[int]:
        ids: list[int] = []
        for piece in self.pieces(text.lstrip() if strips else text):
            ids += self.tokenize(piece)
        return ids

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        data = text.encode(errors="replace")
        ids_n = np.empty(len(data) + 8, np.int32)
        arguments = (data, len(data), ids_n.ctypes.data, len(ids_n), add_special, False)
        count = self.llama.llama_tokenize(self.pointer, *arguments)
        if count < 0:
            raise InputError("the text is too long for the model's tokenizer")
        return ids_n[:count].tolist()

    def pieces(self, text: str) -> Iterator[str]:
        """Yield a text in pieces that end between two words, or within a word without end: for byte pairs, llama.cpp
        takes a part of its stack for each letter of a word."""
        start = 0
        while self.is_byte_pairs and len(text) - start > LONGEST_PIECE:
            limit = start + LONGEST_PIECE
            end = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
            yield text[start : end if end > start else limit]
            start = end if end > start else limit
        if start < len(text):
            yield text[start:]

    def places(self, text: str) -> list[int]:
        ids = self.encode(text)
        lengths = [len(self.piece(token_id)) for token_id in ids]
        lengths[: len(self.before)] = [0] * len(self.before)  # they are not part of the text
        data = text.encode(errors="replace")
        # Tokens may add a space at the beginning that the text does not have.
        starts = np.cumsum([0, *lengths])[:-1]
        return [min(len(data[:start].decode(errors="ignore")), len(text)) for start in starts]

    def decode(self, token_ids: Sequence[int], with_special: bool = False) -> str:
        pieces = map(self.piece if with_special else self.token_bytes, token_ids)
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self.special_ids else self.piece(token_id)

    def name(self, token_id: int) -> str:
        if not 0 <= token_id < self.size:
            return ""
        return self.llama.llama_vocab_get_text(self.pointer, token_id).decode(errors="replace")

    def id_of(self, name: str) -> int | None:
        found = self.whole.get(name)
        return found[0] if found else None

    def marks_of(self, template: str | None) -> list[str]:
        return [
            name
            for name, (_, attribute) in self.whole.items()
            if attribute & CONTROL or (name in (template or "") and not name.isspace())
        ]

    def piece(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.size:
            return b""
        room = 64
        while True:
            text = ctypes.create_string_buffer(room)
            length = self.llama.llama_token_to_piece(self.pointer, token_id, text, room, 0, True)
            if length >= 0:
                return text.raw[:length]
            room = -length


def byte_alphabet() -> dict[str, int]:
    """Return the byte for each character of byte-level byte pairs: GPT-2's printable alphabet."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = byte_alphabet()
