"""langchain-openai: chat, tools, structured output by its three methods, Responses, embeddings."""

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from service_under_test import BASE_URL, EMBEDDINGS, KEY, MODEL, TEMPERATURE_TOOL, AnyObject, Weather

QUESTION = "It is a fine day in Paris, at 21 degrees."


@tool
def get_temperature(city: str) -> str:
    """Gives the temperature in a city."""
    return "21 degrees"


@pytest.fixture(params=["chat", "responses"])
def model(request):
    return ChatOpenAI(
        model=MODEL,
        base_url=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=64,
        max_retries=0,
        use_responses_api=request.param == "responses",
    )


def test_text(model):
    answer = model.invoke("Say hello.")
    assert answer.text.strip()
    assert answer.usage_metadata["input_tokens"] > 0


def test_streamed_text(model):
    pieces = list(model.stream("Say hello."))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert sum(bool(piece.text) for piece in pieces) > 1
    assert whole.text == model.invoke("Say hello.").text


@pytest.mark.parametrize("tool_choice", ["any", "required", TEMPERATURE_TOOL])
def test_a_tool_is_called_and_its_result_read(model, tool_choice):
    question = HumanMessage("What is the temperature in Paris?")
    call = model.bind_tools([get_temperature], tool_choice=tool_choice).invoke([question])
    assert call.tool_calls
    assert not call.invalid_tool_calls
    results = [get_temperature.invoke(each) for each in call.tool_calls]
    assert all(isinstance(result, ToolMessage) and result.content == "21 degrees" for result in results)
    answer = model.bind_tools([get_temperature], tool_choice="none").invoke([question, call, *results])
    assert answer.text.strip()
    assert not answer.tool_calls


def test_a_strict_tool(model):
    bound = model.bind_tools([Weather], tool_choice="required", strict=True, parallel_tool_calls=False)
    (call,) = bound.invoke(QUESTION).tool_calls
    Weather.model_validate(call["args"])


def test_streamed_call(model):
    whole = None
    for piece in model.bind_tools([get_temperature], tool_choice="any").stream("What is the temperature in Paris?"):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls
    assert {call["name"] for call in whole.tool_calls} == {TEMPERATURE_TOOL}


@pytest.mark.parametrize("is_strict", [None, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model, method, is_strict):
    structured = model.with_structured_output(Weather, method=method, strict=is_strict)
    assert isinstance(structured.invoke(QUESTION), Weather)


def test_json_mode(model):
    structured = model.with_structured_output(AnyObject, method="json_mode")
    assert isinstance(structured.invoke(f"{QUESTION} Answer in JSON."), AnyObject)


def test_schema_as_a_dictionary(model):
    structured = model.with_structured_output(Weather.model_json_schema(), method="json_schema")
    Weather.model_validate(structured.invoke(QUESTION))


def test_structured_output_with_the_raw_message(model):
    answer = model.with_structured_output(Weather, include_raw=True).invoke(QUESTION)
    assert answer["parsing_error"] is None
    assert isinstance(answer["parsed"], Weather)


def test_embeddings():
    """Without `check_embedding_ctx_length`, with which LangChain sends the token ids of another model's tokenizer."""
    embeddings = OpenAIEmbeddings(
        model=EMBEDDINGS, base_url=BASE_URL, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
    )
    one, two = embeddings.embed_documents(["A cat sleeps on the sofa.", "The stock market fell."])
    assert len(one) == len(two) > 100
    assert len(embeddings.embed_query("A kitten.")) == len(one)
