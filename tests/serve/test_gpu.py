"""On a GPU: the same tokens, words and losses as on a CPU. benchmarks/on_gpu.sh runs these."""

import asyncio
import re

import jiwer
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from small_run import small_recipe
from voicechat_platform.assets import locate
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.training.loop import Training
from voicechat_platform.training.starting_point import load_data
from voicechat_serve.audio import decode
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling
from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder
from voicechat_serve.transcription.transcriber import Transcription

pytestmark = pytest.mark.gpu

MODELS = {
    "standard": lambda: GPTForCausalLM(GPTConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2)),
    "metric": lambda: GPTForCausalLM(GPTConfig(attention="metric", vocab_size=64, hidden_size=64, num_hidden_layers=2)),
    "Llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
        )
    ),
}


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " "))


async def generated(model, device: str) -> list[list[int]]:
    """Eight greedy answers at once."""
    engine = BatchedEngine(make_torch_decoder(model.to(device), slots=8), lambda ids: "x" * len(ids), ())

    async def answer(first: int) -> list[int]:
        request = GenerationRequest(prompt_ids=[first, 1, 2], sampling=Sampling(max_tokens=24, temperature=0))
        return [token.id for tokens in [part async for part in engine.generate(request)] for token in tokens]

    try:
        return await asyncio.gather(*map(answer, range(8)))
    finally:
        engine.close()


@pytest.mark.parametrize("kind", MODELS)
async def test_an_engine_makes_the_tokens_of_a_cpu(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    for weights in model.parameters():  # livelier than a fresh model, whose greedy text is one token repeated
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.2)
    assert await generated(model, "cuda") == await generated(model, "cpu")


def test_training_takes_the_steps_of_a_cpu(tmp_path):
    recipe = small_recipe(tmp_path)
    data = load_data(recipe)
    on_gpu, on_cpu = (
        [evaluation.validation_loss for evaluation in Training(recipe, data, device=torch.device(name)).evaluations()]
        for name in ("cuda", "cpu")
    )
    assert on_gpu == pytest.approx(on_cpu, rel=0.01)


@pytest.mark.parametrize("name", ["tiny.en", "base"])
async def test_whisper_hears_the_words_of_a_cpu(clips, name):
    sounds = [decode(clip.read_bytes()) for clip, _ in clips]
    said = " ".join(words for _, words in clips * 2).replace("mister", "mr")
    on_gpu = Transcription(locate(f"whisper-{name}"), device="cuda")
    on_cpu = Transcription(locate(f"whisper-{name}"), device="cpu")
    assert (on_gpu.model.model.device, on_gpu.model.model.compute_type) == ("cuda", "float16")
    for sound_n in sounds:
        ours, theirs = [await each.hear(sound_n, "en") for each in (on_gpu, on_cpu)]
        assert jiwer.wer(plain(theirs.text), plain(ours.text)) < 0.2
    together = await on_gpu.transcribe(np.concatenate(sounds * 2), "en", with_words=True)
    assert jiwer.wer(said, plain(together.text)) < 0.1
    times = [time for segment in together.segments for word in segment.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert together.seconds - 3 < times[-1] <= together.seconds
