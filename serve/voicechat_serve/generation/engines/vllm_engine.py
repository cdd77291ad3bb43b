"""vLLM, if it is installed (docs/serving.md): stock models, on a GPU or a CPU, in separate processes."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from voicechat_serve.generation.engines.interface import (
    CACHE_BYTES,
    LONGEST_CONTEXT,
    MOST_RUNNING,
    MOST_WAITING,
    FinishReason,
    GenerationRequest,
    Score,
    Token,
    UnsupportedError,
    room_for,
)
from voicechat_serve.generation.engines.text_stream import Decode, TextStream
from voicechat_serve.operations.health import Health
from voicechat_serve.operations.load import Load, OverloadedError


class VLLMEngine:
    """An `Engine` over vLLM's own, which needs one event loop: here the loop of a thread.

    Args:
        folder: a Hugging Face model directory of an architecture that vLLM knows.
        context: the most positions of the model.
        decode: token ids -> text.
        end_ids: tokens that end an answer.
        dtype: "float32" or "bfloat16".
        threads: threads of a step on a CPU.
    """

    def __init__(self, folder: Path, context: int, decode: Decode, end_ids: Sequence[int], dtype: str, threads: int):
        # vLLM's processes inherit these; their defaults would claim the same cores for every replica.
        os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS=str(threads), VLLM_NO_USAGE_STATS="1")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.decode_text, self.end_ids = decode, list(end_ids)
        self.context, self.capacity = min(context, LONGEST_CONTEXT), MOST_RUNNING + MOST_WAITING
        arguments = AsyncEngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            generation_config="vllm",  # no defaults of the folder: a request sets all
            dtype=dtype,
            max_model_len=self.context,
            max_num_seqs=MOST_RUNNING,
            kv_cache_memory_bytes=CACHE_BYTES,  # the default takes nearly the whole GPU
            enforce_eager=dtype == "float32",  # compilation takes minutes, and pays on a GPU
            disable_log_stats=True,
        )

        async def start() -> AsyncLLM:
            return AsyncLLM.from_engine_args(arguments)

        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="vllm-engine", daemon=True)
        self.thread.start()
        self.llm = asyncio.run_coroutine_threadsafe(start(), self.loop).result()
        cache = self.llm.vllm_config.cache_config
        self.cache_tokens: int = cache.num_gpu_blocks * cache.block_size
        self.health = Health()
        self.held: dict[str, int] = {}  # the tokens of each request in the cache

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        room = max(1, room_for(request, self.context))
        if request.grammar is not None:
            raise UnsupportedError("grammar", "vllm")
        if not self.thread.is_alive():
            raise RuntimeError("the engine has ended")
        if len(self.held) >= self.capacity:
            raise OverloadedError(f"the model already has {self.capacity} requests")
        params = sampling_params(request, room, self.end_ids)
        name, outputs = uuid4().hex, asyncio.Queue[Any]()
        self.held[name] = len(request.prompt_ids)
        loop = asyncio.get_running_loop()
        run = asyncio.run_coroutine_threadsafe(self.run(name, request.prompt_ids, params, loop, outputs), self.loop)
        text = TextStream(self.decode_text, request.sampling.stop)
        given = 0
        try:
            while not isinstance(output := await outputs.get(), Exception):
                prompt_scores = scores(request.prompt_ids, output.prompt_logprobs or (), request)
                ids = output.outputs[0].token_ids
                token_scores = scores(ids, output.outputs[0].logprobs or (), request)
                tokens: list[Token] = []
                for place, token_id in enumerate(ids):
                    given += 1
                    self.held[name] += 1
                    new, stopped = (text.finish(), True) if token_id in self.end_ids else text.push(token_id)
                    if given == room and not stopped:
                        new += text.finish()
                    score, before = (
                        token_scores[place] if token_scores else None,
                        tuple(prompt_scores) if given == 1 else (),
                    )
                    reason: FinishReason | None = "stop" if stopped else "length" if given == room else None
                    tokens.append(Token(new, token_id, reason, score, before))
                    if reason:
                        break
                if tokens:
                    yield tokens
                if tokens and tokens[-1].finish_reason:
                    return
            raise output
        finally:
            del self.held[name]
            run.cancel()  # vLLM aborts the request

    async def run(self, name: str, prompt_ids: list[int], params: Any, loop: Any, outputs: asyncio.Queue) -> None:
        """Pass one request's outputs on, and at last its error; on the engine's thread."""
        end: Exception = RuntimeError("vLLM ended the answer early")
        try:
            with self.health.step("answering") as gets_on:
                async for output in self.llm.generate({"prompt_token_ids": prompt_ids}, params, name):
                    gets_on()
                    loop.call_soon_threadsafe(outputs.put_nowait, output)
        except Exception as error:
            end = error
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no client waits any more
                loop.call_soon_threadsafe(outputs.put_nowait, end)

    def load(self) -> Load:
        held = list(self.held.values())
        running = min(len(held), MOST_RUNNING)
        return Load(running=running, waiting=len(held) - running, cache_used=min(1.0, sum(held) / self.cache_tokens))

    def check(self) -> None:
        if self.llm.errored:
            raise self.llm.dead_error
        if not self.thread.is_alive():
            raise RuntimeError("the engine's thread has ended")
        self.health.check()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.llm.shutdown)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


def sampling_params(request: GenerationRequest, room: int, end_ids: list[int]) -> Any:
    """Return the request in vLLM's terms."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling = request.sampling
    same = ("top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
    return SamplingParams(
        **{name: getattr(sampling, name) for name in same},
        max_tokens=room,
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_p=max(sampling.top_p, 1e-6),
        logit_bias=dict(sampling.logit_bias) or None,
        seed=None if sampling.seed is None else sampling.seed % 2**63,
        logprobs=request.top_scores,
        prompt_logprobs=request.top_scores if request.score_prompt else None,
        stop_token_ids=end_ids,
        ignore_eos=True,  # the end tokens are ours
        detokenize=False,  # TextStream does it, so that stop strings mean the same on every engine
        output_kind=RequestOutputKind.DELTA,
    )


def scores(ids: Sequence[int], places: Sequence[Mapping[int, Any] | None], request: GenerationRequest) -> list[Score]:
    """Return the scores of each place that vLLM has scored: its likeliest tokens, and the token itself."""
    found = []
    for token_id, place in zip(ids, places, strict=False):
        likeliest = sorted(
            ((other, entry.logprob) for other, entry in (place or {}).items()), key=lambda pair: -pair[1]
        )
        logprob = place[token_id].logprob if place else None
        found.append(Score(token_id, logprob, tuple(likeliest[: request.top_scores or 0])))
    return found
