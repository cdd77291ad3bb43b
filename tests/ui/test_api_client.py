"""Whom a person begins to talk with, as the API tells and the page and `voicechat talk` choose."""

import json
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from openai.types import Model

from voicechat_platform.errors import InputError
from voicechat_serve.api import models
from voicechat_serve.api.services import Services
from voicechat_serve.generation.introduction import Introduction, Words, introduce_listed
from voicechat_serve.generation.served_model import ServedModel
from voicechat_ui import api_client
from voicechat_ui.api_client import ApiClient, ListedModel, ago, listed
from voicechat_ui.page import add_model_list
from voicechat_ui.talk.conversation import Wanted, find_model

NOW = 1_700_000_000
CHAT, PLAY = Introduction(title="A chat model"), Introduction(title="A play", converses=False, tuned_at=NOW)
SMOL = Words(title="SmolLM2", about="Small.", system_prompt="Be brief.")
MODELS: dict[str, dict[str, Any]] = {  # the API has the champions first
    "shakespeare": {"version": 3, "introduction": PLAY},
    "tuned-chat": {"version": 1, "introduction": replace(CHAT, title="", tuned_at=NOW - 7200)},
    "corpus": {"introduction": replace(PLAY, tuned_at=None)},
    "smollm2": {"is_packaged": True, "introduction": introduce_listed("smollm2", Path(__file__), True, SMOL)},
    "mine": {"introduction": CHAT},
}


@pytest.fixture
def address(
    request: Any, tmp_path: Path, serve: Callable[[FastAPI, int], Any], free_port: Callable[[], int], monkeypatch
) -> str:
    """An API whose list of models is the real one."""
    monkeypatch.setattr(api_client.time, "time", lambda: NOW + 301)
    served = {name: ServedModel(id=name, path=tmp_path, **MODELS[name]) for name in request.param}
    app = FastAPI()
    rest: Any = {"language_models": {}, "transcription": None, "transcription_model": "whisper-base", "synthesis": None}
    app.include_router(models.router(Services(models=served, **rest)), prefix="/v1")
    return f"{serve(app, free_port()).url}/v1"


@pytest.mark.parametrize(
    ("address", "labels"),
    [
        (
            tuple(MODELS),
            [
                "SmolLM2, packaged",
                "A chat model, yours",
                "tuned-chat, tuned here 2 hours ago",
                "A play, tuned here 5 minutes ago",
                "A play, yours",
            ],
        ),
        (("shakespeare", "corpus"), ["A play, tuned here 5 minutes ago", "A play, yours"]),
    ],
    indirect=["address"],
)
async def test_a_person_begins_with_a_model_that_can_converse(address, labels):
    found = await ApiClient(address).language_models()
    assert [model.label for model in found] == labels
    assert await find_model(Wanted(url=address, key="")) == found[0], "`voicechat talk`"
    page = FastAPI()
    add_model_list(page, ApiClient(address))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://page") as client:
        assert (await client.get("/talk/models")).json() == json.loads(json.dumps({"models": list(map(asdict, found))}))


@pytest.mark.parametrize("address", [("smollm2", "mine")], indirect=True)
async def test_a_model_says_what_to_expect(address):
    api = ApiClient(address)
    about = await api.model("smollm2")
    assert about == ListedModel("smollm2", "SmolLM2", "packaged", "Small.", "Be brief.")
    assert await find_model(Wanted(url=address, key="", model="smollm2")) == about
    assert (await api.model("mine")).instructions == api_client.INSTRUCTIONS, "the operator set none"
    assert await find_model(Wanted(url=address, key="", model="gone")) == ListedModel("gone", "gone")
    with pytest.raises(openai.NotFoundError):
        await api.model("gone")


@pytest.mark.parametrize(
    ("card", "label"),
    [
        ({"id": "gpt-9"}, "gpt-9"),
        ({"id": "play@2", "title": "Play", "origin": "tuned", "tuned_at": 7}, "Play, version 2, from the registry"),
        ({"id": "play", "title": "Play", "origin": "tuned"}, "Play, tuned here"),
        ({"id": "new", "origin": "of a later version"}, "new"),
    ],
)
def test_the_label_of_a_model(card, label):
    assert listed(Model.model_validate({"object": "model", "created": 0, "owned_by": "x"} | card)).label == label


def test_times_are_told_in_the_largest_unit():
    times = [-5, 59, 60, 7199, 86_400, 40 * 86_400, 800 * 86_400]
    assert [ago(seconds) for seconds in times] == [
        *("just now", "just now", "1 minute ago", "1 hour ago"),
        *("1 day ago", "1 month ago", "2 years ago"),
    ]


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
        await find_model(Wanted(url=url, key=""))


async def test_a_server_that_is_not_there_or_keeps_silent_is_told_of(free_port, monkeypatch):
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert await ApiClient(url).problem() == f"The server at {url} does not answer. Start it with `voicechat serve`."
    monkeypatch.setattr(api_client, "PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        assert f"The server at {url} has not answered" in await ApiClient(url).problem()
