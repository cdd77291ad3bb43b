"""What the page asks of the API, over the same HTTP that any other client uses: models, transcript, reply, speech."""

import contextlib
from collections.abc import AsyncGenerator
from typing import cast

import openai
from openai.types.chat import ChatCompletionMessageParam

from voicechat_ui.old_turn import Message

# The names that OpenAI's own clients send: every server of the kind knows them.
TRANSCRIPTION_MODEL = "whisper-1"
SPEECH_MODEL = "tts-1"
VOICE = "alloy"

# A reply is listened to: this is already half a minute of speech and more.
MAX_REPLY_TOKENS = 256

# At the API's default of 1, models as small as ours ramble.
TEMPERATURE, TOP_P = 0.5, 0.9

# How servers without a "type" in their model list call what is no language model.
AUDIO_MODEL_PREFIXES = ("whisper-", "tts-", "gpt-4o-mini-")


class ApiClient:
    """An OpenAI-compatible API.

    Args:
        base_url: ends in /v1.
        api_key: for an API that asks for one.

    Every method raises `openai.OpenAIError` where the API does not answer or refuses; `explain` turns that into words.
    """

    def __init__(self, base_url: str, api_key: str = "none") -> None:
        self.base_url = base_url
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key, timeout=openai.Timeout(120, connect=5), max_retries=1
        )

    async def language_models(self) -> list[str]:
        """The ids of the models that can write a reply, in the API's order."""
        models = (await self._client.models.list()).data
        ids = []
        for model in models:
            kind = (model.model_extra or {}).get("type")
            if kind == "language" if kind else not model.id.startswith(AUDIO_MODEL_PREFIXES):
                ids.append(model.id)
        return ids

    async def transcribe(self, recording: bytes) -> str:
        """The words in a recording (any audio container); blank where nobody speaks."""
        transcription = await self._client.audio.transcriptions.create(
            file=("recording.wav", recording), model=TRANSCRIPTION_MODEL
        )
        return transcription.text

    async def reply(self, model: str, messages: list[Message]) -> AsyncGenerator[str, None]:
        """The model's next message, piece by piece as it is written."""
        stream = await self._client.chat.completions.create(
            model=model,
            messages=cast(list[ChatCompletionMessageParam], messages),
            max_tokens=MAX_REPLY_TOKENS,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            stream=True,
            # Small models have short contexts: rather forget the oldest messages than refuse to go on.
            extra_body={"truncation": "auto"},
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    async def speech(self, text: str) -> AsyncGenerator[bytes, None]:
        """`text` spoken: whole signed 16-bit little-endian mono samples at 24 kHz, as they are made."""
        odd_byte = b""
        async with (
            self._client.audio.speech.with_streaming_response.create(
                input=text, model=SPEECH_MODEL, voice=VOICE, response_format="pcm"
            ) as response,
            contextlib.aclosing(response.iter_bytes()) as chunks,  # type: ignore[type-var]  # is a generator
        ):
            async for chunk in chunks:
                samples = odd_byte + chunk
                whole = len(samples) // 2 * 2
                odd_byte = samples[whole:]
                if whole:
                    yield samples[:whole]

    def explain(self, error: Exception) -> str:
        """What went wrong and what to do about it, for the person at the page."""
        if isinstance(error, openai.APITimeoutError):
            return "The server took too long to answer. Try again, or pick a smaller model."
        if isinstance(error, openai.APIConnectionError):
            return f"The server at {self.base_url} does not answer. Start it with `voicechat serve`, then try again."
        if isinstance(error, openai.APIStatusError):
            said = error.body.get("message") if isinstance(error.body, dict) else None
            if error.status_code in (429, 503):
                return f"The server is busy ({said or error.status_code}). Try again in a moment."
            if error.status_code == 401:
                return "The server wants a key of this page: start the page with one in VOICECHAT_API_KEY."
            return f"The server refused the request: {said or error.message}"
        return f"The server failed: {error}"
