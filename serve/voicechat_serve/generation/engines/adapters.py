"""Adapters (LoRA): fine-tunes that share the memory and the batch of the model that they were trained on."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.batched_engine import AdaptingDecoder, BatchedEngine
from voicechat_serve.generation.engines.interface import Engine, GenerationRequest, Token
from voicechat_serve.operations.load import Load


def add_adapter(engine: Engine, path: Path) -> Engine:
    """Return an engine for the model with an adapter; `close` removes the adapter, and the model stays.

    Raises:
        InputError: this engine has no adapters, or the adapter is damaged or made for another model.
    """
    if not isinstance(engine, BatchedEngine) or not isinstance(engine.decoder, AdaptingDecoder):
        raise InputError(f"this model's engine cannot add the adapter {path} to it: use llamacpp")
    return AdaptedEngine(engine, engine.decoder, path)


class AdaptedEngine:
    """An `Engine`: the requests of one adapter run in the batch of its base's engine.

    Args:
        engine: the base's engine.
        decoder: that engine's decoder.
        path: the adapter.
    """

    def __init__(self, engine: BatchedEngine, decoder: AdaptingDecoder, path: Path):
        self.engine, self.decoder = engine, decoder
        self.adapter = decoder.add_adapter(path)
        self.context = engine.context

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        return self.engine.generate(replace(request, adapter=self.adapter))

    def load(self) -> Load:
        return self.engine.load(self.adapter)

    def check(self) -> None:
        self.engine.check()

    def close(self) -> None:
        self.decoder.remove_adapter(self.adapter)
