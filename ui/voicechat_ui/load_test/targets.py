"""The content of the requests to each endpoint, and the reading of the answers into samples."""

import io
import json
import random
import time
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import httpx

from voicechat_platform.errors import InputError

EndpointName = Literal["chat", "completions", "speech", "transcriptions"]
Outcome = Literal["done", "refused", "failed", "lost"]

SPEECH_RATE = 24_000
"""Samples per second of `pcm`, 2 bytes each."""

TEXT = (
    "time and tide wait for no man who sits by the river to watch a boat go down under grey clouds while the old "
    "bell in the far tower rings out over roofs that shine with rain before night comes"
)
WORDS = TEXT.split()


@dataclass(kw_only=True)
class Sample:
    """The measurements of one request. Moments are values of `time.perf_counter`, in seconds."""

    due: float
    """The planned moment of sending."""
    sent: float = 0.0
    first: float | None = None
    """The moment of the first text or sound; for transcriptions, of the answer."""
    last: float | None = None
    ended: float = 0.0
    longest_pause: float = 0.0
    """The longest time between two messages of the stream, in seconds."""
    outcome: Outcome = "lost"
    """"lost": no answer, or an incomplete one; "failed": an error; "refused": 429 or 503."""
    status: int | None = None
    error: str = ""
    refusals: int = 0
    refusals_without_retry_after: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    audio_seconds: float = 0.0

    def arrived(self) -> None:
        """Note the arrival of a piece of the answer."""
        now = time.perf_counter()
        if self.last is None:
            self.first = now
        else:
            self.longest_pause = max(self.longest_pause, now - self.last)
        self.last = now


class AnswerError(Exception):
    """An error message inside a stream."""


class Target(Protocol):
    """The requests to one endpoint."""

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        ...

    def content(self, number: int) -> dict[str, Any]:
        """Return httpx's arguments for the body of the request of this number."""
        ...

    async def read(self, response: httpx.Response, sample: Sample) -> bool:
        """Read the answer into the sample. Return False if the answer is incomplete.

        Raises:
            AnswerError: the stream contains an error message.
        """
        ...


@dataclass
class TextTarget:
    """Streamed text. The server's usage gives the numbers of tokens."""

    path: Literal["/chat/completions", "/completions"]
    model: str
    words: int
    max_tokens: int
    seed: int

    def content(self, number: int) -> dict[str, Any]:
        # Each request has another prompt, because a server may cache prompts.
        chosen = random.Random(f"{self.seed}/{number}").choices(WORDS, k=self.words)
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text = " ".join(chosen)
        body |= {"prompt": text} if self.path == "/completions" else {"messages": [{"role": "user", "content": text}]}
        return {"json": body}

    async def read(self, response: httpx.Response, sample: Sample) -> bool:
        ended = False
        async for event in events(response):
            if event is None:
                ended = True  # read to the end, so that the connection can be used again
                continue
            if "error" in event:
                raise AnswerError(event["error"]["message"])
            if usage := event.get("usage"):
                sample.prompt_tokens = usage["prompt_tokens"]
                sample.completion_tokens = usage["completion_tokens"]
            for choice in event["choices"]:
                if choice.get("text") or choice.get("delta", {}).get("content"):
                    sample.arrived()
        return ended


@dataclass
class SpeechTarget:
    """Streamed speech."""

    model: str
    words: int
    seed: int
    path: str = "/audio/speech"

    def content(self, number: int) -> dict[str, Any]:
        chosen = random.Random(f"{self.seed}/{number}").choices(WORDS, k=self.words)
        text = " ".join(f"{word}." if place % 8 == 7 else word for place, word in enumerate(chosen))
        return {"json": {"model": self.model, "input": text, "voice": "alloy", "response_format": "pcm"}}

    async def read(self, response: httpx.Response, sample: Sample) -> bool:
        async for piece in response.aiter_raw():
            sample.arrived()
            sample.audio_seconds += len(piece) / 2 / SPEECH_RATE
        return sample.audio_seconds > 0


@dataclass
class TranscriptionTarget:
    """The transcription of a sound file."""

    model: str
    sound: bytes
    path: str = "/audio/transcriptions"

    def content(self, number: int) -> dict[str, Any]:
        return {"data": {"model": self.model}, "files": {"file": ("sound.wav", self.sound)}}

    async def read(self, response: httpx.Response, sample: Sample) -> bool:
        answer = json.loads(await response.aread())
        sample.arrived()
        sample.audio_seconds = answer.get("usage", {}).get("seconds", 0.0)
        return "text" in answer


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """Yield the objects of a stream of server-sent events; None for its [DONE]."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            content = line.removeprefix("data:").strip()
            yield None if content == "[DONE]" else json.loads(content)


async def choose_target(
    client: httpx.AsyncClient,
    endpoint: EndpointName,
    *,
    model: str | None,
    prompt_tokens: int,
    max_tokens: int,
    sound: bytes | None,
    seed: int,
) -> Target:
    """Return the target for this server. A few requests to the server find its models and the length of a prompt.

    Args:
        client: has the server's address and the key.
        endpoint: the endpoint to load.
        model: its name; by default the server's first language model, "tts-1" or "whisper-1".
        prompt_tokens: the approximate tokens of a prompt with the template, or the words of a text to speak.
        max_tokens: the most tokens of an answer.
        sound: the file to transcribe; by default speech from the server.
        seed: for the texts.

    Raises:
        InputError: there is no server or no such model, or the server refuses the key.
    """
    models = (await request_json(client, "GET", "/models"))["data"]
    if endpoint == "speech":
        return SpeechTarget(model or "tts-1", prompt_tokens, seed)
    if endpoint == "transcriptions":
        return TranscriptionTarget(model or "whisper-1", sound or await server_speech(client, seed))
    language = [card["id"] for card in models if card.get("type", "language") == "language"]
    if not language:
        raise InputError("the server has no language model: choose --endpoint speech or transcriptions")
    path: Literal["/chat/completions", "/completions"] = "/chat/completions" if endpoint == "chat" else "/completions"

    def of_words(words: int, max_tokens: int) -> TextTarget:
        return TextTarget(path, model or language[0], words, max_tokens, seed)

    async def tokens(words: int) -> int:
        body = of_words(words, 1).content(0)["json"] | {"stream": False}
        del body["stream_options"]
        return (await request_json(client, "POST", path, json=body))["usage"]["prompt_tokens"]

    # Only the server can count its tokens: two prompts give the tokens per word and the tokens of the template.
    few, more = await tokens(4), await tokens(20)
    per_word = (more - few) / 16
    words = round((prompt_tokens - few) / per_word) + 4 if per_word else 4
    return of_words(max(words, 1), max_tokens)


async def request_json(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> dict[str, Any]:
    """Return the JSON object of an answer.

    Raises:
        InputError: no server answers, or the answer is an error.
    """
    return json.loads(await request_bytes(client, method, path, **content))


async def request_bytes(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> bytes:
    try:
        response = await client.request(method, path, **content)
    except httpx.HTTPError as error:
        raise InputError(
            f"no server answers at {client.base_url} ({error!r}): start one with voicechat serve"
        ) from error
    if response.status_code != 200:
        raise InputError(f"{path} answers {response.status_code}: {response.text}")
    return response.content


async def server_speech(client: httpx.AsyncClient, seed: int) -> bytes:
    """Return a WAV file with a few seconds of speech from the server."""
    pcm = await request_bytes(client, "POST", "/audio/speech", **SpeechTarget("tts-1", 10, seed).content(0))
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, SPEECH_RATE, 0, "NONE", ""))
        writer.writeframes(pcm)
    return file.getvalue()
