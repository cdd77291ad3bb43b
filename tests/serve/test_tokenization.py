"""/tokenize, /detokenize and /tokenizer_info: the tokens of a model of characters, and of a GGUF file."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from voicechat_platform.assets import locate_gguf
from voicechat_serve.api import front
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.loaded_model import LoadedModel
from voicechat_serve.generation.remote_model import RemoteModel
from voicechat_serve.generation.served_model import Remote

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, <|im_end|>!"}]


class NoEngine:
    """An engine that is asked for no tokens."""

    context = 512


@pytest.fixture(scope="module")
def smol() -> LoadedModel:
    tokenizer = ChatTokenizer(locate_gguf("smollm2-135m-instruct"))
    return LoadedModel(tokenizer, NoEngine(), "smol")


@pytest.fixture
async def http(services, local_handle, smol) -> AsyncIterator[httpx.AsyncClient]:
    far = RemoteModel(Remote(url="http://127.0.0.1:9/v1", model="far"), "far")
    handles = {"smol": local_handle(smol), "far": local_handle(far)}
    asked: Services = replace(services, language_models=services.language_models | handles)
    transport = httpx.ASGITransport(build(asked))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as http:
        yield http


async def post(http: httpx.AsyncClient, path: str, **body) -> dict:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("model", ["shakespeare", "smol"])
async def test_a_text_and_back(http, model):
    text = "To be, or not"
    found = await post(http, "/tokenize", model=model, prompt=text, return_token_strs=True)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert (await post(http, "/detokenize", model=model, tokens=found["tokens"])) == {"prompt": text}
    plain = await post(http, "/tokenize", model=model, prompt=text)
    assert plain == found | {"token_strs": None}
    info = (await http.get("/tokenizer_info", params={"model": model})).json()
    assert info["model_max_length"] == found["max_model_len"]


@pytest.mark.parametrize(
    "text", ["", "a", "Say <|im_start|>user\nhi<|im_end|>", " \n\t", "\N{SNOWMAN} na\u00efve 1,234"]
)
async def test_special_tokens_are_kept(http, text):
    found = await post(http, "/tokenize", model="smol", prompt=text, add_special_tokens=False)
    assert (await post(http, "/detokenize", model="smol", tokens=found["tokens"]))["prompt"] == text


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(max_codepoint=0xFFFD, exclude_categories=("Cc", "Cs", "Cn", "Co"))))
def test_any_text_and_back(smol, text):
    """Except for bytes that SmolLM2 never saw, such as those of some control characters."""
    vocabulary = smol.tokenizer.vocabulary
    assert vocabulary.decode(vocabulary.encode(text, add_special=False), with_special=True) == text


async def test_a_conversation_is_the_prompt_of_a_chat(http, smol):
    found = await post(http, "/tokenize", model="smol", messages=CONVERSATION)
    assert found["tokens"] == smol.tokenizer.encode_chat(CONVERSATION)
    prompt = (await post(http, "/detokenize", model="smol", tokens=found["tokens"]))["prompt"]
    assert prompt.endswith("<|im_start|>assistant\n")
    assert prompt.count("<|im_end|>") == 2, "what a message says ends no turn"


async def test_what_a_harness_asks_of_the_tokenizer(http):
    """lm-eval names no model, and reads the special tokens and the template."""
    named = (await http.get("/tokenizer_info", params={"model": "shakespeare"})).json()
    assert (await http.get("/tokenizer_info")).json() == named
    info = (await http.get("/tokenizer_info", params={"model": "smol"})).json()
    assert info["eos_token"] == "<|im_end|>"
    assert {"bos_token", "chat_template", "tokenizer_class"} <= info.keys()
    (eos_id,) = (await post(http, "/tokenize", model="smol", prompt=info["eos_token"], add_special_tokens=False))[
        "tokens"
    ]
    assert isinstance(eos_id, int)
    assert await post(http, "/tokenize", prompt="To be") == await post(
        http, "/tokenize", prompt="To be", model="shakespeare"
    )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CONVERSATION}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": CONVERSATION, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": CONVERSATION, "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"messages": CONVERSATION, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a" * 1_000_001}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, "model"),
        ("/tokenize", {"prompt": "a", "model": "far"}, None),
        ("/detokenize", {"tokens": [1], "model": "far"}, None),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [10**6], "model": "smol"}, None),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
async def test_wrong_requests(http, path, body, param):
    response = await http.post(path, json=body)
    assert response.status_code in (400, 404), response.text
    assert response.json()["error"]["param"] == param


async def test_without_v1_a_client_is_sent_to_the_api(services):
    """As lm-eval asks, whose model has its address at /v1/completions, and its tokenizer beside."""
    root = FastAPI()
    front.add_probes(root)
    root.mount("/v1", build(services))
    options = {"base_url": "http://127.0.0.1", "follow_redirects": True}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(root), **options) as http:
        found = await post(http, "/tokenize", prompt="To be")
        assert (await post(http, "/detokenize", tokens=found["tokens"])) == {"prompt": "To be"}
        info = await http.get("/tokenizer_info?model=shakespeare")
        assert (info.status_code, info.url.path) == (200, "/v1/tokenizer_info")
        (redirect,) = info.history
        assert redirect.headers["location"] == "v1/tokenizer_info?model=shakespeare"
