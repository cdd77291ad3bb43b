"""What a schema costs: tokens a second with and without one, at 1, 8 and 32 streams, beside llama.cpp's own server; the
first use of a schema; and whether every answer is valid.

The rates are of answers of 96 tokens at temperature 1.0: of SmolLM2 as it is served, on all cores, and of an untrained
6x384 with a vocabulary of characters, on one thread. Without a schema the model writes any text of that length.
llama.cpp's server has its own grammars, and the same file. The validity is of 100 schemas, whatever a model writes: an
untrained one writes at random.

    python benchmarks/constrained.py [--answers 10000] [--smollm2-answers 200] [--only rates]
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from voicechat_serve.generation.engines.llama_cpp.library import library

library()  # before torch, so that waiting threads sleep, as they do in the service

import jsonschema
import torch
import xllamacpp
from reporting import bar, floor, report

from schemas import schemas
from voicechat_platform.assets import locate_gguf
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.tool_text import HERMES
from voicechat_serve.generation.answer_form import NO_TOOLS, TextForm
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling, Token
from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder
from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder
from voicechat_serve.generation.tool_calls import answer_grammar

STREAMS = (1, 8, 32)
ANSWER = 96
LONGEST = 400
"""Tokens of an answer whose validity is checked."""

ITEMS = {
    "type": "array",
    "minItems": 30,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer"},
            "tall": {"type": "boolean"},
        },
        "required": ["name", "age", "tall"],
        "additionalProperties": False,
    },
}
"""More than an answer holds, so that none ends before its limit."""

SMOLLM2, SMALL, PEER = "SmolLM2", "6x384", "llama.cpp's server"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0].replace("\n", " "))
    parser.add_argument("--answers", type=int, default=10_000, help="of the untrained model, over 100 schemas")
    parser.add_argument("--smollm2-answers", type=int, default=100)
    parser.add_argument("--only", choices=["rates", "first use", "validity"], default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    bars = []
    engines = {SMOLLM2: smollm2(), SMALL: small()}
    if arguments.only in (None, "rates"):
        rates = measured_rates(engines, results)
        bars += [
            floor(f"{model}, with a schema / without, {streams} streams", rates[model, streams], least)
            for model, least in ((SMOLLM2, 0.9), (SMALL, 0.8))
            for streams in STREAMS
        ]
    if arguments.only in (None, "first use"):
        bars += first_use(engines[SMOLLM2], results)
    if arguments.only in (None, "validity"):
        for model, answers in ((SMALL, arguments.answers), (SMOLLM2, arguments.smollm2_answers)):
            bars.append(validity(model, engines[model], answers, results))
    for _, engine in engines.values():
        engine.close()
    report("constrained", results, bars)


def smollm2() -> tuple[ChatTokenizer, BatchedEngine]:
    path = locate_gguf("smollm2-135m-instruct")
    decoder = LlamaCppDecoder(path, slots=max(STREAMS), context=512, threads=os.cpu_count() or 1)
    return engine_of(ChatTokenizer(path), decoder)


def small() -> tuple[ChatTokenizer, BatchedEngine]:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=96, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, max_position_embeddings=512
    )
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer("characters", 0, "".join(map(chr, range(32, 128)))).save_pretrained(folder)
        tokenizer = ChatTokenizer(Path(folder))
    return engine_of(tokenizer, make_torch_decoder(GPTForCausalLM(config).eval(), slots=max(STREAMS)))


def engine_of(tokenizer: ChatTokenizer, decoder: Any) -> tuple[ChatTokenizer, BatchedEngine]:
    engine = BatchedEngine(decoder, tokenizer.vocabulary.decode, tokenizer.end_ids, lambda: tokenizer.grammars)
    engine.max_waiting = 10**6
    return tokenizer, engine


def grammar_of(schema: dict[str, Any]) -> str:
    grammar = answer_grammar(NO_TOOLS, TextForm("json_schema", schema), HERMES, has_end=True)
    assert grammar is not None
    return grammar


def request(seed: int, grammar: str | None, tokens: int, end_ids: Sequence[int] = ()) -> GenerationRequest:
    bias = () if grammar else tuple((token_id, -100.0) for token_id in end_ids)  # no free answer ends earlier
    sampling = Sampling(max_tokens=tokens, seed=seed, logit_bias=bias)
    return GenerationRequest(
        prompt_ids=random.Random(seed).choices(range(20, 90), k=16), sampling=sampling, grammar=grammar
    )


async def answer(engine: BatchedEngine, wanted: GenerationRequest) -> list[Token]:
    return [token async for made in engine.generate(wanted) for token in made]


def measured_rates(engines: dict, results: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Return rates with a schema divided by rates without, of runs in turn."""
    rates: dict[tuple[str, int], float] = {}
    grammar = grammar_of(ITEMS)

    def measure(model: str, streams: int, run: Callable[[int, bool, int], int]) -> float:
        ratio = []
        run(streams, True, 8)
        for _ in range(3):
            both = []
            for with_schema in (False, True):
                began = time.perf_counter()
                tokens = run(streams, with_schema, ANSWER)
                both.append(tokens / (time.perf_counter() - began))
            ratio.append(both[1] / both[0])
        results.append(
            {"model": model, "streams": streams, "free tokens/s": round(both[0], 1), "with a schema": round(both[1], 1)}
            | {"ratio": round(statistics.median(ratio), 3)}
        )
        print(results[-1], flush=True)
        return statistics.median(ratio)

    for model, (tokenizer, engine) in engines.items():
        for streams in STREAMS:
            rates[model, streams] = measure(model, streams, through(engine, grammar, tokenizer.end_ids))

    path = locate_gguf("smollm2-135m-instruct")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = str(path), max(STREAMS), max(STREAMS) * 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    server = xllamacpp.Server(params)

    def ask(streams: int, with_schema: bool, tokens: int) -> int:
        def one(seed: int) -> int:
            how = {"n_predict": tokens, "max_tokens": tokens, "temperature": 1.0, "seed": seed, "cache_prompt": False}
            how |= {"json_schema": ITEMS} if with_schema else {"ignore_eos": True}
            prompt = request(seed, None, tokens).prompt_ids
            return server.handle_completions({"prompt": prompt} | how)["usage"]["completion_tokens"]

        with ThreadPoolExecutor(streams) as threads:
            return sum(threads.map(one, range(streams)))

    for streams in STREAMS:
        rates[PEER, streams] = measure(PEER, streams, ask)
    return rates


def through(engine: BatchedEngine, grammar: str, end_ids: Sequence[int]) -> Callable[[int, bool, int], int]:
    """So many requests at once through an engine: how many tokens they got."""

    async def together(streams: int, with_schema: bool, tokens: int) -> int:
        wanted = [request(seed, grammar if with_schema else None, tokens, end_ids) for seed in range(streams)]
        return sum(map(len, await asyncio.gather(*(answer(engine, each) for each in wanted))))

    return lambda *how: asyncio.run(together(*how))


def first_use(model: tuple[ChatTokenizer, BatchedEngine], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A schema of 2 KB that the engine has not seen, while another answer is written."""
    tokenizer, engine = model
    tokenizer.grammars.start(grammar_of({"type": "boolean"}))  # the tables of the vocabulary, once for all schemas
    large = sorted(schemas(2000, seed=1), key=lambda schema: abs(2048 - len(json.dumps(schema))))[:20]
    compile_ms, stalls = [], []

    async def beside(wanted: GenerationRequest) -> float:
        times = []

        async def write() -> None:
            async for _ in engine.generate(request(0, None, 400, tokenizer.end_ids)):
                times.append(time.perf_counter())

        writing = asyncio.create_task(write())
        await asyncio.sleep(1.0)
        before = len(times)
        await answer(engine, wanted)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        gaps = [after - earlier for earlier, after in pairwise(times)]
        return max(gaps[before:]) - statistics.median(gaps[:before])

    for number, schema in enumerate(large):
        grammar = grammar_of(schema)
        began = time.perf_counter()
        tokenizer.grammars.start(grammar)
        compile_ms.append(1000 * (time.perf_counter() - began))
        if number < 5:
            tokenizer.grammars.compiled.clear()
            stalls.append(1000 * asyncio.run(beside(request(number, grammar, 8))))
    results.append(
        {"part": "first use", "schemas": len(large), "compile, median ms": round(statistics.median(compile_ms), 1)}
        | {"compile, most ms": round(max(compile_ms), 1), "another answer's pause, most ms more": round(max(stalls), 1)}
    )
    print(results[-1], flush=True)
    return [bar("first use of a schema of 2 KB, most ms", max(compile_ms), 50.0)]


def validity(
    model: str, engine: tuple[ChatTokenizer, BatchedEngine], answers: int, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """The share of answers that parse and validate, over 100 schemas."""
    _, running = engine
    wanted = schemas(100)
    checkers = [jsonschema.Draft202012Validator(schema) for schema in wanted]
    ends: Counter[str] = Counter()

    async def one(number: int) -> bool:
        tokens = await answer(running, request(number, grammar_of(wanted[number % 100]), LONGEST))
        text = "".join(token.text for token in tokens)
        ends[tokens[-1].finish_reason or ""] += 1
        try:
            return checkers[number % 100].is_valid(json.loads(text))
        except ValueError:
            print("invalid:", json.dumps(wanted[number % 100]), repr(text), flush=True)
            return False

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(one(number) for number in range(answers))))

    valid = asyncio.run(all_of_them())
    results.append({"part": "validity", "model": model, "answers": answers, "valid": valid, "ends": dict(ends)})
    print(results[-1], flush=True)
    return floor(f"valid answers of {model}", valid / max(1, answers), 1.0)


if __name__ == "__main__":
    main()
