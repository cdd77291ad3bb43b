"""What a request of each endpoint asks, and how its answer is read into a sample."""

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
"""Samples a second of `pcm`, 2 bytes each."""

TEXT = (
    "time and tide wait for no man who sits by the river to watch a boat go down under grey clouds while the old "
    "bell in the far tower rings out over roofs that shine with rain before night comes"
)
WORDS = TEXT.split()


@dataclass(kw_only=True)
class Sample:
    """One request. Moments are of `time.perf_counter`, in seconds."""

    due: float
    """When it should have been sent."""
    sent: float = 0.0
    first: float | None = None
    """The first text or sound; of transcriptions, the answer."""
    last: float | None = None
    ended: float = 0.0
    longest_pause: float = 0.0
    """Between two messages of the stream, in seconds."""
    outcome: Outcome = "lost"
    """"lost": nothing, or an answer without its end; "failed": an error; "refused": 429 or 503."""
    status: int | None = None
    error: str = ""
    refusals: int = 0
    refusals_without_retry_after: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    audio_seconds: float = 0.0

    def arrived(self) -> None:
        """A piece of the answer has come."""
        now = time.perf_counter()
        if self.last is None:
            self.first = now
        else:
            self.longest_pause = max(self.longest_pause, now - self.last)
        self.last = now


class AnswerError(Exception):
    """An error that came in the middle of a stream."""


class Target(Protocol):
    """What is asked, and how the answer is read."""

    @property
    def path(self) -> str:
        """Of the endpoint."""
        ...

    def content(self, number: int) -> dict[str, Any]:
        """httpx's arguments for the body of the request of that number."""
        ...

    async def read(self, response: httpx.Response, sample: Sample) -> bool:
        """Fills the sample; False when the answer ended before its end.

        Raises:
            AnswerError: the server says in the stream that it failed.
        """
        ...


@dataclass
class TextTarget:
    """Streamed text; tokens are counted by the server's own usage."""

    path: Literal["/chat/completions", "/completions"]
    model: str
    words: int
    max_tokens: int
    seed: int

    def content(self, number: int) -> dict[str, Any]:
        # A prompt of its own for each request: a server may keep what it has read.
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
                ended = True  # read on, or the connection could not be used again
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
    """Speech as it is made."""

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
    """A sound file written down."""

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
    """The objects of a stream of server-sent events; None for its [DONE]."""
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
    """What to ask of this server; asks it a little first, which also tells whether it is there.

    Args:
        client: with the server's address and the key.
        endpoint: which one to load.
        model: its name; the server's first language model, "tts-1" or "whisper-1" by default.
        prompt_tokens: about how long a prompt, template included; or of how many words a text to speak.
        max_tokens: most tokens of an answer.
        sound: the file to transcribe; speech that the server makes, by default.
        seed: of the texts.

    Raises:
        InputError: no server, no such model, or it refuses the key.
    """
    models = (await asked(client, "GET", "/models"))["data"]
    if endpoint == "speech":
        return SpeechTarget(model or "tts-1", prompt_tokens, seed)
    if endpoint == "transcriptions":
        return TranscriptionTarget(model or "whisper-1", sound or await spoken(client, seed))
    language = [card["id"] for card in models if card.get("type", "language") == "language"]
    if not language:
        raise InputError("the server has no language model: choose --endpoint speech or transcriptions")
    path: Literal["/chat/completions", "/completions"] = "/chat/completions" if endpoint == "chat" else "/completions"

    def of_words(words: int, max_tokens: int) -> TextTarget:
        return TextTarget(path, model or language[0], words, max_tokens, seed)

    async def tokens(words: int) -> int:
        body = of_words(words, 1).content(0)["json"] | {"stream": False}
        del body["stream_options"]
        return (await asked(client, "POST", path, json=body))["usage"]["prompt_tokens"]

    # Only the server can count its tokens: two prompts tell what a word costs, and what the template does.
    few, more = await tokens(4), await tokens(20)
    per_word = (more - few) / 16
    words = round((prompt_tokens - few) / per_word) + 4 if per_word else 4
    return of_words(max(words, 1), max_tokens)


async def asked(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> dict[str, Any]:
    """
    Raises:
        InputError: the server is not there, or answers with an error.
    """
    return json.loads(await answered(client, method, path, **content))


async def answered(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> bytes:
    try:
        response = await client.request(method, path, **content)
    except httpx.HTTPError as error:
        raise InputError(
            f"no server answers at {client.base_url} ({error!r}): start one with voicechat serve"
        ) from error
    if response.status_code != 200:
        raise InputError(f"{path} answers {response.status_code}: {response.text}")
    return response.content


async def spoken(client: httpx.AsyncClient, seed: int) -> bytes:
    """A WAV file of a few seconds of speech, made by the server itself."""
    pcm = await answered(client, "POST", "/audio/speech", **SpeechTarget("tts-1", 10, seed).content(0))
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, SPEECH_RATE, 0, "NONE", ""))
        writer.writeframes(pcm)
    return file.getvalue()
