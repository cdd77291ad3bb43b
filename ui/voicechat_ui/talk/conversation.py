"""`voicechat talk`: a spoken conversation from a terminal, over the realtime protocol as any other client speaks it.

What the person says comes from a sound file, from this machine's microphone, or typed. What the model says is printed,
and goes as sound into a file or to the loudspeaker.
"""

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from websockets.exceptions import ConnectionClosed, InvalidStatus

from voicechat_platform.errors import InputError
from voicechat_ui.api_client import ApiClient
from voicechat_ui.talk.sound_device import BYTES_PER_SAMPLE, PIECE_SAMPLES, RATE, Loudspeaker, Microphone
from voicechat_ui.talk.sound_file import SoundFile, read_sound
from voicechat_ui.talk.turns import SETTINGS, ConversationEndedError, Talk, TurnRecord

PACE = 2
"""A file is said so many times faster than it lasts. Only a person's pace and little more lets the server hear the end
of an utterance before the beginning of the next one is on its way: it would answer both at once."""

CLOSING_SILENCE_S = 1.0
"""After a file: the server waits for half a second of it before it takes an utterance for ended."""

PATIENCE_S = 20.0
"""For the end of an utterance while nothing but silence is sent."""


async def say_file(talk: Talk, pcm: bytes) -> None:
    """Says a file as a person would: whoever is answered listens to the end.

    Raises:
        ConversationEndedError: the server never took the last utterance for ended.
    """
    size = PIECE_SAMPLES * BYTES_PER_SAMPLE
    silence = bytes(size)
    pieces = [pcm[start : start + size] for start in range(0, len(pcm), size)]
    pieces += [silence] * int(CLOSING_SILENCE_S * RATE / PIECE_SAMPLES)
    for piece in pieces:
        await talk.turn_over()
        await talk.send_sound(piece)
        await asyncio.sleep(PIECE_SAMPLES / RATE / PACE)
    patience = time.monotonic() + PATIENCE_S
    while talk.is_hearing:
        if time.monotonic() > patience:
            raise ConversationEndedError("the server does not hear the end of what was said")
        await talk.send_sound(silence)
        await asyncio.sleep(PIECE_SAMPLES / RATE)
    await talk.turn_over()


async def say_aloud(talk: Talk, microphone: Microphone) -> None:
    """Sends what the microphone hears, until the conversation ends."""
    microphone.start()
    while True:
        await talk.send_sound(await microphone.pieces.get())


async def say_typed(talk: Talk) -> None:
    """Sends line after line; the next one is asked for when the reply is there."""
    async with contextlib.aclosing(typed_lines()) as lines:
        async for line in lines:
            if line.strip():
                await talk.stop_playing()
                await talk.send_text(line.strip())
                await talk.turn_over()
    while talk.loudspeaker is not None and talk.loudspeaker.is_playing:
        await asyncio.sleep(0.1)


async def typed_lines() -> AsyncGenerator[str, None]:
    """What is typed, line by line, each asked for only when it is wanted.

    Read in a thread of its own, which nobody waits for: after Ctrl-C it would wait for one more line.
    """
    loop = asyncio.get_running_loop()
    while True:
        line: asyncio.Future[str | None] = loop.create_future()

        def tell(found: str | None, line: asyncio.Future[str | None] = line) -> None:
            if not line.done():
                line.set_result(found)

        def read(tell: Callable[[str | None], None] = tell) -> None:
            try:
                found: str | None = input("> " if sys.stdin.isatty() else "")
            except (EOFError, OSError, ValueError):
                found = None
            with contextlib.suppress(RuntimeError):  # the conversation is over
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=read, daemon=True).start()
        typed = await line
        if typed is None:
            return
        yield typed


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command was asked for."""

    url: str
    key: str
    model: str | None = None
    sound: Path | None = None
    """What to say; the microphone, or typed lines, when not given."""
    typed: bool = False
    out: Path | None = None
    voice: str | None = None
    speed: float = 1.0
    instructions: str | None = None
    language: str | None = None

    def session(self, is_spoken: bool) -> Any:
        """For `session.update`; what is not given is the server's choice."""
        transcription = {"model": "whisper-1"} | ({"language": self.language} if self.language else {})
        # A file goes on by itself, and is not to cut off the replies; at its pace the words are judged too late.
        is_file = self.sound is not None
        detection = {"type": "server_vad" if is_file else "semantic_vad", "interrupt_response": not is_file}
        output = {"speed": self.speed} | ({"voice": self.voice} if self.voice else {})
        instructions = {"instructions": self.instructions} if self.instructions else {}
        return {
            "type": "realtime",
            "output_modalities": ["audio" if is_spoken else "text"],
            "audio": {
                "input": {"transcription": transcription, "turn_detection": detection},
                "output": output,
            },
            **instructions,
        }


async def hold(wanted: Wanted, say: Callable[[str, str], None], turns: list[TurnRecord]) -> str:
    """Hold the conversation to its end.

    Args:
        turns: filled as they happen, so that they are known when it is interrupted, too.

    Returns:
        The model that answered.

    Raises:
        InputError: the file is no sound, there is no microphone, no server answers, or it refuses the key.
        ConversationEndedError: the server broke it off.
    """
    pcm = read_sound(wanted.sound) if wanted.sound else None
    async with contextlib.AsyncExitStack() as opened:
        microphone = loudspeaker = None
        if pcm is None and not wanted.typed:
            microphone = Microphone()
            opened.callback(microphone.close)
        if pcm is None:
            loudspeaker = find_loudspeaker(wanted, say)
        if loudspeaker is not None:
            opened.callback(loudspeaker.close)
        model = wanted.model or await first_model(wanted)
        client = openai.AsyncOpenAI(base_url=wanted.url, api_key=wanted.key or "none")
        connection = await opened.enter_async_context(opened_connection(client, model, wanted.url))
        file = SoundFile(wanted.out) if wanted.out else None  # only now: it takes the place of an earlier one
        if file is not None:
            opened.callback(file.close)
        talk = Talk(connection, say, turns, file, loudspeaker)
        session = wanted.session(is_spoken=bool(file or loudspeaker))

        async def speak() -> None:
            await connection.session.update(session=session, event_id=SETTINGS)
            if microphone is not None:
                say(f"Speak with {model}; Ctrl-C ends it. With headphones it does not hear itself.", "\n")
                await say_aloud(talk, microphone)
            elif pcm is not None:
                await say_file(talk, pcm)
            else:
                await say_typed(talk)

        await until_said(speak(), talk.listen())
        return model


async def until_said(speaking: Any, listening: Any) -> None:
    """Until all is said and answered, or the server ends the conversation: `listening` knows why it does."""
    tasks = [asyncio.ensure_future(part) for part in (speaking, listening)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        said, heard = tasks
        if heard.done() or (said.done() and isinstance(said.exception(), ConnectionClosed)):
            await heard
        said.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def find_loudspeaker(wanted: Wanted, say: Callable[[str, str], None]) -> Loudspeaker | None:
    """The loudspeaker; where there is none, typed turns go on in writing."""
    try:
        return Loudspeaker()
    except InputError as error:
        if not wanted.typed:
            raise
        if not wanted.out:
            say(f"(replies are only written: {error})", "\n")
        return None


async def first_model(wanted: Wanted) -> str:
    api = ApiClient(wanted.url, wanted.key or "none")
    try:
        models = await api.language_models()
    except openai.OpenAIError as error:
        raise InputError(api.explain(error)) from error
    if not models:
        raise InputError(f"the server at {wanted.url} has no language model")
    return models[0].id


@contextlib.asynccontextmanager
async def opened_connection(client: openai.AsyncOpenAI, model: str, url: str) -> AsyncIterator[Any]:
    try:
        connection = await client.realtime.connect(model=model).enter()
    except InvalidStatus as error:
        status = error.response.status_code
        try:
            why = json.loads(error.response.body or b"")["error"]["message"]
        except (ValueError, KeyError, TypeError):  # no server of OpenAI's kind, or a proxy before it
            why = "is it an OpenAI-compatible API with /realtime?"
        key = "; set VOICECHAT_API_KEY" if status in (401, 403) else ""
        raise InputError(f"the server at {url} refused the conversation ({status}): {why}{key}") from error
    except OSError as error:
        raise InputError(f"no server answers at {url} ({error}): start one with voicechat serve") from error
    try:
        yield connection
    finally:
        await connection.close()
