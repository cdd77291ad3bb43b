"""Tokens a second of the engines at 1, 8 and 32 streams, beside transformers and CTranslate2 on the same weights.

Every peer runs the model folded into a Llama, in float32 and on as many threads as ours; SmolLM2 runs as it is served,
in int8, beside CTranslate2 called directly. Greedy, prompts of 16 tokens, answers of 96. The last columns say what
share of a step the machine would need at least: for its products at the rate of a large product measured in the same
run, and for reading weights and cache at the rate of a large copy.

    python benchmarks/decode.py [--threads 1] [--full]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from reporting import floor, report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from voicechat_platform.assets import locate
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.ctranslate2_conversion import convert_to_ctranslate2
from voicechat_platform.models.folding import fold
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.ctranslate2_engine import CTranslate2Engine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling
from voicechat_serve.generation.engines.torch_engine import TorchEngine

STREAMS = (1, 8, 32)
PROMPT, ANSWER = 16, 96
VOCABULARY = 96
SHAPES = {"4x128": (4, 128, 4), "6x384": (6, 384, 6)}
ATTENTIONS: dict[str, dict[str, Any]] = {"standard": {}, "tied metric": {"attention": "metric"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every engine")
    parser.add_argument("--full", action="store_true", help="three repetitions, of which the best counts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repetitions = 3 if arguments.full else 1
    limits = MachineLimits()
    results: list[dict[str, Any]] = []
    rates: dict[tuple, float] = {}

    def measure(model: str, engine: str, streams: int, run: Callable[[int, int], int], facts: dict | None = None):
        run(streams, 8)  # warm
        best = 0.0
        for _ in range(repetitions):
            began = time.perf_counter()
            tokens = run(streams, ANSWER)
            best = max(best, tokens / (time.perf_counter() - began))
        rates[model, engine, streams] = best
        shares = limits.shares(facts, streams, best) if facts else {"products": "", "memory": ""}
        results.append({"model": model, "engine": engine, "streams": streams, "tokens/s": round(best, 1)} | shares)
        print(f"{model:20} {engine:24} {streams:3} {best:9.1f} tokens/s", flush=True)

    for shape in SHAPES:
        for attention in ATTENTIONS:
            measure_small(f"{shape} {attention}", model_of(shape, attention), arguments.threads, measure)
    measure_smollm2(measure)
    report("decode", results, bars_of(rates))


def model_of(shape: str, attention: str) -> GPTForCausalLM:
    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = GPTConfig(
        **ATTENTIONS[attention],
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=256,
    )
    return GPTForCausalLM(config).eval()


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(VOCABULARY, (count, PROMPT), generator=generator).tolist()


def measure_small(name: str, model: GPTForCausalLM, threads: int, measure: Callable) -> None:
    """Ours, then transformers, then CTranslate2."""
    engine = TorchEngine(model, lambda ids: "x" * len(ids), end_ids=[])
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "cache": engine.decoder.bytes_per_slot / 256}
    for streams in STREAMS:
        measure(name, "ours", streams, through(engine), facts)
    engine.close()
    folded = fold(model)
    settings = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)

    def generate(streams: int, tokens: int) -> int:
        ids = torch.tensor(prompts(streams))
        return folded.generate(ids, settings, max_new_tokens=tokens).numel() - ids.numel()

    measure(name, "transformers generate", 1, generate)

    def batched(streams: int, tokens: int) -> int:
        wanted = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=tokens)
        outputs = folded.generate_batch(prompts(streams), generation_config=wanted, progress_bar=False)
        return sum(len(output.generated_tokens) for output in outputs.values())

    measure(name, "transformers batching", 32, batched)
    with tempfile.TemporaryDirectory() as folder:
        generator = converted(folded, Path(folder), threads)
        for streams in STREAMS:
            measure(name, "CTranslate2 float32", streams, direct(generator, str))


def through(engine) -> Callable[[int, int], int]:
    """So many requests at once through an engine: how many tokens they got."""

    async def one(prompt_ids: list[int], tokens: int) -> int:
        request = GenerationRequest(prompt_ids=prompt_ids, sampling=Sampling(max_tokens=tokens, temperature=0))
        return sum([len(made) async for made in engine.generate(request)])

    async def together(streams: int, tokens: int) -> int:
        return sum(await asyncio.gather(*(one(prompt, tokens) for prompt in prompts(streams))))

    return lambda streams, tokens: asyncio.run(together(streams, tokens))


def direct(generator: ctranslate2.Generator, token_of: Callable[[int], str]) -> Callable[[int, int], int]:
    def run(streams: int, tokens: int) -> int:
        results = generator.generate_batch(
            [[token_of(token_id) for token_id in prompt] for prompt in prompts(streams)],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return sum(len(result.sequences_ids[0]) for result in results)

    return run


def converted(folded, folder: Path, threads: int) -> ctranslate2.Generator:
    """A folded model with a tokenizer whose tokens are the numbers themselves."""
    vocabulary = {str(number): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="0"))
    source = folder / "folded"
    folded.save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    convert_to_ctranslate2(source, folder / "converted")
    return ctranslate2.Generator(str(folder / "converted"), inter_threads=1, intra_threads=threads)


def measure_smollm2(measure: Callable) -> None:
    """As it is served by default, beside CTranslate2 called directly with its own defaults."""
    folder = locate("smollm2-135m-instruct-int8")
    tokenizer = ChatTokenizer(folder)
    engine = CTranslate2Engine(folder, tokenizer.tokenizer, [])
    for streams in STREAMS:
        measure("SmolLM2 int8", "ours", streams, through(engine))
    engine.close()
    generator = ctranslate2.Generator(str(folder), compute_type="int8")
    for streams in STREAMS:
        measure("SmolLM2 int8", "CTranslate2 int8", streams, direct(generator, tokenizer.tokenizer.id_to_token))


class MachineLimits:
    """How fast this machine multiplies and reads, at best, with the threads that torch has now."""

    def __init__(self):
        left, right = torch.randn(256, 1024), torch.randn(1024, 1024)
        self.flops = 2 * 256 * 1024 * 1024 / fastest(lambda: left @ right)
        source, target = torch.zeros(2**24), torch.zeros(2**24)
        self.bytes = 2 * source.nbytes / fastest(lambda: target.copy_(source))

    def shares(self, facts: dict[str, float], streams: int, rate: float) -> dict[str, float]:
        """Of a step's time, what products and reading would need at least."""
        step_s = streams / rate
        read = 4 * facts["parameters"] + streams * facts["cache"] * (PROMPT + ANSWER / 2)
        return {
            "products": round(2 * facts["parameters"] * streams / self.flops / step_s, 3),
            "memory": round(read / self.bytes / step_s, 3),
        }


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of ten."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def bars_of(rates: dict[tuple, float]) -> list[dict[str, Any]]:
    small, large, tied = "4x128 standard", "6x384 standard", "6x384 tied metric"

    def times(model: str, streams: int, peer: str) -> float:
        return rates[model, "ours", streams] / rates[model, peer, streams]

    return [
        floor("4x128, 1 stream: ours / transformers generate", times(small, 1, "transformers generate"), 10),
        floor("4x128, 32 streams: ours / transformers batching", times(small, 32, "transformers batching"), 20),
        *(
            floor(f"{name}, {streams} streams: ours / CTranslate2", times(name, streams, "CTranslate2 float32"), 1)
            for name in (small, large)
            for streams in (8, 32)
        ),
        floor("SmolLM2, 1 stream: ours / CTranslate2 int8", times("SmolLM2 int8", 1, "CTranslate2 int8"), 1),
        floor("6x384, 32 streams: tied / standard", rates[tied, "ours", 32] / rates[large, "ours", 32], 1.15),
    ]


if __name__ == "__main__":
    main()
