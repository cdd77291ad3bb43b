"""The language-model deployment: one model, its engine, its tokenizer; messages in, text out as it is written."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from voicechat_serve.chat_tokenizer import ChatTokenizer, Message
from voicechat_serve.engines.interface import Engine, FinishReason, GenerationRequest, Sampling

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
        folder = Path(served.folder)
        self.tokenizer = ChatTokenizer(folder)
        self.engine = engine_for(folder, self.tokenizer)
        wanted = {name: self.tokenizer.generation.get(name) for name in ("temperature", "top_p", "top_k")}
        self.defaults = Sampling(**{name: value for name, value in wanted.items() if value is not None})
        # Serve calls this inside a running event loop, where no second one can be run: hence the thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self.warm_up()).result()

    async def warm_up(self) -> None:
        async for _ in self.complete("Once", {"max_tokens": 2}):
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
        prompt_ids = self.tokenizer.encode_chat(messages)
        if truncation == "auto":
            limit = self.engine.context * (1 - ANSWER_SHARE)
            while len(prompt_ids) > limit and (shorter := without_oldest(messages)):
                messages = shorter
                prompt_ids = self.tokenizer.encode_chat(messages)
        async with aclosing(self.write(prompt_ids, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, prompt: str, wishes: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """What follows the prompt; arguments and errors as in `chat`."""
        async with aclosing(self.write(self.tokenizer.encode(prompt), replace(self.defaults, **wishes))) as deltas:
            async for delta in deltas:
                yield delta

    async def write(self, prompt_ids: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        text, sent = "", 0.0
        async with aclosing(
            self.engine.generate(GenerationRequest(prompt_ids=prompt_ids, sampling=sampling))
        ) as tokens:
            count = 0
            async for token in tokens:
                count += 1
                text += token.text
                if token.finish_reason or time.monotonic() - sent >= MESSAGE_INTERVAL_S:
                    yield Delta(text, len(prompt_ids), count, token.finish_reason)
                    text, sent = "", time.monotonic()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self.engine.check()


def without_oldest(messages: Sequence[Message]) -> Sequence[Message]:
    """Without the first message that is neither the system's nor the last; empty when there is none."""
    first = 1 if messages[0]["role"] == "system" else 0
    return [*messages[:first], *messages[first + 1 :]] if len(messages) > first + 1 else []


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
