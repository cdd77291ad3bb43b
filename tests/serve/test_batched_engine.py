"""Continuous batching changes nothing but the speed: against a request alone, and against transformers' generate."""

import asyncio
import random
import threading
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.metrics import METRICS
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.interface import GenerationRequest, PromptTooLongError, Sampling, Token
from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder
from voicechat_serve.operations.health import MOST_FAILURES, UnhealthyError
from voicechat_serve.operations.load import Load, OverloadedError

CONTEXT = 96

# Each way of caching: keys and values, one tensor, one vector for all heads, one vector for all heads and its value.
VARIANTS: dict[str, dict] = {
    "standard": {},
    "standard, K=V": {"values": "tied"},
    "metric": {"attention": "metric"},
    "shared projection": {"attention": "metric", "projection": "shared"},
    "shared projection, separate values": {"attention": "metric", "projection": "shared", "values": "separate"},
    "learned positions": {"attention": "metric", "positions": "learned"},
    "one metric, normalised": {"attention": "metric", "metric_sharing": "model", "qk_norm": True},
    **{metric: {"attention": "metric", "metric": metric} for metric in METRICS if metric != "symmetric"},
}

torch.set_num_threads(1)  # models this small only wait for a second thread


def model_of(kind: str):
    torch.manual_seed(0)
    if kind == "llama":  # grouped queries: fewer key heads than query heads
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
        )
        return LlamaForCausalLM(config).eval()
    config = GPTConfig(
        **VARIANTS[kind], vocab_size=64, hidden_size=64, num_hidden_layers=2, max_position_embeddings=CONTEXT
    )
    config.initializer_range = 0.2  # livelier than a fresh model, whose greedy text is one token repeated
    return GPTForCausalLM(config).eval()


def letters(token_ids) -> str:
    return "".join(chr(64 + i) for i in token_ids)


def engine_of(kind: str, end_ids=(), slots: int | None = None, **options) -> BatchedEngine:
    decoder = make_torch_decoder(model_of(kind), slots=slots)
    return BatchedEngine(decoder, letters, end_ids, handover_interval_s=0.001, **options)


def request(prompt_ids, max_tokens=24, **sampling) -> GenerationRequest:
    sampling = {"temperature": 0} | sampling
    return GenerationRequest(prompt_ids=list(prompt_ids), sampling=Sampling(max_tokens=max_tokens, **sampling))


async def ids_of(engine, wanted) -> list[int]:
    return [token.id for token in await tokens_of(engine, wanted)]


async def tokens_of(engine, wanted) -> list[Token]:
    return [token async for tokens in engine.generate(wanted) for token in tokens]


def mixed_requests(count: int) -> list[GenerationRequest]:
    rng = random.Random(1)
    requests = []
    for i in range(count):
        prompt = [rng.randrange(64) for _ in range(rng.randint(1, 40))]
        rules = {} if i % 2 == 0 else {"temperature": 1.0, "seed": i, "top_p": rng.choice([1, 0.8])}
        requests.append(request(prompt, max_tokens=rng.randint(5, 50), **rules))
    return requests


@pytest.mark.parametrize("kind", [*VARIANTS, "llama"])
async def test_tokens_do_not_depend_on_company(kind):
    engine = engine_of(kind, slots=32)
    requests = mixed_requests(32)
    alone = [await ids_of(engine, wanted) for wanted in requests]

    async def later(wanted, delay):
        await asyncio.sleep(delay)
        return await ids_of(engine, wanted)

    together = await asyncio.gather(*(later(wanted, i * 0.001) for i, wanted in enumerate(requests)))
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)
    engine.close()


@pytest.mark.parametrize("kind", [*VARIANTS, "llama"])
async def test_greedy_tokens_are_those_of_transformers(kind):
    engine = engine_of(kind)
    prompt_ids = [random.Random(2).randrange(64) for _ in range(20)]
    reference = model_of(kind).generate(
        torch.tensor([prompt_ids]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert await ids_of(engine, request(prompt_ids, 60)) == reference[0, 20:].tolist()
    engine.close()


@pytest.mark.parametrize("kind", ["standard", "metric", "llama"])
async def test_a_conversation_goes_on_where_it_was(kind):
    """The next turn takes over what the cache knows, and gives the tokens of one that reads everything."""
    engine = engine_of(kind, slots=2)
    read = counted_prefill(engine)
    prompt_ids = list(range(30))
    answer_ids = await ids_of(engine, request(prompt_ids, 10))
    turn_ids = [*prompt_ids, *answer_ids, 5, 6, 7]
    next_ids = await ids_of(engine, request(turn_ids, 10))
    assert sum(read) == 30 + 4  # the last token of an answer is never fed to the model
    engine.close()
    fresh = engine_of(kind)
    assert await ids_of(fresh, request(turn_ids, 10)) == next_ids
    fresh.close()


async def test_prompts_that_begin_alike_are_read_once():
    engine = engine_of("metric")
    read = counted_prefill(engine)
    wanted = [request([*range(40), last], 20, temperature=1, seed=last) for last in range(5)]
    together = await asyncio.gather(*(ids_of(engine, each) for each in wanted))
    assert sum(read) == 41 + 4
    engine.close()
    fresh = engine_of("metric", slots=1)
    assert [await ids_of(fresh, each) for each in reversed(wanted)] == together[::-1]
    fresh.close()


@pytest.mark.parametrize("kind", ["metric", "llama"])
async def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(kind, monkeypatch):
    monkeypatch.setattr("voicechat_serve.generation.engines.batched_engine.PREFILL_TOKENS", 8)
    engine = engine_of(kind)
    reads = counted_prefill(engine)
    other = engine.generate(request([1, 2, 3], 80))
    await anext(other)
    long_ids = [random.Random(3).randrange(64) for _ in range(70)]
    long = asyncio.create_task(ids_of(engine, request(long_ids, 10)))
    steps = 0
    while len(reads) < 10:
        steps += len(await anext(other))
    found = await long
    assert max(reads) == 8
    assert steps >= 8
    await other.aclose()
    engine.close()
    whole = engine_of(kind)
    monkeypatch.undo()
    assert await ids_of(whole, request(long_ids, 10)) == found
    whole.close()


def counted_prefill(engine) -> list[int]:
    """Lengths of the pieces of prompts that the engine reads from now on."""
    lengths: list[int] = []
    prefill = engine.decoder.prefill

    def counting(row, ids_t, start, every=False):
        lengths.append(len(ids_t))
        return prefill(row, ids_t, start, every)

    engine.decoder.prefill = counting
    return lengths


@pytest.mark.parametrize("kind", ["metric", "llama"])
async def test_scores_of_prompt_and_answer(kind, monkeypatch):
    monkeypatch.setattr("voicechat_serve.generation.engines.batched_engine.PREFILL_TOKENS", 7)
    engine = engine_of(kind)
    prompt_ids = [random.Random(4).randrange(64) for _ in range(20)]
    await ids_of(engine, request(prompt_ids, 5))  # now in the cache: a prompt to be scored is read all the same
    wanted = GenerationRequest(
        prompt_ids=prompt_ids, sampling=Sampling(max_tokens=5, seed=1), top_scores=3, score_prompt=True
    )
    tokens = await tokens_of(engine, wanted)
    engine.close()
    ids = [*prompt_ids, *(token.id for token in tokens)]
    with torch.no_grad():
        logprobs_tv = model_of(kind)(torch.tensor([ids])).logits[0].log_softmax(-1)
    scores = [*tokens[0].prompt_scores, *(token.score for token in tokens)]
    assert [score.id for score in scores] == ids
    assert (scores[0].logprob, scores[0].top) == (None, ())
    for place, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(float(logprobs_tv[place, score.id]), abs=1e-3)
        assert [token_id for token_id, _ in score.top] == logprobs_tv[place].topk(3).indices.tolist()
    assert all(not token.prompt_scores for token in tokens[1:])


async def test_metric_attention_caches_one_tensor():
    engine = engine_of("metric")
    await ids_of(engine, request([1, 2, 3]))
    standard = engine_of("standard")
    assert engine.decoder.bytes_per_slot * 2 == standard.decoder.bytes_per_slot
    standard.close()
    engine.close()


async def test_the_context_bounds_prompt_and_answer():
    engine = engine_of("standard")
    tokens = await tokens_of(engine, request([1] * 90, max_tokens=None))
    assert len(tokens) == CONTEXT - 90
    assert tokens[-1].finish_reason == "length"
    with pytest.raises(PromptTooLongError, match="96 tokens"):
        await ids_of(engine, request([1] * CONTEXT))
    engine.close()


async def test_end_tokens_and_stop_strings():
    engine = engine_of("standard")
    free = await ids_of(engine, request([5, 6, 7]))
    stop = letters(free[9:11])
    tokens = await tokens_of(engine, request([5, 6, 7], stop=(stop,)))
    assert tokens[-1].finish_reason == "stop"
    assert "".join(token.text for token in tokens) == letters(free).split(stop)[0]
    engine.close()

    ending = engine_of("standard", end_ids=[free[9]])
    first = free.index(free[9])
    tokens = await tokens_of(ending, request([5, 6, 7]))
    assert (len(tokens), tokens[-1].finish_reason) == (first + 1, "stop")
    assert "".join(token.text for token in tokens) == letters(free[:first])
    ending.close()


async def test_cancelling_frees_the_slot():
    engine = engine_of("standard", slots=1)
    stream = engine.generate(request([1], max_tokens=90))
    await anext(stream)
    other = asyncio.create_task(ids_of(engine, request([2], max_tokens=3)))
    await stream.aclose()
    assert len(await asyncio.wait_for(other, 5)) == 3
    while engine.load() != Load(running=0, waiting=0, cache_used=0):  # a test's time limit ends it otherwise
        await asyncio.sleep(0.001)
    engine.close()


async def test_a_full_queue_refuses():
    engine = engine_of("standard", slots=1, max_waiting=2)
    first = engine.generate(request([1], max_tokens=95))
    await anext(first)
    tasks = [asyncio.create_task(ids_of(engine, request([i], max_tokens=2))) for i in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await ids_of(engine, request([3]))
    with pytest.raises(OverloadedError):  # this engine has no grammars: it would fail if it tried
        await ids_of(engine, replace(request([3]), grammar="start: /a/"))
    await first.aclose()
    assert [len(tokens) for tokens in await asyncio.gather(*tasks)] == [2, 2]
    engine.close()


async def test_a_prompt_that_fails_hurts_no_neighbour():
    engine = engine_of("standard")
    neighbour = asyncio.create_task(ids_of(engine, request([1], max_tokens=40)))
    with pytest.raises(IndexError):
        await ids_of(engine, request([10**6]))
    assert len(await neighbour) == 40
    engine.close()


async def test_sampling_obeys_top_k_and_top_p():
    engine = engine_of("standard")
    greedy = await ids_of(engine, request([9, 9]))
    assert await ids_of(engine, request([9, 9], temperature=5.0, top_k=1)) == greedy
    assert await ids_of(engine, request([9, 9], temperature=5.0, top_p=1e-9)) == greedy
    assert await ids_of(engine, request([9, 9], temperature=5.0)) != greedy
    engine.close()


async def test_an_engine_that_reads_a_prompt_is_not_idle():
    engine = engine_of("metric")
    loads = []
    prefill = engine.decoder.prefill

    def observed(*arguments, **options):
        loads.append(engine.load().running)
        return prefill(*arguments, **options)

    engine.decoder.prefill = observed
    await ids_of(engine, request(range(20), 2))
    assert loads == [1]
    engine.close()


def fail(*arguments, **settings):
    raise MemoryError("no room")


async def test_a_prompt_whose_beginning_cannot_be_copied_fails_alone(monkeypatch):
    engine = engine_of("metric", slots=3)
    decode, gate = engine.decoder.decode, threading.Event()
    monkeypatch.setattr(engine.decoder, "decode", lambda *arguments: gate.wait(60) and decode(*arguments))
    first = engine.generate(request([*range(30)], 60))
    begun = await anext(first)
    with monkeypatch.context() as broken:
        broken.setattr(engine.decoder, "copy", fail)
        second = asyncio.create_task(ids_of(engine, request([*range(20), 5], 3)))
        await asyncio.sleep(0)  # it is in the queue, and the first one still decodes
        gate.set()
        with pytest.raises(MemoryError):
            await second
    assert len(begun) + len(await rest_of(first)) == 60
    engine.close()


async def test_rows_that_cannot_be_exchanged_end_everybody_with_the_error(monkeypatch):
    engine = engine_of("metric", slots=3)
    decode, gate = engine.decoder.decode, threading.Event()
    monkeypatch.setattr(engine.decoder, "decode", lambda *arguments: gate.wait(60) and decode(*arguments))
    leaves, stays = (engine.generate(request([token], 90)) for token in range(2))
    await anext(leaves)
    following = asyncio.create_task(anext(stays))
    await asyncio.sleep(0)
    with monkeypatch.context() as broken:
        broken.setattr(engine.decoder, "swap", fail)
        gate.set()
        await following
        await leaves.aclose()  # the other's row takes the place of this one
        with pytest.raises(MemoryError):
            await rest_of(stays)
    assert len(await ids_of(engine, request([2], 90))) == 90  # and the engine goes on
    engine.close()


async def rest_of(stream) -> list[Token]:
    return [token async for made in stream for token in made]


async def test_closing_ends_what_is_under_way_and_refuses_the_rest():
    engine = engine_of("standard")
    stream = engine.generate(request([1], 90))
    await anext(stream)
    await asyncio.to_thread(engine.close)
    with pytest.raises(RuntimeError, match="ended"):
        await rest_of(stream)
    with pytest.raises(RuntimeError, match="ended"):
        await ids_of(engine, request([1]))


async def test_a_negative_seed_is_a_seed_of_its_own():
    engine = engine_of("standard")
    texts = [await ids_of(engine, request([1], temperature=1, seed=seed)) for seed in (-1, 0, 1)]
    assert len({tuple(ids) for ids in texts}) == 3
    engine.close()


@pytest.mark.parametrize("broken", ["decode", "prefill"])
async def test_an_engine_whose_every_step_fails_is_replaced(broken, monkeypatch):
    engine = engine_of("standard")
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, broken, fail)
        for _ in range(MOST_FAILURES - 1):
            with pytest.raises(MemoryError):
                await ids_of(engine, request([1, 2]))
            engine.check()
    assert len(await ids_of(engine, request([1, 2]))) == 24  # and all is forgotten
    for _ in range(2 * MOST_FAILURES):
        for bad in (request([]), request(range(CONTEXT)), request([10**6])):
            with pytest.raises((InputError, IndexError)):
                await ids_of(engine, bad)
    engine.check()
    monkeypatch.setattr(engine.decoder, broken, fail)
    for _ in range(MOST_FAILURES):
        with pytest.raises(MemoryError):
            await ids_of(engine, request([1, 2]))
    with pytest.raises(UnhealthyError, match="no room"):
        engine.check()
    engine.close()
