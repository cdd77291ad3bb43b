"""Pydantic AI: text, tools, and output by tools, natively and by the prompt, over both APIs."""

import pytest
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from common import BASE_URL, KEY, MODEL, AnyObject, Weather

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
    called = []
    agent = Agent(model, output_type=ToolOutput(Weather, name="final_result"))

    @agent.tool_plain
    def get_temperature(city: str) -> str:
        """Gives the temperature in a city."""
        called.append(city)
        return "21 degrees"

    caller = Agent(model, model_settings={"tool_choice": "required"})
    caller.tool_plain(get_temperature)
    async with caller.iter("What is the temperature in Paris?") as run:
        async for _ in run:
            if called:
                break
        history = run.ctx.state.message_history
    assert called
    result = await Agent(model, output_type=NativeOutput(Weather)).run(message_history=history)
    assert isinstance(result.output, Weather)
    assert any(isinstance(part, ToolReturnPart) for message in history for part in message.parts)
