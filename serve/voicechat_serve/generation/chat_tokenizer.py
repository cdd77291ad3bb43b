"""A model directory's tokenizer and chat template, without transformers, whose import takes two seconds.

This reads the files of `save_pretrained`: tokenizer.json, chat_template.jinja (or `chat_template` in
tokenizer_config.json), config.json and generation_config.json.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from voicechat_platform.errors import InputError
from voicechat_platform.json_file import read_object
from voicechat_serve.generation.engines.interface import Sampling

Message = dict[str, str]
"""{"role": ..., "content": ...}"""


UNKNOWN_SAMPLING = {
    "no_repeat_ngram_size": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "bad_words_ids": [],
}
"""Fields of generation_config.json that no engine supports, with the values that have no effect."""

WORD_JOINER = "\u2060"
"""Invisible, and part of no special token."""


class GenerationConfig(BaseModel):
    """The sampling fields of generation_config.json; null means not given."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)


class ChatTokenizer:
    """The tokenizer of a model directory.

    Args:
        folder: the model directory.

    Raises:
        InputError: the directory has no tokenizer.json, or a file of it is damaged.
    """

    def __init__(self, folder: Path):
        if not (folder / "tokenizer.json").exists():
            raise InputError(f"{folder} has no tokenizer.json: it is not a whole model directory")
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers has no more specific error
            raise InputError(f"{folder / 'tokenizer.json'} is damaged: {error}") from error
        # A saved tokenizer may still pad or truncate as in training.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.config = described_in(folder / "tokenizer_config.json")
        self.generation = described_in(folder / "generation_config.json")
        self.sampling = sampling_of(self.generation, folder / "generation_config.json")
        self.model_config = described_in(folder / "config.json")
        template = folder / "chat_template.jinja"
        try:
            source = template.read_text() if template.exists() else self.config.get("chat_template")
            self.template = chat_environment().from_string(source) if source else None
        except (TemplateError, OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: the chat template is damaged: {error}") from error

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ids = self.generation.get("eos_token_id")
        if ids is None:
            token = special_token(self.config.get("eos_token"))
            ids = self.tokenizer.token_to_id(token) if token else None
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    @property
    def chat_stop(self) -> tuple[str, ...]:
        """Strings that end the model's turn in a chat, in addition to the end tokens."""
        return tuple(self.model_config.get("reply_stops") or ())

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt for the model's next turn.

        Raises:
            InputError: the model has no chat template, or the template refuses these messages.
        """
        if self.template is None:
            raise InputError("this model has no chat template; ask it for completions instead")
        special = {name: special_token(self.config.get(name)) or "" for name in ("bos_token", "eos_token", "unk_token")}
        try:
            messages = [{**message, "content": self.without_markers(message["content"])} for message in messages]
            text = self.template.render(messages=messages, add_generation_prompt=True, **special)
        except TemplateError as error:
            raise InputError(f"the model's chat template refuses these messages: {error}") from error
        # The template has already written the special tokens.
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def without_markers(self, text: str) -> str:
        """Return a message in which the text of a special token stays text, so that a message cannot end its turn and
        begin the system's."""
        return self.markers.sub(lambda found: found[0][0] + WORD_JOINER + found[0][1:], text) if self.markers else text

    @cached_property
    def markers(self) -> re.Pattern[str] | None:
        tokens = [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]
        # A special token of one character could not be split; no tokenizer has one.
        longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def places(self, text: str) -> list[int]:
        """Return the position of each token of `encode` in the text, in characters."""
        places, end = [], 0
        for begin, next_end in self.tokenizer.encode(text).offsets:
            # Some tokenizers give a token's position without its leading spaces.
            places.append(end if end < begin and text[end:begin].isspace() else begin)
            end = max(end, next_end)
        return places

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids)

    @cached_property
    def size(self) -> int:
        """The number of tokens."""
        return self.tokenizer.get_vocab_size()

    @cached_property
    def is_byte_level(self) -> bool:
        return isinstance(self.tokenizer.decoder, ByteLevel)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text, perhaps a part of a character; nothing for a special
        token."""
        if token_id in self.special_ids:
            return b""
        token = self.name(token_id)
        if self.is_byte_level and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        return (self.tokenizer.decode([token_id]) or token).encode()

    def name(self, token_id: int) -> str:
        """Return a token in the vocabulary's spelling."""
        return self.tokenizer.id_to_token(token_id) or ""

    @cached_property
    def special_ids(self) -> frozenset[int]:
        tokens = self.tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in tokens.items() if token.special)


def byte_alphabet() -> dict[str, int]:
    """Return the byte for each character of byte-level byte pairs: GPT-2's printable alphabet."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = byte_alphabet()


def described_in(path: Path) -> dict[str, Any]:
    """Return the content of an optional file."""
    return read_object(path) if path.exists() else {}


def sampling_of(generation: dict[str, Any], path: Path) -> Sampling:
    """Return the model's own sampling defaults.

    Args:
        generation: the content of the file.
        path: the file.

    Raises:
        InputError: a value is invalid, or no engine supports a field.
    """
    for name, nothing in UNKNOWN_SAMPLING.items():
        if generation.get(name) not in (None, nothing):
            raise InputError(f"{path} sets {name}, which no engine here supports: remove it")
    try:
        given = GenerationConfig.model_validate(generation)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {first['loc'][0]} is {first['input']!r}: {first['msg']}") from error
    return Sampling(**given.model_dump(exclude_none=True))


def special_token(entry: str | dict | None) -> str | None:
    """Return a special token, saved as text or with its flags."""
    return entry["content"] if isinstance(entry, dict) else entry


def chat_environment() -> ImmutableSandboxedEnvironment:
    """Return the environment for chat templates, equal to that of transformers."""

    def raise_exception(message: str):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
