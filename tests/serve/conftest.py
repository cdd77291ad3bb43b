"""The real server for the tests of this folder: Ray, both applications, every model real but one tiny GPT of ours."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import ray
import torch
from fastapi import FastAPI
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from voicechat_platform.assets import locate
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_serve import application
from voicechat_serve.application_file import APIArguments, Engines
from voicechat_serve.language_model import ServedModel

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


def page_in_the_replica(app: FastAPI) -> FastAPI:
    """Pickled by value: a test module cannot be imported in a replica."""
    from fastapi.responses import HTMLResponse

    app.get("/", response_class=HTMLResponse)(lambda: "<h1>the page</h1>")
    return app


@pytest.fixture(scope="session")
def clips() -> list[tuple[Path, str]]:
    """Real speech, and what is said in it."""
    lines = (LIBRIVOX / "transcription").read_text().splitlines()
    return [(LIBRIVOX / f"{m[2]}.wav", m[1]) for line in lines if (m := re.match(r"<s> (.*) </s> \((.*)\)", line))]


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


@pytest.fixture(scope="module")
def server(tiny_model) -> Iterator[str]:
    """The address of a running server, without /v1."""
    smollm2 = ServedModel(id="smollm2-135m-instruct", folder=locate("smollm2-135m-instruct-int8"))
    port = find_free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        application.deploy(
            [(ServedModel(id="shakespeare", folder=tiny_model), Engines()), (smollm2, Engines())],
            APIArguments(whisper="tiny.en"),
            port,
            page_in_the_replica,
        )
        application.wait_until_ready(timeout_s=120)
        yield f"http://127.0.0.1:{port}"
    finally:
        application.stop()
        ray.shutdown()


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as http:
        yield http
