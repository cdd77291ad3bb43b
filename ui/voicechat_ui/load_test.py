"""Load on a running server: when requests begin, what each one asks, and what is measured of it.

Two ways to send: a closed loop keeps so many streams busy, each of which sends its next request when the last one has
ended, so a slow server is asked less (and looks better than its users find it: coordinated omission); an open loop
sends at its own rate whatever the server does, as people do, and measures from the moment a request was due.
"""

import asyncio
import functools
import io
import itertools
import json
import random
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import httpx

from voicechat_platform.errors import InputError

EndpointName = Literal["chat", "completions", "speech", "transcriptions"]
Outcome = Literal["done", "refused", "failed", "lost"]

READ_TIMEOUT_S, CONNECT_TIMEOUT_S = 300, 10

REFUSED = (429, 503)
MOST_REFUSALS = 20
"""After so many a request is given up, also by those who retry."""

NOT_OPENAIS = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer of another form raises."""
RETRY_AFTER_S = 1.0
"""How long to wait after a refusal that does not say."""

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


@dataclass
class Level:
    """One level of load, and what has been measured of it so far."""

    streams: int | None = None
    """Of a closed loop."""
    rate: float | None = None
    """Of an open loop: requests a second, at random (a Poisson process)."""
    requests: int | None = None
    """How many in all; or until `seconds` are over, when requests under way are still waited for."""
    seconds: float | None = None
    retry: bool = False
    """Whether a refused request waits as long as it is told and is sent again, as OpenAI's clients do."""
    seed: int = 0
    samples: list[Sample] = field(default_factory=list)
    """Of requests that have ended."""
    under_way: int = 0
    """Requests that have not ended."""
    began: float = 0.0

    def ends_before(self, number: int, moment: float) -> bool:
        """Whether the request of that number, at so many seconds from the beginning, is one too many."""
        enough = self.requests is not None and number >= self.requests
        return enough or (self.seconds is not None and moment >= self.seconds)


async def run(level: Level, client: httpx.AsyncClient, target: Target, on_change: Callable[[], None]) -> None:
    """Sends a level's requests and waits for all of them; cancelled, it leaves what has been measured in the level.

    Args:
        level: what to send; its samples are filled.
        client: with the server's address and the key.
        target: what to ask.
        on_change: called whenever a request begins or ends.
    """
    level.began = time.perf_counter()
    numbers = itertools.count()

    async def send(number: int, due: float) -> None:
        level.under_way += 1
        on_change()
        level.samples.append(await measure(client, target, number, due, level.retry))
        level.under_way -= 1
        on_change()

    async def stream() -> None:
        while not level.ends_before(number := next(numbers), (now := time.perf_counter()) - level.began):
            await send(number, now)

    async with asyncio.TaskGroup() as tasks:
        if level.rate is None:
            for _ in range(level.streams or 1):
                tasks.create_task(stream())
        else:
            for number, offset in zip(numbers, arrivals(level.rate, level.seed), strict=False):
                if level.ends_before(number, offset):
                    break
                await asyncio.sleep(level.began + offset - time.perf_counter())
                tasks.create_task(send(number, level.began + offset))


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process, in seconds from its beginning."""
    generator, moment = random.Random(seed), 0.0
    while True:
        moment += generator.expovariate(rate)
        yield moment


async def measure(client: httpx.AsyncClient, target: Target, number: int, due: float, retry: bool) -> Sample:
    """Sends one request and reads its answer."""
    sample = Sample(due=due, sent=time.perf_counter())
    while True:
        try:
            async with client.stream("POST", target.path, **target.content(number)) as response:
                sample.status = response.status_code
                if response.status_code in REFUSED:
                    await response.aread()
                    sample.outcome = "refused"
                    sample.refusals += 1
                    told = response.headers.get("retry-after")
                    sample.refusals_without_retry_after += told is None
                    if retry and sample.refusals < MOST_REFUSALS:
                        await asyncio.sleep(seconds_to_wait(told))
                        continue
                elif response.status_code != 200:
                    sample.outcome, sample.error = "failed", (await response.aread()).decode(errors="replace")
                else:
                    sample.outcome = "done" if await target.read(response, sample) else "lost"
                    sample.error = "" if sample.outcome == "done" else "the answer has no end"
        except httpx.HTTPError as error:  # no connection, one that broke, or a timeout
            sample.outcome, sample.error = "lost", repr(error)
        except AnswerError as error:
            sample.outcome, sample.error = "failed", str(error)
        except NOT_OPENAIS as error:
            sample.outcome, sample.error = "failed", f"the answer has not OpenAI's form: {error!r}"
        sample.ended = time.perf_counter()
        return sample


def seconds_to_wait(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or RETRY_AFTER_S), 0.0)
    except ValueError:  # a date, which HTTP allows too
        return RETRY_AFTER_S


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


async def run_levels(
    levels: Sequence[Level],
    endpoint: EndpointName,
    url: str,
    key: str,
    on_change: Callable[[Level], None],
    **wanted: Any,
) -> None:
    """Runs one level after the other; cancelled, it leaves in the levels what has been measured.

    Args:
        levels: what to send; their samples are filled.
        endpoint: which one to load.
        url: the server's, with its /v1.
        key: sent as every client sends it.
        on_change: called with a level whenever one of its requests begins or ends.
        wanted: the other arguments of `choose_target`.

    Raises:
        InputError: as `choose_target`.
    """
    client = httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )
    async with client:
        try:
            target = await choose_target(client, endpoint, **wanted)
        except InputError:
            raise
        except NOT_OPENAIS as error:
            raise InputError(f"what answers at {url} has not OpenAI's form: {error!r}") from error
        for level in levels:
            await run(level, client, target, functools.partial(on_change, level))
