"""/audio/transcriptions: what is said in a sound file."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import PlainTextResponse

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import Services
from voicechat_serve.audio import AudioError, decode

FORMATS = ("json", "text")


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/audio/transcriptions")
    async def create_transcription(
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        language: Annotated[str | None, Form()] = None,
        prompt: Annotated[str | None, Form(max_length=4096)] = None,
        response_format: Annotated[str, Form()] = "json",
        temperature: Annotated[float, Form(ge=0, le=1)] = 0,
        stream: Annotated[bool, Form()] = False,
    ) -> Any:
        services.require_transcription(model)
        if response_format not in FORMATS:
            message = f"response_format {response_format!r} is not supported; there are {', '.join(FORMATS)}"
            raise APIError(400, message, param="response_format", code="unsupported_value")
        if stream:
            raise APIError(400, "stream is not supported", param="stream", code="unsupported_parameter")
        try:
            samples_n = await asyncio.to_thread(decode, await file.read())
        except AudioError as error:
            raise APIError(400, str(error), param="file", code="invalid_audio") from error
        transcript = await services.transcription.transcribe.remote(samples_n, language, prompt, temperature)
        current_request().audio_seconds = transcript.seconds
        if response_format == "text":
            return PlainTextResponse(transcript.text + "\n")
        return {"text": transcript.text, "usage": {"type": "duration", "seconds": transcript.seconds}}

    return routes
