"""Instructor: each of its modes for OpenAI's API."""

import instructor
import pytest
from instructor import Mode
from openai import OpenAI

from service_under_test import BASE_URL, KEY, MODEL, AnyObject, Weather

MESSAGES = [{"role": "user", "content": "It is a fine day in Paris, at 21 degrees."}]


def client(mode: Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0), mode=mode)


def ask(mode: Mode, response_model: type, **more: object):
    bound = {"max_output_tokens" if mode is Mode.RESPONSES_TOOLS else "max_tokens": 64}
    return client(mode).create(
        model=MODEL, messages=MESSAGES, response_model=response_model, max_retries=0, temperature=0, **bound, **more
    )


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS])
def test_constrained_by_the_schema(mode):
    assert isinstance(ask(mode, Weather), Weather)


def test_json_mode():
    """The schema is in the prompt only; what comes is an object all the same."""
    assert isinstance(ask(Mode.JSON, AnyObject), AnyObject)


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_partial(mode):
    parts = list(
        client(mode).create_partial(
            model=MODEL, messages=MESSAGES, response_model=Weather, max_retries=0, temperature=0, max_tokens=64
        )
    )
    assert Weather.model_validate(parts[-1].model_dump())


def test_several_objects():
    found = list(ask(Mode.TOOLS, list[Weather]))
    assert all(isinstance(each, Weather) for each in found)


def test_the_completion_beside_the_object():
    weather, completion = client(Mode.TOOLS).create_with_completion(
        model=MODEL, messages=MESSAGES, response_model=Weather, max_retries=0, temperature=0, max_tokens=64
    )
    assert isinstance(weather, Weather)
    assert completion.usage.completion_tokens > 0
