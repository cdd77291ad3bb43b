"""What the tests of this folder ask: the real server (`voicechat serve`, every model real but two tiny GPTs of ours),
and the API alone on a socket of this process, where a failure shows itself and a start costs nothing."""

import asyncio
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import soxr
import torch
import uvicorn
from fastapi import FastAPI
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from local_handle import Handle
from running_service import Service, running_service
from voicechat_platform.assets import locate_gguf
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.settings import settings
from voicechat_serve.api.ingress import build
from voicechat_serve.api.proxy import BoundedConnection
from voicechat_serve.api.services import Services
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.embedding_model import EmbeddingQueue
from voicechat_serve.generation.engines.choice import make_engine, open_embedder
from voicechat_serve.generation.engines.interface import UnknownVersionError
from voicechat_serve.generation.introduction import Words, introduce_embedding_model
from voicechat_serve.generation.loaded_model import LoadedModel
from voicechat_serve.generation.served_model import EngineOptions, ServedModel
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.languages import ENGLISH_ONLY
from voicechat_serve.transcription.transcriber import Transcript

LIBRIVOX = Path(os.environ.get("VOICECHAT_LIBRIVOX", "/usr/share/pocketsphinx/test/data/librivox"))

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role.upper() }}:\n{{ m.content }}\n\n{% endfor %}ROMEO:\n"


def save_tiny_model(folder: Path) -> None:
    """A GPT with random weights, a character tokenizer, a chat template and a default stop string."""
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    torch.manual_seed(0)
    model = GPTForCausalLM(
        GPTConfig(attention="metric", vocab_size=len(characters), hidden_size=64, num_hidden_layers=2)
    )
    model.config.reply_stops = ["\n\n"]
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def clips() -> list[tuple[Path, str]]:
    """Real speech, and what is said in it."""
    lines = (LIBRIVOX / "transcription").read_text().splitlines()
    return [(LIBRIVOX / f"{m[2]}.wav", m[1]) for line in lines if (m := re.match(r"<s> (.*) </s> \((.*)\)", line))]


@pytest.fixture(scope="module")
def question(clips) -> np.ndarray:
    """Three seconds of real speech and a second of silence, at 24 kHz."""
    shortest = min((clip for clip, _ in clips), key=lambda clip: clip.stat().st_size)
    speech_n = soxr.resample(decode(shortest.read_bytes()), HEARING_RATE, SPEECH_RATE)
    return np.pad(speech_n, (int(0.4 * SPEECH_RATE), SPEECH_RATE))


@pytest.fixture
def free_port() -> int:
    return find_free_port()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory, tiny_model) -> Iterator[Service]:
    """One for all files that need no special one: whoever counts what it did looks at the difference."""
    home = tmp_path_factory.mktemp("home")
    with running_service(home, tiny_model, settings().folder("models"), find_free_port()) as service:
        yield service


@pytest.fixture(scope="module")
def server(service) -> str:
    """The address of a running server, without /v1."""
    return service.url


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as http:
        yield http


@pytest.fixture(autouse=True)
def serves_logs_reach_caplog(monkeypatch):
    """Ray and Serve, once imported in this process, hand nothing on to the root logger, where `caplog` listens."""
    for name in ("ray", "ray.serve"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


HARD_TO_SAY = {
    "no full stop": "word " * 819,
    "no space": "a" * 4096,
    "one symbol": "\N{GRINNING FACE}" * 4095 + "a",
    "one number": "1" * 4096,
    "many numbers": "1 " * 2048,
    "numbers without a name": "1,000,000,000,000,000,000,000,000,000,000,000,000,000 " * 70,
    "digits that are none": "① ② ③ $①.5 x² x⁴",
    "slashes": "/" * 4000 + "1",
    "nothing in English": "\u4f60\u597d" * 2000,
}


@pytest.fixture(params=HARD_TO_SAY)
def hard_to_say(request) -> SimpleNamespace:
    """A text that a voice may fail at, or take without bounds."""
    return SimpleNamespace(name=request.param, text=HARD_TO_SAY[request.param])


@pytest.fixture(scope="session")
def local_handle() -> type[Handle]:
    return Handle


class Replica(LoadedModel):
    """A language model that is none of the registry's: `LanguageModel` without Ray."""

    async def introduce(self, number, model=""):
        raise UnknownVersionError("shakespeare has no versions")

    async def chat(self, messages, options):
        if options.version is not None:
            await self.introduce(options.version)
        async with aclosing(super().chat(messages, options)) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, prompt, options):
        if options.version is not None:
            await self.introduce(options.version)
        async with aclosing(super().complete(prompt, options)) as deltas:
            async for delta in deltas:
                yield delta


class Tone:
    """In place of a `Synthesis`: a tenth of a second, whatever the text."""

    async def speak(self, text, speed=1.0, voice="heart"):
        yield np.sin(np.arange(SPEECH_RATE // 10, dtype=np.float32))


class Deaf:
    """In place of a `Transcription`."""

    async def transcribe(self, samples_n, language, prompt, temperature):
        return Transcript("", "en", len(samples_n) / HEARING_RATE)

    async def hear(self, samples_n, language=None, prompt=None, only_if_idle=False):
        return Transcript("", language or "en", len(samples_n) / HEARING_RATE)


@pytest.fixture(scope="module")
def replica(tiny_model) -> Iterator[Replica]:
    tokenizer = ChatTokenizer(tiny_model)
    replica = Replica(tokenizer, make_engine(tiny_model, tokenizer), "shakespeare")
    yield replica
    replica.engine.close()


@pytest.fixture(scope="module")
def services(replica, tiny_model) -> Services:
    return Services(
        models={"shakespeare": ServedModel(id="shakespeare", path=tiny_model)},
        language_models={"shakespeare": Handle(replica)},
        transcription=Handle(Deaf()),
        transcription_model="whisper-tiny.en",
        transcription_languages=ENGLISH_ONLY,
        synthesis=Handle(Tone()),
    )


@pytest.fixture(scope="module")
def embedding_queue() -> Iterator[EmbeddingQueue]:
    """The packaged chat model as a model of embeddings, with 256 tokens of context."""
    gguf = locate_gguf("smollm2-135m-instruct")
    queue = EmbeddingQueue(open_embedder(gguf, EngineOptions(context=256, threads=1)))
    yield queue
    queue.close()


@pytest.fixture(scope="module")
def services_with_vectors(services, embedding_queue) -> Services:
    words = introduce_embedding_model("vectors", Words())
    model = ServedModel(id="vectors", task="embeddings", path=embedding_queue.engine.model.path, introduction=words)
    return replace(
        services,
        models=services.models | {"vectors": model},
        embedding_models={"vectors": Handle(embedding_queue)},
    )


@pytest.fixture(scope="module")
def api(services) -> Iterator[str]:
    """The address of the API over real sockets, without Ray and without the /v1 that Serve gives it."""
    with listening_server(build(services)) as address:
        yield address


class CancelledWhenLeft:
    """ASGI middleware: cancels a request whose client has left, as Serve's proxy does."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        messages: asyncio.Queue = asyncio.Queue()
        is_answered = False

        async def send_on(message):
            nonlocal is_answered
            is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def listen():
            while (message := await receive())["type"] != "http.disconnect":
                messages.put_nowait(message)
            if not is_answered:
                answering.cancel()

        answering = asyncio.create_task(self.app(scope, messages.get, send_on))
        listening = asyncio.create_task(listen())
        try:
            await asyncio.wait([answering])
        finally:
            listening.cancel()
        if not answering.cancelled():
            answering.result()


@pytest.fixture(scope="session")
def listening():
    return listening_server


@contextmanager
def listening_server(app: FastAPI, port: int = 0) -> Iterator[str]:
    port = port or find_free_port()
    config = uvicorn.Config(
        CancelledWhenLeft(app), host="127.0.0.1", port=port, log_level="critical", http=BoundedConnection
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
