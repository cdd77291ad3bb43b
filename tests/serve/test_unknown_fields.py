"""No field of a request is ignored in silence: it has its effect, changes nothing, or is refused by name."""

import httpx
import pytest

from voicechat_serve.api.chat import ChatRequest
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.api.speech import SpeechRequest
from voicechat_serve.engines.ctranslate2_engine import require_supported
from voicechat_serve.engines.interface import GenerationRequest, Sampling, UnsupportedError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("continue_final_message", True), ("add_generation_prompt", False), ("min_tokens", 3), ("ignore_eos", True)),
        *(("guided_json", {}), ("chat_template", "x"), ("chat_template_kwargs", {"a": 1}), ("keep_alive", "5m")),
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


def test_a_body_that_is_not_told_to_be_json_names_the_content_type():
    with pytest.raises(APIError, match="Content-Type: application/json"):
        SpeechRequest.model_validate(b"{}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 0), ("min_p", 0.1), ("frequency_penalty", 1), ("presence_penalty", 1), ("logit_bias", ((1, 2.0),))],
)
def test_ctranslate2_refuses_each_sampling_parameter_that_it_cannot_do(name, value):
    require_supported(GenerationRequest(prompt_ids=[1], sampling=Sampling()))
    with pytest.raises(UnsupportedError, match=name):
        require_supported(GenerationRequest(prompt_ids=[1], sampling=Sampling(**{name: value})))


@pytest.fixture
async def http():
    services = Services(
        models={}, language_models={}, transcription=None, transcription_model="whisper-tiny.en", synthesis=None
    )
    transport = httpx.ASGITransport(build(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations"])
@pytest.mark.parametrize("name", ["hotwords", "vad_filter"])
async def test_forms_refuse_unknown_fields_by_name(http, path, name):
    answer = await http.post(path, data={"model": "whisper-1", name: "true"}, files={"file": b"x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    neutral = await http.post(path, data={"model": "whisper-1", name: ""}, files={"file": b"x"})
    assert neutral.json()["error"]["param"] != name


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/audio/speech"])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}])
async def test_a_wrong_content_type_is_named(http, path, headers):
    answer = await http.post(path, content=b'{"model": "m"}', headers=headers)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]
