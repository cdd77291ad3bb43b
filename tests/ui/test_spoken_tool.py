"""A question that is spoken into the page's microphone and answered through a tool: every part is real but Ray."""

import asyncio
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from fastapi import FastAPI

from local_handle import Handle
from voicechat_platform.assets import locate, locate_gguf
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.application_file import ToolServer
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.introduction import Introduction
from voicechat_serve.generation.loaded_model import LoadedModel
from voicechat_serve.generation.served_model import EngineOptions, ServedModel
from voicechat_serve.synthesis.synthesizer import Synthesis
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.languages import ENGLISH_ONLY
from voicechat_serve.transcription.transcriber import Transcription
from voicechat_ui.example_tools import build_server
from voicechat_ui.page import mount_page

QUESTION = "What is seventeen times twenty-three?"
MODEL = "smollm2-135m-instruct"
CAPTURED_HZ = 48_000


@pytest.fixture(scope="module")
def synthesis() -> Synthesis:
    return Synthesis()


@pytest.fixture(scope="module")
def microphone(synthesis: Synthesis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The question, and then two minutes of quiet."""

    async def spoken() -> np.ndarray:
        return np.concatenate([samples_n async for samples_n in synthesis.speak(QUESTION)])

    speech_n = soxr.resample(asyncio.run(spoken()), SPEECH_RATE, CAPTURED_HZ)
    samples_n = np.pad(np.clip(speech_n, -1, 1) * 32767, (CAPTURED_HZ, 120 * CAPTURED_HZ)).astype("<i2")
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, CAPTURED_HZ, 0, "NONE", ""))
        file.writeframes(samples_n.tobytes())
    return path


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    """SmolLM2, which always writes its likeliest words here."""
    tokenizer = ChatTokenizer(locate_gguf(MODEL))
    model = LoadedModel(tokenizer, make_engine(locate_gguf(MODEL), tokenizer, EngineOptions(context=2048)), MODEL)
    model.defaults = replace(model.defaults, temperature=0.0)
    yield model
    model.engine.close()


@pytest.fixture(scope="module")
def page_with_tools(
    model: LoadedModel, synthesis: Synthesis, serve: Callable[..., Any], free_port: Callable[[], int]
) -> str:
    """The address of the page of a service that may call the example's arithmetic."""
    tools = serve(build_server().streamable_http_app(), free_port()).url
    instructions = Introduction(title="SmolLM2", system_prompt="Answer in one or two short sentences.")
    desk = ToolServer(label="desk", url=f"{tools}/mcp", allow=("calculate",), tool_choice="required", timeout_s=60)
    services = Services(
        models={MODEL: ServedModel(id=MODEL, path=locate_gguf(MODEL), introduction=instructions)},
        language_models={MODEL: Handle(model)},
        transcription=Handle(Transcription(locate("whisper-tiny.en"))),
        transcription_model="whisper-tiny.en",
        transcription_languages=ENGLISH_ONLY,
        synthesis=Handle(synthesis),
        tool_servers=(desk,),
    )
    app = FastAPI()
    app.mount("/v1", build(services))
    api = serve(app, free_port()).url
    return serve(mount_page(FastAPI(), f"{api}/v1"), free_port()).url


def test_a_spoken_question_is_answered_through_a_tool(open_page: Callable[..., Any], page_with_tools: str) -> None:
    talk = open_page(page_with_tools)
    talk.press("Start conversation")
    answered = "document.querySelector('.said.assistant:not(.growing) .latency')"
    talk.page.wait_for_function(answered, timeout=240_000)
    assert "17" in talk.said("user")[0]
    assert talk.said("call") == ["calculate(first: 17, operation: times, second: 23) → 17 times 23 is 391."]
    assert "391" in talk.said("assistant")[0]
    assert talk.said("note") == []
    talk.press("End")
    talk.wait_for("ready")
