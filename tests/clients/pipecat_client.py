"""Pipecat's services for OpenAI: the language model, speech to text, text to speech, and the realtime model."""

import asyncio
import wave

import pytest
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    FunctionCallResultFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.realtime.events import SessionProperties
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.services.openai.responses.llm import OpenAIResponsesHttpLLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService

from service_under_test import BASE_URL, CLIP, KEY, MODEL, REALTIME_URL, TEMPERATURE_TOOL

TOOL = FunctionSchema(
    name=TEMPERATURE_TOOL,
    description="Gives the temperature in a city.",
    properties={"city": {"type": "string", "enum": ["Paris", "Berlin"]}},
    required=["city"],
)


class Watcher(FrameProcessor):
    """Keeps the frames that pass, and sets `found` at the first one of the kind that is awaited."""

    def __init__(self, awaited: type[Frame]) -> None:
        super().__init__()
        self.awaited = awaited
        self.frames: list[Frame] = []
        self.found = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        if isinstance(frame, self.awaited | ErrorFrame):
            self.found.set()
        await self.push_frame(frame, direction)


async def frames_until(awaited: type[Frame], processors: list[FrameProcessor], given: list[Frame]) -> list[Frame]:
    """What comes out of a pipeline of these processors until a frame of a kind has come."""
    watcher = Watcher(awaited)
    task = PipelineTask(
        Pipeline([*processors[:-1], watcher, processors[-1]] if len(processors) > 1 else [*processors, watcher]),
        params=PipelineParams(audio_in_sample_rate=16_000, audio_out_sample_rate=24_000),
        cancel_on_idle_timeout=False,
    )
    errors = []

    async def keep_error(_: object, frame: ErrorFrame) -> None:
        errors.append(frame)
        watcher.found.set()

    task.add_event_handler("on_pipeline_error", keep_error)
    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    await task.queue_frames(given)
    async with asyncio.timeout(60):
        await watcher.found.wait()
    await task.queue_frame(EndFrame())
    await running
    assert not errors
    return watcher.frames


def conversation(tool_choice: str) -> tuple[LLMContext, LLMContextAggregatorPair]:
    context = LLMContext(
        [{"role": "user", "content": "What is the temperature in Paris?"}],
        tools=ToolsSchema([TOOL]),
        tool_choice=tool_choice,
    )
    return context, LLMContextAggregatorPair(context)


@pytest.fixture(params=[OpenAILLMService, OpenAIResponsesHttpLLMService])
def llm(request):
    settings = request.param.Settings(model=MODEL, temperature=0, max_tokens=64)
    return request.param(api_key=KEY, base_url=BASE_URL, settings=settings)


async def test_text(llm):
    context, pair = conversation("none")
    frames = await frames_until(LLMTextFrame, [pair.user(), llm, pair.assistant()], [LLMContextFrame(context)])
    assert any(isinstance(frame, LLMTextFrame) and frame.text for frame in frames)


async def test_a_tool_is_called_and_its_result_read():
    """By chat: over Responses, Pipecat sends no choice, and leaves it to the model whether it calls a tool."""
    settings = OpenAILLMService.Settings(model=MODEL, temperature=0, max_tokens=64)
    llm = OpenAILLMService(api_key=KEY, base_url=BASE_URL, settings=settings)
    context, pair = conversation("required")
    called = []

    async def get_temperature(params):
        called.append(params.arguments)
        context.set_tool_choice("none")
        await params.result_callback("21 degrees")

    llm.register_function(TEMPERATURE_TOOL, get_temperature)
    await frames_until(LLMTextFrame, [pair.user(), llm, pair.assistant()], [LLMContextFrame(context)])
    assert called
    assert all(arguments["city"] in ("Paris", "Berlin") for arguments in called)


async def test_speech_to_text():
    with wave.open(CLIP) as file:
        sound = file.readframes(file.getnframes())
    given = [
        VADUserStartedSpeakingFrame(),
        InputAudioRawFrame(sound, sample_rate=16_000, num_channels=1),
        VADUserStoppedSpeakingFrame(),
    ]
    frames = await frames_until(TranscriptionFrame, [OpenAISTTService(api_key=KEY, base_url=BASE_URL)], given)
    assert any(isinstance(frame, TranscriptionFrame) and frame.text.strip() for frame in frames)


async def test_text_to_speech():
    service = OpenAITTSService(api_key=KEY, base_url=BASE_URL)
    frames = await frames_until(TTSAudioRawFrame, [service], [TTSSpeakFrame("Good morning.")])
    assert any(isinstance(frame, TTSAudioRawFrame) and frame.audio for frame in frames)


def realtime(tool_choice: str) -> OpenAIRealtimeLLMService:
    properties = SessionProperties(tool_choice=tool_choice)
    settings = OpenAIRealtimeLLMService.Settings(
        model=MODEL, system_instruction="Be brief.", session_properties=properties
    )
    return OpenAIRealtimeLLMService(api_key=KEY, base_url=REALTIME_URL, settings=settings)


async def test_realtime_speech():
    context, pair = conversation("none")
    frames = await frames_until(
        TTSAudioRawFrame, [pair.user(), realtime("none"), pair.assistant()], [LLMContextFrame(context)]
    )
    assert any(isinstance(frame, TTSAudioRawFrame) and frame.audio for frame in frames)


async def test_realtime_tool():
    context, pair = conversation("required")
    llm, called = realtime("required"), []

    async def get_temperature(params):
        called.append(params.arguments)
        await params.result_callback("21 degrees")

    llm.register_function(TEMPERATURE_TOOL, get_temperature)
    await frames_until(FunctionCallResultFrame, [pair.user(), llm, pair.assistant()], [LLMContextFrame(context)])
    assert all(arguments["city"] in ("Paris", "Berlin") for arguments in called)
    assert called
