"""Tools and forms of the text in chat completions and completions: what is refused, what goes to the model, and answers
that are always valid, whole and streamed, as openai's client reads them."""

import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator

import httpx
import jsonschema
import openai
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import AutoConfig

from constrained_answers import written
from voicechat_platform.assets import locate_gguf
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.tool_text import HERMES, LLAMA, CallForm, told_in_text
from voicechat_serve.api.chat import ChatRequest
from voicechat_serve.api.chat_messages import arguments_of
from voicechat_serve.api.completions import CompletionRequest
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.generation.answer_form import NO_TOOLS, TextForm, Tool, ToolUse
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.closed_schema import closed
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import UnsupportedError
from voicechat_serve.generation.loaded_model import GenerationOptions, LoadedModel
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.generation.tool_calls import CallReader, answer_grammar

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "maxLength": 20},
        "filters": {"type": "array", "items": {"$ref": "#/$defs/filter"}, "maxItems": 2},
    },
    "required": ["query", "filters"],
    "additionalProperties": False,
    "$defs": {
        "filter": {
            "type": "object",
            "properties": {"field": {"enum": ["a}b", 'quo"te']}, "above": {"type": "integer", "maximum": 99}},
            "required": ["field", "above"],
            "additionalProperties": False,
        }
    },
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
USER = {"role": "user", "content": "Is it warm in Oslo?"}
CHAT = {"model": "tiny", "messages": [USER], "seed": 1, "temperature": 1.0}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "7 degrees"}

THREE = (Tool(name="get_weather", parameters=CITY), Tool(name="search", parameters=SEARCH), Tool(name="clock"))
SCHEMAS = {tool.name: tool.parameters or {"type": "object", "maxProperties": 0} for tool in THREE}
FORMS = [
    None,
    TextForm("json_schema", CITY),
    TextForm("json_schema", {"type": "object"}),
    TextForm("regex", "[A-Z]{3}-[0-9]{1,4}"),
    TextForm("choice", ["yes", "no", 'a "quoted" one', "grün \N{GRINNING FACE}"]),
]


def read(form: CallForm, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]], CallReader]:
    """Return the text and the calls of an answer that arrives in pieces."""
    reader, given, calls = CallReader(form), "", list[tuple[str, str]]()
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    for number, part in enumerate(parts, 1):
        new, pieces = reader.push(part, is_last=number == len(parts))
        assert not (new and calls)
        given += new
        for piece in pieces:
            if piece.name:
                assert piece.index == len(calls)
                calls.append((piece.name, ""))
            assert piece.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    return given, calls, reader


def is_of_form(text: str, form: TextForm) -> bool:
    if form.kind == "json_schema":
        jsonschema.validate(json.loads(text), form.content)
        return True
    if form.kind == "choice":
        return text in form.content
    return bool(re.fullmatch(form.content, text))


@pytest.fixture(scope="module", params=["characters", "smollm2"])
def vocabulary(request, tiny_model) -> ChatTokenizer:
    """Without an end token, and with one."""
    return ChatTokenizer(tiny_model if request.param == "characters" else locate_gguf("smollm2-135m-instruct"))


class TestAnswersOfAModelThatKnowsNothing:
    @given(
        form=st.sampled_from([HERMES, LLAMA]),
        text=st.sampled_from(FORMS),
        is_required=st.booleans(),
        is_parallel=st.booleans(),
        begins=st.booleans(),
        seed=st.integers(0, 2**32),
        cuts=st.lists(st.integers(0, 1000), max_size=30),
    )
    @settings(max_examples=60, deadline=None)
    def test_are_calls_that_validate_or_the_text(
        self, vocabulary, form, text, is_required, is_parallel, begins, seed, cuts
    ):
        if text is not None:
            form = HERMES
        use = ToolUse(tools=THREE, is_required=is_required, is_parallel=is_parallel)
        grammar = answer_grammar(use, text, form, bool(vocabulary.end_ids))
        begin = form.begin or '{"name": "' if begins else ""
        if begins and text is None and not is_required and form.begin:
            begin = f"Let me see.\n{begin}"
        answer, is_complete = written(vocabulary.grammars, grammar, 300, seed, begin)
        given, calls, reader = read(form, answer, cuts)
        assert (given, calls) == read(form, answer, [])[:2]
        if is_complete:
            assert not reader.is_cut
        for name, arguments in calls if is_complete else calls[:-1]:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        if is_complete and (is_required or begins):
            assert calls
        if is_complete and not calls and text is not None:
            assert is_of_form(given, text)
        if not is_parallel or form.is_single or not vocabulary.end_ids:
            assert len(calls) <= 1
        if begin.startswith("Let"):
            assert given == "Let me see."

    def test_are_cut_only_where_the_room_is_too_short(self, vocabulary):
        use = ToolUse(tools=THREE[:1], is_required=True)
        grammar = answer_grammar(use, None, HERMES, bool(vocabulary.end_ids))
        cut, is_complete = written(vocabulary.grammars, grammar, 12, 0)
        assert not is_complete
        assert read(HERMES, cut, [])[0] == ""


def test_a_choice_that_would_be_read_as_a_call_is_refused():
    choices = TextForm("choice", ["yes", "<tool_call>\nno"])
    with pytest.raises(InputError, match="<tool_call>"):
        answer_grammar(ToolUse(tools=THREE), choices, HERMES, has_end=True)
    assert answer_grammar(NO_TOOLS, choices, HERMES, has_end=True)


@pytest.mark.parametrize(
    "rest", ["", "<tool_call>\n", '<tool_call>\n{"name": "ti', '<tool_call>\n{"name": "time", "arguments": {']
)
def test_a_further_call_that_is_cut_is_no_whole_answer(rest):
    first = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    text, calls, reader = read(HERMES, first + "\n" + rest, [])
    assert (text, calls[0]) == ("", ("time", "{}"))
    assert (reader.is_whole, reader.is_cut) == (not rest, bool(rest))


@given(pieces=st.lists(st.text(alphabet='<tol_ca>\n {}":,a\\', max_size=9), max_size=30))
@settings(deadline=None)
def test_a_reader_takes_any_text(pieces):
    for form in (HERMES, LLAMA):
        reader = CallReader(form)
        for piece in pieces:
            reader.push(piece)
        reader.push("", is_last=True)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"tools": [{"type": "function"}]}, "tools.0.function"),
            ({"tools": [WEATHER, {"type": "web_search", "filters": {}}]}, "tools.1.type"),
            ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
            ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
            ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
            ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, "tools.0.function.name"),
            ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools.0.function.x"),
            ({"tools": [WEATHER] * 129}, "tools"),
            ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
            ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
            (
                {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
                "tool_choice.function.name",
            ),
            (
                {
                    "tools": TOOLS,
                    "tool_choice": {
                        "type": "allowed_tools",
                        "allowed_tools": {
                            "mode": "auto",
                            "tools": [NAMED, {"type": "function", "function": {"name": "x"}}],
                        },
                    },
                },
                "tool_choice.allowed_tools.tools.1.function.name",
            ),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": NAMED}, "tool_choice"),
            ({"messages": [USER, RESULT]}, "messages.1.tool_call_id"),
            ({"messages": [USER, CALLING, RESULT | {"tool_call_id": "call_2"}]}, "messages.2.tool_call_id"),
            ({"messages": [USER, CALLING, {"role": "tool", "content": "7"}]}, "messages.2.tool_call_id"),
            ({"messages": [USER, CALLING, RESULT, RESULT]}, "messages.3.tool_call_id"),
            ({"messages": [USER, CALLING, USER]}, "messages.1.tool_calls"),
            ({"messages": [USER, CALLING]}, "messages.1.tool_calls"),
            ({"messages": [USER, CALLING | {"tool_calls": [CALL, CALL]}, RESULT]}, "messages.1.tool_calls.1.id"),
            ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages.0.tool_calls"),
            ({"messages": [USER | {"tool_call_id": "call_1"}]}, "messages.0.tool_call_id"),
            ({"messages": [USER, CALLING, RESULT | {"content": None}]}, "messages.2.content"),
            ({"functions": [{"name": "f"}]}, "functions"),
            ({"function_call": {"name": "f"}}, "function_call"),
            ({"response_format": {"type": "xml"}}, "response_format.type"),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
            ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
            ({"guided_json": {"$ref": "http://example.org/a"}}, "guided_json.$ref"),
            ({"guided_json": {"properties": {}, "required": [["a"]]}}, "guided_json.required"),
            ({"guided_json": {"properties": {}, "required": 1}}, "guided_json.required"),
            ({"guided_regex": "a" * 5000}, "guided_regex"),
            ({"guided_choice": []}, "guided_choice"),
            ({"guided_choice": ["a"] * 257}, "guided_choice"),
            ({"guided_grammar": "a" * 20_000}, "guided_grammar"),
            ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object"),
            ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
            (
                {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
                "structured_outputs.regex",
            ),
            ({"tools": TOOLS, "guided_grammar": 'start: "a"'}, "guided_grammar"),
        ],
    )
    async def test_names_its_place(self, http, fields, param):
        answer = await http.post("/chat/completions", json=CHAT | fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)

    @pytest.mark.parametrize(
        "arguments",
        [
            *("[1]", "{", "NaN", "7", "[" * 5000, '{"a": NaN}', '{"a": ' + "9" * 5000 + "}"),
            *(r'{"a": "\ud800"}', r'{"\ud800": 1}', '{"a": ' + "[" * 900 + "]" * 900 + "}"),
        ],
    )
    async def test_arguments_in_a_history_are_an_object(self, http, arguments):
        function = {"name": "get_weather", "arguments": arguments}
        messages = [USER, CALLING | {"tool_calls": [CALL | {"function": function}]}, RESULT]
        error = (await http.post("/chat/completions", json=CHAT | {"messages": messages})).json()["error"]
        assert error["param"] == "messages.1.tool_calls.0.function.arguments"

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"guided_regex": "(a"}, "invalid regex"),
            ({"guided_grammar": "root ::= "}, "grammar"),
            ({"guided_grammar": "start: nowhere"}, "grammar"),
            ({"guided_regex": "a(?=b)"}, "invalid regex"),
            ({"guided_regex": "a\\"}, "regular expression"),
            ({"guided_choice": ["\N{SNOWMAN}"]}, "vocabulary"),
        ],
    )
    @pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
    async def test_a_form_that_no_engine_can_follow_is_an_error_before_the_first_byte(
        self, http, path, fields, said, stream
    ):
        body = CHAT if "chat" in path else {"model": "tiny", "prompt": "So:"}
        answer = await http.post(path, json=body | fields | {"stream": stream, "max_tokens": 8})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert said in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("fields", "param"), [({"tools": TOOLS}, "tools"), ({"guided_regex": "a"}, "guided_regex")]
    )
    async def test_an_engine_without_grammars_names_the_field(self, model, fields, param, monkeypatch):
        async def generate(request):
            raise UnsupportedError("grammar", "vllm")
            yield

        monkeypatch.setattr(model.engine, "generate", generate)
        (request,) = ChatRequest.model_validate(CHAT | fields).choice_requests("tiny", None)
        with pytest.raises(UnsupportedError, match=f"vllm, which has no {param}"):
            [delta async for delta in model.chat(request.prompt, request.options)]


def options_of(**fields) -> GenerationOptions:
    (request,) = ChatRequest.model_validate(CHAT | fields).choice_requests("tiny", None)
    return request.options


class TestWhatTheModelIsAsked:
    def test_every_choice_of_tools(self):
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
        cases = {
            None: ({"get_weather", "clock"}, False),
            "auto": ({"get_weather", "clock"}, False),
            "required": ({"get_weather", "clock"}, True),
            "none": (set(), False),
            json.dumps(NAMED): ({"get_weather"}, True),
            json.dumps(allowed): ({"get_weather"}, True),
        }
        for choice, (names, is_required) in cases.items():
            choice = json.loads(choice) if choice and choice.startswith("{") else choice
            use = options_of(tools=TOOLS, tool_choice=choice).tools
            assert ({tool.name for tool in use.allowed}, use.is_required) == (names, is_required)
            assert use.is_parallel == (choice != NAMED)
        assert not options_of(tools=TOOLS, parallel_tool_calls=False).tools.is_parallel

    def test_neutral_choices_need_no_tools(self):
        for fields in (
            {},
            {"tools": []},
            {"tool_choice": "none"},
            {"tool_choice": "auto", "parallel_tool_calls": True},
        ):
            assert options_of(**fields).tools == ToolUse()

    @pytest.mark.parametrize(
        ("fields", "form"),
        [
            ({"response_format": {"type": "text"}}, None),
            ({"response_format": {"type": "json_object"}}, TextForm("json_schema", {"type": "object"})),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}}},
                TextForm("json_schema", CITY, is_strict=False),
            ),
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "a", "strict": True, "schema": CITY},
                    }
                },
                TextForm("json_schema", CITY),
            ),
            ({"guided_json": CITY}, TextForm("json_schema", CITY)),
            ({"guided_regex": "a+"}, TextForm("regex", "a+")),
            ({"guided_choice": ["a"]}, TextForm("choice", ["a"])),
            ({"structured_outputs": {"json": CITY}}, TextForm("json_schema", CITY)),
            ({"structured_outputs": {"grammar": 'start: "a"'}}, TextForm("grammar", 'start: "a"')),
        ],
    )
    def test_every_form_of_the_text(self, fields, form):
        assert options_of(**fields).text == form
        body = CompletionRequest.model_validate({"model": "tiny", "prompt": "So:"} | fields)
        assert body.choice_requests("tiny", None)[0].options.text == form

    def test_a_keyword_that_cannot_be_kept_is_refused_only_in_a_strict_schema(self):
        schema = CITY | {"not": {"const": 1}}
        function = {"name": "f", "parameters": schema}
        options_of(tools=[{"type": "function", "function": function}])
        with pytest.raises(APIError, match=r"tools\.0\.function\.parameters\.not"):
            options_of(tools=[{"type": "function", "function": function | {"strict": True}}])

    @pytest.mark.parametrize(
        ("schema", "said"),
        [
            ({"type": "object", "properties": {}, "default": json.loads("[" * 900 + "]" * 900)}, "levels"),
            ({"type": "object", "properties": {"a": {"description": "\ud800"}}}, "Unicode"),
            ({"type": "object", "properties": {}, "maxProperties": float("inf")}, "number"),
        ],
    )
    def test_a_schema_that_no_prompt_can_hold_is_refused(self, schema, said):
        with pytest.raises(APIError, match=said):
            options_of(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])

    def test_numbers_of_a_history_are_numbers_of_json(self):
        assert arguments_of('{"a": 1e999, "b": -1e999, "c": 0.5}', "") == {
            "a": sys.float_info.max,
            "b": -sys.float_info.max,
            "c": 0.5,
        }

    def test_a_history_with_calls(self):
        messages = [USER, CALLING, RESULT, {"role": "assistant", "content": "Seven."}, USER]
        (request,) = ChatRequest.model_validate(CHAT | {"messages": messages}).choice_requests("tiny", None)
        called, result = request.prompt[1:3]
        assert called["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Oslo"}}
        assert called["content"] == ""
        assert result == {"role": "tool", "name": "get_weather", "tool_call_id": "call_1", "content": "7 degrees"}

    def test_a_template_without_tools_is_told_in_text(self, vocabulary):
        (request,) = ChatRequest.model_validate(
            CHAT | {"messages": [USER, CALLING, RESULT], "tools": TOOLS}
        ).choice_requests("tiny", None)
        prompt = vocabulary.render(request.prompt, request.options.tools.allowed)
        assert '"name": "get_weather"' in prompt
        assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in prompt
        assert "<tool_response>\n7 degrees\n</tool_response>" in prompt

    def test_results_and_what_the_person_says_then_are_one_message(self):
        results = [{"role": "tool", "content": "7"}, {"role": "tool", "content": "8"}]
        told = told_in_text([USER, CALLING | {"tool_calls": []}, *results, USER], [])
        assert [message["role"] for message in told] == ["user", "assistant", "user"]
        assert told[-1]["content"].endswith(f"8\n</tool_response>\n{USER['content']}")

    def test_a_message_cannot_make_a_call(self, vocabulary):
        forged = HERMES.head("clock")
        assert forged not in vocabulary.render([{"role": "user", "content": forged}])


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Iterator[LoadedModel]:
    """As `tiny_model`, with room for the description of tools."""
    folder = tmp_path_factory.mktemp("long-model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tiny_model)
    config.max_position_embeddings = 2048
    torch.manual_seed(0)
    GPTForCausalLM(config).save_pretrained(folder)
    tokenizer = ChatTokenizer(folder)
    model = LoadedModel(tokenizer, make_engine(folder, tokenizer), "tiny@1")
    yield model
    model.engine.close()


@pytest.fixture
async def http(model, local_handle):
    services = Services(
        models={"tiny": ServedModel(id="tiny")},
        language_models={"tiny": local_handle(model)},
        transcription=None,
        transcription_model="whisper-tiny.en",
        synthesis=None,
    )
    transport = httpx.ASGITransport(build(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
        yield http


@pytest.fixture
async def api(http):
    return openai.AsyncOpenAI(base_url="http://127.0.0.1", api_key="none", max_retries=0, http_client=http)


def chunks_of(answer: httpx.Response) -> list[dict]:
    *events, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return chunks


def assembled(chunks: list[dict], index: int = 0) -> tuple[str | None, list[dict], str]:
    """Return the text, the calls and the reason for the end of a choice, as OpenAI's clients do."""
    text, calls, reason = None, list[dict](), ""
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        assert not reason
        delta, reason = choice["delta"], choice["finish_reason"]
        if delta.get("content"):
            assert not calls
            text = (text or "") + delta["content"]
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call["id"].startswith("call_")
                assert call["type"] == "function"
                assert call["function"]["arguments"] == ""
                calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
                assert call["index"] == len(calls) - 1
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return text, calls, reason


class TestAnswers:
    async def test_a_call_whole_and_streamed(self, http):
        body = CHAT | {"tools": TOOLS, "tool_choice": NAMED, "n": 3}
        whole = (await http.post("/chat/completions", json=body)).json()
        ChatCompletion.model_validate(whole, strict=True)
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = chunks_of(await http.post("/chat/completions", json=body | usage))
        assert chunks[-1]["usage"] == whole["usage"]
        ids = set()
        for choice in whole["choices"]:
            message = choice["message"]
            assert (message["content"], choice["finish_reason"]) == (None, "tool_calls")
            (call,) = message["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
            text, (streamed,), reason = assembled(chunks, choice["index"])
            assert (text, reason) == (None, "tool_calls")
            assert streamed["function"] == call["function"]
            ids |= {call["id"], streamed["id"]}
        assert len(ids) == 6

    @pytest.mark.parametrize("choice", ["none", "auto", "required"])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_history_and_every_choice(self, http, choice, stream):
        messages = [USER, CALLING, RESULT, {"role": "assistant", "content": "Seven."}, USER]
        body = CHAT | {"messages": messages, "tools": TOOLS, "tool_choice": choice, "max_tokens": 200}
        answer = await http.post("/chat/completions", json=body | {"stream": stream})
        assert answer.status_code == 200, answer.text
        if stream:
            _, calls, reason = assembled(chunks_of(answer))
        else:
            (whole,) = answer.json()["choices"]
            calls, reason = whole["message"].get("tool_calls", []), whole["finish_reason"]
        assert (reason == "tool_calls") == bool(calls)
        assert bool(calls) == (choice == "required")

    async def test_scores_of_a_call(self, http):
        body = CHAT | {"tools": TOOLS, "tool_choice": NAMED, "logprobs": True}
        whole = (await http.post("/chat/completions", json=body)).json()
        ChatCompletion.model_validate(whole, strict=True)
        (choice,) = whole["choices"]
        assert len(choice["logprobs"]["content"]) == whole["usage"]["completion_tokens"]
        assert assembled(chunks_of(await http.post("/chat/completions", json=body | {"stream": True})))[1]

    async def test_a_stop_string_leaves_no_call_that_looks_whole(self, http):
        body = CHAT | {"tools": TOOLS, "tool_choice": NAMED, "stop": ["city"]}
        (choice,) = (await http.post("/chat/completions", json=body)).json()["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"'

    @pytest.mark.parametrize("fields", [{}, {"tools": TOOLS}])
    @pytest.mark.parametrize("seed", range(3))
    async def test_a_text_of_a_form(self, http, fields, seed):
        named = {"name": "city", "schema": CITY, "strict": True}
        body = CHAT | fields | {"response_format": {"type": "json_schema", "json_schema": named}, "seed": seed}
        (choice,) = (await http.post("/chat/completions", json=body)).json()["choices"]
        if calls := choice["message"].get("tool_calls"):
            assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
            assert isinstance(json.loads(calls[0]["function"]["arguments"]), dict)
        else:
            jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
            assert choice["finish_reason"] == "stop"

    @pytest.mark.parametrize("is_newer", [False, True])
    @pytest.mark.parametrize(
        ("name", "content", "pattern"),
        [
            ("json", CITY, r"\{.*\}"),
            ("regex", "[ab]{3}\\n\\n[cd]", r"[ab]{3}\n\n[cd]"),
            ("choice", ["one two", 'a "b"'], r'one two|a "b"'),
            ("grammar", 'start: "x" /[0-9]/', r"x[0-9]"),
            ("grammar", 'root ::= "x" [0-9]', r"x[0-9]"),
        ],
    )
    async def test_vllms_names(self, http, name, content, pattern, is_newer):
        form = {"structured_outputs": {name: content}} if is_newer else {f"guided_{name}": content}
        for path, asked in (("/chat/completions", CHAT), ("/completions", {"model": "tiny", "prompt": "So:"})):
            answer = await http.post(path, json=asked | form | {"max_tokens": 100})
            (choice,) = answer.json()["choices"]
            text = choice["text"] if path == "/completions" else choice["message"]["content"]
            assert re.fullmatch(pattern, text)
            assert choice["finish_reason"] == "stop"


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=10)
    degrees: int = pydantic.Field(ge=-50, le=50)


class TestOpenAIsClient:
    async def test_parse_gives_an_object(self, api):
        answer = await api.chat.completions.parse(**CHAT, response_format=Weather)
        assert isinstance(answer.choices[0].message.parsed, Weather)

    async def test_parse_gives_arguments(self, api):
        tool = openai.pydantic_function_tool(Weather, name="tell")
        answer = await api.chat.completions.parse(**CHAT, tools=[tool], tool_choice="required")
        (call,) = answer.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)

    async def test_its_stream_assembles_the_call(self, api):
        async with api.chat.completions.stream(**CHAT, tools=TOOLS, tool_choice="required") as stream:
            kinds = {event.type async for event in stream}
            answer = await stream.get_final_completion()
        assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
        # What a client sends back is taken.
        (call,) = choice.message.tool_calls
        messages = [USER, choice.message.model_dump(), RESULT | {"tool_call_id": call.id}]
        assert await api.chat.completions.create(**CHAT | {"messages": messages, "max_tokens": 4})


@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        ({"type": "object", "properties": {"a": {}}}, True),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, True),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, False),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 2}, False),
        ({"type": "object"}, False),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, False),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, False),
        ({"anyOf": [{"properties": {"a": {}}}, {"type": "null"}]}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {}}}}}, True),
        ({"$ref": "#/$defs/a", "required": ["b"], "$defs": {"a": {"properties": {"a": {}}}}}, False),
    ],
)
def test_a_schema_is_closed_where_it_lists_its_properties(schema, is_closed):
    assert ("additionalProperties" in json.dumps(closed(schema))) == (
        is_closed or "additionalProperties" in json.dumps(schema)
    )
    assert jsonschema.Draft202012Validator(closed(schema)).is_valid({"a": 1, "b": 2}) != is_closed


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
OWN = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{CALL}{% endfor %}{% endfor %}"
)
HERMES_CALL = '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
LLAMA_CALL = '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{# ipython #}'


class TestTemplates:
    @pytest.fixture
    def tokenizer_with(self, tiny_model, tmp_path):
        def made(template: str) -> ChatTokenizer:
            shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
            (tmp_path / "chat_template.jinja").write_text(template)
            return ChatTokenizer(tmp_path)

        return made

    HISTORY = (
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL | {"function": {"name": "clock", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "call_1", "name": "clock", "content": "Noon."},
    )

    def test_one_that_refuses_the_systems_message(self, tokenizer_with):
        prompt = tokenizer_with(REFUSING).render(self.HISTORY, [Tool(name="clock")])
        assert prompt.startswith("<user>Is it warm in Oslo?\n\nTo call a function")
        assert prompt.count("<user>") == 2

    @pytest.mark.parametrize(("call", "form"), [(HERMES_CALL, HERMES), (LLAMA_CALL, LLAMA)])
    def test_one_with_its_own_form(self, tokenizer_with, call, form):
        tokenizer = tokenizer_with(OWN.replace("{CALL}", call))
        assert tokenizer.form_for(None) == form
        prompt = tokenizer.render(self.HISTORY, [Tool(name="clock")])
        assert "<tool>Noon." in prompt
        assert f"{form.head('clock')}{{}}" in prompt
        assert "To call a function" not in prompt

    def test_llamas_calls_and_an_object(self, tokenizer_with):
        tokenizer = tokenizer_with(OWN.replace("{CALL}", LLAMA_CALL))
        form = tokenizer.form_for(TextForm("json_schema", CITY))
        assert form == HERMES
        assert "To call a function" in tokenizer.render(self.HISTORY, [Tool(name="clock")], form)


class TestTheService:
    SMOLLM2 = "smollm2-135m-instruct"

    def test_a_call_and_its_result(self, client):
        asked = {"model": self.SMOLLM2, "messages": [USER], "tools": TOOLS, "temperature": 0}
        with client.chat.completions.stream(**asked, tool_choice=NAMED) as stream:
            (choice,) = stream.get_final_completion().choices
        (call,) = choice.message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), CITY)
        assert choice.finish_reason == "tool_calls"
        asked["messages"] = [USER, choice.message.model_dump(), RESULT | {"tool_call_id": call.id}]
        answer = client.chat.completions.create(**asked, tool_choice="none", max_tokens=16)
        assert answer.choices[0].message.content

    def test_an_object(self, client):
        asked = {"model": self.SMOLLM2, "messages": [USER], "response_format": Weather}
        assert isinstance(client.chat.completions.parse(**asked).choices[0].message.parsed, Weather)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_grammar_that_is_wrong(self, client, stream):
        with pytest.raises(openai.BadRequestError, match="grammar"):
            client.chat.completions.create(
                model=self.SMOLLM2, messages=[USER], stream=stream, extra_body={"guided_grammar": "start: nowhere"}
            )
