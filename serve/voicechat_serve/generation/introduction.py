"""What a person should know of a language model before a conversation: its name, what to expect, its system prompt.

The API lists it. It changes no request: the page and `voicechat talk` use the system prompt as their instructions.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.json_file import read_object
from voicechat_platform.registry import Version
from voicechat_platform.strict_yaml import Strict

SMALL = "It is small, so do not rely on its answers."


def one_line(given: str) -> str:
    if given != given.strip() or not given.isprintable():
        raise ValueError("write one line, without control characters and without spaces at its ends")
    return given


def printable(given: str) -> str:
    if not all(letter.isprintable() or letter in "\n\t" for letter in given):
        raise ValueError("the text has control characters")
    return given


class Words(Strict):
    """What an application file says of a model. What it leaves out is made from what is known of the model."""

    title: Annotated[str, Field(max_length=60), AfterValidator(one_line)] = ""
    """The name for people, such as SmolLM2."""
    about: Annotated[str, Field(max_length=300), AfterValidator(one_line)] = ""
    """One line on what to expect."""
    system_prompt: Annotated[str, Field(max_length=4000), AfterValidator(printable)] | None = None
    """The first instructions of a conversation on the page and in `voicechat talk`; the person can change them there.
    An empty text: none; null: the clients' own."""


@dataclass(frozen=True, kw_only=True)
class Introduction:
    title: str = ""
    about: str = ""
    system_prompt: str | None = None
    """As in `Words`."""
    converses: bool = True
    """Whether it can answer: it is a chat model, or is tuned from one on conversations."""
    tuned_at: int | None = None
    """Unix time in seconds of a version's registration; None if it is no model of the registry."""


def introduce_version(version: Version, words: Words) -> Introduction:
    """Introduce a version of the registry.

    Raises: the errors of `Version.checkpoint` and `read_run`.
    """
    recipe = read_run(version.checkpoint())["recipe"]
    size = in_words(version.parameters)
    converses = holds_conversations(recipe)
    if converses:
        about = f"A chat model of {size} parameters, tuned on conversations. {SMALL}"
    else:
        about = (
            f"A model of {size} parameters. It continues text in the style of its corpus and cannot answer questions."
        )
    return Introduction(
        title=words.title or capitalized(version.name.replace("-", " ")),
        about=words.about or about,
        system_prompt=spoken_to(words, converses),
        converses=converses,
        tuned_at=version.created,
    )


def introduce_listed(name: str, path: Path, is_packaged: bool, words: Words) -> Introduction:
    """Introduce a model that an application file lists under `name`.

    Args:
        path: a folder or a GGUF file.

    Raises:
        InputError: run.json or tokenizer_config.json in the folder is damaged.
    """
    converses = is_chat_model(path)
    about = "It has no chat template: it continues text and cannot answer questions."
    if is_packaged:
        about = f"Made for conversation, in English. {SMALL}"
    elif converses:
        about = ""
    return Introduction(
        title=words.title or name,
        about=words.about or about,
        system_prompt=spoken_to(words, converses),
        converses=converses,
    )


def introduce_adapter(name: str, base: Introduction) -> Introduction:
    """Introduce a fine-tune that an application file lists under `name`, with its base."""
    return replace(base, title=name, about=f"A fine-tune of {base.title}.")


def introduce_remote(name: str, words: Words) -> Introduction:
    """Introduce a model that runs on another server."""
    return Introduction(
        title=words.title or name,
        about=words.about or "It runs on another server: what you say goes there as text.",
        system_prompt=words.system_prompt,
    )


def introduce_embedding_model(name: str, words: Words) -> Introduction:
    """Introduce a model of embeddings, with which nobody talks."""
    return Introduction(
        title=words.title or name, about=words.about or "It makes embeddings, and no text.", converses=False
    )


def spoken_to(words: Words, converses: bool) -> str | None:
    """Return the system prompt: none by default for a model that follows no instructions."""
    return words.system_prompt if converses or words.system_prompt is not None else ""


def is_chat_model(folder: Path) -> bool:
    """Return whether a model has a chat template that is made for conversations. A checkpoint of ours always has a
    template, such as that of a play. A GGUF file is taken for a chat model: only a replica reads it."""
    if folder.is_file():
        return True
    if (folder / "run.json").exists():
        return holds_conversations(read_run(folder)["recipe"])
    if (folder / "chat_template.jinja").exists():
        return True
    config = folder / "tokenizer_config.json"
    return config.exists() and bool(read_object(config).get("chat_template"))


def holds_conversations(recipe: dict[str, Any]) -> bool:
    return recipe["corpus"].get("form") == "dialogue"


def in_words(parameters: int) -> str:
    if parameters < 100_000:
        return f"{parameters:,}"
    size, word = (10**9, "billion") if parameters >= 10**9 else (10**6, "million")
    return f"{parameters / size:.3g} {word}"


def capitalized(name: str) -> str:
    return name[:1].upper() + name[1:]
