"""An example of an MCP server for spoken conversations: time, timers, arithmetic, and what a sweep has found.

Each tool answers with a sentence, because a small model repeats what it reads.
"""

import math
import time
from datetime import datetime
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from voicechat_platform.errors import InputError
from voicechat_tune.running.sweep_index import known_sweeps, open_study
from voicechat_tune.search.ranking import winners
from voicechat_tune.search.trials_table import shown

MOST_TIMERS = 20
LONGEST_TIMER_S = 7 * 24 * 3600

Operation = Literal["plus", "minus", "times", "divided by"]

SweepName = Annotated[str, Field(description="the sweep's name; the latest sweep by default")]


def build_server() -> MCPServer:
    """Return the server with its tools. Its timers end with the process."""
    server = MCPServer("voicechat tools", log_level="WARNING")
    timers: dict[str, float] = {}  # by name: when it ends, on the monotonic clock

    @server.tool(structured_output=False)
    def current_time(
        zone: Annotated[str, Field(description="such as Europe/Berlin; the zone of this machine by default")] = "",
    ) -> str:
        """Tell the time and the date."""
        try:
            now = datetime.now(ZoneInfo(zone)) if zone else datetime.now().astimezone()
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ToolError(f"there is no time zone {zone!r}; one is Europe/Berlin") from None
        return f"It is {now:%H:%M} on {now:%A}, {now.day} {now:%B} {now.year}" + (f" in {zone}." if zone else ".")

    @server.tool(structured_output=False)
    def calculate(first: float, operation: Operation, second: float) -> str:
        """Calculate with two numbers."""
        match operation:
            case "plus":
                result = first + second
            case "minus":
                result = first - second
            case "times":
                result = first * second
            case "divided by":
                if not second:
                    raise ToolError("no number can be divided by 0")
                result = first / second
        if not math.isfinite(result):
            raise ToolError("the result is too large")
        return f"{first:.12g} {operation} {second:.12g} is {result:.12g}."

    @server.tool(structured_output=False)
    def start_timer(
        seconds: Annotated[float, Field(gt=0, le=LONGEST_TIMER_S)],
        name: Annotated[str, Field(max_length=50)] = "timer",
    ) -> str:
        """Start a timer, or start it again. It makes no sound: ask for it with read_timers."""
        if name not in timers and len(timers) >= MOST_TIMERS:
            raise ToolError(f"there are {MOST_TIMERS} timers already")
        timers[name] = time.monotonic() + seconds
        return f"The {name} runs for {in_words(seconds)}."

    @server.tool(structured_output=False)
    def read_timers() -> str:
        """Tell how long each timer still runs. Those that are over are told once."""
        now = time.monotonic()
        lines = [
            f"The {name} runs for {in_words(end - now)} more." if end > now else f"The {name} is over."
            for name, end in timers.items()
        ]
        for name in [name for name, end in timers.items() if end <= now]:
            del timers[name]
        return " ".join(lines) or "No timer runs."

    @server.tool(structured_output=False)
    def list_sweeps() -> str:
        """Tell the names of the sweeps on this machine, the latest first."""
        return ", ".join(known_sweeps()) or "There is no sweep yet."

    @server.tool(structured_output=False)
    def best_trial(sweep: SweepName = "") -> str:
        """Tell which trial of a sweep was the best, its loss, and its choices."""
        try:
            return best_of(sweep)
        except InputError as error:
            raise ToolError(str(error)) from None

    return server


def best_of(name: str) -> str:
    """Return what a sweep has found, in sentences.

    Raises:
        InputError: there is no such sweep.
    """
    if not name:
        known = known_sweeps()
        if not known:
            raise InputError("there is no sweep yet")
        name = known[0]
    study = open_study(name)
    trials = study.trials()
    best = winners(trials, study.sweep)
    begin = f"The sweep {study.sweep.name} has {len(trials)} trial{'s' if len(trials) != 1 else ''}."
    if not best:
        return f"{begin} None has finished yet."
    found = [f"trial {trial.number}, with a loss of {trial.loss:.3f} and {choices(trial.point)}" for trial in best[:3]]
    return f"{begin} The best is {found[0]}." + "".join(f" As good is {other}." for other in found[1:])


def choices(point: dict[str, object]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {shown(value)}" for name, value in point.items()) or "no choices"


def in_words(seconds: float) -> str:
    """Return for example "5 minutes and 3 seconds"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [
        f"{number} {unit}{'s' if number != 1 else ''}"
        for number, unit in ((hours, "hour"), (minutes, "minute"), (rest, "second"))
        if number
    ]
    return " and ".join(parts) or "0 seconds"
