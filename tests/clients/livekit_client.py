"""LiveKit Agents with its plugin for OpenAI: the language model, speech, and the realtime model, without a room."""

import asyncio
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import function_tool
from livekit.agents.llm import ChatContext
from livekit.plugins import openai

from service_under_test import BASE_URL, CLIP, KEY, MODEL, TEMPERATURE_TOOL, Weather

HERE = {"base_url": BASE_URL, "api_key": KEY}


@function_tool(name=TEMPERATURE_TOOL)
async def get_temperature(city: str) -> str:
    """Gives the temperature in a city."""
    return "21 degrees"


@pytest.fixture(params=["chat", "responses"])
def llm(request):
    if request.param == "chat":
        return openai.LLM(model=MODEL, temperature=0, max_completion_tokens=64, **HERE)
    return openai.responses.LLM(model=MODEL, temperature=0, use_websocket=False, **HERE)  # over HTTP


def question() -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content="What is the temperature in Paris?")
    return context


async def test_text(llm):
    answer = await llm.chat(chat_ctx=question(), tools=[get_temperature], tool_choice="none").collect()
    assert answer.text.strip()
    assert not answer.tool_calls


async def test_a_tool_is_called(llm):
    answer = await llm.chat(chat_ctx=question(), tools=[get_temperature], tool_choice="required").collect()
    assert {call.name for call in answer.tool_calls} == {TEMPERATURE_TOOL}


async def test_structured_output():
    llm = openai.LLM(model=MODEL, temperature=0, max_completion_tokens=64, **HERE)
    answer = await llm.chat(chat_ctx=question(), response_format=Weather).collect()
    Weather.model_validate_json(answer.text)


async def test_speech_to_text():
    with wave.open(CLIP) as file:
        sound = rtc.AudioFrame(file.readframes(file.getnframes()), file.getframerate(), 1, file.getnframes())
    event = await openai.STT(**HERE).recognize(sound)
    assert event.alternatives[0].text.strip()


async def test_text_to_speech():
    frames = [audio.frame async for audio in openai.TTS(**HERE).synthesize("Good morning.")]
    assert sum(frame.duration for frame in frames) > 0.3


@asynccontextmanager
async def realtime_session(**options: object) -> AsyncIterator:
    """A realtime session with a tool and a question, as an agent's session makes one."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(120):
        session = openai.realtime.RealtimeModel(model=MODEL, http_session=http, **HERE, **options).session()
        errors = []
        session.on("error", errors.append)
        await session.update_instructions("Be brief.")
        await session.update_tools([get_temperature])
        await session.update_chat_ctx(question())
        yield session
        await session.aclose()
        assert not errors


async def test_realtime_speech():
    async with realtime_session(tool_choice="none") as session:
        generation = await session.generate_reply()
        duration = 0.0
        async for message in generation.message_stream:
            async for frame in message.audio_stream:
                duration += frame.duration
    assert duration > 0.1


async def test_realtime_tool():
    async with realtime_session(tool_choice="required") as session:
        generation = await session.generate_reply()
        calls = [call async for call in generation.function_stream]
    assert {call.name for call in calls} == {TEMPERATURE_TOOL}
