"""`voicechat talk`: a spoken conversation from a terminal, over the realtime protocol as any other client speaks it.

What the person says comes from a sound file, from this machine's microphone, or typed. What the model says is printed,
and goes as sound into a file or to the loudspeaker.
"""

import asyncio
import base64
import contextlib
import json
import sys
import threading
import time
import wave
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import soxr
from websockets.exceptions import ConnectionClosed, InvalidStatus

from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_ui.api_client import ApiClient
from voicechat_ui.sound_device import BYTES_PER_SAMPLE, PIECE_SAMPLES, RATE, Loudspeaker, Microphone

PACE = 2
"""A file is said so many times faster than it lasts. Only a person's pace and little more lets the server hear the end
of an utterance before the beginning of the next one is on its way, which would interrupt the reply."""

CLOSING_SILENCE_S = 1.0
"""After a file: the server waits for half a second of it before it takes an utterance for ended."""

PATIENCE_S = 20.0
"""For the end of an utterance while nothing but silence is sent."""


TYPED, SETTINGS = "typed", "settings"
"""Mark what a typed turn and what the command's options ask for, so that an error tells what it answers."""


class ConversationEndedError(Exception):
    """The server has ended the conversation; the message says why."""


@dataclass
class Turn:
    """What was said and answered, and when."""

    heard: str = ""
    language: str | None = None
    reply: str = ""
    status: str = "in progress"
    """completed, cancelled, failed, incomplete; "nothing heard" where nothing was said."""
    problem: str = ""
    """Why it failed, or why the reply is not spoken."""
    seconds: dict[str, float] = field(default_factory=dict)
    """endpoint: of sound sent after the utterance's end until the server had decided that it was one. All others from
    that moment on, or from when a typed message was sent: transcription, first_token, first_sound, total."""
    sound_s: float = 0.0
    """How long the spoken reply is."""
    begun: float = field(default=0.0, repr=False)

    def note(self, what: str) -> None:
        """Something has happened for the first time."""
        self.seconds.setdefault(what, round(time.monotonic() - self.begun, 3))

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "begun"}


class SoundFile:
    """A WAV file of what the model says, kept whole whatever happens: its length is written with every piece."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise InputError(f"the reply cannot be written to {path}: {error.strerror}") from None
        self._sound = wave.open(self._file, "wb")  # noqa: SIM115 (closed by `close`)
        self._sound.setparams((1, BYTES_PER_SAMPLE, RATE, 0, "NONE", ""))
        self._sound.writeframes(b"")

    def write(self, pcm: bytes) -> None:
        self._sound.writeframes(pcm)

    def close(self) -> None:
        self._sound.close()
        self._file.close()


class Talk:
    """One conversation: what the server tells, as turns, words in the terminal, and sound.

    Args:
        connection: an open one of the `openai` client's.
        say: prints; its second argument is how the line ends.
        turns: filled as they happen.
        file: gets what the model says.
        loudspeaker: plays it.
    """

    def __init__(
        self,
        connection: Any,
        say: Callable[[str, str], None],
        turns: list[Turn],
        file: SoundFile | None = None,
        loudspeaker: Loudspeaker | None = None,
    ) -> None:
        self.connection, self.say, self.file, self.loudspeaker = connection, say, file, loudspeaker
        self.turns = turns
        self.turn: Turn | None = None
        """The one that is going on."""
        self.is_hearing = False
        """Whether the server is in the middle of an utterance."""
        self.changed = asyncio.Condition()
        """Of the two above."""
        self.sent_ms = 0.0
        """Of sound, so far."""
        self.item_id, self.item_begins = "", 0
        """The reply that was spoken last, and at which byte of the loudspeaker's it begins."""

    async def listen(self) -> None:
        """Follows the server's events until it ends the conversation.

        Raises:
            ConversationEndedError: as soon as it has.
            InputError: it refuses the command's options.
        """
        reason = "the server has ended the conversation"
        try:
            async for event in self.connection:
                if event.type == "error":
                    reason = event.error.message
                    if event.error.event_id == SETTINGS:
                        raise InputError(reason)
                    if self.turn is not None and event.error.event_id in (None, TYPED):
                        self.end_turn("failed", reason)
                else:
                    await self.follow(event)
                async with self.changed:
                    self.changed.notify_all()
        except ConnectionClosed as error:
            raise ConversationEndedError(f"{reason} ({error})") from error
        raise ConversationEndedError(reason)

    async def follow(self, event: Any) -> None:
        turn = self.turn
        match event.type:
            case "input_audio_buffer.speech_started":
                self.is_hearing = True
                await self.stop_playing()
            case "input_audio_buffer.speech_stopped":
                self.is_hearing = False
                turn = self.begin_turn()
                turn.seconds["endpoint"] = round(max(0.0, self.sent_ms - event.audio_end_ms) / 1000, 3)
            case "conversation.item.input_audio_transcription.completed" if turn:
                turn.note("transcription")
                turn.heard = event.transcript.strip()
                turn.language = event.languages[0].code if event.languages else None
                if turn.heard:
                    language = f" ({turn.language})" if turn.language else ""
                    self.say(f"You{language}: {turn.heard}", "\n")
                else:
                    self.end_turn("nothing heard")
            case "conversation.item.input_audio_transcription.failed" if turn:
                self.end_turn("failed", event.error.message or "the transcription failed")
            case "response.output_audio_transcript.delta" | "response.output_text.delta" if turn:
                turn.note("first_token")
                self.say(event.delta if turn.reply else f"Reply: {event.delta}", "")
                turn.reply += event.delta
            case "response.output_audio.delta" if turn:
                turn.note("first_sound")
                self.play(event.item_id, base64.b64decode(event.delta), turn)
            case "response.done" if turn:
                metadata = event.response.metadata or {}
                details = event.response.status_details
                error = details.error if details else None
                problem = metadata.get("reason", "") if metadata.get("spoken") == "false" else ""
                if error is not None:
                    problem = error.message or error.code or "the turn failed"
                self.end_turn(event.response.status, problem)

    def begin_turn(self) -> Turn:
        if self.turn is not None:  # spoken on before there was a reply
            self.end_turn("cancelled")
        self.turn = Turn(begun=time.monotonic())
        self.turns.append(self.turn)
        return self.turn

    def end_turn(self, status: str, problem: str = "") -> None:
        assert self.turn is not None
        turn, self.turn = self.turn, None
        turn.note("total")
        turn.status, turn.problem = status, problem
        if turn.reply:
            self.say("", "\n")
        if problem:
            self.say(f"({problem})", "\n")
        if status != "nothing heard":
            self.say(latencies(turn), "\n")

    def play(self, item_id: str, pcm: bytes, turn: Turn) -> None:
        turn.sound_s = round(turn.sound_s + len(pcm) / BYTES_PER_SAMPLE / RATE, 3)
        if self.file is not None:
            self.file.write(pcm)
        if self.loudspeaker is not None:
            if item_id != self.item_id:
                self.item_id, self.item_begins = item_id, self.loudspeaker.num_played
            self.loudspeaker.write(pcm)

    async def stop_playing(self) -> None:
        """Falls silent for whoever begins to speak, and tells the server how much of the reply was heard."""
        if self.loudspeaker is None or not self.loudspeaker.is_playing:
            return
        self.loudspeaker.drop()
        heard_ms = (self.loudspeaker.num_played - self.item_begins) * 1000 // (BYTES_PER_SAMPLE * RATE)
        await self.connection.conversation.item.truncate(
            item_id=self.item_id, content_index=0, audio_end_ms=max(0, heard_ms)
        )

    async def send_sound(self, pcm: bytes) -> None:
        self.sent_ms += len(pcm) * 1000 / (BYTES_PER_SAMPLE * RATE)
        await self.connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())

    async def send_text(self, text: str) -> None:
        self.begin_turn().heard = text
        content: Any = [{"type": "input_text", "text": text}]
        item: Any = {"type": "message", "role": "user", "content": content}
        await self.connection.conversation.item.create(item=item, event_id=TYPED)
        await self.connection.response.create(event_id=TYPED)

    async def turn_over(self) -> None:
        """Waits until it is the person's turn: there is no reply to wait for, or they are speaking already."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.turn is None or self.is_hearing)


def latencies(turn: Turn) -> str:
    names = {"endpoint": "end heard after", "transcription": "transcript", "first_token": "first word"}
    names |= {"first_sound": "first sound", "total": "all"}
    shown = (f"{names[what]} {seconds:.2f} s" for what, seconds in turn.seconds.items())
    return f"  [{', '.join(shown)}]"


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


def read_sound(path: Path) -> bytes:
    """A sound file as signed 16-bit mono samples at the protocol's rate.

    Raises:
        InputError: there is no such file, or no sound in it.
    """
    try:
        samples_n = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    resampled_n = soxr.resample(samples_n, HEARING_RATE, RATE)
    return (np.clip(resampled_n, -1, 1) * 32767).astype("<i2").tobytes()


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
        # A file goes on by itself, and is not to cut off the replies.
        detection = {"type": "server_vad", "interrupt_response": self.sound is None}
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


async def hold(wanted: Wanted, say: Callable[[str, str], None], turns: list[Turn]) -> str:
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
        file = SoundFile(wanted.out) if wanted.out else None
        if file is not None:
            opened.callback(file.close)
        model = wanted.model or await first_model(wanted)
        client = openai.AsyncOpenAI(base_url=wanted.url, api_key=wanted.key or "none")
        connection = await opened.enter_async_context(opened_connection(client, model, wanted.url))
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
    return models[0]


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
