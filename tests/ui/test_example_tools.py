"""The tools of `voicechat tools`, called by a real client."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from mcp import Client
from mcp.server import MCPServer

from begun_sweep import begun_sweep
from voicechat_platform.settings import settings
from voicechat_platform.training.history import Evaluation
from voicechat_serve.application_file import ToolServer
from voicechat_serve.tools.connection import ToolConnection, ToolFailedError
from voicechat_tune.search.trials import RunKey
from voicechat_ui.example_tools import best_of, build_server

SWEEP = """\
name: rates
search: {training.learning_rate: {loguniform: [0.001, 0.1]}}
trials: 3
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def server(home) -> MCPServer:
    return build_server()


async def told(server: MCPServer, tool: str, **arguments: Any) -> str:
    async with Client(server) as client:
        result = await client.call_tool(tool, arguments)
    (block,) = result.content
    assert block.type == "text"
    return f"failed: {block.text}" if result.is_error else block.text


@pytest.mark.parametrize(
    ("first", "operation", "second", "answer"),
    [
        (17, "times", 23, "17 times 23 is 391."),
        (2, "plus", 2.5, "2 plus 2.5 is 4.5."),
        (3, "minus", 10, "3 minus 10 is -7."),
        (1, "divided by", 3, "1 divided by 3 is 0.333333333333."),
        (1e300, "times", 1e300, "the result is too large"),
        (1, "divided by", 0, "no number can be divided by 0"),
        (1, "to the power of", 2, "failed: "),
    ],
)
async def test_arithmetic(server, first, operation, second, answer):
    assert answer in await told(server, "calculate", first=first, operation=operation, second=second)


async def test_the_time(server):
    assert re.fullmatch(r"It is \d\d:\d\d on \w+day, \d+ \w+ \d{4}\.", await told(server, "current_time"))
    assert (await told(server, "current_time", zone="Europe/Berlin")).endswith(" in Europe/Berlin.")
    for zone in ("Mars", "../etc/passwd", "/etc/passwd"):
        assert f"there is no time zone '{zone}'" in await told(server, "current_time", zone=zone)


async def test_timers(server, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("voicechat_ui.example_tools.time", type("Clock", (), {"monotonic": lambda: now}))
    assert await told(server, "read_timers") == "No timer runs."
    assert await told(server, "start_timer", seconds=3661, name="cake") == (
        "The cake runs for 1 hour and 1 minute and 1 second."
    )
    assert await told(server, "start_timer", seconds=2) == "The timer runs for 2 seconds."
    now += 60
    assert await told(server, "read_timers") == ("The cake runs for 1 hour and 1 second more. The timer is over.")
    assert "timer" not in await told(server, "read_timers")
    assert (await told(server, "start_timer", seconds=0)).startswith("failed: ")


async def test_what_a_sweep_has_found(server, tmp_path):
    assert await told(server, "list_sweeps") == "There is no sweep yet."
    assert "there is no sweep yet" in await told(server, "best_trial")
    study = begun_sweep(SWEEP, tmp_path)
    study.begin_trial(None, {"training.learning_rate": 0.01})
    assert await told(server, "best_trial") == "The sweep rates has 1 trial. None has finished yet."
    study.begin_trial(None, {"training.learning_rate": 0.02})
    for number, loss in ((1, 1.5), (2, 1.25)):
        evaluation = asdict(Evaluation(1, loss, loss, loss, loss, 0.01, 1.0, 0.1, 1.0, 1.0)) | {"spent": 1}
        study.record(RunKey(number), evaluation, clock=1)
        study.end_run(RunKey(number), "finished", facts={"validation_loss": loss})
    assert await told(server, "list_sweeps") == "rates"
    best = "The sweep rates has 2 trials. The best is trial 2, with a loss of 1.250 and learning_rate 0.02."
    assert await told(server, "best_trial") == best == best_of("rates")
    assert "there is no sweep 'other'; there are: rates" in await told(server, "best_trial", sweep="other")


async def test_the_command_serves_them_on_this_machine(free_port: Callable[[], int]):
    port = free_port()
    command = [sys.executable, "-m", "voicechat_ui.cli", "tools", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        while "{label: desk" not in (line := process.stdout.readline()):
            assert line, "the command has ended"
        connection = ToolConnection(ToolServer(label="desk", url=f"http://127.0.0.1:{port}/mcp", allow="*"))
        while True:
            try:
                listed = await connection.listed()
                break
            except ToolFailedError:
                assert process.poll() is None
        assert listed.problems == ()
        assert [tool.name for tool in listed.tools] == [
            *("current_time", "calculate", "start_timer", "read_timers", "list_sweeps", "best_trial")
        ]
        arguments = '{"first": 17, "operation": "times", "second": 23}'
        assert await connection.call("calculate", arguments) == "17 times 23 is 391."
        await connection.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
