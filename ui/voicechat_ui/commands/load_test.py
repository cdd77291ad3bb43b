"""`voicechat load-test`: the command's options; voicechat_ui/load_test/ sends the requests."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.markup import escape

from voicechat_platform.errors import InputError
from voicechat_ui.commands.options import LOCAL_API, Json, Key, Url
from voicechat_ui.commands.output import console, emit

Number = TypeVar("Number", int, float)


def load_test(
    url: Url = LOCAL_API,
    endpoint: Annotated[
        Literal["chat", "completions", "speech", "transcriptions"], typer.Option(help="the endpoint to load")
    ] = "chat",
    model: Annotated[str | None, typer.Option(show_default="the server's first", help="the model's name")] = None,
    streams: Annotated[str, typer.Option(help="closed loop: simultaneous requests of each level")] = "1,8,32",
    rate: Annotated[
        str | None,
        typer.Option(
            show_default="a closed loop", help="open loop: requests per second of each level, at random moments"
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, show_default="4 for each stream", help="requests of each level")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, show_default="with --rate 30", help="seconds of each level, instead of a number"),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="approximate tokens of a prompt; words of a text to speak")
    ] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="the most tokens of an answer")] = 64,
    sound: Annotated[
        Path | None, typer.Option(show_default="speech from the server", help="the file to transcribe")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="send refused requests again, after their Retry-After")
    ] = False,
    seed: Annotated[int, typer.Option(help="the seed of the texts and of the moments")] = 0,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Load a running server and measure the waiting times of its users. Ctrl-C shows the results so far.

    A closed loop (--streams) sends the next request of a stream when the last one has ended. It measures the capacity
    of a server, but a slow server gets fewer requests, so its waiting times look too good (coordinated omission).
    An open loop (--rate) sends at a fixed rate, as users do, and measures from the moment when a request was due.

    Example: voicechat load-test --rate 2,4,8 --seconds 60
    """
    from voicechat_platform.paths import api_address, given_path

    url, speech = api_address(url), None
    if sound:
        try:
            speech = given_path(sound).read_bytes()
        except OSError as error:
            raise InputError(f"{sound} cannot be read: {error.strerror}") from None
    from voicechat_ui.load_test.report import run_load_test, table

    summaries, interrupted = run_load_test(
        levels_of(streams, rate, requests, seconds, retry, seed),
        endpoint,
        url,
        key,
        console,
        model=model,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        sound=speech,
        seed=seed,
    )
    emit({"url": url, "endpoint": endpoint, "levels": summaries}, as_json, table(f"{endpoint} at {url}", summaries))
    for level in summaries:
        for problem, times in level["errors"].items():
            console.print(f"{times} times: {escape(problem)}", style="red", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if any(level["failed"] or level["lost"] or not level["done"] for level in summaries):
        raise typer.Exit(1)


def levels_of(
    streams: str, rate: str | None, requests: int | None, seconds: float | None, retry: bool, seed: int
) -> list[Any]:
    """Return the levels of an open loop if there is a rate, else of a closed loop."""
    from voicechat_ui.load_test.levels import Level

    if rate:
        duration = 30 if requests is None and seconds is None else seconds
        return [
            Level(rate=r, requests=requests, seconds=duration, retry=retry, seed=seed)
            for r in parse_levels(rate, float)
        ]
    return [
        Level(streams=n, requests=requests or (None if seconds else 4 * n), seconds=seconds, retry=retry, seed=seed)
        for n in parse_levels(streams, int)
    ]


def parse_levels(text: str, kind: type[Number]) -> list[Number]:
    """Return the numbers of a text such as "1,8,32".

    Raises:
        InputError: the text is not a list of positive numbers.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise InputError(f"levels are positive numbers separated by commas, such as 1,8,32; not {text!r}")
    return found
