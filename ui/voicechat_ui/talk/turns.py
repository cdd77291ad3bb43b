"""What the server tells in a conversation, event by event: as turns, as words in the terminal, and as sound."""

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed

from voicechat_platform.errors import InputError
from voicechat_ui.talk.sound_device import BYTES_PER_SAMPLE, RATE, Loudspeaker
from voicechat_ui.talk.sound_file import SoundFile

TYPED, SETTINGS = "typed", "settings"
"""Mark what a typed turn and what the command's options ask for, so that an error tells what it answers."""


class ConversationEndedError(Exception):
    """The server has ended the conversation; the message says why."""


@dataclass
class TurnRecord:
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
        turns: list[TurnRecord],
        file: SoundFile | None = None,
        loudspeaker: Loudspeaker | None = None,
    ) -> None:
        self.connection, self.say, self.file, self.loudspeaker = connection, say, file, loudspeaker
        self.turns = turns
        self.turn: TurnRecord | None = None
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
                    if event.error.event_id == SETTINGS or event.error.code == "model_not_found":
                        raise InputError(reason)
                    if self.turn is not None and event.error.event_id in (None, TYPED):
                        self.end_turn("failed", reason)
                else:
                    await self.follow(event)
                async with self.changed:
                    self.changed.notify_all()
        except ConnectionClosed as error:
            raise ConversationEndedError(closed_because(error, reason)) from error
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
                if unspoken := metadata.get("unspoken"):
                    problem = f"the voice cannot say: {unspoken}"
                if error is not None:
                    problem = error.message or error.code or "the turn failed"
                self.end_turn(event.response.status, problem)

    def begin_turn(self) -> TurnRecord:
        if self.turn is not None:  # spoken on before there was a reply
            self.end_turn("cancelled")
        self.turn = TurnRecord(begun=time.monotonic())
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

    def play(self, item_id: str, pcm: bytes, turn: TurnRecord) -> None:
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


def closed_because(error: ConnectionClosed, reason: str) -> str:
    """What a person is told when the server has closed the connection; `reason` is what it said before."""
    if error.rcvd and error.rcvd.reason == "the API key was revoked":
        return "the API key was revoked or has expired: set VOICECHAT_API_KEY to another one"
    return f"{reason} ({error})"


def latencies(turn: TurnRecord) -> str:
    names = {"endpoint": "end heard after", "transcription": "transcript", "first_token": "first word"}
    names |= {"first_sound": "first sound", "total": "all"}
    shown = (f"{names[what]} {seconds:.2f} s" for what, seconds in turn.seconds.items())
    return f"  [{', '.join(shown)}]"
