"""The route /realtime: a spoken conversation over a WebSocket, in the events of OpenAI's realtime protocol."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from openai.types.realtime import RealtimeError, RealtimeErrorEvent
from starlette.status import WS_1008_POLICY_VIOLATION, WS_1013_TRY_AGAIN_LATER

from voicechat_platform.errors import InputError
from voicechat_serve.api.errors import APIError, api_error, shortened, websocket_only
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import BRIEF_S, CLASSIFIER_S, Services, answered, streamed
from voicechat_serve.api.tool_fields import require_parameters
from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import Message, ToolUse
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions
from voicechat_serve.operations.metrics import REALTIME_FIRST_SOUND_SECONDS, REALTIME_SESSIONS
from voicechat_serve.realtime.errors import EventError, SessionEndedError
from voicechat_serve.realtime.items import new_id
from voicechat_serve.realtime.session import Session
from voicechat_serve.realtime.session_settings import SessionSettings
from voicechat_serve.realtime.session_update import changed
from voicechat_serve.realtime.wire import FAREWELL_S, as_frame
from voicechat_serve.synthesis.voices import find_voice, installed_voices
from voicechat_serve.transcription.transcriber import Transcript


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    stages = ServiceStages(services)
    open_sessions: set[Session] = set()

    @routes.get("/realtime", include_in_schema=False)
    async def refuse_http() -> None:
        raise websocket_only()

    @routes.websocket("/realtime")
    async def realtime(websocket: WebSocket, model: str = "", intent: str = "") -> None:
        # Accept before a refusal too: a browser's script cannot read the HTTP status of a refused WebSocket.
        await websocket.accept()

        async def refuse(error: dict[str, Any], code: int) -> None:
            event = RealtimeErrorEvent(type="error", event_id=new_id("event"), error=RealtimeError(**error))
            await websocket.send_text(as_frame(event))
            await websocket.close(code, error["code"])

        if intent not in ("", "transcription"):
            message = f"intent={shortened(intent, 40)} is not supported: give transcription, or none for a conversation"
            body = {"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": "intent"}
            return await refuse(body, WS_1008_POLICY_VIOLATION)
        try:
            settings = opening_settings(stages, getattr(websocket.state, "session", {}), model, intent)
        except EventError as error:
            return await refuse(error.body, WS_1008_POLICY_VIOLATION)
        if len(open_sessions) >= services.realtime_sessions:
            message = f"{len(open_sessions)} conversations are open, which is the limit: try again later"
            body = {"type": "server_error", "code": "too_many_sessions", "message": message}
            return await refuse(body, WS_1013_TRY_AGAIN_LATER)

        async def receive() -> str:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            if message.get("text") is None:
                raise SessionEndedError("invalid_value", "events are JSON texts, not bytes", 1003)
            return message["text"]

        session = Session(settings, stages, receive, websocket.send_text, REALTIME_FIRST_SOUND_SECONDS.observe)
        open_sessions.add(session)
        REALTIME_SESSIONS.set(len(open_sessions))
        try:
            ending = await session.run()
            async with asyncio.timeout(FAREWELL_S):
                await websocket.close(*ending)
        except (WebSocketDisconnect, TimeoutError):
            pass
        finally:
            open_sessions.discard(session)
            REALTIME_SESSIONS.set(len(open_sessions))
            current_request().audio_seconds = round(session.listening.heard_ms / 1000, 1)

    return routes


def opening_settings(
    stages: "ServiceStages", of_secret: dict[str, Any], model: str = "", intent: str = ""
) -> SessionSettings:
    """Return the settings with which a session begins.

    Args:
        stages: the models.
        of_secret: the settings that the client secret holds.
        model: of the address: the language model, or the transcription model of a session that only transcribes.
        intent: of the address.

    Raises:
        EventError: a setting is wrong, or cannot be used here.
    """
    settings = SessionSettings(model=next(iter(stages.services.language_models)))
    if intent == "transcription":
        if of_secret.get("type", intent) != intent:
            message = "the client secret is for a conversation: leave intent out, or create one for a transcription"
            raise EventError("invalid_value", message, "intent")
        settings.type = "transcription"
    settings = with_all(settings, of_secret, stages)
    if not model:
        return settings
    if settings.type == "transcription":
        return with_all(settings, {"audio": {"input": {"transcription": {"model": model}}}}, stages)
    return with_all(settings, {"model": model}, stages)


def with_all(before: SessionSettings, patch: dict[str, Any], stages: "ServiceStages") -> SessionSettings:
    """Return the settings with all changes of a patch. Raises EventError if one of them cannot be used."""
    settings, errors = changed(before, patch, stages)
    for body in errors:
        raise EventError(body["code"], body["message"], body["param"], body["type"])
    return settings


class ServiceStages:
    """The models of a session: the deployments, called through `Services`."""

    def __init__(self, services: Services):
        self.services = services
        self.transcription_model = services.transcription_model
        self.tool_servers = {server.label: server for server in services.tool_servers}
        self.voices = installed_voices()

    async def hear(
        self, samples_n: Samples, language: str | None, prompt: str | None, only_if_idle: bool
    ) -> Transcript | None:
        return await answered(
            self.services.transcription.hear.remote(samples_n, language, prompt, only_if_idle), BRIEF_S
        )

    async def glimpse(self, samples_n: Samples, language: str | None, prompt: str | None) -> Transcript:
        return await answered(self.services.transcription.glimpse.remote(samples_n, language, prompt), BRIEF_S)

    async def end_by_words(self, words: str) -> float | None:
        return await answered(self.services.transcription.end_by_words.remote(words), CLASSIFIER_S)

    async def end_by_sound(self, samples_n: Samples) -> float | None:
        return await answered(self.services.transcription.end_by_sound.remote(samples_n), CLASSIFIER_S)

    async def write(
        self, model: str, messages: list[Message], sampling: dict[str, Any], tools: ToolUse
    ) -> AsyncGenerator[Delta, None]:
        handle, model, version = self.services.language_model(model)
        options = GenerationOptions(sampling=sampling, tools=tools, truncation="auto", model=model, version=version)
        async with streamed(handle, "chat", messages, options) as deltas:
            async for delta in deltas:
                yield delta

    async def speak(self, sentence: str, speed: float, voice: str) -> AsyncGenerator[Samples, None]:
        async with streamed(self.services.synthesis, "speak", sentence, speed, voice) as chunks:
            async for samples_n in chunks:
                yield samples_n

    def require_model(self, name: str) -> None:
        self.services.language_model(name)

    def require_transcription(self, name: str) -> None:
        self.services.require_transcription(name)

    def language_code(self, tag: str) -> str:
        return self.services.language_code(tag, "session.audio.input.transcription.language")

    def require_schema(self, schema: Any, param: str, is_strict: bool) -> None:
        require_parameters(schema, param, is_strict)

    def voice(self, name: str, language: str | None) -> str | None:
        try:
            voice = find_voice(name, self.voices)
        except InputError as error:
            raise APIError(400, str(error), param="session.audio.output.voice", code="invalid_value") from None
        if language in (None, voice.language):
            return voice.id
        return next((other.id for other in self.voices if other.language == language), None)

    def language_of(self, voice: str) -> str:
        return find_voice(voice, self.voices).language

    def explain(self, error: Exception) -> dict[str, Any]:
        return api_error(error).body()["error"]
