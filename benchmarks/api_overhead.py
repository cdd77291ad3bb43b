"""What HTTP costs: time to first token and tokens a second through the running service, beside the engine called
directly in one process with the same model, prompts and number of streams.

    python benchmarks/api_overhead.py [--shape 6x384] [--streams 16]
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from decode import SHAPES, VOCABULARY, model_of
from reporting import bar, floor, report
from service import running_service
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling
from voicechat_serve.generation.served_model import ServedModel

PROMPT = "the quick brown fox jumps over the lazy dog. " * 2
ANSWER = 128

Ask = Callable[[str, int], AsyncIterator[int]]
"""(prompt, most tokens) -> how many tokens there are so far, as they come."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="6x384")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4, help="requests of each stream, one after the other")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        save_model(folder, arguments.shape)
        direct = asyncio.run(measure_engine(folder, arguments.streams, arguments.rounds))
        over_http = measure_service(folder, arguments.streams, arguments.rounds)
    results = [{"way": "engine", **direct}, {"way": "HTTP", **over_http}]
    overhead_ms = over_http["first token alone, ms"] - direct["first token alone, ms"]
    report(
        "api_overhead",
        results,
        [
            bar("first token over HTTP less the engine's, p50, ms", overhead_ms, 15),
            floor("tokens/s over HTTP / the engine's", over_http["tokens/s"] / direct["tokens/s"], 0.9),
        ],
    )


def save_model(folder: Path, shape: str) -> None:
    characters = ["\n", *(chr(32 + code) for code in range(VOCABULARY - 1))]
    tokenizer = Tokenizer(WordLevel({character: place for place, character in enumerate(characters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    model_of(shape, "standard").save_pretrained(folder)


async def measure_engine(folder: Path, streams: int, rounds: int) -> dict[str, float]:
    tokenizer = ChatTokenizer(folder)
    engine = make_engine(folder, tokenizer)

    async def ask(prompt: str, most: int) -> AsyncIterator[int]:
        sampling = Sampling(max_tokens=most, temperature=1)
        count = 0
        request = GenerationRequest(prompt_ids=tokenizer.vocabulary.encode(prompt), sampling=sampling)
        async for made in engine.generate(request):
            count += len(made)
            yield count

    try:
        return await measure(ask, streams, rounds)
    finally:
        engine.close()


def measure_service(folder: Path, streams: int, rounds: int) -> dict[str, float]:
    with running_service(ServedModel(id="model", path=folder)) as address:
        return asyncio.run(measure_http(f"http://{address}/v1/completions", streams, rounds))


async def measure_http(url: str, streams: int, rounds: int) -> dict[str, float]:
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:

        async def ask(prompt: str, most: int) -> AsyncIterator[int]:
            body = {"model": "model", "prompt": prompt, "max_tokens": most, "temperature": 1, "stream": True}
            body |= {"stream_options": {"include_usage": True}}
            async with client.stream("POST", url, json=body) as response:
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if event["usage"]:
                        yield event["usage"]["completion_tokens"]
                    elif event["choices"][0]["text"]:
                        yield 0  # a piece, of who knows how many tokens

        return await measure(ask, streams, rounds)


async def measure(ask: Ask, streams: int, rounds: int) -> dict[str, Any]:
    async def one(number: int) -> tuple[float, int]:
        """Seconds to the first piece, and the tokens in all."""
        began, first_s, tokens = time.perf_counter(), 0.0, 0
        # No two prompts begin alike: nothing is taken over from the one before.
        async for count in ask(f"{number * 7919 % 10007}: {PROMPT}", ANSWER):
            first_s = first_s or time.perf_counter() - began
            tokens = max(tokens, count)
        return first_s, tokens

    async def stream(number: int) -> list[tuple[float, int]]:
        return [await one(number * rounds + turn) for turn in range(rounds)]

    await asyncio.gather(*(one(1000 + number) for number in range(streams)))  # warm
    alone = [(await one(2000 + number))[0] for number in range(20)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(stream(number) for number in range(streams)))
    seconds = time.perf_counter() - began
    together = [one for stream_answers in answers for one in stream_answers]
    return {
        "first token alone, ms": round(statistics.median(alone) * 1e3, 2),
        "first token together, ms": round(statistics.median(first for first, _ in together) * 1e3, 2),
        "tokens/s": round(sum(tokens for _, tokens in together) / seconds, 1),
    }


if __name__ == "__main__":
    main()
