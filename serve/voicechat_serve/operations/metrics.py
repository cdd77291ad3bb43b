"""The metrics of the running service, under their names for Prometheus (docs/operations.md explains each).

Each metric is recorded in the process of its event. Ray sends it to its node's exporter every ten seconds. A record
costs 1.5 µs here, but Ray's exporter adds every observation of a histogram to its bucket again, for 7 µs each. So the
events of every token are recorded once per message. No label holds text from a client: models and endpoints have their
own names, and all others are "unknown".
"""

import threading
import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from voicechat_serve.operations.load import Load

UNKNOWN = "unknown"
"""The model or endpoint of a request that names none of ours."""

LOAD_INTERVAL_S = 0.25
"""The time between two samples of an engine's load."""

SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]
TOKEN_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]

# The API's process records these.
REQUESTS = Counter("voicechat_requests_total", "Requests answered, or ended.", ("endpoint", "model", "status"))
CANCELLED_REQUESTS = Counter(
    "voicechat_cancelled_requests_total", "Requests whose client left before the end.", ("endpoint", "model")
)
REQUEST_SECONDS = Histogram(
    "voicechat_request_seconds", "From a request to the end of its answer.", SECONDS, ("endpoint", "model")
)
FIRST_BYTE_SECONDS = Histogram(
    "voicechat_first_byte_seconds", "From a request to the first byte of its answer.", SECONDS, ("endpoint", "model")
)

REALTIME_SESSIONS = Gauge("voicechat_realtime_sessions", "Spoken conversations that are open.")
REALTIME_FIRST_SOUND_SECONDS = Histogram(
    "voicechat_realtime_first_sound_seconds",
    "From the end of a spoken turn, as it was decided, to the first sound of its reply.",
    SECONDS,
)

# Each language model's process records these.
FIRST_TOKEN_SECONDS = Histogram(
    "voicechat_first_token_seconds", "From a prompt to its first token, the queue included.", SECONDS, ("model",)
)
INTER_TOKEN_SECONDS = Histogram(
    "voicechat_inter_token_seconds",
    "Time for each token after the first, the mean of a message.",
    TOKEN_SECONDS,
    ("model",),
)
PROMPT_TOKENS = Counter("voicechat_prompt_tokens_total", "Tokens of prompts that were read.", ("model",))
COMPLETION_TOKENS = Counter("voicechat_completion_tokens_total", "Tokens written.", ("model",))
REQUESTS_RUNNING = Gauge("voicechat_requests_running", "Requests that the engine is decoding.", ("model",))
REQUESTS_WAITING = Gauge("voicechat_requests_waiting", "Requests that wait for the engine.", ("model",))
CACHE_USED = Gauge("voicechat_cache_used_ratio", "Share of the engine's cache that is taken, 0 to 1.", ("model",))
DECODE_BATCH = Histogram(
    "voicechat_decode_batch_requests", "Requests decoded together, sampled.", [1, 2, 4, 8, 16, 32, 64, 128], ("model",)
)

# The audio models' processes record these.
TRANSCRIPTION_SECONDS = Histogram(
    "voicechat_transcription_seconds", "To write down one sound, the queue included.", SECONDS
)
SYNTHESIS_SECONDS = Histogram(
    "voicechat_synthesis_seconds", "To speak one text, waiting for listeners left out.", SECONDS
)
AUDIO_HEARD_SECONDS = Counter("voicechat_audio_heard_seconds_total", "Length of the sound that was transcribed.")
AUDIO_SPOKEN_SECONDS = Counter("voicechat_audio_spoken_seconds_total", "Length of the speech that was made.")


def observe_request(
    endpoint: str, model: str, status: int, seconds: float, first_byte_seconds: float | None, cancelled: bool
) -> None:
    """Record one request when it ends.

    Args:
        endpoint: a path template, or UNKNOWN.
        model: the name of a served model, or UNKNOWN.
        status: the HTTP status.
        seconds: from its arrival to its end.
        first_byte_seconds: from its arrival to the first byte of the response; None if there was none.
        cancelled: whether the client disconnected before the end.
    """
    tags = {"endpoint": endpoint, "model": model}
    REQUESTS.inc(1, tags | {"status": str(status)})
    REQUEST_SECONDS.observe(seconds, tags)
    if first_byte_seconds is not None:
        FIRST_BYTE_SECONDS.observe(first_byte_seconds, tags)
    if cancelled:
        CANCELLED_REQUESTS.inc(1, tags)


class ModelMetrics:
    """The metrics of one language model, recorded in its process.

    Args:
        model: its name.
        load: the engine's load; sampled every LOAD_INTERVAL_S in a separate thread.
    """

    def __init__(self, model: str, load: Callable[[], Load]):
        self.tags = {"model": model}
        self.load = load
        threading.Thread(target=self.watch, name="load-samples", daemon=True).start()

    def answer(self) -> "AnswerMetrics":
        """Start the clock of one answer."""
        return AnswerMetrics(self.tags)

    def watch(self) -> None:
        while True:
            self.observe_load(self.load())
            time.sleep(LOAD_INTERVAL_S)

    def observe_load(self, load: Load) -> None:
        REQUESTS_RUNNING.set(load.running, self.tags)
        REQUESTS_WAITING.set(load.waiting, self.tags)
        CACHE_USED.set(load.cache_used, self.tags)
        if load.running:
            DECODE_BATCH.observe(load.running, self.tags)


class AnswerMetrics:
    """The metrics of one answer."""

    def __init__(self, tags: dict[str, str]):
        self.tags = tags
        self.prompt_tokens = self.completion_tokens = 0
        self.observed = time.monotonic()

    def observe(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Record each message to the API.

        Args:
            prompt_tokens: tokens of the prompt. For a model elsewhere only the last message has their number.
            completion_tokens: tokens generated so far, with those of earlier messages. A model elsewhere counts pieces,
                and the last message may correct their number downwards; a counter only grows.
        """
        now = time.monotonic()
        if prompt_tokens > self.prompt_tokens:
            PROMPT_TOKENS.inc(prompt_tokens - self.prompt_tokens, self.tags)
            self.prompt_tokens = prompt_tokens
        new = completion_tokens - self.completion_tokens
        if new <= 0:
            return
        if self.completion_tokens:
            INTER_TOKEN_SECONDS.observe((now - self.observed) / new, self.tags)
        else:
            FIRST_TOKEN_SECONDS.observe(now - self.observed, self.tags)
        COMPLETION_TOKENS.inc(new, self.tags)
        self.completion_tokens, self.observed = completion_tokens, now
