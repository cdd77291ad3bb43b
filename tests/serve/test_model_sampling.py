"""A model's own sampling, which its generation_config.json says: it reaches the engine, or is refused by name."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from voicechat_platform.assets import CATALOGUE, locate_gguf
from voicechat_platform.errors import InputError
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import Sampling
from voicechat_serve.generation.loaded_model import GenerationOptions, LoadedModel

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture
def sampling_with(tiny_model, tmp_path):
    """A model folder whose generation_config.json says this."""

    def folder_with(content: dict) -> Path:
        folder = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
        (folder / "generation_config.json").write_text(json.dumps(content))
        return folder

    return folder_with


def loaded(path: Path, sampling: dict | None = None) -> LoadedModel:
    tokenizer = ChatTokenizer(path)
    defaults = replace(tokenizer.sampling, **(sampling or {}))
    return LoadedModel(tokenizer, make_engine(path, tokenizer), "bard@1", defaults)


async def completion(model: LoadedModel, **sampling) -> str:
    options = GenerationOptions(sampling={"max_tokens": 40} | sampling)
    return "".join([delta.text async for delta in model.complete("To be, or not", options)])


async def test_it_stands_for_what_a_client_does_not_say(sampling_with):
    model = loaded(sampling_with({"temperature": 0.0, "repetition_penalty": 10.0}))
    await model.warm_up()
    assert len(set(await completion(model))) > 20  # the same as a client's own: it never comes back to a character
    free = await completion(model, repetition_penalty=1.0)
    assert len(set(free)) < 20
    model.engine.close()
    plain = loaded(sampling_with({"temperature": 0.0}))
    assert await completion(plain) == free
    plain.engine.close()


def test_everything_it_may_say_is_taken(sampling_with):
    said = {"temperature": 0.3, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2}
    nothing = {"no_repeat_ngram_size": 0, "typical_p": 1.0, "bad_words_ids": None, "num_beams": 1}
    assert ChatTokenizer(sampling_with(said | nothing)).sampling == Sampling(**said)
    nulls = dict.fromkeys(said) | {"eos_token_id": 3}
    assert ChatTokenizer(sampling_with(nulls)).sampling == Sampling()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.1),
        ("repetition_penalty", float("nan")),
        ("repetition_penalty", "1.1"),
        ("temperature", True),
        ("temperature", float("inf")),
        ("top_p", [0.9]),
        ("top_k", 2.5),
        ("min_p", 2),
        ("no_repeat_ngram_size", 3),
        ("typical_p", 0.9),
        ("bad_words_ids", [[1]]),
    ],
)
def test_what_is_impossible_or_unknown_is_refused_by_name(sampling_with, name, value):
    with pytest.raises(InputError, match=rf"generation_config\.json.* {name}"):
        ChatTokenizer(sampling_with({name: value}))


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LoadedModel]:
    model = loaded(locate_gguf(SMOLLM2), CATALOGUE[SMOLLM2].sampling | {"seed": 1})
    yield model
    model.engine.close()


async def said_to(model: LoadedModel, *messages: str, **sampling) -> str:
    """The answer to the last of the messages, of which every second one is the model's."""
    roles = cycle(("user", "assistant"))
    conversation = [{"role": role, "content": content} for role, content in zip(roles, messages, strict=False)]
    return "".join([delta.text async for delta in model.chat(conversation, GenerationOptions(sampling=sampling))])


@pytest.mark.parametrize(
    "question", ["What is the capital of Italy?", "How do I clean my windows?", "Are you a robot?"]
)
async def test_smollm2_does_not_talk_itself_into_a_loop(smollm2, question):
    """At the sampling that is served by default; benchmarks/repetition.py asks many more questions."""
    words = re.findall(r"\w+", (await said_to(smollm2, question, max_tokens=200)).lower())
    said = Counter(zip(*(words[start:] for start in range(5)), strict=False))
    assert max(said.values(), default=0) < 3, " ".join(words)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (["Repeat after me: the cat sat on the mat."], "the cat sat on the mat"),
        (["Repeat after me: we sing a song in the morning."], "we sing a song in the morning"),
    ],
)
async def test_smollm2_still_says_the_words_of_the_conversation(smollm2, messages, part):
    """A penalty on its answer's words is none on the question's."""
    assert smollm2.defaults.frequency_penalty > 0
    assert part.lower() in (await said_to(smollm2, *messages, max_tokens=60, temperature=0)).lower()
