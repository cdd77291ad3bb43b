"""The vLLM engine over a folded model of ours, beside the torch engine. Skipped where vLLM is not installed."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.settings import settings
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines import choice
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import Engine, GenerationRequest, PromptTooLongError, Sampling, Token
from voicechat_serve.generation.served_model import EngineOptions
from voicechat_serve.operations.load import OverloadedError

PROMPT = [5, 40, 41, 42, 43]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory) -> Iterator[None]:
    """Folded models go below the home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOICECHAT_HOME", str(tmp_path_factory.mktemp("home")))
        settings.cache_clear()
        yield
    settings.cache_clear()


def test_where_it_is_not_installed(tiny_model, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"engine vllm is not installed .* docs/serving\.md"):
        make_engine(tiny_model, ChatTokenizer(tiny_model), EngineOptions(engine="vllm"))


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    """As `tiny_model`, with heads of a width that vLLM's attention has."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("model-for-vllm")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_attention_heads = 2
    torch.manual_seed(0)
    GPTForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> ChatTokenizer:
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def engine(folder, tokenizer) -> Iterator[Engine]:
    engine = make_engine(folder, tokenizer, EngineOptions(engine="vllm", precision="float32"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def torch_engine(folder, tokenizer) -> Iterator[Engine]:
    engine = make_engine(folder, tokenizer, EngineOptions(engine="torch", precision="float32"))
    yield engine
    engine.close()


async def answer(engine: Engine, top_scores: int | None = None, score_prompt: bool = False, **sampling) -> list[Token]:
    wanted = Sampling(**({"temperature": 0, "max_tokens": 12} | sampling))
    request = GenerationRequest(prompt_ids=PROMPT, sampling=wanted, top_scores=top_scores, score_prompt=score_prompt)
    return [token async for tokens in engine.generate(request) for token in tokens]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": ((17, 100.0),)},
        {"temperature": 1, "top_k": 1},
        {"temperature": 1, "min_p": 1.0},
        {"temperature": 1, "top_p": 0.0},
    ],
)
async def test_the_tokens_and_the_text_are_the_torch_engines(engine, torch_engine, sampling):
    theirs, ours = await answer(engine, **sampling), await answer(torch_engine, **sampling)
    assert [token.id for token in theirs] == [token.id for token in ours]
    assert [token.text for token in theirs] == [token.text for token in ours]
    assert [token.finish_reason for token in theirs] == [token.finish_reason for token in ours]


async def test_the_scores_are_the_torch_engines(engine, torch_engine):
    theirs = await answer(engine, top_scores=3, score_prompt=True, repetition_penalty=1.2)
    ours = await answer(torch_engine, top_scores=3, score_prompt=True, repetition_penalty=1.2)
    for mine, other in zip(
        [*theirs[0].prompt_scores, *(token.score for token in theirs)],
        [*ours[0].prompt_scores, *(token.score for token in ours)],
        strict=True,
    ):
        assert (mine.id, len(mine.top)) == (other.id, len(other.top))
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [score for _, score in mine.top] == pytest.approx([score for _, score in other.top], abs=1e-3)
    assert all(token.prompt_scores == () for token in theirs[1:])


async def test_a_stop_string_and_a_seed(engine):
    free = "".join(token.text for token in await answer(engine, max_tokens=30, presence_penalty=2))
    stop = free[4:7]
    assert free.index(stop) == 4
    stopped = await answer(engine, max_tokens=30, presence_penalty=2, stop=(stop,))
    assert "".join(token.text for token in stopped) == free.split(stop)[0]
    assert stopped[-1].finish_reason == "stop"
    first, second, other = [
        [token.id for token in await answer(engine, temperature=1, seed=seed, max_tokens=30)] for seed in (7, 7, 2**70)
    ]
    assert first == second != other


async def test_limits(engine):
    with pytest.raises(PromptTooLongError):
        await anext(engine.generate(GenerationRequest(prompt_ids=[1] * engine.context)))
    engine.capacity, before = 1, engine.capacity
    try:
        stream = engine.generate(GenerationRequest(prompt_ids=PROMPT, sampling=Sampling(max_tokens=200)))
        await anext(stream)
        assert (engine.load().running, engine.load().waiting) == (1, 0)
        assert 0 < engine.load().cache_used < 1
        with pytest.raises(OverloadedError):
            await answer(engine)
        await stream.aclose()
        assert await answer(engine)
    finally:
        engine.capacity = before


async def test_who_leaves_ends_the_decoding(engine):
    streams = [
        engine.generate(GenerationRequest(prompt_ids=PROMPT, sampling=Sampling(max_tokens=240))) for _ in range(4)
    ]
    await asyncio.gather(*(anext(stream) for stream in streams))
    assert engine.load().running == 4
    await asyncio.gather(*(stream.aclose() for stream in streams))
    while engine.llm.get_num_unfinished_requests():  # a test's time limit ends it otherwise
        await asyncio.sleep(0.01)
    assert (engine.load().running, engine.load().cache_used) == (0, 0)
    engine.check()


def test_a_model_is_folded_once(tiny_model):
    folded = choice.folded_folder(tiny_model)
    assert folded != tiny_model
    assert choice.folded_folder(folded) == folded
    assert type(AutoModelForCausalLM.from_pretrained(folded)).__name__ == "LlamaForCausalLM"
