"""/responses by openai-python: a real model behind the real routes, in this process; every object and every event is
valid by OpenAI's own types, strictly."""

import itertools
import json
import shutil
from dataclasses import replace
from typing import Any, get_args

import httpx
import openai
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types import responses as types
from openai.types.responses import response_stream_event
from ray.exceptions import ActorDiedError

from voicechat_serve.api.answers import Choice, Tally
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.ingress import build
from voicechat_serve.api.response_events import ResponseEvents
from voicechat_serve.api.response_items import conversation
from voicechat_serve.api.responses import ResponseRequest
from voicechat_serve.generation.answer_form import CallPiece
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.loaded_model import Delta

NOT_IN_THE_TYPES = {"store", "name", "bytes"}
"""Fields that OpenAI sends, though openai-python's types do not have them: "name" when a call's arguments are whole,
"bytes" of scores in a stream."""

EVENTS = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(response_stream_event.ResponseStreamEvent)[0])
}


def tool(name: str, **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "name": name, "description": "", "parameters": parameters, "strict": True}


CITY = {"enum": ["Paris", "Rome"]}
TOOLS = [tool("weather", city=CITY), tool("time")]
FORMAT = {"type": "json_schema", "name": "place", "schema": TOOLS[0]["parameters"], "strict": True}
ONE_OF_THEM = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
ASKED: dict[str, dict] = {
    "text": {},
    "text after instructions": {"instructions": "Speak."},
    "text, not a call": {"tools": TOOLS, "tool_choice": "none"},
    "scored text": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "object of a schema": {"text": {"format": FORMAT}},
    "object": {"text": {"format": {"type": "json_object"}, "verbosity": "low"}, "max_output_tokens": 60},
    "one call": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "one call of this tool": {"tools": TOOLS, "tool_choice": {"type": "function", "name": "time"}},
    "calls": {"tools": TOOLS, "tool_choice": "required", "max_output_tokens": 300},
    "calls of one of the tools": {"tools": TOOLS, "tool_choice": ONE_OF_THEM, "max_output_tokens": 300},
    "object or calls": {"tools": TOOLS, "text": {"format": FORMAT}},
}


@pytest.fixture(scope="module")
def long_services(tiny_model, services, tmp_path_factory, local_handle, replica):
    """The API before a model that knows nothing, with room for tools in its prompt."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    tokenizer = ChatTokenizer(folder)
    model = type(replica)(tokenizer, make_engine(folder, tokenizer), "shakespeare")
    yield replace(services, language_models={"shakespeare": local_handle(model)})
    model.engine.close()


@pytest.fixture
async def http(long_services):
    transport = httpx.ASGITransport(build(long_services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
        yield http


@pytest.fixture
async def client(http):
    return openai.AsyncOpenAI(base_url="http://127.0.0.1", api_key="none", max_retries=0, http_client=http)


def body(**fields) -> dict[str, Any]:
    return {"model": "shakespeare", "input": "Hi", "max_output_tokens": 80, "temperature": 0} | fields


def validated(kind: type[pydantic.BaseModel], fields: dict) -> Any:
    """Check an object by a type of OpenAI, without a field that the type does not have."""
    found = kind.model_validate_json(json.dumps(fields), strict=True)
    require_no_more(found)
    return found


def require_no_more(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert set(value.model_extra or ()) <= NOT_IN_THE_TYPES, type(value)
        for name in type(value).model_fields:
            require_no_more(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            require_no_more(each)


def events_in(text: str) -> list[dict]:
    """Return the validated events of a stream."""
    *lines, last = text.split("\n\n")
    assert last == ""
    events = []
    for line in lines:
        head, data = line.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        validated(EVENTS[event["type"]], event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    return events


def without_ids(response: dict) -> dict:
    """Return what two responses to the same request have in common."""
    changing = ("id", "call_id", "created_at", "completed_at")
    items = [{name: value for name, value in item.items() if name not in changing} for item in response["output"]]
    return {name: value for name, value in response.items() if name not in changing} | {"output": items}


@pytest.mark.parametrize("asked", ASKED)
async def test_an_answer_whole_and_streamed(http, asked):
    fields = body(**ASKED[asked])
    answer = await http.post("/responses", json=fields)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    response = validated(types.Response, whole)
    stream = await http.post("/responses", json=fields | {"stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = events_in(stream.text)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert without_ids(events[-1]["response"]) == without_ids(whole)
    assert events[0]["response"]["output"] == []
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    calls = [item for item in response.output if item.type == "function_call"]
    for call in calls:
        arguments = json.loads(call.arguments)
        assert arguments == {} if call.name == "time" else arguments["city"] in CITY["enum"]
    assert len({call.call_id for call in calls}) == len(calls)
    if "text" in asked:  # this model does not end its answer
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [item.status for item in response.output] == ["incomplete"]
        assert response.output_text
    else:
        assert {item.status for item in response.output} == {response.status} == {"completed"}
    if "object" in asked and not calls:
        assert isinstance(json.loads(response.output_text), dict)
    elif "call" in asked and "text" not in asked:
        assert not response.output_text
        assert len(calls) == 1 if "one call" in asked else calls


async def test_the_request_is_in_the_response(client):
    fields = {"metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s", "top_p": 0.5}
    without_effect = {"store": True, "reasoning": {"effort": "high"}, "service_tier": "auto", "truncation": "auto"}
    answer = await client.responses.create(**body(tools=TOOLS, instructions="Be kind."), **fields, **without_effect)
    assert {name: getattr(answer, name) for name in fields} == fields
    assert [each.model_dump(exclude_none=True) for each in answer.tools] == TOOLS
    assert (answer.instructions, answer.store, answer.truncation) == ("Be kind.", False, "auto")
    assert (answer.tool_choice, answer.parallel_tool_calls) == ("auto", True)


class Place(pydantic.BaseModel):
    size: int = pydantic.Field(ge=0, le=9)


async def test_objects_and_calls_are_parsed_by_the_client(client):
    parsed = await client.responses.parse(**body(), text_format=Place)
    assert 0 <= parsed.output_parsed.size <= 9
    tools = [openai.pydantic_function_tool(Place)["function"] | {"type": "function"}]
    called = await client.responses.parse(**body(tools=tools, tool_choice="required", parallel_tool_calls=False))
    (call,) = called.output
    assert json.loads(call.arguments) == {"size": call.parsed_arguments["size"]} or call.parsed_arguments.size >= 0
    async with client.responses.stream(**body(), text_format=Place) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_parsed == parsed.output_parsed


async def test_an_agent_sends_its_items_back(client):
    """As agents do: the output of a response, the results of its calls, and the next question."""
    asked: list = [{"role": "user", "content": "The weather?"}]
    called = await client.responses.create(
        **body(input=asked, tools=TOOLS, tool_choice="required", max_output_tokens=300)
    )
    asked += called.output
    asked += [
        {"type": "function_call_output", "call_id": call.call_id, "output": "Fine."}
        for call in called.output
        if call.type == "function_call"
    ]
    answer = await client.responses.create(**body(input=asked, tools=TOOLS, tool_choice="none"))
    asked += [*answer.output, {"role": "user", "content": [{"type": "input_text", "text": "Thanks."}]}]
    assert (await client.responses.create(**body(input=asked))).output_text


async def test_scores(client):
    include = ["message.output_text.logprobs"]
    answer = await client.responses.create(**body(include=include, top_logprobs=2, max_output_tokens=5))
    part = answer.output[0].content[0]
    assert "".join(score.token for score in part.logprobs) == part.text
    assert [len(score.top_logprobs) for score in part.logprobs] == [2] * 5


async def test_nothing_is_stored(client):
    answer = await client.responses.create(**body(store=True, max_output_tokens=2))
    for ask in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="stores none"):
            await ask(answer.id)


class Mortal:
    """A replica that dies in the middle of each answer."""

    async def chat(self, messages, options):
        yield Delta("To be", 1, 1, None)
        raise ActorDiedError


async def test_an_error_in_the_middle_of_a_stream(services, local_handle):
    app = build(replace(services, language_models={"shakespeare": local_handle(Mortal())}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        events = events_in((await http.post("/responses", json=body(stream=True))).text)
        refused = await http.post("/responses", json=body(stream=True, model="nobody"))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "unavailable"
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert [(item["status"], item["content"][0]["text"]) for item in failed["output"]] == [("incomplete", "To be")]
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@st.composite
def pieces_of_an_answer(draw) -> list[Delta]:
    """Draw the pieces of a text and of calls, in any cuts."""
    texts = st.lists(st.text(max_size=5), max_size=3)
    parts: list[tuple[str, tuple[CallPiece, ...]]] = [(text, ()) for text in draw(texts)]
    for number in range(draw(st.integers(0, 3))):
        cuts = draw(st.lists(st.text(min_size=1, max_size=5), max_size=3))
        pieces = [CallPiece(number, name=f"tool_{number}"), *(CallPiece(number, arguments=each) for each in cuts)]
        parts += [("", tuple(pieces))] if draw(st.booleans()) else [("", (piece,)) for piece in pieces]
        parts += [(text, ()) for text in draw(texts)]  # from a server elsewhere
    if len(parts) > 1 and draw(st.booleans()):  # a text may arrive together with the beginning of a call
        (text, calls), (further, more_calls) = parts[:2]
        parts[:2] = [(text + further, calls + more_calls)]
    finish_reason = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    deltas = [Delta(text, 3, number, None, calls=calls) for number, (text, calls) in enumerate(parts, 1)]
    return [*deltas, Delta("", 3, len(parts) + 1, finish_reason)]


@given(deltas=pieces_of_an_answer())
@settings(max_examples=50, deadline=None)
def test_a_client_that_adds_up_the_events_has_the_response(deltas):
    tally = Tally(choices_per_prompt=1)
    head = ResponseRequest.model_validate(body()).head()
    writer, whole, text = ResponseEvents(head, tally), Choice(), ""
    for delta in deltas:
        tally.count(0, delta)
        whole.add(delta)
        text += writer.piece(0, delta)
    events = events_in(text + writer.end())
    state = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event in events:
        state.handle_event(validated(EVENTS[event["type"]], event))
    last = events[-1]["response"]
    assert last["output"] == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    opened = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert opened == [item["id"] for item in last["output"]]
    texts = [item["content"][0]["text"] for item in last["output"] if item["type"] == "message"]
    calls = [(item["name"], item["arguments"]) for item in last["output"] if item["type"] == "function_call"]
    assert "".join(texts) == whole.text
    assert len(texts) <= 2
    assert last["output"]
    assert calls == [(call.name, call.arguments) for call in whole.calls]
    for kind, key in (("output_text", "text"), ("function_call_arguments", "arguments")):
        done = [event for event in events if event["type"] == f"response.{kind}.done"]
        for event in done:
            deltas_of_it = [
                each["delta"]
                for each in events
                if each["type"] == f"response.{kind}.delta" and each["item_id"] == event["item_id"]
            ]
            assert "".join(deltas_of_it) == event[key]


USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "time", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "noon"}


def messages_of(given: Any, instructions: str | None = None) -> list[dict]:
    request = ResponseRequest.model_validate({"model": "m", "input": given, "instructions": instructions})
    return conversation(request.input, request.instructions)


def test_items_become_messages():
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    spoken = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
    }
    second = {**CALL, "id": "fc_2", "call_id": "c2", "arguments": '{"zone": "CET"}', "status": "completed"}
    parts = {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "one"}]}
    messages = messages_of(
        [{"role": "developer", "content": "B"}, USER, reasoning, spoken, CALL, second, parts, RESULT], "A"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": {}}}
    other = {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    assert messages == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, other]},
        {"role": "tool", "content": "one", "name": "time", "tool_call_id": "c2"},
        {"role": "tool", "content": "noon", "name": "time", "tool_call_id": "c1"},
    ]
    assert messages_of("Hi") == [USER]
    assert messages_of([CALL, RESULT])[0] == {"role": "assistant", "content": "", "tool_calls": [call]}


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def with_schema(schema: Any) -> dict:
    return {"text": {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}}


BAD: list[tuple[dict, str]] = [
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": []}, "input"),
    ({"input": [5]}, "input.0"),
    ({"input": ["Hi"]}, "input.0"),
    ({"input": [{}]}, "input.0.role"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role"),
    ({"input": [USER, {"type": "item_reference", "id": "msg_1"}]}, "input.1"),
    ({"input": [USER, {"type": "web_search_call", "id": "ws_1"}]}, "input.1"),
    ({"input": [USER, {"type": 5}]}, "input.1"),
    ({"input": [USER | {"x": 1}]}, "input.0.x"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [USER | {"content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input.0.content"),
    ({"input": [USER | {"content": [{"type": "input_text"}]}]}, "input.0.content"),
    ({"input": [USER, RESULT]}, "input.1.call_id"),
    ({"input": [USER, CALL]}, "input.1"),
    ({"input": [USER, CALL, RESULT, RESULT]}, "input.3.call_id"),
    ({"input": [USER, CALL, CALL]}, "input.2.call_id"),
    ({"input": [USER, CALL | {"arguments": "[]"}, RESULT]}, "input.1.arguments"),
    ({"input": [USER, CALL | {"arguments": "{"}, RESULT]}, "input.1.arguments"),
    ({"input": [USER, CALL, RESULT | {"output": {"a": 1}}]}, "input.2.output"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True}, "background"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"messages": [USER]}, "messages"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"include": ["a"]}, "include.0"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"tools": TOOLS, "include": ["message.output_text.logprobs"]}, "include"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"truncation": "oldest"}, "truncation"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [TOOLS[0], {"type": "mcp", "server_url": "http://a"}]}, "tools.1.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools.0.name"),
    ({"tools": [{"name": "a"}]}, "tools.0.type"),
    ({"tools": [TOOLS[0] | {"name": "a b"}]}, "tools.0.name"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools.1.name"),
    ({"tools": [TOOLS[0] | {"parameters": {"not": {}}}]}, "tools.0.parameters.not"),
    ({"tools": [TOOLS[0] | {"parameters": {"$ref": "http://a/b"}}]}, "tools.0.parameters.$ref"),
    ({"tools": [TOOLS[0] | {"parameters": {"enum": ["\ud800"]}}]}, "tools.0.parameters"),
    ({"tools": TOOLS * 65}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "file_search"}, "tools": TOOLS}, "tool_choice.type"),
    ({"tool_choice": {"name": "time"}, "tools": TOOLS}, "tool_choice.type"),
    ({"tool_choice": {"type": "function", "name": "date"}, "tools": TOOLS}, "tool_choice.name"),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, "tools": TOOLS},
        "tool_choice.tools.0.type",
    ),
    (
        {
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]},
            "tools": TOOLS,
        },
        "tool_choice.tools.0.name",
    ),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "text", "strict": True}}}, "text.format.strict"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"text": {"verbosity": "none"}}, "text.verbosity"),
    (with_schema({"not": {}}), "text.format.schema.not"),
    (with_schema(nested(40)), "text.format.schema" + ".properties.a" * 33),
    (with_schema({"enum": ["a" * 70_000]}), "text.format.schema"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=itertools.count())
async def test_bad_requests(http, fields, param):
    answer = await http.post(
        "/responses", content=json.dumps(body(**fields)), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == (param if len(param) <= 100 else param[:99] + "…")


@pytest.mark.parametrize(
    ("name", "hint"), [("previous_response_id", "send the items"), ("conversation", "send its items")]
)
def test_what_needs_a_store_says_what_to_send(name, hint):
    with pytest.raises(APIError, match=hint):
        ResponseRequest.model_validate(body(**{name: "x"}))


def test_references_to_items_say_what_to_send():
    with pytest.raises(APIError, match="send the item itself"):
        ResponseRequest.model_validate(body(input=[{"type": "item_reference", "id": "msg_1"}]))
