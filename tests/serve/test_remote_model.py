"""Models elsewhere: what goes to the other server, what comes back, and what happens when it does not behave.

The other server is a stub on loopback, over real sockets.
"""

import asyncio
import itertools
import json
import logging
import os
import pickle
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import httpx
import pytest
from fastapi.responses import RedirectResponse, Response
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime_session import MadeUpStages, connected
from realtime_session import written as turn
from stub_upstream import DONE, DROP, GOOD, HANG, StubUpstream, refusal, said, usage, written
from voicechat_platform.errors import InputError
from voicechat_serve.api.ingress import build
from voicechat_serve.api.realtime import ServiceStages
from voicechat_serve.api.services import Services
from voicechat_serve.generation import remote_model, upstream
from voicechat_serve.generation.answer_form import Tool, ToolUse
from voicechat_serve.generation.engines.interface import (
    MOST_RUNNING,
    MOST_WAITING,
    PromptTooLongError,
    UnknownVersionError,
    UpstreamError,
)
from voicechat_serve.generation.language_model import LanguageModel
from voicechat_serve.generation.loaded_model import GenerationOptions
from voicechat_serve.generation.remote_model import Answer, RemoteModel
from voicechat_serve.generation.remote_pieces import Piece, piece_of
from voicechat_serve.generation.served_model import MAX_TOKENS, Remote, ServedModel
from voicechat_serve.operations.load import Load, OverloadedError

SECRET = "sk-not-for-any-log"
ASKED = [{"role": "user", "content": "What is love?"}]
CHAT = {"model": "far", "messages": ASKED}
IDLE = Load(running=0, waiting=0, cache_used=0.0)


@pytest.fixture(scope="module")
def server(listening) -> Iterator[tuple[StubUpstream, str]]:
    stub = StubUpstream()
    with listening(stub.app) as address:
        yield stub, address


@pytest.fixture
def stub(server) -> StubUpstream:
    server[0].reset()
    return server[0]


@pytest.fixture
def remote(server, stub, monkeypatch) -> Remote:
    monkeypatch.setenv("UPSTREAM_KEY", SECRET)
    return Remote(url=f"{server[1]}/v1", model="their-name", key_env="UPSTREAM_KEY")


@pytest.fixture
async def model(remote) -> AsyncIterator[RemoteModel]:
    model = RemoteModel(remote, "far")
    yield model
    assert model.engine.load() == IDLE
    await model.engine.client.close()


def services_of(model, remote: Remote, services: Services, local_handle) -> Services:
    return Services(
        models={"far": ServedModel(id="far", remote=remote)},
        language_models={"far": local_handle(model)},
        transcription=services.transcription,
        transcription_model=services.transcription_model,
        synthesis=services.synthesis,
    )


@pytest.fixture
async def http(model, remote, services, local_handle) -> AsyncIterator[httpx.AsyncClient]:
    app = build(services_of(model, remote, services, local_handle))
    transport = httpx.ASGITransport(app, root_path="/v1", raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1", timeout=60) as http:
        yield http


async def reply(model: RemoteModel, messages=ASKED, truncation="disabled", **sampling):
    """The text of the reply, and its last piece."""
    options = GenerationOptions(sampling=sampling, truncation=truncation)
    deltas = [delta async for delta in model.chat(messages, options)]
    assert [delta.finish_reason is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
    return "".join(delta.text for delta in deltas), deltas[-1]


class TestWhatGoesThere:
    async def test_only_known_fields_with_the_entrys_name_and_key(self, http, stub):
        fields = {
            "temperature": 0.3,
            "top_p": 0.8,
            "top_k": 7,
            "min_p": 0.1,
            "seed": 5,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
        }
        body = CHAT | fields | {"max_completion_tokens": 9, "logit_bias": {"3": -5}, "stop": list("XYZVW")}
        headers = {"X-Forwarded-Host": "evil.example", "Authorization": "Bearer mine", "OpenAI-Organization": "o"}
        answer = (await http.post("/chat/completions", json=body, headers=headers)).json()
        assert stub.bodies == [
            {
                "model": "their-name",
                "messages": ASKED,
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 9,
                "logit_bias": {"3": -5},
                "stop": list("XYZV"),  # OpenAI takes four; the fifth is enforced here
                **fields,
            }
        ]
        sent = stub.headers[0]
        assert sent["authorization"] == f"Bearer {SECRET}"
        assert not {"x-forwarded-host", "openai-organization"} & set(sent)
        assert (answer["model"], answer["system_fingerprint"]) == ("far", "far")
        assert answer["choices"][0]["message"]["content"] == "Love is patient."
        assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}

    async def test_a_request_without_options_sends_only_a_limit(self, http, stub):
        await http.post("/chat/completions", json=CHAT)
        assert set(stub.bodies[0]) == {"model", "messages", "stream", "stream_options", "max_tokens"}
        assert stub.bodies[0]["max_tokens"] == MAX_TOKENS

    async def test_choices_are_requests_of_their_own(self, http, stub):
        answer = (await http.post("/chat/completions", json=CHAT | {"n": 3, "seed": 5})).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["Love is patient."] * 3
        assert sorted(body["seed"] for body in stub.bodies) == [5, 6, 7]
        assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 12, "total_tokens": 23}

    async def test_a_client_cannot_choose_the_address(self, http, stub):
        for fields in ({"base_url": "http://evil.example"}, {"extra_headers": {"a": "b"}}, {"url": "http://e.example"}):
            assert (await http.post("/chat/completions", json=CHAT | fields)).status_code == 400
        for name in ("their-name", "http://evil.example/v1"):
            assert (await http.post("/chat/completions", json=CHAT | {"model": name})).status_code == 404
        assert stub.bodies == []

    async def test_without_a_key_no_key_of_this_machine_is_sent(self, server, stub, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        for name in ("OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
            monkeypatch.setenv(name, SECRET)
        model = RemoteModel(Remote(url=f"{server[1]}/v1", model="m"), "far")
        await reply(model)
        assert SECRET not in json.dumps(stub.headers)
        await model.engine.client.close()


class TestWhatComesBack:
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_completion_with_scores(self, http, stub, stream):
        columns = [
            {"tokens": ["To"], "token_logprobs": [-0.5], "top_logprobs": [{"To": -0.5, "A": -1.0}], "text_offset": [9]},
            {"tokens": [" be"], "token_logprobs": [-0.25], "top_logprobs": None, "text_offset": [99]},
        ]
        pieces = [written("To", logprobs=columns[0]), written(" be", "length", logprobs=columns[1])]
        stub.answers = [[*pieces, usage(2, 2), DONE]]
        body = {"model": "far", "prompt": "So:", "max_tokens": 2, "logprobs": 1, "echo": False, "stream": stream}
        response = await http.post("/completions", json=body)
        assert (stub.paths, stub.bodies[0]["logprobs"]) == (["/v1/completions"], 1)
        if stream:
            events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
            found = [event["choices"][0]["logprobs"] for event in events]
            assert list(itertools.chain(*(each["tokens"] for each in found))) == ["To", " be"]
            return
        (choice,) = response.json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("To be", "length")
        assert choice["logprobs"] == {
            "tokens": ["To", " be"],
            "token_logprobs": [-0.5, -0.25],
            "top_logprobs": [{"To": -0.5}, {" be": -0.25}],
            "text_offset": [3, 5],
        }

    async def test_scores_of_a_chat(self, http, stub):
        content = [{"token": "Ay", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Ay", "logprob": -0.5}]}]
        stub.answers = [[said("Ay", logprobs={"content": content}), said(None, "stop"), DONE]]
        answer = await http.post("/chat/completions", json=CHAT | {"logprobs": True, "top_logprobs": 1})
        ay = {"token": "Ay", "logprob": -0.5, "bytes": [65, 121]}
        assert answer.json()["choices"][0]["logprobs"]["content"] == [ay | {"top_logprobs": [ay]}]

    async def test_what_the_other_server_cannot_do_is_refused_by_name(self, http, stub):
        answer = await http.post("/chat/completions", json=CHAT | {"logprobs": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
        prompt = {"model": "far", "prompt": "To be", "logprobs": 1, "echo": True}
        answer = await http.post("/completions", json=prompt)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
        answer = await http.post("/completions", json={"model": "far", "prompt": [1, 2], "logprobs": 1})
        assert (answer.status_code, "text" in answer.json()["error"]["message"]) == (400, True)

    async def test_token_ids_go_on(self, http, stub):
        stub.answers = [[written("x", "stop"), DONE]]
        assert (await http.post("/completions", json={"model": "far", "prompt": [1, 2]})).status_code == 200
        assert stub.bodies[0]["prompt"] == [1, 2]

    async def test_a_refusal_is_text_and_a_filter_is_a_reason(self, model, stub):
        refused = said(None)
        refused["choices"][0]["delta"]["refusal"] = "I must not."
        stub.answers = [[refused, said(None, "content_filter"), DONE]]
        text, last = await reply(model)
        assert (text, last.finish_reason) == ("I must not.", "content_filter")

    async def test_half_a_character(self, http, stub):
        stub.answers = [[said("Ay \ud83d"), said("me", "stop"), DONE]]
        answer = await http.post("/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == "Ay ?me"

    async def test_stop_strings_are_enforced_here_too(self, model, stub):
        stub.answers = [[said("one EN"), said("D two"), said("three"), HANG]]
        text, last = await reply(model, stop=("END",))
        assert (text, last.finish_reason) == ("one ", "stop")
        assert await asyncio.to_thread(stub.left.wait, 30)
        stub.answers = [[said("one EN"), said(None, "stop"), DONE]]
        assert (await reply(model, stop=("END",)))[0] == "one EN"

    async def test_the_card_says_where_it_is(self, http):
        (card, *_) = (await http.get("/models")).json()["data"]
        assert (card["id"], card["type"], card["origin"]) == ("far", "language", "remote")
        assert "127.0.0.1" not in json.dumps(card)

    async def test_a_conversation(self, model, remote, stub, services, local_handle):
        class Stages(MadeUpStages):
            far = ServiceStages(services_of(model, remote, services, local_handle))

            def write(self, model, messages, sampling, tools):
                return self.far.write("far", messages, sampling, tools)

        async with connected(Stages()) as client:
            client.send("conversation.item.create", item=turn("What is love?"))
            client.send("response.create", response={"output_modalities": ["text"]})
            done = (await client.until("response.done"))["response"]
            assert done["output"][0]["content"] == [{"type": "output_text", "text": "Love is patient."}]
            assert (done["status"], done["usage"]["input_tokens"]) == ("completed", 11)
            stub.answers = [[said("No"), said(None, "content_filter"), DONE], refusal(500, "oh")]
            for reason in ("content_filter", None):
                client.send("response.create", response={"output_modalities": ["text"]})
                done = (await client.until("response.done", 2 if reason else 3))["response"]
                assert done["status_details"].get("reason") == reason
            assert (done["status"], done["status_details"]["error"]["code"]) == ("failed", "unavailable")


REFUSALS = [
    (refusal(400, "top_k is not supported", param="top_k"), 400, None),
    (refusal(422, "seed: too large"), 400, None),
    (refusal(400, "This model's maximum context length is 8 tokens."), 400, "context_length_exceeded"),
    (refusal(400, "too long", code="context_length_exceeded"), 400, "context_length_exceeded"),
    (refusal(400, "the request exceeds the available context size"), 400, "context_length_exceeded"),
    (refusal(401, f"Incorrect API key provided: {SECRET}"), 502, "upstream_key_refused"),
    (refusal(403, "no"), 502, "upstream_key_refused"),
    (refusal(404, "no such model"), 502, "upstream_model_not_found"),
    (refusal(402, "pay"), 502, "upstream_misconfigured"),
    (RedirectResponse("/elsewhere", 307), 502, "upstream_misconfigured"),
    (RedirectResponse("http://127.0.0.1:1/", 302), 502, "upstream_misconfigured"),
    (refusal(429, "slow down", {"Retry-After": "7"}), 503, "overloaded"),
    (refusal(429, "slow down", {"Retry-After": "never"}), 503, "overloaded"),
    (refusal(503, "loading", {"Retry-After": "99999999"}), 503, "unavailable"),
    (refusal(500, SECRET), 503, "unavailable"),
    (refusal(504, "late"), 504, "timeout"),
    (Response("<html>", 502), 503, "unavailable"),
    (Response("<html>", 200, media_type="text/html"), 503, "unavailable"),
    (Response("{}", 200, {"Content-Encoding": "gzip"}), 503, "unavailable"),
    (["data: {\n\n"], 503, "unavailable"),
    (["data: 7\n\n"], 503, "unavailable"),
    (["data: " + "[" * 100_000 + "\n\n"], 503, "unavailable"),
    ([b"data: \xff\n\n"], 503, "unavailable"),
    ([{"choices": [{"delta": {"content": 7}}]}], 503, "unavailable"),
    ([{"choices": [said("a")["choices"][0]] * 2}], 503, "unavailable"),
    ([{"error": {"message": f"broken {SECRET}"}}], 503, "unavailable"),
    ([{"error": {"message": "context length exceeded"}}], 400, "context_length_exceeded"),
    ([DROP], 503, "unavailable"),
    ([DONE], 503, "unavailable"),
    ([], 503, "unavailable"),
]


TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}


def called(*pieces: dict, finish_reason: str | None = None) -> dict:
    """A chunk with pieces of calls."""
    chunk = said(None, finish_reason)
    chunk["choices"][0]["delta"] = {"tool_calls": list(pieces)}
    return chunk


def call(index: int | None = 0, call_id: str | None = None, **function: object) -> dict:
    return {"index": index, "id": call_id, "type": "function", "function": function}


class TestTools:
    async def test_they_go_there_and_their_calls_come_back(self, http, stub):
        stub.answers = [
            [
                said("I look."),
                called(call(0, "a", name="look", arguments="")),
                called(call(0, arguments='{"at"')),
                called(call(0, arguments=": 1}"), call(1, "b", name="look", arguments=None)),
                said(None, "tool_calls"),
                usage(9, 9),
                DONE,
            ]
        ]
        function = {"name": "look", "arguments": '{"at": 0}'}
        messages = [
            *ASKED,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "x", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "x", "content": "dark"},
        ]
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "array"}, "strict": True}}
        fields = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "response_format": schema}
        answer = (await http.post("/chat/completions", json=CHAT | fields | {"messages": messages})).json()
        (body,) = stub.bodies
        assert {name: body[name] for name in fields} == fields
        assert body["messages"] == messages
        (choice,) = answer["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("I look.", "tool_calls")
        assert [each["function"] for each in choice["message"]["tool_calls"]] == [
            {"name": "look", "arguments": '{"at": 1}'},
            {"name": "look", "arguments": "{}"},
        ]

    async def test_other_choices(self, http, stub):
        await http.post("/chat/completions", json=CHAT | {"tools": [TOOL], "tool_choice": "none"})
        await http.post("/chat/completions", json=CHAT | {"tools": [TOOL]})
        await http.post("/chat/completions", json=CHAT | {"response_format": {"type": "json_object"}})
        none, auto, form = stub.bodies
        assert (none["tools"], none["tool_choice"]) == ([TOOL], "none")
        assert not {"tool_choice", "parallel_tool_calls"} & set(auto)
        assert form["response_format"] == {"type": "json_object"}

    async def test_forms_that_openai_has_not_are_refused_by_name(self, http, stub):
        for fields in ({"guided_regex": "a"}, {"guided_choice": ["a"]}, {"guided_grammar": 'start: "a"'}):
            answer = await http.post("/chat/completions", json=CHAT | fields)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, *fields)
        prompt = {"model": "far", "prompt": "To be", "response_format": {"type": "json_object"}}
        answer = await http.post("/completions", json=prompt)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
        assert not stub.bodies

    @pytest.mark.parametrize(
        "pieces",
        [
            [call(0, "a", name="look", arguments="{"), call(0, None, name="look", arguments="}")],
            [call(0, "a", name="look", arguments="{"), call(0, "a", name="look", arguments="}")],
            [call(None, "a", name="look", arguments="{"), call(None, None, arguments="}")],
        ],
    )
    async def test_a_name_may_be_repeated(self, http, stub, pieces):
        stub.answers = [[*(called(each) for each in pieces), said(None, "stop"), DONE]]
        answer = await http.post("/chat/completions", json=CHAT | {"tools": [TOOL]})
        (choice,) = answer.json()["choices"]
        assert [each["function"]["arguments"] for each in choice["message"]["tool_calls"]] == ["{}"]
        assert choice["finish_reason"] == "tool_calls"

    async def test_every_call_may_have_the_number_0(self, http, stub):
        pieces = [call(0, name, name="look", arguments=f'{{"at": "{name}"}}') for name in "ab"]
        stub.answers = [[called(*pieces, finish_reason="stop"), DONE]]
        answer = await http.post("/chat/completions", json=CHAT | {"tools": [TOOL]})
        (choice,) = answer.json()["choices"]
        found = [json.loads(each["function"]["arguments"]) for each in choice["message"]["tool_calls"]]
        assert found == [{"at": "a"}, {"at": "b"}]

    @pytest.mark.parametrize(
        "pieces",
        [
            [call(0, "a", name="unknown", arguments="{}")],
            [call(0, arguments="{}")],
            [call(0, "a", name="look", arguments="{"), call(1, arguments="}")],
            [call(number, str(number), name="look", arguments="{}") for number in range(17)],
            [{"index": 0}],
            [{"index": "0", "function": {"name": "look"}}],
            [{"index": 0, "function": {"name": "look", "arguments": {}}}],
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_server_that_lies(self, http, stub, pieces, stream):
        stub.answers = [[*(called(each) for each in pieces), said(None, "tool_calls"), DONE]]
        answer = await http.post("/chat/completions", json=CHAT | {"tools": [TOOL], "stream": stream})
        if answer.status_code == 200:  # the error came after the first piece
            assert json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "unavailable"
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")

    async def test_arguments_without_an_end(self, model, stub):
        endless = [called(call(0, arguments="x" * 1000)) for _ in range(100)]
        stub.answers = [[called(call(0, "a", name="look", arguments="")), *endless, HANG]]
        options = GenerationOptions(sampling={"max_tokens": 100}, tools=ToolUse(tools=(Tool(name="look"),)))
        deltas = [delta async for delta in model.chat(ASKED, options)]
        given = sum(len(piece.arguments) for delta in deltas for piece in delta.calls)
        assert (given <= 3200, deltas[-1].finish_reason) == (True, "length")


class TestAServerThatDoesNotBehave:
    @pytest.mark.parametrize(("answer", "status", "code"), REFUSALS, ids=itertools.count())
    @pytest.mark.parametrize("stream", [True, False])
    async def test_errors_have_openais_form_and_no_key(self, http, stub, caplog, stream, answer, status, code):
        caplog.set_level(logging.DEBUG)
        stub.answers = [answer]
        response = await http.post("/chat/completions", json=CHAT | {"stream": stream})
        told = response.json()["error"]
        assert (response.status_code, told["code"]) == (status, code)
        assert SECRET not in response.text + caplog.text
        assert ("retry-after" in response.headers) == (status == 503)
        assert stub.paths == ["/v1/chat/completions"]
        if isinstance(answer, Response) and answer.headers.get("retry-after") == "7":
            assert response.headers["retry-after"] == "7"

    @pytest.mark.parametrize("status", [400, 500, None])
    async def test_no_log_has_words_of_the_client(self, model, stub, caplog, status):
        stub.answers = [refusal(status, "zanzibar") if status else [{"error": {"message": "zanzibar"}}]]
        with pytest.raises((InputError, UpstreamError)):
            await reply(model)
        stub.answers = [[b"data: zanzibar \xff\n\n"]]
        with pytest.raises(UpstreamError):
            await reply(model)
        assert "zanzibar" not in caplog.text

    async def test_a_refusal_is_shortened(self, http, stub):
        stub.answers = [refusal(400, "no " * 100_000)]
        told = (await http.post("/chat/completions", json=CHAT)).json()["error"]["message"]
        assert "no no" in told
        assert len(told) < 700

    @pytest.mark.parametrize("ending", [DROP, "data: {\n\n", {"error": {"message": "died"}}, DONE])
    async def test_an_answer_that_breaks_off_is_no_whole_one(self, http, stub, ending):
        stub.answers = [[said("Love "), ending]]
        assert (await http.post("/chat/completions", json=CHAT)).status_code == 503
        lines = (await http.post("/chat/completions", json=CHAT | {"stream": True})).text.strip().split("\n\n")
        assert json.loads(lines[-1][6:])["error"]["code"] == "unavailable"

    @pytest.mark.parametrize("limit", ["FIRST_S", "NEXT_S", "WHOLE_S"])
    async def test_a_server_that_hangs(self, http, stub, monkeypatch, limit):
        monkeypatch.setattr(upstream, limit, 0.2)
        # Comments keep a connection busy, but they are no answer.
        stub.answers = [[*([] if limit == "FIRST_S" else [said("a")]), *[": ping\n\n"] * 100, HANG]]
        response = await http.post("/chat/completions", json=CHAT)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert await asyncio.to_thread(stub.left.wait, 30)

    async def test_nothing_listens_and_then_something_does(self, remote, stub, server, free_port, caplog):
        """The replica starts, stays healthy and answers as soon as the other server does."""
        far = Remote(url=f"http://127.0.0.1:{free_port}/v1", model="m", key_env=remote.key_env)
        model = LanguageModel(ServedModel(id="far", remote=far))
        assert "does not list its models now: APIConnectionError" in caplog.text
        for _ in range(10):
            with pytest.raises(UpstreamError, match="does not answer now") as caught:
                await reply(model)
            assert caught.value.status == 503
            model.check_health()
        model.current.engine.client.base_url = f"{server[1]}/v1"
        assert (await reply(model))[0] == "Love is patient."

    async def test_more_bytes_than_an_answer_may_have(self, model, stub, monkeypatch):
        monkeypatch.setattr(upstream, "MOST_BYTES", 100_000)
        stub.answers = [["data: " + "x" * 10_000] * 1000]
        with pytest.raises(UpstreamError):
            await reply(model)

    @pytest.mark.parametrize("piece", ["word ", "x" * 1000])
    async def test_a_server_that_ignores_the_limit_is_cut_off(self, model, stub, piece):
        stub.answers = [[said(piece)] * 10_000]
        text, last = await reply(model, max_tokens=20)
        assert last.finish_reason == "length"
        assert last.completion_tokens <= 20
        assert len(text) <= 20 * remote_model.LONGEST_TOKEN
        assert text == (piece * 20)[: len(text)]
        assert await asyncio.to_thread(stub.left.wait, 30)

    async def test_single_characters_are_no_tokens(self, model, stub):
        stub.answers = [[*(said(letter) for letter in "abcdefghijklm"), said(None, "stop"), DONE]]
        assert (await reply(model, max_tokens=4))[0] == "abcdefghijklm"

    @pytest.mark.parametrize(
        "lie",
        [
            usage(-1, -4),
            usage(10**30, 10**30),
            usage("many", None),
            usage(True, True),
            usage(1.5, [1]),
            usage(None, 0),
            {"choices": [], "usage": "much"},
            {"choices": [], "usage": {"prompt_tokens": {}}},
            HANG,
            DROP,
            "data: {\n\n",
            DONE,
        ],
        ids=itertools.count(),
    )
    async def test_a_server_that_lies_about_the_usage(self, remote, stub, monkeypatch, lie):
        monkeypatch.setattr(remote_model, "USAGE_S", 0.2)
        model = LanguageModel(ServedModel(id="far", remote=remote))
        stub.answers = [[*GOOD[:-2], lie]]
        text, last = await reply(model)
        assert (text, last.finish_reason) == ("Love is patient.", "stop")
        assert last.completion_tokens == 3  # its pieces
        assert 5 < last.prompt_tokens < 50
        await model.current.engine.client.close()

    @pytest.mark.parametrize("completion_tokens", [2, 9])
    async def test_metrics_of_a_usage_that_corrects_the_count(self, remote, stub, completion_tokens):
        model = LanguageModel(ServedModel(id="far", remote=remote))
        stub.answers = [[*GOOD[:-2], usage(11, completion_tokens), DONE]]
        _, last = await reply(model)
        assert (last.prompt_tokens, last.completion_tokens) == (11, completion_tokens)
        with pytest.raises(UnknownVersionError, match="far has no versions"):
            await anext(model.chat(ASKED, GenerationOptions(version=1)))
        await model.current.engine.client.close()


class TestWhatServersDifferIn:
    async def test_the_usage_is_asked_for_until_it_is_refused(self, model, stub):
        stub.answers = [refusal(400, "stream_options is not allowed"), GOOD[:-2]]
        assert (await reply(model))[0] == "Love is patient."
        await reply(model)
        assert ["stream_options" in body for body in stub.bodies] == [True, False, False]

    async def test_the_newer_name_of_the_limit(self, model, stub):
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        stub.answers = [refusal(400, message, param="max_tokens"), GOOD]
        await reply(model, max_tokens=5)
        await reply(model, max_tokens=5)
        assert ["max_tokens" in body for body in stub.bodies] == [True, False, False]
        assert stub.bodies[-1]["max_completion_tokens"] == 5

    async def test_a_refusal_that_quotes_the_client_teaches_nothing(self, model, stub):
        stub.answers = [refusal(400, "bad words: stream_options, max_completion_tokens")] * 2 + [GOOD]
        with pytest.raises(InputError, match="bad words"):
            await reply(model)
        await reply(model)
        assert stub.bodies[-1]["stream_options"] == {"include_usage": True}
        assert "max_tokens" in stub.bodies[-1]


class TestALongConversation:
    MESSAGES = (
        {"role": "system", "content": "Be brief."},
        *({"role": role, "content": str(number)} for number, role in enumerate(["user", "assistant"] * 8)),
        {"role": "user", "content": "last"},
    )

    async def test_the_oldest_messages_are_left_out(self, model, stub):
        stub.answers = [refusal(400, "longer than the context window")] * 2 + [GOOD]
        await reply(model, self.MESSAGES, "auto")
        sizes = [len(body["messages"]) for body in stub.bodies]
        assert sizes[0] == len(self.MESSAGES)
        assert sizes == sorted(set(sizes), reverse=True)
        for body in stub.bodies:
            assert [body["messages"][0], body["messages"][-1]] == [self.MESSAGES[0], self.MESSAGES[-1]]
            assert body["messages"][1]["role"] == "user"

    async def test_at_last_only_the_last_message_is_sent_and_then_it_is_refused(self, model, stub):
        stub.answers = [refusal(400, "longer than the context window")]
        with pytest.raises(PromptTooLongError):
            await reply(model, self.MESSAGES * 100, "auto")
        assert [len(body["messages"]) for body in stub.bodies][-1] == 2
        assert len(stub.bodies) == remote_model.MOST_ATTEMPTS

    async def test_without_truncation_it_is_refused_at_once(self, model, stub):
        stub.answers = [refusal(400, "longer than the context window")]
        with pytest.raises(PromptTooLongError):
            await reply(model, self.MESSAGES)
        assert len(stub.bodies) == 1


class TestClientsThatLeave:
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("answer", [[HANG], [said("a"), HANG]], ids=["before", "amid"])
    async def test_the_other_server_sees_it(self, remote, stub, services, local_handle, listening, stream, answer):
        stub.answers = [answer]
        model = RemoteModel(remote, "far")
        with listening(build(services_of(model, remote, services, local_handle))) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as http:
                asking = asyncio.create_task(http.post("/chat/completions", json=CHAT | {"stream": stream}))
                assert await asyncio.to_thread(stub.is_hanging.wait, 30)
                assert not stub.left.is_set()
                asking.cancel()
            assert await asyncio.to_thread(stub.left.wait, 30)
            async with asyncio.timeout(30):
                while model.engine.load() != IDLE:
                    await asyncio.sleep(0.01)

    async def test_places_are_counted_and_given_back(self, model, stub):
        stub.answers = [[said("a"), HANG]]
        places = MOST_RUNNING + MOST_WAITING
        streams = [model.chat(ASKED, GenerationOptions()) for _ in range(places)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert model.engine.load() == Load(running=places, waiting=0, cache_used=0.0)
        with pytest.raises(OverloadedError):
            await reply(model)
        await asyncio.gather(*(stream.aclose() for stream in streams))
        assert model.engine.load() == IDLE
        stub.answers = [GOOD]
        assert (await reply(model))[0] == "Love is patient."

    async def test_a_cancelled_wait(self, model, stub):
        stub.answers = [[HANG]]
        async with aclosing(model.chat(ASKED, GenerationOptions())) as stream:
            waiting = asyncio.create_task(anext(stream))
            assert await asyncio.to_thread(stub.is_hanging.wait, 30)
            assert model.engine.load().waiting == 1
            waiting.cancel()
            await asyncio.wait([waiting])
        assert await asyncio.to_thread(stub.left.wait, 30)

    async def test_a_whole_answer_leaves_its_connection_for_the_next(self, model, stub):
        for _ in range(3):
            await reply(model)
        pool = model.engine.client._client._transport._pool
        assert len(pool.connections) == 1


def test_an_error_crosses_processes():
    error = pickle.loads(pickle.dumps(UpstreamError("busy", 503, "overloaded", 7)))
    assert (str(error), error.status, error.code, error.retry_after_s) == ("busy", 503, "overloaded", 7)


@pytest.mark.parametrize("value", [None, "", " ", "a\nb", "schlüssel"])
def test_a_key_that_is_none(monkeypatch, value):
    monkeypatch.delenv("FAR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("FAR_KEY", value)
    with pytest.raises(InputError, match="the environment variable FAR_KEY") as caught:
        RemoteModel(Remote(url="http://127.0.0.1:1/v1", model="m", key_env="FAR_KEY"), "far")
    assert "schl" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "text", "logprobs", "finish_reason", "usage", "tokens"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON | st.builds(lambda choice: {"choices": [choice]}, JSON))
def test_any_json_is_a_piece_or_a_value_error(found):
    try:
        piece = piece_of(found, 2)
    except ValueError:
        return
    assert isinstance(piece.text, str)


@given(
    st.lists(st.text("abE N", max_size=40), max_size=20),
    st.integers(1, 10),
    st.sampled_from([(), ("EN",), ("N a", "b")]),
)
def test_an_answer_is_the_text_within_its_limits(texts, max_tokens, stop):
    answer, whole, shown = Answer(max_tokens, stop), "".join(texts), ""
    for text in texts:
        shown += answer.take(Piece(text, None, (), None))
        if answer.finish_reason:
            break
    else:
        shown += answer.take(Piece("", "stop", (), None))
    assert whole.startswith(shown)
    assert not any(string in shown for string in stop)
    assert len(shown) <= max_tokens * remote_model.LONGEST_TOKEN
    if len(texts) <= max_tokens and len(whole) <= max_tokens * 4 and not any(string in whole for string in stop):
        assert (shown, answer.is_cut) == (whole, False)


def test_the_key_is_in_no_setting(remote):
    assert os.environ["UPSTREAM_KEY"] == SECRET
    served = ServedModel(id="far", remote=remote)
    assert SECRET not in repr(served)
    assert SECRET.encode() not in pickle.dumps(served)
