"""Whom a person begins to talk with, as the API tells and the page and `voicechat talk` choose."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response

from voicechat_platform.errors import InputError
from voicechat_serve.api import models
from voicechat_serve.api.services import Services
from voicechat_serve.generation.served_model import ServedModel
from voicechat_ui import api_client
from voicechat_ui.api_client import ApiClient, ListedModel
from voicechat_ui.page import model_picker
from voicechat_ui.talk.conversation import Wanted, first_model

ALL = ("shakespeare", "smollm2-135m-instruct", "assistant", "mine")


@pytest.fixture
def address(request: Any, tmp_path: Path, serve: Callable[[FastAPI, int], Any], free_port: Callable[[], int]) -> str:
    """An API whose list of models is the real one: champions come first in it."""
    folders = {"shakespeare": "run", "smollm2-135m-instruct": "folder-of-smollm2", "mine": "folder"}
    folders["assistant"] = "smollm2-135m-instruct"  # the packaged model under a name of one's own
    served = {}
    for name in request.param:
        (tmp_path / folders[name]).mkdir()
        version = 3 if name == "shakespeare" else None
        packaged = name in ("smollm2-135m-instruct", "assistant")
        served[name] = ServedModel(id=name, path=tmp_path / folders[name], version=version, is_packaged=packaged)
    app = FastAPI()
    rest: Any = {"language_models": {}, "transcription": None, "transcription_model": "whisper-base", "synthesis": None}
    app.include_router(models.router(Services(models=served, **rest)), prefix="/v1")
    return f"{serve(app, free_port()).url}/v1"


@pytest.mark.parametrize(
    ("address", "first", "label"),
    [
        (ALL, "smollm2-135m-instruct", "SmolLM2, packaged"),
        (("shakespeare", "mine", "assistant"), "assistant", "assistant, packaged"),
        (("shakespeare", "mine"), "shakespeare", "shakespeare, tuned here"),
        (("mine",), "mine", "mine"),
    ],
    indirect=["address"],
)
async def test_a_person_begins_with_the_model_that_can_converse(address, first, label):
    found = await ApiClient(address).language_models()
    assert (found[0].id, found[0].label) == (first, label)
    assert await first_model(Wanted(url=address, key="")) == first, "`voicechat talk`"
    picker = model_picker(found, None)
    assert picker.value == first
    assert (label, first) in picker.choices


@pytest.mark.parametrize("answer", [None, [], {"a": 1}, {"data": [1]}, {"data": 7}, "<html>"])
async def test_what_answers_in_another_form_is_told_as_that(answer, serve, free_port):
    app = FastAPI()

    @app.get("/v1/{path:path}")
    def anything(path: str) -> Response:
        return HTMLResponse(answer) if isinstance(answer, str) else JSONResponse(answer)

    url = f"{serve(app, free_port()).url}/v1"
    assert f"the answer from {url} is not in OpenAI's form" in await ApiClient(url).problem()
    with pytest.raises(openai.OpenAIError, match="OpenAI's form"):
        await ApiClient(url).voices()
    with pytest.raises(InputError, match="OpenAI's form"):
        await first_model(Wanted(url=url, key=""))


async def test_a_server_that_is_not_there_or_keeps_silent_is_told_of(free_port, monkeypatch):
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert await ApiClient(url).problem() == f"The server at {url} does not answer. Start it with `voicechat serve`."
    monkeypatch.setattr(api_client, "PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        assert f"The server at {url} has not answered" in await ApiClient(url).problem()


def test_the_picker_keeps_what_was_picked_and_says_who_is_who():
    known = [ListedModel("smollm2-135m-instruct", "packaged"), ListedModel("shakespeare", "tuned")]
    assert model_picker(known, "shakespeare").value == "shakespeare"
    assert model_picker(known, "shakespeare@2").value == "shakespeare@2", "a version of one that is served"
    assert model_picker(known, "gone@2").value == "smollm2-135m-instruct"
    info = model_picker(known, None).info
    assert "Packaged: made for conversation" in info
    assert "Tuned here: " in info
    assert model_picker([ListedModel("gpt-9")], None).info is None, "another server's"
    assert model_picker([], "shakespeare").value is None
