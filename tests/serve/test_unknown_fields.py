"""No field of a request is ignored in silence: it has its effect, changes nothing, or is refused by name."""

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from voicechat_serve.api.chat import ChatRequest
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.api.speech import SpeechRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("continue_final_message", True), ("add_generation_prompt", False), ("min_tokens", 3), ("ignore_eos", True)),
        *(
            ("guided_decoding_backend", "x"),
            ("chat_template", "x"),
            ("chat_template_kwargs", {"a": 1}),
            ("keep_alive", "5m"),
        ),
        *(("truncate_prompt_tokens", 5), ("prompt_logprobs", 1), ("skip_special_tokens", False), ("store", True)),
        *(("reasoning_effort", "low"), ("service_tier", "flex"), ("temprature", 1)),
    ],
)
def test_a_field_without_effect_is_refused_by_name(name, value):
    with pytest.raises(APIError, match=name) as refused:
        ChatRequest.model_validate(CHAT | {name: value})
    assert (refused.value.status_code, refused.value.param) == (400, name)
    assert refused.value.code == "unsupported_parameter"
    ChatRequest.model_validate(CHAT | {name: None})


def test_the_nearest_known_field_is_suggested():
    with pytest.raises(APIError, match="did you mean temperature"):
        ChatRequest.model_validate(CHAT | {"temprature": 1})


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"add_generation_prompt": True, "skip_special_tokens": True, "min_tokens": 0, "ignore_eos": False},
    ],
)
def test_fields_that_change_nothing_pass(fields):
    ChatRequest.model_validate(CHAT | fields)


def test_null_means_not_given_in_speech():
    nulls = dict.fromkeys(("voice", "response_format", "speed", "stream_format", "instructions"))
    asked = SpeechRequest.model_validate({"model": "tts-1", "input": "Hi"} | nulls)
    assert asked == SpeechRequest(model="tts-1", input="Hi")


def test_instructions_of_a_speech_pass():
    """openai-agents' VoicePipeline sends some with every text."""
    SpeechRequest.model_validate({"model": "tts-1", "input": "Hi", "instructions": "Speak slowly."})


def test_a_body_that_is_not_told_to_be_json_names_the_content_type():
    with pytest.raises(APIError, match="Content-Type: application/json"):
        SpeechRequest.model_validate(b"{}")


def test_an_unknown_intent_is_refused():
    address = "ws://127.0.0.1/realtime?intent=transcribe"
    with TestClient(build(SERVICES)).websocket_connect(address) as socket:
        error = socket.receive_json()["error"]
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert (error["param"], error["code"], closed.value.code) == ("intent", "invalid_value", 1008)
    assert "intent=transcribe is not supported" in error["message"]


SERVICES = Services(
    models={}, language_models={"m": None}, transcription=None, transcription_model="whisper-tiny.en", synthesis=None
)


@pytest.fixture
async def http():
    transport = httpx.ASGITransport(build(SERVICES))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations"])
@pytest.mark.parametrize("name", ["hotwords", "vad_filter"])
async def test_forms_refuse_unknown_fields_by_name(http, path, name):
    answer = await http.post(path, data={"model": "whisper-1", name: "true"}, files={"file": b"x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    neutral = await http.post(path, data={"model": "whisper-1", name: ""}, files={"file": b"x"})
    assert neutral.json()["error"]["param"] != name


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses", "/audio/speech"])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}])
async def test_a_wrong_content_type_is_named(http, path, headers):
    answer = await http.post(path, content=b'{"model": "m"}', headers=headers)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations"])
async def test_forms_refuse_fields_that_are_given_twice(http, path):
    for given, name in (
        ({"model": ["whisper-1", "whisper-2"]}, "model"),
        ({"model": "whisper-1", "temperature": ["0", "1"]}, "temperature"),
        ({"model": "whisper-1", "hotwords": ["x", ""]}, "hotwords"),
    ):
        answer = await http.post(path, data=given, files={"file": b"x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    answer = await http.post(path, data={"model": "whisper-1"}, files=[("file", b"x"), ("file", b"y")])
    assert answer.json()["error"]["message"] == "file is given 2 times"


async def test_lists_in_forms_are_given_several_times(http):
    lists = {"model": "whisper-1", "timestamp_granularities[]": ["word", "segment"]}
    answer = await http.post("/audio/transcriptions", data=lists, files={"file": b"x"})
    assert "response_format verbose_json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/octet-stream", ""])
async def test_a_sound_that_is_no_form_names_the_content_type(http, content_type):
    for path in ("/audio/transcriptions", "/audio/translations"):
        answer = await http.post(path, content=b"{}", headers={"Content-Type": content_type})
        assert answer.status_code == 400
        assert "Content-Type: multipart/form-data" in answer.json()["error"]["message"]


USER = {"role": "user", "content": "Hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER, USER | {"foo": 1}]}, "messages.1.foo"),
        ({"messages": [USER | {"cache_control": {"type": "ephemeral"}}]}, "messages.0.cache_control"),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages.0.tool_calls"),
        ({"messages": [USER | {"tool_calls": [CALL | {"x": 0}]}]}, "messages.0.tool_calls.0.x"),
        ({"messages": [USER | {"audio": {"id": "a"}}]}, "messages.0.audio"),
        ({"messages": [{"role": "assistant", "content": "", "prefix": True}]}, "messages.0.prefix"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages.0.content.0.x",
        ),
        ({"stream": True, "stream_options": {"include_usages": True}}, "stream_options.include_usages"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"response_format": {"type": "text", "strict": True}}, "response_format.strict"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "heart", "format": "wav"}}, "audio"),
    ],
)
async def test_unknown_fields_inside_of_others_are_refused_by_their_whole_name(http, fields, param):
    answer = await http.post("/chat/completions", json=CHAT | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter")
    assert param in error["message"]


async def test_stream_options_need_a_stream(http):
    answer = await http.post("/chat/completions", json=CHAT | {"stream_options": {"include_usage": True}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal"])
async def test_content_that_is_no_text_is_refused_as_such(http, kind):
    content = [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "data:,"}}]
    answer = await http.post(
        "/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": content}]}
    )
    assert answer.json()["error"]["message"] == "only text content is supported"


def test_an_answer_can_be_sent_back_as_clients_do():
    nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))
    for more in (nulls, {"tool_calls": [], "annotations": [], "refusal": ""}, {"name": "anna"}):
        messages = [USER, {"role": "assistant", "content": "Hello"} | more, USER]
        asked = ChatRequest.model_validate({"model": "m", "messages": messages})
        assert asked.messages[1].as_prompt(1) == {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("voice", "param"),
    [
        ({"name": "heart"}, "voice.id"),
        ({"id": "heart", "pitch": 2}, "voice.pitch"),
        ({"id": 1}, "voice.id"),
        (1, "voice"),
    ],
)
async def test_a_voice_is_a_name_or_an_object_with_its_id(http, voice, param):
    answer = await http.post("/audio/speech", json={"model": "tts-1", "input": "Hi", "voice": voice})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    unknown = await http.post("/audio/speech", json={"model": "tts-1", "input": "Hi", "voice": {"id": "nobody"}})
    assert unknown.json()["error"]["param"] == "voice"
    assert "nobody" in unknown.json()["error"]["message"]
