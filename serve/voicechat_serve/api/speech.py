"""/audio/speech: a text as speech, streamed sentence by sentence; /audio/voices: the voices."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag

from voicechat_platform.errors import InputError
from voicechat_serve.api.errors import APIError, api_error
from voicechat_serve.api.fields import Body, Text
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import Services, streamed
from voicechat_serve.api.streaming import ClosedStream, event
from voicechat_serve.audio import SPEECH_FORMATS, SpeechEncoder
from voicechat_serve.synthesis.spoken_text import read_all
from voicechat_serve.synthesis.voices import HEART, SPEECH_RATE, VoiceId, find_voice, installed_voices

TOKEN_S = 0.02
"""Usage is in tokens, which voices do not have: the input counts characters, the output counts stretches of this
length."""


LONGEST_QUOTE, MOST_QUOTES = 100, 5
"""The quoted characters of each unspeakable part, and the number of quoted parts, in an error."""


Voice = Annotated[
    Annotated[Text, Tag("[name]")] | Annotated[VoiceId, Tag("[object]")],
    Discriminator(lambda voice: "[object]" if isinstance(voice, dict) else "[name]"),
]


class SpeechRequest(Body):
    model: Text
    input: Text = Field(min_length=1, max_length=4096)
    voice: Voice = HEART.id
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: Text | None = None
    """No effect, as in OpenAI's tts-1: openai-agents' VoicePipeline sends some with every text."""


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    voices = installed_voices()

    @routes.get("/audio/voices")
    async def list_voices() -> dict[str, Any]:
        cards = [
            {"id": voice.id, "name": voice.id, "object": "voice", "language": voice.language, "engine": voice.engine}
            for voice in voices
        ]
        return {"object": "list", "data": cards, "voices": cards}  # the second name for open-webui and others

    @routes.post("/audio/speech")
    async def create_speech(request: SpeechRequest) -> Any:
        services.require_synthesis(request.model)
        name = request.voice if isinstance(request.voice, str) else request.voice.id
        try:
            voice = find_voice(name, voices)
        except InputError as error:
            raise APIError(400, str(error), param="voice", code="invalid_value") from error
        reading = await asyncio.to_thread(read_all, request.input, voice.language)
        if reading.unspoken:
            parts = ", ".join(repr(part[:LONGEST_QUOTE]) for part in reading.unspoken[:MOST_QUOTES])
            message = (
                f"the voice {voice.id!r} (language {voice.language!r}) cannot speak this part of the input: {parts}"
            )
            raise APIError(400, message, param="input", code="invalid_value")
        if not reading.aloud:
            raise nothing_to_speak(request.input)
        async with AsyncExitStack() as opening:
            sentences = await opening.enter_async_context(
                streamed(services.synthesis, "speak", reading.aloud, request.speed, voice.id)
            )
            first_n = await anext(sentences, None)  # an error must come before the status is sent
            if first_n is None:
                raise nothing_to_speak(request.input)
            stack = opening.pop_all()

        async def sound() -> AsyncGenerator[bytes]:
            spoken, samples_n = 0, first_n
            encoder = SpeechEncoder(request.response_format, SPEECH_RATE)
            while samples_n is not None:
                spoken += len(samples_n)
                current_request().audio_seconds = spoken / SPEECH_RATE
                yield await asyncio.to_thread(encoder.encode, samples_n)
                samples_n = await anext(sentences, None)
            yield await asyncio.to_thread(encoder.finish)

        if request.stream_format == "sse":
            events = speech_events(sound(), len(request.input))
            return ClosedStream(events, "text/event-stream", stack)
        return ClosedStream(sound(), SPEECH_FORMATS[request.response_format].media_type, stack)

    return routes


def nothing_to_speak(text: str) -> APIError:
    message = f"the input has no word to speak: {text[:LONGEST_QUOTE]!r}"
    return APIError(400, message, param="input", code="invalid_value")


async def speech_events(sound: AsyncGenerator[bytes], characters: int) -> AsyncGenerator[str]:
    """Yield the bytes of a sound file as server-sent events.

    Args:
        sound: the streamed file; closed with this stream.
        characters: the length of the spoken text.
    """
    async with aclosing(sound):
        try:
            async for part in sound:
                if part:  # the codec may have held all of it back
                    yield event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})
        except Exception as error:
            reported = api_error(error)
            current_request().error = reported.code or reported.kind
            yield event(reported.body())
            return
        spoken = round((current_request().audio_seconds or 0) / TOKEN_S)
        usage = {"input_tokens": characters, "output_tokens": spoken, "total_tokens": characters + spoken}
        yield event({"type": "speech.audio.done", "usage": usage})
