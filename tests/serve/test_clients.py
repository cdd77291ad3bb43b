"""Real clients against the real service: openai-python here, the others in environments of their own (nightly), for
which tests/clients/ holds a script each."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import openai
import pytest
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/clients"
PYTHON_CLIENTS = sorted(SCRIPTS.glob("*_client.py"))
PINS = {
    "livekit_client": "clients-livekit.txt",
    "pydantic_ai_client": "clients-livekit.txt",
    "llama_index_client": "clients-llama-index.txt",
}
"""The file in requirements/ of clients whose packages do not agree with those of clients.txt."""

NODE_CLIENTS = sorted(SCRIPTS.glob("*.client.mjs"))

NO_REGISTRY = ("connection broken", "ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN")
"""What pip and npm say where they cannot reach a registry."""

SHORT = {"model": "smollm2-135m-instruct", "temperature": 0}
QUESTION = [{"role": "user", "content": "What is the temperature in Paris?"}]


class Weather(BaseModel):
    """The weather in a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Berlin"]
    celsius: int = Field(ge=-50, le=60)


WEATHER_TOOL = openai.pydantic_function_tool(Weather)


def test_openai_parses_an_object(client):
    answer = client.chat.completions.parse(messages=QUESTION, response_format=Weather, max_tokens=64, **SHORT)
    said = answer.choices[0].message
    assert isinstance(said.parsed, Weather)
    conversation = [*QUESTION, said, {"role": "user", "content": "And in Berlin?"}]  # with `parsed` in it
    assert client.chat.completions.create(messages=conversation, max_tokens=8, **SHORT).choices[0].message.content
    with client.chat.completions.stream(messages=QUESTION, response_format=Weather, max_tokens=64, **SHORT) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)
    assert {"content.delta", "content.done"} <= kinds


def test_openai_parses_calls(client):
    calling = {"messages": QUESTION, "tools": [WEATHER_TOOL], "tool_choice": "required", "max_tokens": 128, **SHORT}
    answer = client.chat.completions.parse(**calling)
    with client.chat.completions.stream(**calling) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    for (choice,) in (answer.choices, streamed.choices):
        assert choice.finish_reason == "tool_calls"
        assert all(isinstance(call.function.parsed_arguments, Weather) for call in choice.message.tool_calls)
    calls = answer.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in calls.tool_calls]
    after = client.chat.completions.create(messages=[*QUESTION, calls, *results], max_tokens=16, **SHORT)
    assert after.choices[0].message.content


def test_openai_parses_responses(client):
    asked = {"input": QUESTION, "max_output_tokens": 64, **SHORT}
    assert isinstance(client.responses.parse(text_format=Weather, **asked).output_parsed, Weather)
    with client.responses.stream(text_format=Weather, **asked) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_response().output_parsed, Weather)
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds


def test_openai_calls_by_responses(client):
    tools = [{"type": "function", "strict": True, **WEATHER_TOOL["function"]}]
    asked = {"tools": tools, "tool_choice": "required", "max_output_tokens": 128, **SHORT}
    calls = client.responses.create(input=QUESTION, **asked).output
    assert {call.type for call in calls} == {"function_call"}
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "21"} for call in calls]
    after = client.responses.create(input=[*QUESTION, *calls, *results], max_output_tokens=16, **SHORT)
    assert after.output_text


def installed(kind: str, pins: list[Path], install) -> Path:
    """The folder of an environment, which is made once for these pins and kept in the user's cache.

    Args:
        install: takes the folder and gives the commands that fill it.
    """
    digest = hashlib.sha256(sys.version.encode() + b"".join(file.read_bytes() for file in pins)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "voicechat-clients")
    folder, is_complete = cache / f"{kind}-{digest}", cache / f"{kind}-{digest}.complete"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{kind}.lock"):
        if is_complete.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for command in install(folder):
            done = run(command, folder)
            if done.returncode and any(words in done.stdout for words in NO_REGISTRY):
                pytest.skip(f"no package registry can be reached to install the {kind} clients: {done.stdout[-300:]}")
            assert done.returncode == 0, done.stdout
        is_complete.touch()
    return folder


def run(command: list, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )


def python_with(pins: Path) -> Path:
    """The interpreter that has these Python clients; they would bring two hundred packages into ours."""

    def install(folder):
        yield [sys.executable, "-m", "venv", folder]
        yield [folder / "bin/pip", "install", "--quiet", "--no-deps", "--requirement", pins]

    return installed(f"Python-{pins.stem}", [pins], install) / "bin/python"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder of the JavaScript clients."""
    if not shutil.which("npm"):
        pytest.skip("the JavaScript clients need Node.js with npm")

    def install(folder):
        for file in pins:
            shutil.copy(file, folder)
        yield ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]

    pins = [SCRIPTS / "package.json", SCRIPTS / "package-lock.json"]
    return installed("JavaScript", pins, install) / "node_modules"


@pytest.fixture(scope="module")
def surroundings(server, clips) -> dict[str, str]:
    """Environment variables: where the service is, what a clip is, and that nobody else is told anything."""
    shortest = min((clip for clip, _ in clips), key=lambda clip: clip.stat().st_size)
    return {
        "OPENAI_BASE_URL": f"{server}/v1",
        "OPENAI_API_KEY": "none",
        "VOICECHAT_CLIP": str(shortest),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }


@pytest.mark.nightly
@pytest.mark.timeout(1800)  # the first one installs all of them
@pytest.mark.parametrize("script", PYTHON_CLIENTS, ids=lambda script: script.stem)
def test_python_client(surroundings, tmp_path, script):
    python = python_with(ROOT / "requirements" / PINS.get(script.stem, "clients.txt"))
    command = [python, "-m", "pytest", "-q", "-c", SCRIPTS / "clients.ini", "--rootdir", SCRIPTS, script]
    done = run(command, tmp_path, **surroundings)
    assert done.returncode == 0, done.stdout


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", NODE_CLIENTS, ids=lambda script: script.stem)
def test_javascript_client(node_modules, surroundings, tmp_path, script):
    (tmp_path / "node_modules").symlink_to(node_modules)  # Node.js looks for packages beside the script
    for each in (script, SCRIPTS / "service_under_test.mjs"):
        shutil.copy(each, tmp_path)
    done = run(["node", "--test", "--test-timeout", "900000", script.name], tmp_path, **surroundings)
    assert done.returncode == 0, done.stdout
