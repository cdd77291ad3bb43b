"""What the routers work with: handles of the deployments, and which of them a model's name means."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.request_log import current_request
from voicechat_serve.language_model import ServedModel

TRANSCRIPTION_ALIASES = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
SYNTHESIS_MODEL = "hibari"
SYNTHESIS_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


RESERVED_NAMES = {*TRANSCRIPTION_ALIASES, SYNTHESIS_MODEL, *SYNTHESIS_ALIASES}
"""Names that mean an audio model."""


@dataclass(frozen=True, kw_only=True)
class Services:
    models: dict[str, ServedModel]
    language_models: dict[str, DeploymentHandle]
    """By model id; each a `LanguageModel`."""
    transcription: DeploymentHandle
    """A `Transcription`."""
    transcription_model: str
    synthesis: DeploymentHandle
    """A `Synthesis`."""
    realtime_sessions: int = 16
    """Most spoken conversations at once, in each replica of the ingress."""

    def language_model(self, name: str) -> tuple[DeploymentHandle, int | None]:
        """A language model, and the version of it that a name such as "shakespeare@3" asks for.

        Raises:
            APIError: 404, there is no such language model.
        """
        model, at, number = name.rpartition("@")
        if not at or not (number.isascii() and number.isdigit() and len(number) < 10):
            model, number = name, ""
        if model not in self.language_models:
            raise unknown_model(name, self.language_models)
        current_request().model = model
        return self.language_models[model], int(number) if number else None

    def require_transcription(self, name: str) -> None:
        if name not in (self.transcription_model, *TRANSCRIPTION_ALIASES):
            raise unknown_model(name, (self.transcription_model, *TRANSCRIPTION_ALIASES))
        current_request().model = self.transcription_model

    def require_synthesis(self, name: str) -> None:
        if name not in (SYNTHESIS_MODEL, *SYNTHESIS_ALIASES):
            raise unknown_model(name, (SYNTHESIS_MODEL, *SYNTHESIS_ALIASES))
        current_request().model = SYNTHESIS_MODEL


def unknown_model(name: str, available) -> APIError:
    message = f"the model {shortened(name, 100)!r} does not exist here; there are {', '.join(available)}"
    return APIError(404, message, param="model", code="model_not_found")


@contextlib.asynccontextmanager
async def streamed(handle: DeploymentHandle, method: str, *arguments: Any) -> AsyncIterator[AsyncIterator[Any]]:
    """The stream of a replica's method; leaving the block early cancels what the replica is doing."""
    stream = getattr(handle.options(stream=True), method).remote(*arguments)
    try:
        yield stream
    finally:
        stream.cancel()
