"""What the API says of a model before a conversation: from the application file, and from what is known of it."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from voicechat_platform.errors import InputError
from voicechat_platform.registry import Version
from voicechat_serve.api import models
from voicechat_serve.generation import champions, introduction
from voicechat_serve.generation.introduction import (
    Introduction,
    Words,
    in_words,
    introduce_listed,
    introduce_version,
)
from voicechat_serve.generation.served_model import ServedModel

VERSION = Version("old-plays", 3, "", True, "s/1", "standard", 812_000, 1.5, created=1_700_000_000)


@pytest.fixture
def forms(monkeypatch) -> dict[str, str]:
    """What a version's recipe names as the form of its corpus, which a test may change."""
    found = {"form": "text"}
    monkeypatch.setattr(Version, "checkpoint", lambda version: version)
    monkeypatch.setattr(introduction, "read_run", lambda folder: {"recipe": {"corpus": dict(found)}})
    return found


def test_a_version_that_continues_text_and_one_that_converses(forms):
    play = introduce_version(VERSION, Words())
    assert (play.title, play.tuned_at, play.converses, play.system_prompt) == ("Old plays", 1_700_000_000, False, "")
    assert play.about == (
        "A model of 0.812 million parameters. It continues text in the style of its corpus and cannot answer questions."
    )
    forms["form"] = "dialogue"
    chat = introduce_version(replace(VERSION, parameters=134_515_008), Words())
    assert (chat.converses, chat.system_prompt) == (True, None)
    assert chat.about.startswith("A chat model of 135 million parameters, tuned on conversations.")
    said = Words(title="Will", about="Speaks in verse.", system_prompt="Be brief.")
    assert introduce_version(VERSION, said) == replace(
        chat, title="Will", about="Speaks in verse.", system_prompt="Be brief."
    )


def test_numbers_that_people_read():
    assert [in_words(number) for number in (99_999, 812_345, 7_241_732_096)] == [
        *("99,999", "0.812 million", "7.24 billion")
    ]


def test_a_listed_model_converses_if_it_has_a_chat_template(tmp_path):
    def introduced() -> tuple[bool, str, str | None]:
        found = introduce_listed("mine", tmp_path, False, Words())
        assert found.title == "mine"
        return found.converses, found.about, found.system_prompt

    base = (False, "It has no chat template: it continues text and cannot answer questions.", "")
    assert introduced() == base
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert introduced() == base
    config.write_text('{"chat_template": "{{ messages }}"}')
    assert introduced() == (True, "", None)
    config.write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json:1 is damaged"):
        introduced()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert introduced() == (True, "", None)
    assert introduce_listed("smol", config, True, Words()).about.startswith("Made for conversation"), "a file: GGUF"


@pytest.mark.parametrize(
    "words",
    [
        {"title": "x" * 61},
        {"title": "two\nlines"},
        {"about": " spaces"},
        {"about": "\x1b[31m"},
        {"about": "x" * 301},
        {"system_prompt": "\x00"},
        {"system_prompt": "x" * 4001},
        {"system_prompt": 7},
    ],
)
def test_words_that_cannot_be_shown_are_refused(words: dict[str, Any]):
    with pytest.raises(ValidationError):
        Words(**words)
    assert Words(system_prompt="two\nlines").system_prompt == "two\nlines"


async def test_the_list_follows_promotions_and_lives_without_the_follower(forms, tmp_path, monkeypatch):
    """The follower introduces each champion once, and keeps what it knows where the files of the next are gone."""
    follower = champions.Champions.__new__(champions.Champions)
    follower.words, follower.numbers, follower.introductions = {"old-plays": Words()}, {"old-plays": 3}, {}
    newer = replace(VERSION, number=4, created=1_700_000_900)
    follower.introduce([VERSION, newer, replace(newer, name="of another service")])
    assert {name: said.tuned_at for name, said in follower.introductions.items()} == {"old-plays": 1_700_000_900}
    monkeypatch.setattr(champions, "introduce_version", lambda *_: json.loads("gone"))
    follower.introduce([replace(newer, number=5)])
    assert follower.introductions["old-plays"].tuned_at == 1_700_000_900

    async def failing(*_: Any) -> None:
        raise RuntimeError("the replica is gone")

    for answer, tuned_at in ((follower.introduced, 1_700_000_900), (failing, 1)):
        services: Any = SimpleNamespace(
            models={"old-plays": ServedModel(id="old-plays", path=tmp_path, version=3, introduction=first(1))},
            champions=SimpleNamespace(introduced=SimpleNamespace(remote=answer)),
            transcription_model="whisper-base",
            tool_servers=(),
            own_name=str,
        )
        app = FastAPI()
        app.include_router(models.router(services))
        (card,) = (card for card in TestClient(app).get("/models").json()["data"] if card["type"] == "language")
        assert (card["tuned_at"], card["created"]) == (tuned_at, tuned_at)
        assert TestClient(app).get("/models/old-plays").json() == card


def first(tuned_at: int) -> Introduction:
    return Introduction(title="Old plays", about="At the start.", converses=False, tuned_at=tuned_at)
