"""Tokens a second of the engines at 1, 8 and 32 streams, beside transformers, CTranslate2 and llama.cpp's own server.

Every peer runs the same weights: of the small models folded into a Llama, in float32, on as many threads as ours; and
SmolLM2 as it is served, on all cores, beside the server of the same llama.cpp and CTranslate2 in int8. Greedy,
prompts of 16 tokens, answers of 96. The last columns say what share of a step the machine would need at least: for its
products at the rate of a large product measured in the same run, and for reading weights and cache at the rate of a
large copy.

    python benchmarks/decode.py [--threads 1] [--full] [--only 4x128]
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from voicechat_serve.generation.engines.llama_cpp.library import library

library()  # before torch, so that waiting threads sleep, as they do in the service

import ctranslate2
import torch
import xllamacpp
from ctranslate2.converters import TransformersConverter
from reporting import floor, report
from transformers import GenerationConfig

from voicechat_platform.assets import locate, locate_gguf
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.folding import fold, save_folded
from voicechat_platform.models.gguf_export import write_gguf
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling
from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder
from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder
from voicechat_serve.generation.vocabularies import HuggingFaceVocabulary

STREAMS = (1, 8, 32)
PROMPT, ANSWER = 16, 96
VOCABULARY = 96
SHAPES = {"4x128": (4, 128, 4), "6x384": (6, 384, 6)}
SMOLLM2 = "SmolLM2"
ATTENTIONS: dict[str, dict[str, Any]] = {"standard": {}, "tied metric": {"attention": "metric"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every engine")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: only our torch decoder there")
    parser.add_argument("--only", default="", help="the models whose name begins so")
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

    if arguments.device == "cuda":
        for shape in SHAPES:
            for attention in ATTENTIONS:
                decoder = make_torch_decoder(model_of(shape, attention).to("cuda"))
                measure_ours(f"{shape} {attention}", "ours, torch on a GPU", decoder, measure, None)
        return report("decode", results, [])
    for shape in SHAPES:
        for attention in ATTENTIONS:
            if (name := f"{shape} {attention}").startswith(arguments.only):
                measure_small(name, model_of(shape, attention), arguments.threads, measure)
    if SMOLLM2.startswith(arguments.only):
        measure_smollm2(measure)
    return report("decode", results, bars_of(rates))


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
    """Our engine over both decoders, then transformers, then CTranslate2."""
    decoder = make_torch_decoder(model)
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "cache": decoder.bytes_per_slot / 256}
    measure_ours(name, "ours, torch", decoder, measure, facts)
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
    tokenizer = make_tokenizer("characters", 0, "".join(map(chr, range(32, 32 + VOCABULARY))))
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(folded, tokenizer, Path(folder) / "model.gguf")
        decoder = LlamaCppDecoder(Path(folder) / "model.gguf", slots=max(STREAMS), threads=threads)
        measure_ours(name, "ours, llama.cpp", decoder, measure)
        save_folded(folded, tokenizer, Path(folder) / "folded")
        generator = converted(Path(folder) / "folded", Path(folder), threads)
        names = tokenizer.convert_ids_to_tokens(list(range(VOCABULARY)))
        for streams in STREAMS:
            measure(name, "CTranslate2 float32", streams, direct(generator, names.__getitem__))


def measure_ours(name: str, engine_name: str, decoder: Any, measure: Callable, facts: dict | None = None) -> None:
    engine = BatchedEngine(decoder, lambda ids: "x" * len(ids), end_ids=[])
    for streams in STREAMS:
        measure(name, engine_name, streams, through(engine), facts)
    engine.close()


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


def one_each(generator: ctranslate2.Generator, token_of: Callable[[int], str]) -> Callable[[int, int], int]:
    """Requests that share nothing, as they come to a service; a thread of CTranslate2 for each."""

    def run(streams: int, tokens: int) -> int:
        def one(prompt: list[int]) -> int:
            how = {"max_length": tokens, "min_length": tokens, "sampling_topk": 1, "include_prompt_in_result": False}
            (result,) = generator.generate_batch([[token_of(token_id) for token_id in prompt]], **how)
            return len(result.sequences_ids[0])

        with ThreadPoolExecutor(streams) as threads:
            return sum(threads.map(one, prompts(streams)))

    return run


def asking(server: xllamacpp.Server) -> Callable[[int, int], int]:
    """So many requests at once to llama.cpp's own server."""

    def run(streams: int, tokens: int) -> int:
        def one(prompt: list[int]) -> int:
            how = {"n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
            return server.handle_completions({"prompt": prompt, "max_tokens": tokens} | how)["usage"][
                "completion_tokens"
            ]

        with ThreadPoolExecutor(streams) as threads:
            return sum(threads.map(one, prompts(streams)))

    return run


def converted(source: Path, folder: Path, threads: int, quantization: str | None = None) -> ctranslate2.Generator:
    """A model of transformers in CTranslate2."""
    TransformersConverter(str(source)).convert(str(folder / "converted"), quantization=quantization)
    return ctranslate2.Generator(str(folder / "converted"), inter_threads=1, intra_threads=threads)


def measure_smollm2(measure: Callable) -> None:
    """As it is served by default, beside llama.cpp's own server, and CTranslate2 with one thread for each request."""
    path, threads = locate_gguf("smollm2-135m-instruct"), os.cpu_count() or 1
    torch.set_num_threads(1)
    measure_ours(
        SMOLLM2, "ours, llama.cpp", LlamaCppDecoder(path, slots=max(STREAMS), context=512, threads=threads), measure
    )
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = str(path), max(STREAMS), max(STREAMS) * 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    for streams in STREAMS:
        measure(SMOLLM2, "llama.cpp's server", streams, asking(server))
    del server
    with tempfile.TemporaryDirectory() as folder:
        source = locate("smollm2-135m-instruct")
        TransformersConverter(str(source)).convert(f"{folder}/converted", quantization="int8")
        generator = ctranslate2.Generator(f"{folder}/converted", inter_threads=2, intra_threads=1)
        vocabulary = HuggingFaceVocabulary(source)
        for streams in STREAMS:
            measure(SMOLLM2, "CTranslate2 int8", streams, one_each(generator, vocabulary.name))


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
    """Only those whose parts were measured."""

    def times(model: str, streams: int, *peers: str) -> float | None:
        """Our faster decoder over the fastest of these."""
        ours = [rates.get((model, f"ours, {decoder}", streams), 0) for decoder in ("torch", "llama.cpp")]
        theirs = [rates.get((model, peer, streams), 0) for peer in peers]
        return max(ours) / max(theirs) if max(theirs) else None

    wanted = [
        ("4x128 standard, 1 stream: ours / transformers generate", ("4x128 standard", 1, "transformers generate"), 10),
        ("4x128 standard, 32: ours / transformers batching", ("4x128 standard", 32, "transformers batching"), 20),
        *(
            (f"{name}, {streams}: ours / CTranslate2 float32", (name, streams, "CTranslate2 float32"), 1)
            for name in ("4x128 standard", "6x384 standard")
            for streams in STREAMS
        ),
        *((f"SmolLM2, {n}: ours / llama.cpp's server", (SMOLLM2, n, "llama.cpp's server"), 0.95) for n in STREAMS),
        ("SmolLM2, 1: ours / CTranslate2 int8", (SMOLLM2, 1, "CTranslate2 int8"), 1.7),
        ("SmolLM2, 8: ours / CTranslate2 int8", (SMOLLM2, 8, "CTranslate2 int8"), 3),
    ]
    return [floor(name, value, least) for name, parts, least in wanted if (value := times(*parts)) is not None]


if __name__ == "__main__":
    main()
