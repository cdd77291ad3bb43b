"""LiteLLM, which other clients use to reach any provider: the prefix `openai/` means "like OpenAI, at this address"."""

import json
from pathlib import Path

import litellm
import pytest

from service_under_test import BASE_URL, CLIP, EMBEDDINGS, KEY, MODEL, TEMPERATURE_TOOL, VOICE, WHISPER, Weather

HERE = {"api_base": BASE_URL, "api_key": KEY, "max_retries": 0}
CHAT = {"model": f"openai/{MODEL}", "temperature": 0, "max_tokens": 64, **HERE}
QUESTION = [{"role": "user", "content": "What is the temperature in Paris?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TEMPERATURE_TOOL,
            "description": "Gives the temperature in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Berlin"]}},
                "required": ["city"],
            },
        },
    }
]


def test_text():
    answer = litellm.completion(messages=QUESTION, **CHAT)
    assert answer.choices[0].message.content.strip()
    assert answer.usage.prompt_tokens > 0


def test_streamed_text():
    pieces = list(litellm.completion(messages=QUESTION, stream=True, **CHAT))
    assert len(pieces) > 2
    assert litellm.stream_chunk_builder(pieces).choices[0].message.content.strip()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_is_called_and_its_result_read(is_streamed):
    answer = litellm.completion(messages=QUESTION, tools=TOOLS, tool_choice="required", stream=is_streamed, **CHAT)
    if is_streamed:
        answer = litellm.stream_chunk_builder(list(answer))
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Berlin")
    results = [{"role": "tool", "tool_call_id": call.id, "content": "21 degrees"} for call in choice.message.tool_calls]
    after = litellm.completion(messages=[*QUESTION, choice.message, *results], **CHAT)
    assert after.choices[0].message.content.strip()


def test_structured_output():
    answer = litellm.completion(messages=QUESTION, response_format=Weather, **CHAT)
    Weather.model_validate_json(answer.choices[0].message.content)


def test_responses():
    answer = litellm.responses(input="Say hello.", model=CHAT["model"], max_output_tokens=32, **HERE)
    assert answer.output[0].content[0].text.strip()


def test_embedding():
    answer = litellm.embedding(model=f"openai/{EMBEDDINGS}", input=["A cat sleeps."], **HERE)
    assert len(answer.data[0]["embedding"]) > 100


def test_speech_and_transcription(tmp_path):
    speech = litellm.speech(model="openai/tts-1", voice=VOICE, input="Good morning.", response_format="wav", **HERE)
    assert speech.content.startswith(b"RIFF")
    with Path(CLIP).open("rb") as file:
        text = litellm.transcription(model=f"openai/{WHISPER}", file=file, **HERE).text
    assert text.strip()
