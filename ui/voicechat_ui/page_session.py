"""One open page: its conversation, the turn that is going on, and that turn's speech on the way to the browser.

A turn runs in a task of its own and the page watches the session, which is the only place that says what is shown. So a
slow browser holds nothing up, and Stop, a new turn or a closed tab end the turn at once, whatever the page is doing.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator
from functools import partial
from typing import Literal

from voicechat_ui.api_client import ApiClient
from voicechat_ui.old_turn import (
    SPEECH_RATE_HZ,
    Conversation,
    Heard,
    Message,
    NothingHeard,
    SpeechChunk,
    TextDelta,
    Timings,
    TurnEnded,
    TurnFailed,
)

log = logging.getLogger(__name__)

SYSTEM_PROMPT = "You are a friendly assistant in a spoken conversation. Answer in a few short, plain sentences."

State = Literal["ready", "transcribing", "thinking", "writing", "done", "stopped", "nothing heard", "failed"]

# How long the speech of a turn that is over waits for a browser to fetch it.
UNCLAIMED_SPEECH_S = 30

# Redrawing the reply more often than this is not seen, only paid for.
REDRAW_EVERY_S = 0.05

# Gradio looks only between two steps whether the page is still open; and the page takes them for a sign of life.
IDLE_STEP_EVERY_S = 10


class SpeechQueue:
    """The speech of one turn between the server and one listener.

    Holds at most MAX_BYTES. A listener that falls further behind than that hears no more of the turn, which goes on in
    writing.
    """

    MAX_BYTES = 5 * 60 * SPEECH_RATE_HZ * 2

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._num_bytes = 0
        self._closed = False

    def put(self, pcm: bytes) -> None:
        """Add samples; does nothing once closed."""
        if self._closed:
            return
        if self._num_bytes + len(pcm) > self.MAX_BYTES:
            log.warning("nobody fetches the speech of a turn: the rest of it is dropped")
            self.close()
            return
        self._num_bytes += len(pcm)
        self._chunks.put_nowait(pcm)

    def close(self) -> None:
        """No more samples will come; those that wait can still be heard."""
        if not self._closed:
            self._closed = True
            self._chunks.put_nowait(None)

    def drop(self) -> None:
        """Close, and forget what waits."""
        while not self._chunks.empty():
            self._chunks.get_nowait()
        self._num_bytes = 0
        self._closed = True
        self._chunks.put_nowait(None)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The samples as they come, until the queue is closed."""
        while (pcm := await self._chunks.get()) is not None:
            self._num_bytes -= len(pcm)
            yield pcm


class Turn:
    """A turn and the speech that it makes."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        """Whoever knows it may listen to the turn, so it cannot be guessed."""
        self.speech = SpeechQueue()
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Begin to end the turn; what was not heard yet will not be."""
        self.speech.drop()
        if self.task is not None:
            self.task.cancel()


class PageSession:
    """The conversation of one open page.

    Args:
        api: who transcribes, writes and speaks.
        speeches: where the turns with speech to fetch can be found, by id.
    """

    def __init__(self, api: ApiClient, speeches: dict[str, Turn]) -> None:
        self.messages: list[Message] = []
        """What the page shows: all that was said, failed turns included."""
        self.state: State = "ready"
        self.problem = ""
        """For the state "failed": what went wrong and what to do."""
        self.revision = 0
        """Counts every `show`, so that two equal states in a row can be told apart."""
        self.timings: Timings | None = None
        """Of the last turn that came to its end."""
        self.turn: Turn | None = None
        """The turn that is going on, or the last one."""
        self._api = api
        self._speeches = speeches
        self._model = ""
        self._conversation = Conversation(
            transcribe=api.transcribe,
            generate=lambda messages: api.reply(self._model, messages),
            synthesize=api.speech,
            system_prompt=SYSTEM_PROMPT,
        )
        self._changed = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()  # of start, stop and clear: clicks come faster than turns end

    def show(self, state: State, problem: str = "") -> None:
        """What is going on now; for "failed" also what went wrong and what to do."""
        self.state = state
        self.problem = problem
        self.revision += 1
        self._changed.set()

    async def changes(self) -> AsyncGenerator[bool, None]:
        """True whenever there is something new to show; False now and then when there is not. Endless.

        For one watcher.
        """
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), IDLE_STEP_EVERY_S)
            except TimeoutError:
                yield False
            else:
                self._changed.clear()
                yield True
                await asyncio.sleep(REDRAW_EVERY_S)

    async def start(self, *, model: str, audio: bytes | None = None, text: str | None = None) -> None:
        """Begin a turn; one that is still going on is stopped first."""
        async with self._one_at_a_time:
            await self._stop()
            self._forget(self.turn)
            self._model = model
            self.timings = None
            turn = self.turn = Turn()
            self._speeches[turn.id] = turn
            if text is not None:
                self.messages.append({"role": "user", "content": text})
            turn.task = asyncio.create_task(self._run(turn, audio, text))
            turn.task.add_done_callback(partial(self._ended, turn))
            self.show("transcribing" if text is None else "thinking")

    async def stop(self) -> None:
        """End the turn that is going on, if one is; returns when none of its stages is at work any more."""
        async with self._one_at_a_time:
            await self._stop()

    async def _stop(self) -> None:
        if self.turn is not None and self.turn.task is not None and not self.turn.task.done():
            self.turn.cancel()
            await asyncio.wait([self.turn.task])

    async def clear(self) -> None:
        """Stop, and forget everything that was said."""
        async with self._one_at_a_time:
            await self._stop()
            self._forget(self.turn)
            self.turn = None
            self.timings = None
            self.messages = []
            self._conversation.clear()
            self.show("ready")

    async def _run(self, turn: Turn, audio: bytes | None, text: str | None) -> None:
        async with contextlib.aclosing(self._conversation.turn(audio=audio, text=text)) as events:
            async for event in events:
                match event:
                    case Heard(words):
                        self.messages.append({"role": "user", "content": words})
                        self.show("thinking")
                    case NothingHeard():
                        self.show("nothing heard")
                    case TextDelta(piece):
                        if self.state != "writing":
                            self.messages.append({"role": "assistant", "content": ""})
                        self.messages[-1]["content"] += piece
                        self.show("writing")
                    case SpeechChunk(pcm):
                        turn.speech.put(pcm)
                    case TurnFailed(stage, error):
                        log.warning("%s failed: %r", stage, error)
                        self.show("failed", self._api.explain(error))
                    case TurnEnded(timings):
                        self.timings = timings
                        if self.state == "thinking":
                            self.show("failed", "The model wrote nothing. Use other words, or another model.")
                        else:
                            self.show("done" if self.state == "writing" else self.state, self.problem)

    def _ended(self, turn: Turn, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.show("stopped")
        elif (error := task.exception()) is not None:
            log.error("a turn broke off", exc_info=error)
            self.show("failed", f"The page itself failed ({error}). Try again.")
        turn.speech.close()
        asyncio.get_running_loop().call_later(UNCLAIMED_SPEECH_S, self._forget, turn)

    def _forget(self, turn: Turn | None) -> None:
        if turn is not None and self._speeches.pop(turn.id, None) is not None:
            turn.speech.drop()
