"""The CTranslate2 engine over the real SmolLM2."""

import asyncio
from pathlib import Path

import pytest

from voicechat_platform.assets import locate
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.ctranslate2_engine import CTranslate2Engine
from voicechat_serve.generation.engines.interface import (
    GenerationRequest,
    PromptTooLongError,
    Sampling,
    UnsupportedError,
)
from voicechat_serve.operations.load import OverloadedError


@pytest.fixture(scope="module")
def folder() -> Path:
    return locate("smollm2-135m-instruct-int8")


@pytest.fixture(scope="module")
def tokenizer(folder) -> ChatTokenizer:
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def engine(folder, tokenizer) -> CTranslate2Engine:
    return CTranslate2Engine(folder, tokenizer.tokenizer, tokenizer.end_ids, parallel=2, max_waiting=1)


def request(tokenizer, text="Say hello.", **sampling) -> GenerationRequest:
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": text}])
    return GenerationRequest(prompt_ids=prompt_ids, sampling=Sampling(**({"temperature": 0} | sampling)))


async def tokens_of(engine, wanted):
    return [token async for made in engine.generate(wanted) for token in made]


async def test_text_and_end(engine, tokenizer):
    tokens = await tokens_of(engine, request(tokenizer, "What is the capital of France?"))
    assert "Paris" in "".join(token.text for token in tokens)
    assert (tokens[-1].id, tokens[-1].finish_reason) == (tokenizer.end_ids[0], "stop")
    assert "<|im_end|>" not in "".join(token.text for token in tokens)


async def test_limits(engine, tokenizer):
    tokens = await tokens_of(engine, request(tokenizer, max_tokens=3))
    assert [token.finish_reason for token in tokens] == [None, None, "length"]
    with pytest.raises(PromptTooLongError):
        await anext(engine.generate(request(tokenizer, "word " * 9000)))


async def test_a_stop_string_ends_the_decoding(engine, tokenizer):
    free = "".join([token.text for token in await tokens_of(engine, request(tokenizer))])
    stop = free[4:7]
    stopped = await tokens_of(engine, request(tokenizer, stop=(stop,)))
    assert "".join(token.text for token in stopped) == free.split(stop)[0]
    assert stopped[-1].finish_reason == "stop"


async def test_a_full_queue_refuses_and_leaving_makes_room(engine, tokenizer):
    streams = [engine.generate(request(tokenizer, "Write a very long story.", max_tokens=1500)) for _ in range(3)]
    # Two decode, the third waits: asking for its first token only queues it.
    await asyncio.gather(*(anext(stream) for stream in streams[:2]))
    third = asyncio.create_task(anext(streams[2]))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await anext(engine.generate(request(tokenizer)))
    for stream in streams[:2]:
        await stream.aclose()
    await third  # were the others still decoding, its turn would come only after their 1500 tokens
    await streams[2].aclose()


async def test_who_leaves_while_waiting_makes_room_at_once(engine, tokenizer):
    running = [engine.generate(request(tokenizer, "Write a very long story.", max_tokens=1500)) for _ in range(2)]
    await asyncio.gather(*(anext(stream) for stream in running))
    waiting = asyncio.create_task(anext(engine.generate(request(tokenizer))))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert len(engine.decodings) == 2
    for stream in running:
        await stream.aclose()


async def test_extreme_sampling_is_greedy_or_harmless(engine, tokenizer):
    greedy = [token.id for token in await tokens_of(engine, request(tokenizer, max_tokens=5))]
    almost = [
        token.id
        async for made in engine.generate(request(tokenizer, max_tokens=5, temperature=1e-46))
        for token in made
    ]
    assert almost == greedy
    assert [
        token
        async for made in engine.generate(request(tokenizer, max_tokens=2, temperature=1, top_k=10**6))
        for token in made
    ]


async def test_what_fails_in_the_library_fails_the_request(engine):
    with pytest.raises(TypeError):
        await anext(engine.generate(GenerationRequest(prompt_ids=[10**6])))


async def test_a_metric_checkpoint_is_folded_and_converted(tiny_model):
    tokenizer = ChatTokenizer(tiny_model)
    engine = make_engine(tiny_model, tokenizer, "ctranslate2")
    assert isinstance(engine, CTranslate2Engine)
    wanted = GenerationRequest(prompt_ids=tokenizer.encode("To be"), sampling=Sampling(max_tokens=6, temperature=0))
    tokens = await tokens_of(engine, wanted)
    assert [token.finish_reason for token in tokens] == [None] * 5 + ["length"]
    assert all(0 <= token.id < tokenizer.size for token in tokens)
    engine.close()


@pytest.mark.parametrize(
    "asked",
    [{"min_p": 0.1}, {"frequency_penalty": 1.0}, {"presence_penalty": 1.0}, {"logit_bias": ((1, 1.0),)}],
)
async def test_what_it_cannot_do_is_said(engine, asked):
    (feature,) = asked
    with pytest.raises(UnsupportedError, match=feature):
        await tokens_of(engine, GenerationRequest(prompt_ids=[1], sampling=Sampling(**asked)))
