"""What a session can be told: fields of today and of the beta, and that nothing is passed over in silence: an event
that is not the protocol's is refused whole, and of others all that can be applied is applied."""

from typing import Any

import pytest

from realtime_session import connected, written

PUSH_TO_TALK = {"turn_detection": None}
INPUT, OUTPUT = ("audio", "input"), ("audio", "output")


async def told_after(session: dict[str, Any], **begin_with: Any) -> dict[str, Any]:
    async with connected(**begin_with) as client:
        client.send("session.update", session=session, event_id="mine")
        return (await client.until("session.updated"))["session"]


async def refused(session: dict[str, Any], **begin_with: Any) -> dict[str, Any]:
    async with connected(**begin_with) as client:
        before = client.session.context.settings
        client.send("session.update", session=session, event_id="mine")
        error = (await client.until("error"))["error"]
        assert client.session.context.settings is before, "nothing of it is done"
        assert error["event_id"] == "mine"
        return error


def within(told: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        told = told[name]
    return told


@pytest.mark.parametrize(
    ("beta", "path", "today"),
    [
        ({"turn_detection": None}, (*INPUT, "turn_detection"), None),
        ({"modalities": ["text"]}, ("output_modalities",), ["text"]),
        ({"modalities": ["text", "audio"]}, ("output_modalities",), ["audio"]),
        ({"modalities": ["audio", "text"]}, ("output_modalities",), ["audio"]),
        ({"voice": "alloy"}, (*OUTPUT, "voice"), "alloy"),
        ({"speed": 1.5}, (*OUTPUT, "speed"), 1.5),
        ({"input_audio_format": "pcm16"}, (*INPUT, "format"), {"type": "audio/pcm", "rate": 24000}),
        ({"output_audio_format": "pcm16"}, (*OUTPUT, "format"), {"type": "audio/pcm", "rate": 24000}),
        ({"input_audio_transcription": None}, (*INPUT, "transcription"), None),
        ({"input_audio_transcription": {"model": "whisper-1"}}, (*INPUT, "transcription", "model"), "whisper-1"),
        ({"max_response_output_tokens": 64}, ("max_output_tokens",), 64),
        ({"max_response_output_tokens": "inf"}, ("max_output_tokens",), "inf"),
    ],
)
async def test_the_betas_fields_mean_what_they_meant(beta, path, today):
    assert within(await told_after(beta), path) == today


async def test_a_push_to_talk_client_of_the_beta_is_not_answered_at_pauses(question):
    async with connected() as client:
        client.send("session.update", session={"modalities": ["audio", "text"], **PUSH_TO_TALK})
        client.play(question)
        client.send("input_audio_buffer.commit")
        await client.until("conversation.item.input_audio_transcription.completed")
        assert not client.all("input_audio_buffer.speech_stopped")
        assert not client.all("response.created")
        client.send("response.create", response={"modalities": ["text"]})
        done = await client.until("response.done")
        assert done["response"]["output_modalities"] == ["text"]


@pytest.mark.parametrize("name", ["turn_detectoin", "idle_timeout_ms", "input_audio", "Voice", ""])
@pytest.mark.parametrize("value", [None, 1, {}])
async def test_an_unknown_field_is_refused_by_name(name, value):
    error = await refused({name: value})
    assert (error["code"], error["param"]) == ("unknown_parameter", f"session.{name}")


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"audio": {"inptu": None}}, "session.audio.inptu"),
        ({"audio": {"input": {"vad": None}}}, "session.audio.input.vad"),
        ({"audio": {"input": {"turn_detection": {"silence": 1}}}}, "session.audio.input.turn_detection.silence"),
        ({"audio": {"input": {"transcription": {"lang": None}}}}, "session.audio.input.transcription.lang"),
        ({"audio": {"output": {"pitch": 2}}}, "session.audio.output.pitch"),
        ({"audio": {"input": {"format": {"channels": 2}}}}, "session.audio.input.format.channels"),
    ],
)
async def test_so_it_is_at_every_level(session, param):
    error = await refused(session)
    assert (error["code"], error["param"]) == ("unknown_parameter", param)


async def test_a_misspelt_field_is_answered_with_the_nearest_one():
    assert "'turn_detection'" in (await refused({"turn_detectoin": None}))["message"]


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("response.create", {"response": {"modality": ["text"]}}, "response.modality"),
        ("response.create", {"repsonse": {}}, "repsonse"),
        ("conversation.item.create", {"item": written("Hi") | {"name": "x"}}, "item.name"),
        ("conversation.item.create", {"item": written("Hi"), "after": "root"}, "after"),
        ("input_audio_buffer.append", {"audio": "", "rate": 8000}, "rate"),
        ("response.cancel", {"item_id": "x"}, "item_id"),
    ],
)
async def test_so_it_is_in_every_event(kind, fields, param):
    async with connected() as client:
        client.send(kind, **fields)
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"]) == ("unknown_parameter", param)


WRONG = [
    ({"instructions": 5}, "session.instructions"),
    ({"output_modalities": "text"}, "session.output_modalities"),
    ({"audio": {"input": {"turn_detection": {"type": 5}}}}, "session.audio.input.turn_detection.type"),
    ({"tools": {}}, "session.tools"),
    ({"tools": ["f"]}, "session.tools.0"),
    ({"tools": [{"type": "function"}]}, "session.tools.0.name"),
    ({"tools": [{"type": "function", "name": "f", "parametres": {}}]}, "session.tools.0.parametres"),
    ({"tool_choice": 5}, "session.tool_choice"),
    ({"voice": "alloy", "audio": {"output": {"voice": "heart"}}}, "session.voice"),
]


@pytest.mark.parametrize(("session", "param"), WRONG)
@pytest.mark.parametrize("other", [{}, {"truncation": "disabled"}])
async def test_what_is_no_event_of_the_protocol_is_refused_whole(session, param, other):
    assert (await refused({"max_output_tokens": 7} | other | session))["param"] == param


UNUSABLE = [
    ({"input_audio_format": "opus"}, "session.audio.input.format.type"),
    ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "session.audio.input.format.type"),
    ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}, "session.audio.input.format.rate"),
    ({"audio": {"input": {"noise_reduction": {"type": "no_field"}}}}, "session.audio.input.noise_reduction"),
    ({"input_audio_noise_reduction": {"type": "far"}}, "session.audio.input.noise_reduction"),
    ({"truncation": "disabled"}, "session.truncation"),
    ({"prompt": {"id": "p"}}, "session.prompt"),
    ({"include": ["item.input_audio_transcription.logprobs"]}, "session.include"),
    ({"temperature": 5}, "session.temperature"),
    ({"output_modalities": ["video"]}, "session.output_modalities.0"),
    ({"output_modalities": ["text", "audio"]}, "session.output_modalities"),
    ({"model": "nobody"}, "model"),
    ({"voice": "nobody"}, "voice"),
    ({"input_audio_transcription": {"model": "nobody"}}, "model"),
    (
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 6000}}}},
        "session.audio.input.turn_detection.idle_timeout_ms",
    ),
    (
        {"turn_detection": {"type": "semantic_vad", "silence_duration_ms": 300}},
        "session.audio.input.turn_detection.silence_duration_ms",
    ),
    (
        {"turn_detection": {"type": "server_vad", "eagerness": "high"}},
        "session.audio.input.turn_detection.eagerness",
    ),
    ({"audio": {"input": {"transcription": {"language": "tlh"}}}}, "language"),
    (
        {"tools": [{"type": "mcp", "server_label": "time", "server_url": "http://127.0.0.1"}]},
        "session.tools.0.server_url",
    ),
    ({"tools": [{"type": "function", "name": "no name"}]}, "session.tools.0.name"),
    ({"tool_choice": "perhaps"}, "session.tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "session.tool_choice"),
    ({"tool_choice": {"type": "mcp", "server_label": "time"}}, "session.tool_choice"),
]


@pytest.mark.parametrize(("session", "param"), UNUSABLE)
async def test_a_value_that_cannot_be_used_is_named_and_the_rest_is_applied(session, param):
    async with connected() as client:
        before = client.session.context.settings.resource()
        client.send("session.update", session=session | {"max_output_tokens": 7}, event_id="mine")
        error = (await client.until("error"))["error"]
        assert (error["param"], error["event_id"]) == (param, "mine")
        assert error["code"] != "server_error"
        assert len(client.all("error")) == 1
        told = client.all("session.updated")[0]["session"]
        assert told["max_output_tokens"] == 7
        if "turn_detection" not in str(session):
            assert client.session.context.settings.resource() == before | {"max_output_tokens": 7}


async def test_every_value_that_cannot_be_used_is_named():
    async with connected() as client:
        both = {"truncation": "disabled", "voice": "nobody", "speed": 9, "instructions": "Be brief."}
        both["turn_detection"] = {"type": "semantic_vad", "eagerness": "low", "idle_timeout_ms": 1}
        client.send("session.update", session=both)
        await client.until("error", 4)
        assert {event["error"]["param"] for event in client.all("error")} == {
            "session.truncation",
            "session.audio.output.speed",
            "session.audio.input.turn_detection.idle_timeout_ms",
            "voice",
        }
        told = client.all("session.updated")[0]["session"]
        assert told["instructions"] == "Be brief."
        assert told["audio"]["output"] == client.all("session.created")[0]["session"]["audio"]["output"]
        assert told["audio"]["input"]["turn_detection"]["eagerness"] == "low"


@pytest.mark.parametrize(
    "session",
    [
        {"tools": [], "tool_choice": "auto", "tracing": None, "include": None, "prompt": None, "truncation": "auto"},
        {"tracing": "auto"},
        {
            "audio": {
                "input": {"noise_reduction": None, "turn_detection": {"type": "server_vad", "idle_timeout_ms": None}}
            }
        },
        {"turn_detection": {"type": "server_vad", "threshold": None}},
        {"include": [], "parallel_tool_calls": True, "reasoning": None},
    ],
)
async def test_values_that_change_nothing_are_taken(session):
    await told_after(session)


@pytest.mark.parametrize("kind", ["realtime", "transcription"])
async def test_a_session_is_told_with_all_its_fields_ours_and_null_ones_too(kind):
    detection = {"type": "semantic_vad", "anticipate": False}
    async with connected(type=kind) as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        told = (await client.until("session.updated"))["session"]
        settings = client.session.context.settings.resource()
        settings["audio"]["input"]["transcription"]["model"] = client.stages.transcription_model
        assert told == settings | {"id": client.session.id}
        assert told["audio"]["input"]["turn_detection"]["anticipate"] is False
        assert kind == "transcription" or (told["temperature"], told["prompt"]) == (None, None)


@pytest.mark.parametrize("tag", ["en-US", "EN", "en"])
async def test_a_language_may_be_a_tag(question, tag):
    async with connected() as client:
        client.send("session.update", session={"audio": {"input": {"transcription": {"language": tag}}}})
        told = (await client.until("session.updated"))["session"]
        assert told["audio"]["input"]["transcription"]["language"] == "en"


async def test_what_a_session_is_told_to_be_can_be_sent_back():
    async with connected() as client:
        told = client.all("session.created")[0]["session"]
        client.send("session.update", session=told)
        assert (await client.until("session.updated"))["session"] == told
        client.send("conversation.item.create", item=written("Hello"))
        item = (await client.until("conversation.item.done"))["item"]
        client.send("conversation.item.create", item=item | {"id": "another"})
        assert (await client.until("conversation.item.done", 2))["item"]["content"] == item["content"]


@pytest.mark.parametrize("session", [{"instructions": "Hi"}, {"voice": "alloy"}, {"output_modalities": ["text"]}])
async def test_a_transcription_session_takes_no_settings_of_responses(session):
    async with connected(type="transcription") as client:
        before = client.session.context.settings
        client.send("session.update", session=session)
        assert (await client.until("error"))["error"]["code"] == "invalid_value"
        assert client.session.context.settings == before
