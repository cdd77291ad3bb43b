"""Pydantic AI: text, tools, and output by tools, natively and by the prompt, over both APIs."""

import pytest
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest, ToolReturnPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

from service_under_test import BASE_URL, KEY, MODEL, TEMPERATURE_TOOL, AnyObject, Weather

SETTINGS = {"max_tokens": 64, "temperature": 0}
QUESTION = "It is a fine day in Paris, at 21 degrees."


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model(request):
    return request.param(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY), settings=SETTINGS)


async def test_text(model):
    result = await Agent(model, instructions="Be brief.").run("Say hello.")
    assert result.output.strip()
    assert result.usage.input_tokens > 0


async def test_streamed_text(model):
    async with Agent(model).run_stream("Say hello.") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 1
    assert "".join(pieces).strip()


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
async def test_output(model, kind):
    result = await Agent(model, output_type=kind(Weather)).run(QUESTION)
    assert isinstance(result.output, Weather)


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
async def test_streamed_output(model, kind):
    async with Agent(model, output_type=kind(Weather)).run_stream(QUESTION) as result:
        assert isinstance(await result.get_output(), Weather)


async def test_prompted_output(model):
    """The schema is in the prompt only; what comes is an object all the same."""
    result = await Agent(model, output_type=PromptedOutput(AnyObject)).run(QUESTION)
    assert isinstance(result.output, AnyObject)


async def test_one_of_two_outputs(model):
    """Each is a tool of its own, one of which must be called."""
    result = await Agent(model, output_type=[ToolOutput(Weather), ToolOutput(AnyObject)]).run(QUESTION)
    assert isinstance(result.output, Weather | AnyObject)


async def test_a_tool_is_called_and_its_result_read(model):
    question = ModelRequest.user_text_prompt("What is the temperature in Paris?")
    tool = ToolDefinition(
        name=TEMPERATURE_TOOL,
        description="Gives the temperature in a city.",
        parameters_json_schema={
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Berlin"]}},
            "required": ["city"],
        },
    )
    wanted = ModelRequestParameters(function_tools=[tool], allow_text_output=False)
    answer = await model_request(model, [question], model_request_parameters=wanted)
    assert answer.tool_calls
    assert all(call.args_as_dict()["city"] in ("Paris", "Berlin") for call in answer.tool_calls)
    results = [ToolReturnPart(call.tool_name, "21 degrees", call.tool_call_id) for call in answer.tool_calls]
    after = await Agent(model).run("And in Berlin?", message_history=[question, answer, ModelRequest(results)])
    assert after.output.strip()
