"""CTranslate2 on the CPU: int8 weights, several concurrent requests, one core each.

Measured once on two shared cores (SmolLM2-135M, int8, four requests): two workers of one thread 172 tokens/s, one
worker of one thread 82, one worker of two threads 30.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

from voicechat_serve.generation.engines.interface import GenerationRequest, Token, UnsupportedError, room_for
from voicechat_serve.generation.engines.text_stream import TextStream
from voicechat_serve.operations.health import Health
from voicechat_serve.operations.load import Load, OverloadedError

LONGEST_UNCANCELLABLE_CONTEXT = 2048
"""A prompt is read in one go that cannot be cancelled: SmolLM2 reads about 100 tokens a second on two busy cores, and
its own 8,192 would hold one of the workers for over a minute."""


@dataclass(eq=False)
class Decoding:
    """The link between one request and CTranslate2's thread."""

    loop: asyncio.AbstractEventLoop
    token_ids: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)
    """None follows the last token."""
    cancelled: bool = False

    def receive(self, step: ctranslate2.GenerationStepResult) -> bool:
        """Receive a token on CTranslate2's thread; return True to end the request."""
        self.send(step.token_id)
        return self.cancelled

    def send(self, token_id: int | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no client waits any more
            self.loop.call_soon_threadsafe(self.token_ids.put_nowait, token_id)


class CTranslate2Engine:
    """An `Engine` over a directory of CTranslate2's converter. It refuses seeds.

    Args:
        folder: model.bin with its config.json.
        tokenizer: the model's tokenizer.
        end_ids: tokens that end an answer.
        parallel: concurrent requests, one thread each.
        max_waiting: the most waiting requests; further ones are refused.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, end_ids: Sequence[int], *, parallel: int = 2, max_waiting: int = 32
    ):
        self.generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="int8", inter_threads=parallel, intra_threads=1
        )
        # As many threads as CTranslate2 has workers: requests wait here, where a cancellation costs nothing.
        self.workers = ThreadPoolExecutor(parallel, thread_name_prefix="ctranslate2-engine")
        self.tokenizer = tokenizer
        self.end_ids = list(end_ids)
        config = json.loads((folder / "config.json").read_text())
        longest = LONGEST_UNCANCELLABLE_CONTEXT
        self.context: int = min(config.get("max_position_embeddings", longest), longest)
        self.parallel, self.capacity = parallel, parallel + max_waiting
        self.decodings: set[Decoding] = set()
        self.health = Health()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        require_supported(request)
        room = room_for(request, self.context)
        if len(self.decodings) >= self.capacity:
            raise OverloadedError(f"the model already has {self.capacity} requests")
        decoding = Decoding(asyncio.get_running_loop())
        running = self.workers.submit(self.decode, request, room, decoding)
        self.decodings.add(decoding)
        running.add_done_callback(lambda _: self.decodings.discard(decoding))
        text = TextStream(self.tokenizer.decode, request.sampling.stop)
        try:
            for count in range(1, room + 1):
                token_id = await decoding.token_ids.get()
                if token_id is None:
                    await asyncio.wrap_future(running)  # raises the request's error
                    raise RuntimeError("CTranslate2 ended without an end token")
                if token_id in self.end_ids:
                    yield [Token(text.finish(), token_id, "stop")]
                    return
                new, stopped = text.push(token_id)
                if stopped:
                    yield [Token(new, token_id, "stop")]
                    return
                if count == room:
                    new += text.finish()
                yield [Token(new, token_id, "length" if count == room else None)]
        finally:
            decoding.cancelled = True
            running.cancel()  # if it still waits for a worker, this frees its place at once

    def decode(self, request: GenerationRequest, room: int, decoding: Decoding) -> None:
        """Run one request to its end; blocks."""
        sampling = request.sampling
        try:
            if decoding.cancelled:
                return
            with self.health.step("decoding") as gets_on:

                def receive(step: ctranslate2.GenerationStepResult) -> bool:
                    gets_on()
                    return decoding.receive(step)

                self.generator.generate_batch(
                    [[self.tokenizer.id_to_token(token_id) for token_id in request.prompt_ids]],
                    max_length=room,
                    sampling_topk=1 if sampling.greedy else min(sampling.top_k, self.tokenizer.get_vocab_size()),
                    sampling_topp=max(sampling.top_p, 1e-6),
                    repetition_penalty=sampling.repetition_penalty,
                    sampling_temperature=1.0 if sampling.greedy else sampling.temperature,
                    end_token=self.end_ids,
                    return_end_token=True,
                    include_prompt_in_result=False,
                    callback=receive,
                )
        finally:
            decoding.send(None)

    def load(self) -> Load:
        taken = len(self.decodings)
        running = min(taken, self.parallel)
        return Load(running=running, waiting=taken - running, cache_used=running / self.parallel)

    def check(self) -> None:
        self.health.check()

    def close(self) -> None:
        self.workers.shutdown()
        self.generator.unload_model()


def require_supported(request: GenerationRequest) -> None:
    """Check that CTranslate2 supports the request.

    Raises:
        UnsupportedError: it does not.
    """
    sampling = request.sampling
    asked_for = {
        "min_p": sampling.min_p > 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
        "presence_penalty": sampling.presence_penalty != 0,
        "logit_bias": bool(sampling.logit_bias),
        "seed": sampling.seed is not None,  # its sampling uses one generator for all requests
        "logprobs": request.top_scores is not None,
    }
    for feature, is_wanted in asked_for.items():
        if is_wanted:
            raise UnsupportedError(feature, "ctranslate2")
