"""OpenAI's Agents SDK for Python: over Responses, over chat completions, by voice and in real time."""

import asyncio
import wave

import numpy as np
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.voice import (
    AudioInput,
    OpenAIVoiceModelProvider,
    SingleAgentVoiceWorkflow,
    VoicePipeline,
    VoicePipelineConfig,
)
from openai import AsyncOpenAI

from service_under_test import BASE_URL, CLIP, KEY, MODEL, REALTIME_URL, TEMPERATURE_TOOL, Weather

set_tracing_disabled(True)

SHORT = ModelSettings(max_tokens=64, temperature=0)
CALLS = ModelSettings(max_tokens=64, temperature=0, tool_choice="required")


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel])
def model(request):
    return request.param(model=MODEL, openai_client=AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0))


@pytest.fixture
def called():
    return []


@pytest.fixture
def get_temperature(called):
    @function_tool(name_override=TEMPERATURE_TOOL)
    def tool(city: str) -> str:
        """Gives the temperature in a city."""
        called.append(city)
        return "21 degrees"

    return tool


async def test_text(model):
    result = await Runner.run(
        Agent("friend", instructions="Be brief.", model=model, model_settings=SHORT), "Say hello."
    )
    assert result.final_output.strip()
    (answer,) = result.raw_responses
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


async def test_streamed_text(model):
    result = Runner.run_streamed(Agent("friend", model=model, model_settings=SHORT), "Say hello.")
    pieces = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert len(pieces) > 1
    assert "".join(pieces) == result.final_output


async def test_a_conversation_goes_on(model):
    agent = Agent("friend", model=model, model_settings=SHORT)
    first = await Runner.run(agent, "Say hello.")
    second = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "And in French?"}])
    assert second.final_output.strip()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_tool_is_called_and_its_result_read(model, get_temperature, called, is_streamed):
    caller = Agent(
        "caller", model=model, model_settings=CALLS, tools=[get_temperature], tool_use_behavior="stop_on_first_tool"
    )
    question = "What is the temperature in Paris?"
    if is_streamed:
        first = Runner.run_streamed(caller, question)
        async for _ in first.stream_events():
            pass
    else:
        first = await Runner.run(caller, question)
    assert first.final_output == "21 degrees"
    assert called
    speaker = Agent("speaker", model=model, model_settings=SHORT)
    second = await Runner.run(speaker, first.to_input_list())
    assert second.final_output.strip()


async def test_a_tool_that_may_be_called(model, get_temperature):
    agent = Agent("friend", model=model, model_settings=SHORT, tools=[get_temperature])
    agent.tool_use_behavior = "stop_on_first_tool"
    result = await Runner.run(agent, "Say hello.")
    assert result.final_output.strip()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_structured_output(model, is_streamed):
    agent = Agent("reporter", model=model, model_settings=SHORT, output_type=Weather)
    if is_streamed:
        result = Runner.run_streamed(agent, "It is a fine day in Paris.")
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, "It is a fine day in Paris.")
    assert isinstance(result.final_output, Weather)


async def test_tools_and_structured_output_together(model, get_temperature, called):
    agent = Agent("reporter", model=model, model_settings=CALLS, tools=[get_temperature], output_type=Weather)
    agent.tool_use_behavior = "stop_on_first_tool"
    first = await Runner.run(agent, "What is the temperature in Paris?")
    assert called
    never = ModelSettings(max_tokens=64, temperature=0, tool_choice="none")
    reporter = Agent("reporter", model=model, model_settings=never, tools=[get_temperature], output_type=Weather)
    second = await Runner.run(reporter, first.to_input_list())
    assert isinstance(second.final_output, Weather)


async def test_handoff(model):
    expert = Agent("Expert", model=model, model_settings=SHORT, handoff_description="Knows everything.")
    clerk = Agent("Clerk", model=model, model_settings=CALLS, handoffs=[expert])
    result = await Runner.run(clerk, "I must speak to the expert.")
    assert result.last_agent is expert
    assert result.final_output.strip()


async def test_voice_pipeline():
    """With the names of models that the SDK sends unasked."""
    with wave.open(CLIP) as file:
        samples_n = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        rate = file.getframerate()
    client = AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    language_model = OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
    agent = Agent("friend", model=language_model, model_settings=ModelSettings(max_tokens=24, temperature=0))
    pipeline = VoicePipeline(
        workflow=SingleAgentVoiceWorkflow(agent),
        config=VoicePipelineConfig(
            model_provider=OpenAIVoiceModelProvider(openai_client=client), tracing_disabled=True
        ),
    )
    result = await pipeline.run(AudioInput(samples_n, frame_rate=rate))
    events = [event async for event in result.stream()]
    assert not [event for event in events if event.type == "voice_stream_event_error"]
    assert sum(len(event.data) for event in events if event.type == "voice_stream_event_audio") > 2400


async def realtime_events(agent, message, until, settings=()):
    """The events of a session from a typed message to the one of the kind `until`."""
    config = {"model_settings": {"model_name": MODEL, **dict(settings)}}
    session = await RealtimeRunner(agent, config=config).run(
        model_config={"api_key": KEY, "url": f"{REALTIME_URL}?model={MODEL}"}
    )
    events = []
    async with session, asyncio.timeout(120):
        await session.send_message(message)
        async for event in session:
            assert event.type != "error", event
            events.append(event)
            if event.type == until:
                return events
    raise AssertionError(f"no {until}: {[event.type for event in events]}")


async def test_realtime_speech(get_temperature):
    agent = RealtimeAgent("friend", instructions="Be brief.", tools=[get_temperature])
    events = await realtime_events(agent, "Say hello.", "agent_end", {"tool_choice": "none"})
    assert sum(len(event.audio.data) for event in events if event.type == "audio") > 4800


async def test_realtime_tool(get_temperature, called):
    agent = RealtimeAgent("friend", tools=[get_temperature])
    settings = {"tool_choice": "required"}
    events = await realtime_events(agent, "What is the temperature in Paris?", "tool_end", settings)
    assert called
    assert events[-1].output == "21 degrees"
