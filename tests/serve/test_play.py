"""A conversation with a model of plays: what of it fits into a short context, and where a reply ends."""

from collections.abc import AsyncGenerator, Sequence

import pytest

from voicechat_platform.tool_text import HERMES
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.interface import GenerationRequest, Token
from voicechat_serve.generation.loaded_model import GenerationOptions, LoadedModel


class ScriptedEngine:
    """Writes what the script says, so many tokens (of one character each) at a time, until it is stopped or full."""

    def __init__(self, script: str, batch: int, context: int):
        self.script, self.batch, self.context = script, batch, context
        self.is_closed = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        text = self.script[: self.context - len(request.prompt_ids)]
        tokens = [
            Token(character, 1, "length" if place == len(text) else None) for place, character in enumerate(text, 1)
        ]
        try:
            for start in range(0, len(tokens), self.batch):
                yield tokens[start : start + self.batch]
        finally:
            self.is_closed = True


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def model_of(tiny_model, script: str = "", batch: int = 1, context: int = 100) -> LoadedModel:
    return LoadedModel(ChatTokenizer(tiny_model), ScriptedEngine(script, batch, context), "bard@1")


async def reply(model: LoadedModel, messages: Sequence[dict[str, str]]) -> tuple[str, str | None]:
    deltas = [delta async for delta in model.chat(messages, GenerationOptions(truncation="auto"))]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


PROMPT = "USER:\nHi\n\nROMEO:"


@pytest.mark.parametrize("batch", [1, 7, 200])
@pytest.mark.parametrize(
    ("script", "ends"),
    [
        ("Short. " + "a" * 45 + ". And on it goes.", "Short. " + "a" * 45 + "."),
        ("No sentence, " + "a" * 65 + ", and on", "No sentence, " + "a" * 65 + ","),
        ("Verses" + "a" * 70 + "\nthat go on", "Verses" + "a" * 70),
    ],
)
async def test_a_long_speech_ends_with_its_sentence_or_its_line(tiny_model, script, ends, batch):
    model = model_of(tiny_model, script + "b" * 200, batch, context=len(PROMPT) + 100)
    assert await reply(model, [user("Hi")]) == (ends, "stop")
    assert model.engine.is_closed


async def test_a_speech_without_an_end_has_all_the_room(tiny_model):
    model = model_of(tiny_model, "a" * 500, context=len(PROMPT) + 100)
    assert await reply(model, [user("Hi")]) == ("a" * 100, "length")


def prompt_of(model: LoadedModel, messages: Sequence[dict[str, str]]) -> str:
    return model.tokenizer.vocabulary.decode(model.chat_prompt(messages, (), HERMES, "auto"))


def test_the_oldest_speeches_go_whole_and_the_last_one_never(tiny_model):
    model = model_of(tiny_model, context=256)
    turns = [user(f"Question {number}: " + "word " * 8) for number in range(9)]
    prompt = prompt_of(model, turns)
    assert len(prompt) <= 128, "half of a short context is the answer's"
    assert prompt.startswith("USER:\nQuestion 7:")
    assert "Question 8:" in prompt


def test_of_a_speech_beyond_the_context_the_first_words_go(tiny_model):
    prompt = prompt_of(model_of(tiny_model, context=256), [user("hello"), user("one two three " * 40 + "at last")])
    assert prompt.startswith("USER:\n")
    assert prompt.endswith("three at last\n\nROMEO:")
    assert prompt.split("\n")[1].split()[0] in ("one", "two", "three")
    assert 110 < len(prompt) <= 128
