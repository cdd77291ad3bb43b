"""`voicechat load-test`: the command's options; voicechat_ui/load_test/ sends the requests."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer
from rich.markup import escape

from voicechat_platform.errors import InputError
from voicechat_ui.commands.options import LOCAL_API, Json, Key, Url
from voicechat_ui.commands.output import console, emit

Number = TypeVar("Number", int, float)


def load_test(
    url: Url = LOCAL_API,
    endpoint: Annotated[
        Literal["chat", "completions", "speech", "transcriptions"], typer.Option(help="what to ask for")
    ] = "chat",
    model: Annotated[str | None, typer.Option(show_default="the server's first", help="its name")] = None,
    streams: Annotated[str, typer.Option(help="closed loop: how many at once, level by level")] = "1,8,32",
    rate: Annotated[
        str | None,
        typer.Option(
            show_default="a closed loop", help="open loop instead: requests a second, at random moments, level by level"
        ),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, show_default="4 for each stream", help="of each level")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, show_default="with --rate 30", help="of each level, instead")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="about so many; words, of a text to speak")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 64,
    sound: Annotated[
        Path | None, typer.Option(show_default="speech that the server makes", help="file to transcribe")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="wait as a refusal's Retry-After says, and ask again")] = False,
    seed: Annotated[int, typer.Option(help="of the texts and of the moments")] = 0,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Load a running server and tell how long its users wait. Ctrl-C shows what has been measured so far.

    A closed loop (--streams) sends the next request of a stream when the last one has ended: it finds what a server
    can do, but a slow server is asked less, so its waiting times look better than they are (coordinated omission).
    An open loop (--rate) sends at its own rate as people do, and counts from the moment a request was due.

    Example: voicechat load-test --rate 2,4,8 --seconds 60
    """
    from voicechat_platform.paths import api_address, given_path

    url, speech = api_address(url), None
    if sound:
        try:
            speech = given_path(sound).read_bytes()
        except OSError as error:
            raise InputError(f"{sound} cannot be read: {error.strerror}") from None
    from voicechat_ui.load_test.levels import Level
    from voicechat_ui.load_test.report import run_load_test, table

    if rate:
        duration = 30 if requests is None and seconds is None else seconds
        levels = [
            Level(rate=r, requests=requests, seconds=duration, retry=retry, seed=seed)
            for r in parse_levels(rate, float)
        ]
    else:
        levels = [
            Level(streams=n, requests=requests or (None if seconds else 4 * n), seconds=seconds, retry=retry, seed=seed)
            for n in parse_levels(streams, int)
        ]
    summaries, interrupted = run_load_test(
        levels,
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


def parse_levels(text: str, kind: type[Number]) -> list[Number]:
    """The levels of a load test, such as "1,8,32"."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise InputError(f"levels are positive numbers with commas between them, such as 1,8,32; not {text!r}")
    return found
