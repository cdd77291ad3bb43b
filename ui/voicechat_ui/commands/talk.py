"""`voicechat talk`: the command's options; voicechat_ui/talk/ holds the conversation."""

import json
from pathlib import Path
from typing import Annotated

import typer

from voicechat_ui.commands.options import LOCAL_API, Json, Key, Url
from voicechat_ui.commands.output import console


def talk(
    sound: Annotated[
        Path | None,
        typer.Argument(show_default="the microphone", help="the speech to send, a file in any sound format"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(show_default="for a file NAME-reply.wav, else none", help="the WAV file for the replies"),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="type lines instead of speaking")] = False,
    model: Annotated[
        str | None, typer.Option(show_default="the first in GET /v1/models", help="the model that answers")
    ] = None,
    voice: Annotated[
        str | None, typer.Option(show_default="the server's", help="a voice from GET /v1/audio/voices")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.25, max=4, help="the speed of the speech")] = 1.0,
    instructions: Annotated[
        str | None, typer.Option(show_default="the model's own", help='the system prompt; "" for none')
    ] = None,
    language: Annotated[
        str | None, typer.Option(show_default="detected", help="the spoken language, such as en")
    ] = None,
    echo_cancellation: Annotated[
        bool, typer.Option(help="remove the loudspeaker's sound from the microphone's; not needed with headphones")
    ] = True,
    url: Url = LOCAL_API,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Talk with a running server: with the microphone, with a sound file, or with typed lines. Ctrl-C ends it.

    A file may have several utterances: each gets its reply before the command sends the next. The server detects the
    end of an utterance, as with a microphone. The command prints the latencies below each reply.

    Example: voicechat talk question.wav --out reply.wav
    """
    import asyncio

    from voicechat_platform.errors import InputError
    from voicechat_platform.paths import api_address, given_path, writable_file

    if sound and text:
        raise InputError("a file and --text exclude each other: give only one of them")
    url = api_address(url)
    if sound:
        sound, out = given_path(sound), out or Path(f"{sound.stem}-reply.wav")
    target = writable_file(out) if out else None
    if sound and target and sound.resolve() == target.resolve():
        raise InputError(f"{out} is the input: give another file for the reply")
    from voicechat_ui.talk.conversation import Wanted, hold
    from voicechat_ui.talk.turns import ConversationEndedError, TurnRecord

    wanted = Wanted(
        url=url,
        key=key,
        model=model,
        sound=sound,
        typed=text,
        out=target,
        voice=voice,
        speed=speed,
        instructions=instructions,
        language=language,
        cancels_echo=echo_cancellation,
    )
    turns: list[TurnRecord] = []
    problem, code = "", 0
    try:
        model = asyncio.run(hold(wanted, lambda words, end: print_out(words, end, as_json), turns))
    except KeyboardInterrupt:
        code = 130
    except ConversationEndedError as error:
        problem, code = str(error), 1
    if any(turn.status in ("failed", "in progress") for turn in turns):
        code = code or 1
    if as_json:
        facts = {"url": url, "model": model, "sound": str(out) if out else None, "problem": problem}
        print(json.dumps(facts | {"turns": [turn.facts() for turn in turns]}, indent=2))
    if problem:
        console.print(f"[red]error:[/red] {problem}", soft_wrap=True)
    elif not turns and not code:
        console.print("The server detected no speech.")
    elif out:
        console.print(f"The speech of the replies is in {out}.", soft_wrap=True)
    raise typer.Exit(code)


def print_out(words: str, end: str, as_json: bool) -> None:
    """Print text on stdout as it arrives; on stderr if stdout is for JSON."""
    import sys

    print(words, end=end, file=sys.stderr if as_json else sys.stdout, flush=True)
