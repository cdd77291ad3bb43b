"""The language-model deployment: one model, its engine, its tokenizer; messages in, text out as it is written."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from voicechat_serve.chat_tokenizer import ChatTokenizer, Message
from voicechat_serve.engines.interface import Engine, FinishReason, GenerationRequest, Sampling
from voicechat_serve.loopback import listen_where_ray_listens
from voicechat_serve.metrics import ModelMetrics

Truncation = Literal["disabled", "auto"]
"""Whether a conversation that outgrows the context is refused, or loses its oldest messages."""

MESSAGE_INTERVAL_S = 0.04
"""Least time between two messages to the API: small models write a token in 1 ms, which is less than a hop costs."""

ANSWER_SHARE = 0.25
"""How much of the context `truncation="auto"` keeps free for the answer."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    id: str
    """The name that clients ask for."""
    folder: Path
    """A Hugging Face model directory, or one that CTranslate2's converter wrote (with model.bin)."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Generated so far."""
    finish_reason: FinishReason | None
    """Set on the last piece."""


class LanguageModel:
    def __init__(self, served: ServedModel):
        listen_where_ray_listens()
        folder = Path(served.folder)
        self.tokenizer = ChatTokenizer(folder)
        self.engine = engine_for(folder, self.tokenizer)
        self.metrics = ModelMetrics(served.id, self.engine.load)
        wanted = {name: self.tokenizer.generation.get(name) for name in ("temperature", "top_p", "top_k")}
        self.defaults = Sampling(**{name: value for name, value in wanted.items() if value is not None})
        # Serve calls this inside a running event loop, where no second one can be run: hence the thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self.warm_up()).result()

    async def warm_up(self) -> None:
        # A token, not a text: a model of characters may know none of the text's.
        request = GenerationRequest(prompt_ids=[0], sampling=Sampling(max_tokens=2))
        async for _ in self.engine.generate(request):
            pass

    async def chat(
        self, messages: Sequence[Message], wishes: dict[str, Any], truncation: Truncation = "disabled"
    ) -> AsyncGenerator[Delta, None]:
        """The assistant's next turn.

        Args:
            messages: the conversation so far.
            wishes: fields of `Sampling` that the client has set; the model's own defaults stand for the others.
            truncation: what to do with a conversation that is longer than the context.

        Raises (at the first piece): what `Engine.generate` raises, and InputError where the messages do not fit
        the model's template.
        """
        sampling = replace(self.defaults, **wishes)
        sampling = replace(sampling, stop=(*sampling.stop, *self.tokenizer.chat_stop))
        # Not on the event loop: a long conversation takes seconds, and the others' answers would wait.
        prompt_ids = await asyncio.to_thread(self.tokenizer.encode_chat, messages)
        limit = int(self.engine.context * (1 - ANSWER_SHARE))
        if truncation == "auto" and len(prompt_ids) > limit:
            prompt_ids = await asyncio.to_thread(self.shortened, messages, limit)
        async with aclosing(self.write(prompt_ids, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    def shortened(self, messages: Sequence[Message], limit: int) -> list[int]:
        """The longest prompt within the limit that leaves out the oldest messages, but never the system's.

        Where the last message alone is too long, its beginning is left out too.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        rest = messages[len(system) :]

        def prompt_of(num_left_out: int) -> list[int]:
            return self.tokenizer.encode_chat([*system, *rest[num_left_out:]])

        num_left_out = bisect_left(range(len(rest) - 1), True, key=lambda number: len(prompt_of(number)) <= limit)
        return prompt_of(num_left_out)[-limit:]

    async def complete(self, prompt: str, wishes: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """What follows the prompt; arguments and errors as in `chat`."""
        prompt_ids = await asyncio.to_thread(self.tokenizer.encode, prompt)
        async with aclosing(self.write(prompt_ids, replace(self.defaults, **wishes))) as deltas:
            async for delta in deltas:
                yield delta

    async def write(self, prompt_ids: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        text, sent = "", 0.0
        measured = self.metrics.answer(len(prompt_ids))
        async with aclosing(
            self.engine.generate(GenerationRequest(prompt_ids=prompt_ids, sampling=sampling))
        ) as tokens:
            count = 0
            async for token in tokens:
                count += 1
                text += token.text
                if token.finish_reason or time.monotonic() - sent >= MESSAGE_INTERVAL_S:
                    measured.observe(count)
                    yield Delta(text, len(prompt_ids), count, token.finish_reason)
                    text, sent = "", time.monotonic()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self.engine.check()


def engine_for(folder: Path, tokenizer: ChatTokenizer) -> Engine:
    # Imported here, so that a replica loads its own engine's library only, and the driver none.
    if (folder / "model.bin").exists():
        from voicechat_serve.engines.ctranslate2_engine import CTranslate2Engine

        return CTranslate2Engine(folder, tokenizer.tokenizer, tokenizer.end_ids)

    import torch
    from transformers import AutoModelForCausalLM

    import voicechat_platform.models  # noqa: F401 (registers our family with the Auto classes)
    from voicechat_serve.engines.torch_engine import TorchEngine

    torch.set_num_threads(1)  # a small model's step is too short to share
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return TorchEngine(model, tokenizer.decode, tokenizer.end_ids)
