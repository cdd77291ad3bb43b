"""A model's tokenizer and chat template, without transformers, whose import takes two seconds.

This reads the files of `save_pretrained` (tokenizer.json, chat_template.jinja or `chat_template` in
tokenizer_config.json, config.json, generation_config.json), or a GGUF file, which has all of this inside.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voicechat_platform.errors import InputError
from voicechat_platform.json_file import read_object
from voicechat_platform.tool_text import HERMES, MARKS_OF_CALLS, CallForm, form_of, told_in_text
from voicechat_serve.generation.answer_form import Message, TextForm, Tool
from voicechat_serve.generation.engines.interface import Sampling
from voicechat_serve.generation.engines.llama_cpp.model import LlamaModel
from voicechat_serve.generation.vocabularies import GGUFVocabulary, HuggingFaceVocabulary, Vocabulary

if TYPE_CHECKING:
    from voicechat_serve.generation.engines.constraint import Grammars

UNKNOWN_SAMPLING = {
    "no_repeat_ngram_size": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "bad_words_ids": [],
}
"""Fields of generation_config.json that no engine supports, with the values that have no effect."""

GGUF_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Our names and GGUF's, below general.sampling."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token")

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
    """A model's vocabulary with its chat template, its end tokens and its sampling defaults.

    Args:
        path: a Hugging Face model directory, or a GGUF file.

    Raises:
        InputError: the directory has no tokenizer.json, or a file is damaged.
    """

    def __init__(self, path: Path):
        self.vocabulary: Vocabulary
        if path.is_file():
            vocabulary = GGUFVocabulary(LlamaModel(path, vocabulary_only=True))
            self.vocabulary, read = vocabulary, gguf_description(vocabulary)
        else:
            self.vocabulary = vocabulary_of_folder = HuggingFaceVocabulary(path)
            read = folder_description(path, vocabulary_of_folder)
        self.end_ids = read.end_ids
        """Tokens that end an answer."""
        self.chat_stop = read.chat_stop
        """Strings that end the model's turn in a chat, in addition to the end tokens."""
        self.sampling, self.special, self.template_source = read.sampling, read.special, read.template
        self.call_form = form_of(read.template)
        """How the template shows calls of tools; None for a model that is told by the system's message."""
        try:
            self.template = chat_environment().from_string(read.template) if read.template else None
        except (TemplateError, TypeError) as error:
            raise InputError(f"{path}: the chat template is damaged: {error}") from error

    @cached_property
    def grammars(self) -> "Grammars":
        """The grammars of the vocabulary; the first use takes half a second."""
        from voicechat_serve.generation.engines.constraint import Grammars

        return Grammars(self.vocabulary, self.end_ids)

    def form_for(self, text: TextForm | None) -> CallForm:
        """Return how the model writes calls if its text must have a form: Llama's calls could not be told from it."""
        return HERMES if self.call_form is None or (text is not None and not self.call_form.begin) else self.call_form

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), form: CallForm | None = None
    ) -> list[int]:
        """Return the prompt for the model's next turn.

        Args:
            messages: the conversation.
            tools: those that the model may call.
            form: how the prompt shows calls; None for the template's own form.

        Raises:
            InputError: the model has no chat template, or the template refuses these messages.
        """
        # The template has already written the special tokens.
        return self.vocabulary.encode(self.render(messages, tools, form), add_special=False)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), form: CallForm | None = None) -> str:
        """Return the text of the prompt; errors as in `encode_chat`."""
        if self.template is None:
            raise InputError("this model has no chat template; ask it for completions instead")
        given = {"messages": self.without_markers([{"content": ""} | message for message in messages])}
        if tools:
            given["tools"] = self.without_markers([tool.described() for tool in tools])
        if self.call_form is None or form not in (None, self.call_form):
            role: Literal["system", "user"] = "system" if self.shows_system else "user"
            given = {"messages": told_in_text(given["messages"], given.get("tools", []), role)}
        try:
            return self.template.render(**given, add_generation_prompt=True, **self.special)
        except TemplateError as error:
            raise InputError(f"the model's chat template refuses these messages: {error}") from error
        except Exception as error:  # a template may call anything that Python's texts and lists have
            raise InputError(f"the model's chat template fails for these messages: {error!r}") from error

    @cached_property
    def shows_system(self) -> bool:
        """Whether the template has a place for the system's message; some refuse it, others leave it out."""
        assert self.template is not None
        messages = [{"role": "system", "content": "Instructions."}, {"role": "user", "content": "Question?"}]
        try:
            return "Instructions." in self.template.render(messages=messages, **self.special)
        except Exception:  # as in `render`
            return False

    def without_markers(self, value: Any) -> Any:
        """Return messages in which the text of a special token stays text, so that a message cannot end its turn and
        begin the system's."""
        if isinstance(value, list):
            return [self.without_markers(each) for each in value]
        if isinstance(value, dict):
            return {self.without_markers(key): self.without_markers(each) for key, each in value.items()}
        if not isinstance(value, str) or not self.markers:
            return value
        return self.markers.sub(lambda found: found[0][0] + WORD_JOINER + found[0][1:], value)

    @cached_property
    def markers(self) -> re.Pattern[str] | None:
        tokens = [*self.vocabulary.marks_of(self.template_source), *MARKS_OF_CALLS]
        # A special token of one character could not be split; no tokenizer has one.
        longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model's files say beside its vocabulary."""

    end_ids: list[int]
    chat_stop: tuple[str, ...]
    sampling: Sampling
    special: dict[str, str]
    """The texts of special tokens by their names in chat templates."""
    template: str | None


def folder_description(folder: Path, vocabulary: HuggingFaceVocabulary) -> Description:
    """Return what the files of `save_pretrained` say.

    Raises:
        InputError: a file is damaged.
    """
    config = described_in(folder / "tokenizer_config.json")
    generation = described_in(folder / "generation_config.json")
    end_ids = generation.get("eos_token_id")
    if end_ids is None:
        token = special_token(config.get("eos_token"))
        end_ids = vocabulary.id_of(token) if token else None
    template = folder / "chat_template.jinja"
    try:
        source = template.read_text() if template.exists() else config.get("chat_template")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the chat template is damaged: {error}") from error
    return Description(
        end_ids=[] if end_ids is None else [end_ids] if isinstance(end_ids, int) else list(end_ids),
        chat_stop=tuple(described_in(folder / "config.json").get("reply_stops") or ()),
        sampling=sampling_of(generation, folder / "generation_config.json"),
        special={name: special_token(config.get(name)) or "" for name in SPECIAL_TOKENS},
        template=source,
    )


def gguf_description(vocabulary: GGUFVocabulary) -> Description:
    """Return what a GGUF file says.

    Raises:
        InputError: an entry is invalid.
    """
    model = vocabulary.model
    numbers: dict[str, float] = {}
    try:
        for ours, theirs in GGUF_SAMPLING.items():
            if (text := model.described(f"general.sampling.{theirs}")) is not None:
                numbers[ours] = int(float(text)) if ours == "top_k" else float(text)
        stops = json.loads(model.described("voicechat.reply_stops") or "[]")
    except (ValueError, OverflowError) as error:
        raise InputError(f"{model.path}: the sampling defaults or the reply stops are damaged: {error}") from error
    if not (isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)):
        raise InputError(f"{model.path}: voicechat.reply_stops is not a list of texts")
    ids = {name: getattr(vocabulary, f"{name}_id") for name in ("bos", "eos")}
    return Description(
        # llama.cpp always has an end token; our files name a letter if the model has none.
        end_ids=[] if model.described("voicechat.has_end_token") == "false" else vocabulary.end_ids,
        chat_stop=tuple(stops),
        sampling=sampling_of(numbers, model.path),
        special={f"{name}_token": vocabulary.name(token_id) for name, token_id in ids.items()},
        template=model.described("tokenizer.chat_template"),
    )


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
