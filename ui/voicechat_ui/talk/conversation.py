"""`voicechat talk`: a conversation from a terminal, over the realtime protocol like any other client.

The user's input comes from a sound file, from this machine's microphone, or from the keyboard. The command prints the
model's replies, and writes their sound into a file or plays it on the loudspeaker.
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
from voicechat_ui.api_client import ApiClient, ListedModel
from voicechat_ui.talk.echo import EchoCanceller
from voicechat_ui.talk.sound_device import BYTES_PER_SAMPLE, PIECE_SAMPLES, RATE, Loudspeaker, Microphone
from voicechat_ui.talk.sound_file import SoundFile, read_sound
from voicechat_ui.talk.turns import SETTINGS, ConversationEndedError, Talk, TurnRecord

PACE = 2
"""A file is sent at this multiple of its real speed. At a higher one, the next utterance would start before the server
has detected the end of the last one, and the server would answer both in one reply."""

CLOSING_SILENCE_S = 1.0
"""After a file: the server detects the end of an utterance after half a second of silence."""

PATIENCE_S = 20.0
"""For the server to detect the end of an utterance while this command sends only silence."""


async def send_file(talk: Talk, pcm: bytes) -> None:
    """Send a file. Before each utterance, wait until the reply to the last one is complete.

    Raises:
        ConversationEndedError: the server did not detect the end of the last utterance.
    """
    size = PIECE_SAMPLES * BYTES_PER_SAMPLE
    silence = bytes(size)
    pieces = [pcm[start : start + size] for start in range(0, len(pcm), size)]
    pieces += [silence] * int(CLOSING_SILENCE_S * RATE / PIECE_SAMPLES)
    for piece in pieces:
        await talk.wait_for_user_turn()
        await talk.send_sound(piece)
        await asyncio.sleep(PIECE_SAMPLES / RATE / PACE)
    patience = time.monotonic() + PATIENCE_S
    while talk.user_is_speaking:
        if time.monotonic() > patience:
            raise ConversationEndedError("the server did not detect the end of the last utterance")
        await talk.send_sound(silence)
        await asyncio.sleep(PIECE_SAMPLES / RATE)
    await talk.wait_for_user_turn()


async def send_microphone(talk: Talk, microphone: Microphone) -> None:
    """Send the microphone's sound until the conversation ends."""
    microphone.start()
    while True:
        await talk.send_sound(await microphone.pieces.get())


async def send_typed_lines(talk: Talk) -> None:
    """Send each typed line. Read the next line after the reply."""
    async with contextlib.aclosing(typed_lines()) as lines:
        async for line in lines:
            if line.strip():
                await talk.stop_playing()
                await talk.send_text(line.strip())
                await talk.wait_for_user_turn()
    while talk.loudspeaker is not None and talk.loudspeaker.is_playing:
        await asyncio.sleep(0.1)


async def typed_lines() -> AsyncGenerator[str, None]:
    """Yield typed lines. Each is read only when the caller requests it.

    A separate daemon thread reads, so that after Ctrl-C the process does not wait for one more line.
    """
    loop = asyncio.get_running_loop()
    while True:
        line: asyncio.Future[str | None] = loop.create_future()

        def deliver(found: str | None, line: asyncio.Future[str | None] = line) -> None:
            if not line.done():
                line.set_result(found)

        def read(deliver: Callable[[str | None], None] = deliver) -> None:
            try:
                found: str | None = input("> " if sys.stdin.isatty() else "")
            except (EOFError, OSError, ValueError):
                found = None
            with contextlib.suppress(RuntimeError):  # the conversation is over
                loop.call_soon_threadsafe(deliver, found)

        threading.Thread(target=read, daemon=True).start()
        typed = await line
        if typed is None:
            return
        yield typed


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The command's options."""

    url: str
    key: str
    model: str | None = None
    sound: Path | None = None
    """The file to send; None for the microphone, or for typed lines."""
    typed: bool = False
    out: Path | None = None
    voice: str | None = None
    speed: float = 1.0
    instructions: str | None = None
    language: str | None = None
    cancels_echo: bool = True
    """Whether the loudspeaker's sound is removed from the microphone's."""

    def session(self, is_spoken: bool, model: ListedModel) -> Any:
        """Return the session for `session.update`, without the options that the user did not give. The model has
        instructions of its own."""
        transcription = {"model": "whisper-1"} | ({"language": self.language} if self.language else {})
        # A file must not interrupt the replies. At its speed the semantic detection would come too late.
        is_file = self.sound is not None
        detection: dict[str, Any] = {"type": "server_vad", "interrupt_response": False}
        if not is_file:
            detection = {"type": "semantic_vad", "interruption": "adaptive"}
        output = {"speed": self.speed} | ({"voice": self.voice} if self.voice else {})
        return {
            "type": "realtime",
            "instructions": model.instructions if self.instructions is None else self.instructions,
            "output_modalities": ["audio" if is_spoken else "text"],
            "tools": model.session_tools,
            "audio": {
                "input": {"transcription": transcription, "turn_detection": detection},
                "output": output,
            },
        }


async def hold(wanted: Wanted, show: Callable[[str, str], None], turns: list[TurnRecord]) -> str:
    """Hold the conversation to its end.

    Args:
        wanted: the command's options.
        show: prints a text; its second argument is the end of the line.
        turns: this function appends each turn when it starts, so that the caller has them after Ctrl-C, too.

    Returns:
        The id of the model that answered.

    Raises:
        InputError: the file contains no sound, there is no microphone, no server answers, or it refuses the key.
        ConversationEndedError: the server ended the conversation.
    """
    pcm = read_sound(wanted.sound) if wanted.sound else None
    async with contextlib.AsyncExitStack() as opened:
        microphone = loudspeaker = canceller = None
        if pcm is None and not wanted.typed:
            canceller = EchoCanceller() if wanted.cancels_echo else None
            microphone = Microphone(canceller)
            opened.callback(microphone.close)
        if pcm is None:
            loudspeaker = find_loudspeaker(wanted, show, canceller)
        if loudspeaker is not None:
            opened.callback(loudspeaker.close)
        model = await find_model(wanted)
        client = openai.AsyncOpenAI(base_url=wanted.url, api_key=wanted.key or "none")
        connection = await opened.enter_async_context(opened_connection(client, model.id, wanted.url))
        file = SoundFile(wanted.out) if wanted.out else None  # only now, because it replaces an earlier file
        if file is not None:
            opened.callback(file.close)
        talk = Talk(connection, show, turns, model.title, file, loudspeaker)
        session = wanted.session(bool(file or loudspeaker), model)
        show(f"You talk with {model.label}. {model.about}".strip(), "\n")

        async def speak() -> None:
            await connection.session.update(session=session, event_id=SETTINGS)
            if microphone is not None:
                hint = "" if canceller else " Use headphones: the microphone records the replies, too."
                show(f"Speak; Ctrl-C ends it.{hint}", "\n")
                await send_microphone(talk, microphone)
            elif pcm is not None:
                await send_file(talk, pcm)
            else:
                await send_typed_lines(talk)

        await run_until_one_ends(speak(), talk.listen())
        return model.id


async def run_until_one_ends(speaking: Any, listening: Any) -> None:
    """Wait until `speaking` is done, or until the server ends the conversation: then raise the error of `listening`."""
    tasks = speaker, listener = asyncio.ensure_future(speaking), asyncio.ensure_future(listening)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if listener.done() or (speaker.done() and isinstance(speaker.exception(), ConnectionClosed)):
            await listener
        speaker.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def find_loudspeaker(
    wanted: Wanted, show: Callable[[str, str], None], canceller: EchoCanceller | None
) -> Loudspeaker | None:
    """Return the loudspeaker, or None if a typed conversation has none.

    Raises:
        InputError: there is no loudspeaker, and the input is not typed.
    """
    try:
        return Loudspeaker(canceller)
    except InputError as error:
        if not wanted.typed:
            raise
        if not wanted.out:
            show(f"(replies are only text: {error})", "\n")
        return None


async def find_model(wanted: Wanted) -> ListedModel:
    """Return the wanted model, by default the first one that the API lists.

    Raises:
        InputError: the API does not answer, or has no language model.
    """
    api = ApiClient(wanted.url, wanted.key or "none")
    try:
        if wanted.model:
            with contextlib.suppress(openai.NotFoundError):  # or the server describes none: /realtime knows better
                return await api.model(wanted.model)
            return ListedModel(wanted.model, wanted.model)
        models = await api.language_models()
    except openai.OpenAIError as error:
        raise InputError(api.explain(error)) from error
    if not models:
        raise InputError(f"the server at {wanted.url} has no language model")
    return models[0]


@contextlib.asynccontextmanager
async def opened_connection(client: openai.AsyncOpenAI, model: str, url: str) -> AsyncIterator[Any]:
    try:
        connection = await client.realtime.connect(model=model).enter()
    except InvalidStatus as error:
        status = error.response.status_code
        try:
            why = json.loads(error.response.body or b"")["error"]["message"]
        except (ValueError, KeyError, TypeError):  # another kind of server, or a proxy in front of it
            why = "is it an OpenAI-compatible API with /realtime?"
        key = "; set VOICECHAT_API_KEY" if status in (401, 403) else ""
        raise InputError(f"the server at {url} refused the conversation ({status}): {why}{key}") from error
    except OSError as error:
        raise InputError(f"no server answers at {url} ({error}): start one with voicechat serve") from error
    try:
        yield connection
    finally:
        await connection.close()
