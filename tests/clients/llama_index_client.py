"""LlamaIndex, by its class for services like OpenAI's (the other one, OpenAI's own, knows only OpenAI's models)."""

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

from service_under_test import BASE_URL, EMBEDDINGS, KEY, MODEL, TEMPERATURE_TOOL, Weather

PROMPT = PromptTemplate("It is a fine day in {city}.")


def get_temperature(city: str) -> str:
    """Gives the temperature in a city."""
    return "21 degrees"


def make(**more: bool) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=KEY,
        is_chat_model=True,
        context_window=2048,
        max_tokens=64,
        temperature=0,
        max_retries=0,
        **more,
    )


@pytest.fixture(params=["by tools", "by the schema"])
def model(request) -> OpenAILike:
    if request.param == "by tools":
        return make(is_function_calling_model=True)
    return make(should_use_structured_outputs=True)


def test_text():
    assert make().complete("Say hello.").text.strip()


def test_streamed_text():
    pieces = [piece.delta for piece in make().stream_chat([ChatMessage("Say hello.")])]
    assert sum(bool(piece) for piece in pieces) > 1


def test_structured_predict(model):
    assert isinstance(model.structured_predict(Weather, PROMPT, city="Paris"), Weather)


def test_streamed_structured_predict():
    """By the schema: by tools, LlamaIndex leaves it to the model whether it calls one."""
    parts = list(make(should_use_structured_outputs=True).stream_structured_predict(Weather, PROMPT, city="Paris"))
    assert Weather.model_validate(parts[-1].model_dump())


async def test_structured_predict_without_blocking(model):
    assert isinstance(await model.astructured_predict(Weather, PROMPT, city="Paris"), Weather)


def test_as_structured_llm(model):
    assert isinstance(model.as_structured_llm(Weather).complete("A fine day in Paris.").raw, Weather)


def test_a_tool_is_called_and_its_result_read():
    model, tool = make(is_function_calling_model=True), FunctionTool.from_defaults(get_temperature)
    question = ChatMessage("What is the temperature in Paris?")
    answer = model.chat_with_tools([tool], chat_history=[question], tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    assert {call.tool_name for call in calls} == {TEMPERATURE_TOOL}
    results = [
        ChatMessage(tool(**call.tool_kwargs).content, role="tool", additional_kwargs={"tool_call_id": call.tool_id})
        for call in calls
    ]
    assert model.chat([question, answer.message, *results]).message.content.strip()


def test_embeddings():
    embedding = OpenAILikeEmbedding(model_name=EMBEDDINGS, api_base=BASE_URL, api_key=KEY, max_retries=0)
    assert len(embedding.get_text_embedding("A cat sleeps.")) > 100
