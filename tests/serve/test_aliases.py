"""Aliases: which model a name means, at every endpoint, and which tables are refused at the start."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.testclient import TestClient, WebSocketTestSession

from voicechat_platform.errors import InputError
from voicechat_serve.aliases import SYNTHESIS_MODEL, require_targets
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.application_file import APIArguments

WHISPER = "whisper-tiny.en"

SERVICES = Services(
    models={},
    language_models={"bard": None, "poet": None},
    embedding_models={"vectors": None},
    transcription=None,
    transcription_model=WHISPER,
    synthesis=None,
)

REALTIME = "ws://127.0.0.1/realtime"

MODELS = {"bard", "poet", "vectors", WHISPER, SYNTHESIS_MODEL}


def services(**aliases: str) -> Services:
    return replace(SERVICES, aliases={alias.replace("_", "-"): model for alias, model in aliases.items()})


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("whisper-1", WHISPER),
        ("whisper-large-v3", WHISPER),
        ("gpt-transcribe", WHISPER),
        ("gpt-realtime-whisper", WHISPER),
        ("gpt-4o-mini-transcribe-2025-12-15", WHISPER),
        ("gpt-4o-transcribe-diarize", WHISPER),
        ("tts-1-hd", SYNTHESIS_MODEL),
        ("gpt-4o-mini-tts-2025-12-15", SYNTHESIS_MODEL),
        *(
            (name, name)
            for name in ("gpt-4o-mini", "gpt-realtime", "whisper", "gpt-4o-mini-ttsx", "", "bard@x", WHISPER)
        ),
    ],
)
def test_the_names_of_audio_models_are_built_in_and_those_of_chat_models_are_not(name, model):
    assert SERVICES.own_name(name) == model


def test_the_longest_beginning_counts_and_a_model_comes_first():
    asked = replace(SERVICES, aliases={"gpt*": "bard", "gpt-4*": "poet", "gpt-4o-transcribe": "poet", "*": "bard"})
    expected = {
        "gpt-3.5": "bard",
        "gpt-4o-mini": "poet",
        "gpt-4o-transcribe": "poet",
        "gpt-4o-mini-transcribe": WHISPER,
        "gpt-realtime-whisper": WHISPER,
        "poet": "poet",
        "poet@3": "poet@3",
        "vectors": "vectors",
        "anything": "bard",
    }
    assert {name: asked.own_name(name) for name in expected} == expected


NAMES = st.text("abc-*@", max_size=4)


@given(st.dictionaries(NAMES, NAMES, max_size=4), st.sets(NAMES, max_size=3), NAMES)
def test_a_table_that_is_accepted_leads_to_models_alone(aliases, models, name):
    try:
        APIArguments(aliases=aliases)
        require_targets(aliases, {*models, *MODELS}, WHISPER)
    except (ValidationError, InputError):
        return
    asked = replace(SERVICES, language_models=dict.fromkeys(models), aliases=aliases)
    for each in (name, *models, *(alias.replace("*", "c") for alias in aliases)):
        own = asked.own_name(each)
        assert own == each or own in {*models, *MODELS}
        assert each not in models or own == each
        assert asked.own_name(own) == own


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"gpt-4o": "bart"}, "'gpt-4o' stands for 'bart', which is no model here; there are bard, hibari, poet"),
        ({"bard": "poet"}, "'bard' is the name of a model here, which the alias would hide"),
        ({WHISPER: "bard"}, "which the alias would hide"),
        ({"a": "b", "b": "a"}, "'a' stands for 'b', another alias"),
        ({"a": "a"}, "another alias"),
        ({"a": "whisper-1"}, "another alias"),
        ({"b*": "bc"}, "another alias"),
    ],
)
def test_wrong_tables(aliases, message):
    with pytest.raises(InputError, match=message):
        require_targets(aliases, MODELS, WHISPER)


@pytest.mark.parametrize("alias", ["", " ", "a*b", "*a", "a@3", "a" * 201])
def test_wrong_forms(alias):
    with pytest.raises(ValidationError, match="alias"):
        APIArguments(aliases={alias: "bard"})


def test_an_alias_is_the_model_at_every_endpoint():
    asked = services(gpt_4o_mini="bard", text_embedding_3_small="vectors", gpt_transcribe="poet")
    assert asked.language_model("gpt-4o-mini")[1:] == ("bard", None)
    assert asked.language_model("gpt-transcribe")[1:] == ("poet", None)
    asked.embedding_model("text-embedding-3-small")
    asked.require_transcription("whisper-large-v3")
    asked.require_synthesis("tts-1")
    for method, name in (
        *((asked.language_model, name) for name in ("gpt-4o", "whisper-1", "tts-1", "text-embedding-3-small")),
        *((asked.embedding_model, name) for name in ("gpt-4o-mini", "whisper-1")),
        *((asked.require_transcription, name) for name in ("gpt-transcribe", "tts-1")),
        (asked.require_synthesis, "whisper-1"),
    ):
        with pytest.raises(APIError):
            method(name)


async def test_cards(services):
    asked = replace(services, aliases={"gpt-*": "shakespeare"})
    transport = httpx.ASGITransport(build(asked))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        listed = (await http.get("/models")).json()["data"]
        assert [card["id"] for card in listed] == ["shakespeare", WHISPER, SYNTHESIS_MODEL]
        for alias, model in (("gpt-4o", "shakespeare"), ("whisper-1", WHISPER), ("tts-1", SYNTHESIS_MODEL)):
            card = (await http.get(f"/models/{alias}")).json()
            (own,) = (each for each in listed if each["id"] == model)
            assert card == own | {"id": alias, "alias_of": model}


@contextmanager
def opened(asked: Services, query: str) -> Iterator[WebSocketTestSession]:
    # Its end cancels the conversation.
    with suppress(CancelledError), TestClient(build(asked)).websocket_connect(f"{REALTIME}?{query}") as socket:
        yield socket


def first_event(asked: Services, query: str) -> dict:
    with opened(asked, query) as socket:
        event = socket.receive_json()
    return event


def test_a_conversation_with_an_alias():
    event = first_event(services(gpt_realtime="poet"), "model=gpt-realtime")
    assert event["session"]["model"] == "gpt-realtime"
    assert first_event(SERVICES, "model=gpt-realtime")["error"]["code"] == "model_not_found"
    assert first_event(SERVICES, "")["session"]["model"] == "bard"


@pytest.mark.parametrize("model", ["gpt-realtime-whisper", "gpt-4o-mini-transcribe", WHISPER])
def test_the_model_of_a_transcription_session_is_the_transcription_model(model):
    session = first_event(SERVICES, f"intent=transcription&model={model}")["session"]
    assert (session["type"], session["audio"]["input"]["transcription"]["model"]) == ("transcription", model)


def test_a_transcription_session_without_a_model_or_with_another_kind_of_model():
    session = first_event(SERVICES, "intent=transcription")["session"]
    assert (session["type"], session["audio"]["input"]["transcription"]["model"]) == ("transcription", WHISPER)
    error = first_event(SERVICES, "intent=transcription&model=bard")["error"]
    assert error["code"] == "model_not_found"
    assert WHISPER in error["message"]


def test_the_transcription_model_of_a_conversation_may_be_an_alias():
    with opened(SERVICES, "model=bard") as socket:
        socket.receive_json()
        for model in ("gpt-realtime-whisper", "whisper-large-v3"):
            transcription = {"model": model}
            patch = {"type": "realtime", "audio": {"input": {"transcription": transcription}}}
            socket.send_json({"type": "session.update", "session": patch})
            session = socket.receive_json()["session"]
            assert session["audio"]["input"]["transcription"]["model"] == model
