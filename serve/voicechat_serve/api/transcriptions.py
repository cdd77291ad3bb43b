"""/audio/transcriptions and /audio/translations: the transcript of a sound file, in its language or in English."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.responses import PlainTextResponse

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Text, require_known_form
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import WHOLE_S, Services, answered, streamed
from voicechat_serve.api.streaming import ClosedStream, error_event, event
from voicechat_serve.api.transcript_formats import (
    PLAIN_FORMATS,
    Granularity,
    TranscriptFormat,
    as_verbose_json,
    duration_usage,
    token_usage,
)
from voicechat_serve.api.uploads import Uploads
from voicechat_serve.transcription.languages import ENGLISH_ONLY
from voicechat_serve.transcription.transcriber import Transcript

# The parameters of both endpoints. The file's name is never used.
Sound = Annotated[UploadFile, File()]
ModelName = Annotated[Text, Form()]
Prompt = Annotated[Text | None, Form(max_length=4096)]
Format = Annotated[TranscriptFormat, Form()]
Temperature = Annotated[float, Form(ge=0, le=1)]


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    uploads = Uploads()

    @routes.post("/audio/transcriptions", dependencies=[Depends(require_known_form)])
    async def create_transcription(
        file: Sound,
        model: ModelName,
        language: Annotated[Text | None, Form()] = None,
        languages: Annotated[list[Text] | None, Form(alias="languages[]")] = None,
        prompt: Prompt = None,
        response_format: Format = "json",
        temperature: Temperature = 0,
        granularities: Annotated[list[Granularity] | None, Form(alias="timestamp_granularities[]")] = None,
        include: Annotated[list[str] | None, Form(alias="include[]")] = None,
        stream: Annotated[bool, Form()] = False,
    ) -> Any:
        services.require_transcription(model)
        if include:
            message = "include is not supported: log probabilities of tokens are not available"
            raise APIError(400, message, param="include", code="unsupported_parameter")
        if granularities and response_format != "verbose_json":
            message = "timestamp_granularities need the response_format verbose_json"
            raise APIError(400, message, param="timestamp_granularities", code="invalid_value")
        if language is not None:
            language = services.language_code(language, "language")
        if languages:
            language = only_language(language, [services.language_code(tag, "languages") for tag in languages])
        options = (language, prompt, temperature, "transcribe", "word" in (granularities or ()))
        if stream:
            if response_format != "json":
                message = f"a stream has no response_format {response_format}, only json"
                raise APIError(400, message, param="response_format", code="unsupported_value")
            return await transcript_stream(services, uploads, file, *options)
        transcript = await whole_transcript(services, uploads, file, *options)
        if response_format == "verbose_json":
            return as_verbose_json(transcript, granularities or ["segment"])
        if response_format == "json":
            return {"text": transcript.text, "usage": duration_usage(transcript)}
        return PlainTextResponse(PLAIN_FORMATS[response_format](transcript))

    @routes.post("/audio/translations", dependencies=[Depends(require_known_form)])
    async def create_translation(
        file: Sound,
        model: ModelName,
        prompt: Prompt = None,
        response_format: Format = "json",
        temperature: Temperature = 0,
    ) -> Any:
        services.require_transcription(model)
        if services.transcription_languages == ENGLISH_ONLY:  # the model also refuses
            message = f"{services.transcription_model} knows only English: serve whisper-base for translations"
            raise APIError(400, message, param="model", code="unsupported_value")
        transcript = await whole_transcript(services, uploads, file, None, prompt, temperature, "translate")
        if response_format == "verbose_json":
            verbose = as_verbose_json(transcript, ["segment"]) | {"task": "translate", "language": "english"}
            del verbose["usage"]  # OpenAI's translations have none
            return verbose
        if response_format == "json":
            return {"text": transcript.text}
        return PlainTextResponse(PLAIN_FORMATS[response_format](transcript))

    return routes


def only_language(language: str | None, languages: list[str]) -> str:
    """Return the one language that both fields name.

    Raises:
        APIError: 400, they name several.
    """
    if len(named := {*languages, *([language] if language else ())}) > 1:
        message = f"languages: {', '.join(sorted(named))} are several, and only one is supported: give one, or none"
        raise APIError(400, message, param="languages", code="unsupported_value")
    return languages[0]


async def whole_transcript(services: Services, uploads: Uploads, file: UploadFile, *options: Any) -> Transcript:
    """Return the transcript of an uploaded file.

    Args:
        options: the arguments of `Transcription.listen` after the audio.
    """
    async with uploads.sound(file) as samples_n:
        transcript = await answered(services.transcription.transcribe.remote(samples_n, *options), WHOLE_S)
    current_request().audio_seconds = transcript.seconds
    return transcript


async def transcript_stream(services: Services, uploads: Uploads, file: UploadFile, *options: Any) -> ClosedStream:
    """Return server-sent events: the text of each segment as soon as it is known, then the whole. Earlier errors are
    the request's.

    Args:
        options: as in `whole_transcript`.
    """
    async with AsyncExitStack() as opening:
        samples_n = await opening.enter_async_context(uploads.sound(file))
        listening = await opening.enter_async_context(streamed(services.transcription, "listen", samples_n, *options))
        first = await anext(listening)
        stack = opening.pop_all()

    async def events() -> AsyncGenerator[str]:
        said, heard = "", first
        try:
            while heard is not None:
                if isinstance(heard, Transcript):
                    current_request().audio_seconds = heard.seconds
                    yield event({"type": "transcript.text.done", "text": heard.text, "usage": token_usage(heard)})
                else:
                    delta = heard.text if said else heard.text.lstrip()
                    said += delta
                    yield event({"type": "transcript.text.delta", "delta": delta})
                heard = await anext(listening, None)
        except Exception as error:
            yield error_event(error)

    return ClosedStream(events(), "text/event-stream", stack)
