"""/audio/speech: text spoken, sent sentence by sentence as it is made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Text
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import Services, streamed
from voicechat_serve.audio import SPEECH_FORMATS, SpeechEncoder
from voicechat_serve.synthesis import SPEECH_RATE, VOICE

# The names that OpenAI's clients send; all are answered by the one voice there is.
OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
    *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
)


class VoiceId(BaseModel):
    id: Text


class SpeechRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    model: Text
    input: Text = Field(min_length=1, max_length=4096)
    voice: Text | VoiceId = VOICE
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio"] = "audio"


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/audio/speech")
    async def create_speech(request: SpeechRequest) -> Any:
        services.require_synthesis(request.model)
        if not any(character.isalnum() for character in request.input):
            raise APIError(400, "the input has no word to speak", param="input", code="invalid_value")
        voice = request.voice if isinstance(request.voice, str) else request.voice.id
        if voice not in (VOICE, *OPENAI_VOICES):
            message = f"unknown voice {voice!r}; there are {', '.join((VOICE, *OPENAI_VOICES))}"
            raise APIError(400, message, param="voice", code="invalid_value")
        stack = AsyncExitStack()
        try:
            sentences = await stack.enter_async_context(
                streamed(services.synthesis, "speak", request.input, request.speed)
            )
            first_n = await anext(sentences, None)  # an error must come before the status is sent
        except BaseException:
            await stack.aclose()
            raise

        async def sound() -> AsyncIterator[bytes]:
            spoken = 0
            async with stack:
                encoder = SpeechEncoder(request.response_format, SPEECH_RATE)
                if first_n is not None:
                    spoken += len(first_n)
                    current_request().audio_seconds = spoken / SPEECH_RATE
                    yield await asyncio.to_thread(encoder.encode, first_n)
                    async for samples_n in sentences:
                        spoken += len(samples_n)
                        current_request().audio_seconds = spoken / SPEECH_RATE
                        yield await asyncio.to_thread(encoder.encode, samples_n)
                yield await asyncio.to_thread(encoder.finish)

        return StreamingResponse(sound(), media_type=SPEECH_FORMATS[request.response_format].media_type)

    return routes
