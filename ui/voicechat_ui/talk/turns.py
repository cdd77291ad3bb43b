"""The server's events of a conversation, converted to turns, to text in the terminal, and to sound."""

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
"""Event ids of a typed turn and of the command's options. An error event names the event that caused it."""

CALL_SHOWN = 160
"""The most characters of a call's arguments, and of its result."""


class ConversationEndedError(Exception):
    """The server has ended the conversation; the message gives the reason."""


@dataclass
class TurnRecord:
    """The speech of the user and the reply in one turn, with its times."""

    heard: str = ""
    language: str | None = None
    reply: str = ""
    calls: list[str] = field(default_factory=list)
    """The tools that were called: name, arguments and result of each in one line."""
    status: str = "in progress"
    """completed, cancelled, failed, incomplete; "nothing heard" if the transcript is empty."""
    problem: str = ""
    """The reason for the failure, or for a reply without speech."""
    seconds: dict[str, float] = field(default_factory=dict)
    """endpoint: the sound sent between the utterance's end and the moment when the server detected this end. From this
    moment, or from the sending of a typed message: transcription, first_token, first_sound, total."""
    sound_s: float = 0.0
    """The length of the spoken reply."""
    begun: float = field(default=0.0, repr=False)

    def note(self, what: str) -> None:
        """Store the time of an event, if it is the first of its kind."""
        self.seconds.setdefault(what, round(time.monotonic() - self.begun, 3))

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "begun"}


class Talk:
    """One conversation: handles the server's events, and sends the user's sound and text.

    Args:
        connection: an open connection of the `openai` client.
        show: prints a text; its second argument is the end of the line.
        turns: this object appends each turn when it starts.
        name: the name of the model, for its replies.
        file: records the model's speech.
        loudspeaker: plays the model's speech.
    """

    def __init__(
        self,
        connection: Any,
        show: Callable[[str, str], None],
        turns: list[TurnRecord],
        name: str,
        file: SoundFile | None = None,
        loudspeaker: Loudspeaker | None = None,
    ) -> None:
        self.connection, self.show, self.file, self.loudspeaker = connection, show, file, loudspeaker
        self.turns, self.name = turns, name
        self.turn: TurnRecord | None = None
        """The current turn."""
        self.user_is_speaking = False
        """True between the start and the end of an utterance, as the server detects them."""
        self.changed = asyncio.Condition()
        """Notified when `turn` or `user_is_speaking` may have changed."""
        self.sent_ms = 0.0
        """The length of the sound sent so far."""
        self.item_id, self.item_begins = "", 0
        """The last spoken reply, and its first byte in the loudspeaker's count `num_played`."""

    async def listen(self) -> None:
        """Handle the server's events until it ends the conversation.

        Raises:
            ConversationEndedError: the server has ended the conversation.
            InputError: the server refuses the command's options.
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
            raise ConversationEndedError(closing_reason(error, reason)) from error
        raise ConversationEndedError(reason)

    async def follow(self, event: Any) -> None:
        turn = self.turn
        match event.type:
            case "input_audio_buffer.speech_started":
                self.user_is_speaking = True
                await self.stop_playing()
            case "output_audio_buffer.paused" if self.loudspeaker:
                self.loudspeaker.pause()
            case "output_audio_buffer.resumed" if self.loudspeaker:
                self.loudspeaker.resume()
                self.show(f" (heard {event.transcript or event.reason!r}, going on) ", "")
            case "input_audio_buffer.speech_stopped":
                self.user_is_speaking = False
                turn = self.begin_turn()
                turn.seconds["endpoint"] = round(max(0.0, self.sent_ms - event.audio_end_ms) / 1000, 3)
            case "conversation.item.input_audio_transcription.completed" if turn:
                turn.note("transcription")
                turn.heard = event.transcript.strip()
                turn.language = event.languages[0].code if event.languages else None
                if turn.heard:
                    language = f" ({turn.language})" if turn.language else ""
                    self.show(f"You{language}: {turn.heard}", "\n")
                else:
                    self.end_turn("nothing heard")
            case "conversation.item.input_audio_transcription.failed" if turn:
                self.end_turn("failed", event.error.message or "the transcription failed")
            case "response.output_audio_transcript.delta" | "response.output_text.delta" if turn:
                turn.note("first_token")
                self.show(event.delta if turn.reply else f"{self.name}: {event.delta}", "")
                turn.reply += event.delta
            case "response.output_audio.delta" if turn:
                turn.note("first_sound")
                self.play(event.item_id, base64.b64decode(event.delta), turn)
            case "response.output_item.done" if event.item.type == "mcp_call":
                self.show_call(event.item)
            case "response.done" if event.response.status == "completed" and calls_tools(event.response):
                pass  # the server goes on by itself with what the tools have answered
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

    def show_call(self, call: Any) -> None:
        """Show a call of a tool in one line."""
        result = call.output if call.error is None else f"failed: {call.error.message}"
        line = f"{call.name}({short(call.arguments)}) → {short(result or 'ended before its result')}"
        if self.turn is not None:
            self.turn.calls.append(line)
        self.show(f"  {line}", "\n")

    def begin_turn(self) -> TurnRecord:
        if self.turn is not None:  # the user has continued to speak before the reply
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
            self.show("", "\n")
        if problem:
            self.show(f"({problem})", "\n")
        if status != "nothing heard":
            self.show(latencies(turn), "\n")

    def play(self, item_id: str, pcm: bytes, turn: TurnRecord) -> None:
        turn.sound_s = round(turn.sound_s + len(pcm) / BYTES_PER_SAMPLE / RATE, 3)
        if self.file is not None:
            self.file.write(pcm)
        if self.loudspeaker is not None:
            if item_id != self.item_id:
                self.item_id, self.item_begins = item_id, self.loudspeaker.num_played
            self.loudspeaker.write(pcm)

    async def stop_playing(self) -> None:
        """Stop playing because the user speaks, and send the server the length of the reply that was played."""
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

    async def wait_for_user_turn(self) -> None:
        """Wait until the user may speak: there is no reply to wait for, or the user is already speaking."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.turn is None or self.user_is_speaking)


def closing_reason(error: ConnectionClosed, reason: str) -> str:
    """Return the message for a connection that the server has closed; `reason` is the server's last error message."""
    if error.rcvd and error.rcvd.reason == "the API key was revoked":
        return "the API key was revoked or has expired: set VOICECHAT_API_KEY to another one"
    return f"{reason} ({error})"


def calls_tools(response: Any) -> bool:
    return any(item.type == "mcp_call" for item in response.output or ())


def short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CALL_SHOWN else f"{line[:CALL_SHOWN]}…"


def latencies(turn: TurnRecord) -> str:
    names = {"endpoint": "end detected after", "transcription": "transcript", "first_token": "first word"}
    names |= {"first_sound": "first sound", "total": "all"}
    shown = (f"{names[what]} {seconds:.2f} s" for what, seconds in turn.seconds.items())
    return f"  [{', '.join(shown)}]"
