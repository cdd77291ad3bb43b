"""One turn of a spoken conversation: the person's speech, and the answer to it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from pydantic import BaseModel

from voicechat_serve.application_file import ToolServer
from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import Tool, ToolUse
from voicechat_serve.realtime.client_items import conversation_of
from voicechat_serve.realtime.conversation import Conversation, Reply, stop
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.hosted_tools import SessionTools
from voicechat_serve.realtime.items import Item, MessageItem
from voicechat_serve.realtime.response import Draft, Reason, ReplyRequest, Response
from voicechat_serve.realtime.server_events import (
    committed,
    item_added,
    item_done,
    partly_transcribed,
    speech_stopped,
    transcribed,
    transcription_failed,
)
from voicechat_serve.realtime.session_settings import MOST_TOKENS, ResponseSettings, SessionSettings
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.tool_settings import AnyTool, functions_in, misfit, tool_use
from voicechat_serve.realtime.turn_end import end_probability
from voicechat_serve.realtime.utterance import Utterance
from voicechat_serve.realtime.wire import Wire
from voicechat_serve.transcription.smart_turn import WINDOW_S
from voicechat_serve.transcription.transcriber import Transcript

log = logging.getLogger("ray.serve.voicechat.realtime")

CLASSIFIED_LANGUAGE = "en"
"""The only language in which the words show whether the person has finished."""

CERTAIN = 0.95
"""A probability by the words that the sound could not lower enough to change the silence."""

MOST_ROUNDS = 4
"""The most responses of a turn that call hosted tools; the next one must be text."""

NO_OVERRIDES = ResponseSettings()
"""The session's settings apply without a change."""


@dataclass
class Context:
    """The objects that all turns of a session share."""

    settings: SessionSettings
    """The present settings of the session."""
    stages: Stages
    wire: Wire
    conversation: Conversation
    hosted: SessionTools
    on_first_sound: Callable[[float], None]
    """Receives the seconds from the end of a spoken turn to the first sound of its response."""
    answered: "Turn | None" = None
    """The turn of the active response, or of the last one."""

    @property
    def response(self) -> Response | None:
        """The active response, or the last one."""
        return self.answered.response if self.answered else None

    @property
    def is_responding(self) -> bool:
        return self.answered is not None and self.answered.state is State.ANSWERING

    @property
    def has_called(self) -> bool:
        """Whether the active response, or the last one, has called a tool."""
        return self.response is not None and self.response.has_called

    @property
    def is_audible(self) -> bool:
        """Whether a response is active, or can still be playing."""
        return self.is_responding or (self.response is not None and self.response.is_playing)

    def reply_request(
        self, wanted: ResponseSettings, language: str | None, also: Sequence[Item] = (), round: int = 0
    ) -> ReplyRequest:
        """Return the request of a reply to the conversation.

        Args:
            wanted: settings of this reply that replace the session's.
            language: the language of the speech to answer; None if it is not known.
            also: more items to answer, which do not belong to the conversation yet.
            round: the number of responses before this one in the same turn.

        Raises: what `Stages.voice` raises.
        """
        settings, conversation = self.settings, self.conversation
        output = settings.audio.output
        if wanted.audio:
            output = output.model_copy(update={name: own for name, own in wanted.audio.output if own is not None})
        if wanted.input is not None:
            conversation = conversation_of(wanted.input)
        instructions = settings.instructions if wanted.instructions is None else wanted.instructions
        most = wanted.max_output_tokens or settings.max_output_tokens
        use, labels = self.tool_use(wanted, round)
        return ReplyRequest(
            model=settings.model,
            messages=conversation.messages(instructions, also),
            max_tokens=MOST_TOKENS if most == "inf" else most,
            temperature=settings.temperature if wanted.temperature is None else wanted.temperature,
            voice=self.stages.voice(output.voice_id, language) if self.wants_voice(wanted) else None,
            speed=output.speed,
            format=output.format,
            tools=use,
            labels=labels,
        )

    def tools(self, wanted: ResponseSettings) -> Sequence[AnyTool]:
        return self.settings.tools if wanted.tools is None else wanted.tools

    def tool_use(self, wanted: ResponseSettings, round: int) -> tuple[ToolUse, dict[str, str]]:
        """Return the tools of a reply, and for each that this service calls the label of its server."""
        tools, choice = self.tools(wanted), wanted.tool_choice or self.settings.tool_choice
        if round:
            choice = "auto" if round < MOST_ROUNDS else "none"
        elif misfit(choice, tools):  # the session's choice, and tools of the response
            choice = "auto"
        functions, hosted = functions_in(tools), self.hosted_tools(wanted)
        is_parallel = wanted.parallel_tool_calls
        use = tool_use(
            functions,
            [tool for _, tool in hosted],
            choice,
            self.settings.parallel_tool_calls if is_parallel is None else is_parallel,
        )
        required = frozenset(tool.name for server, tool in hosted if server.tool_choice == "required")
        if required and choice == "auto" and not round:
            use = replace(use, callable=required, is_required=True, is_parallel=False)  # small models repeat themselves
        return use, {tool.name: server.label for server, tool in hosted}

    def hosted_tools(self, wanted: ResponseSettings) -> list[tuple[ToolServer, Tool]]:
        """Return the operator's tools for a reply, without those whose name another tool has."""
        is_kept = wanted.input is None and wanted.conversation != "none"  # so that the next response has the results
        if wanted.tools is not None or not is_kept:
            return []
        self.hosted.list_missing()
        names = {function.name for function in functions_in(self.settings.tools)}
        found = []
        for server, tool in self.hosted.tools():
            if tool.name not in names:
                names.add(tool.name)
                found.append((server, tool))
        return found

    def wants_voice(self, wanted: ResponseSettings) -> bool:
        return (wanted.output_modalities or self.settings.output_modalities) == ["audio"]


class State(Enum):
    """The state of a turn."""

    SPEAKING = auto()
    PAUSED = auto()
    WAITING = auto()
    TRANSCRIBING = auto()
    TRANSCRIBED = auto()
    ANSWERING = auto()
    INTERRUPTED = auto()
    DONE = auto()


FOLLOWING = {
    State.SPEAKING: {State.PAUSED, State.WAITING},
    State.PAUSED: {State.SPEAKING, State.WAITING},
    State.WAITING: {State.TRANSCRIBING, State.ANSWERING},
    State.TRANSCRIBING: {State.TRANSCRIBED},
    State.TRANSCRIBED: {State.ANSWERING},
    State.ANSWERING: {State.INTERRUPTED},
    State.INTERRUPTED: set(),
    State.DONE: set(),
}
"""The states that may follow each state, besides DONE."""


class Turn:
    """A turn and its state.

        SPEAKING <----> PAUSED      the person speaks; at a pause the turn is prepared, because it may be over
            |             |
            +-> WAITING <-+         the speech is over; the turns before it come first
                |     |
      TRANSCRIBING    |             (a turn for the client's response.create has no speech to transcribe)
                |     |
       TRANSCRIBED    |             the turn needs an answer, which begins when the person no longer speaks
                |     |
                ANSWERING --> INTERRUPTED
        every state --> DONE        the turn is answered, or there is nothing to answer

    To prepare a turn is to transcribe it, to begin its answer (the draft), and to classify by its sound and words
    whether it is over. If the person continues, all of this is discarded. With `interruption: "adaptive"`, speech over
    a reply becomes a turn only when overlap.py has judged it an interruption.

    Args:
        context: the session's.
        state: SPEAKING, or WAITING if there is no speech.
        is_detected: whether the voice detector found the speech; only then are partial transcripts useful.
    """

    def __init__(self, context: Context, state: State, is_detected: bool = False):
        self.context, self.state = context, state
        self.item = MessageItem(role="user", is_spoken=True)
        """The item of the speech in the conversation."""
        self.transcription = context.settings.audio.input.transcription
        self.utterance = Utterance(self._hear, self._show if is_detected and self.transcription else None)
        self.has_shown = False
        self.silence_ms: int | None = None
        """The length of the silence that ends the speech; None until the pause is classified."""
        self.ended_at: float | None = None
        """The time when the voice detector found the end of the speech; monotonic."""
        self.wants_answer = False
        self.transcript: Transcript | None = None
        self.draft: Draft | None = None
        self.response: Response | None = None
        self.preparing: asyncio.Task[None] | None = None
        self.classifying: asyncio.Task[None] | None = None
        """The end of the turn does not wait for this task."""
        self.responding: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.item.id

    def _enter(self, state: State) -> None:
        assert state is State.DONE or state in FOLLOWING[self.state], f"{state} after {self.state}"
        self.state = state

    # The person speaks.

    def pause(self) -> None:
        """Prepare the turn: the speech may be over."""
        self._enter(State.PAUSED)
        detection = self.context.settings.audio.input.turn_detection
        if detection and (detection.anticipate or detection.is_by_words):
            self.preparing = asyncio.create_task(self._prepare())

    async def resume(self) -> None:
        """Continue the speech, and discard what was prepared."""
        await stop(self.preparing, self.classifying)
        self.preparing, self.silence_ms = None, None
        await self.utterance.resume()
        await self.drop_draft()
        self._enter(State.SPEAKING)

    async def _prepare(self) -> None:
        try:
            transcript = await self.utterance.transcribe_so_far()
            settings = self.context.settings
            detection = settings.audio.input.turn_detection
            if transcript.text and detection:
                is_answered = settings.type == "realtime" and detection.create_response and detection.anticipate
                if is_answered and not self.context.is_responding:
                    speech = MessageItem(role="user", text=transcript.text)
                    request = self.context.reply_request(NO_OVERRIDES, transcript.language, [speech])
                    self.draft = Draft(request, request.begin(self.context.stages))
                if detection.is_by_words and self.state is State.PAUSED:  # otherwise the speech is over already
                    self.classifying = asyncio.create_task(self._classify(transcript))
                    return
        except Exception:  # the end of the turn tries again, and reports the error
            log.warning("a turn could not be prepared at a pause", exc_info=True)
        self._expect_end(None)

    async def _classify(self, transcript: Transcript) -> None:
        stages, words = self.context.stages, None
        if transcript.language == CLASSIFIED_LANGUAGE:
            words = await known(stages.end_by_words(transcript.text))
            by_words = end_probability(None, words)
            if by_words is not None:
                self._expect_end(by_words)  # the sound takes longer
                if by_words > CERTAIN:
                    return
        sound = await known(stages.end_by_sound(self.utterance.last(WINDOW_S)))
        self._expect_end(end_probability(sound, words))

    def _expect_end(self, probability: float | None) -> None:
        if detection := self.context.settings.audio.input.turn_detection:
            self.silence_ms = detection.patience.silence_ms(probability)

    def end(self, end_ms: int | None) -> None:
        """End the speech, and add its item to the conversation.

        Args:
            end_ms: the end of the speech, without the silence after it; None if the client committed it.
        """
        self._enter(State.WAITING)
        emit, settings = self.context.wire.emit, self.context.settings
        if end_ms is not None:
            self.ended_at = time.monotonic()
            emit(speech_stopped(self.id, end_ms))
            detection = settings.audio.input.turn_detection
            self.wants_answer = settings.type == "realtime" and detection is not None and detection.create_response
        previous = self.context.conversation.add(self.item)
        emit(committed(self.id, previous))
        emit(item_added(self.item, previous))
        emit(item_done(self.item, previous))

    # The turn is transcribed.

    async def transcribe(self) -> None:
        """Transcribe the speech. The turn is then TRANSCRIBED, or DONE if there is nothing to answer."""
        self._enter(State.TRANSCRIBING)
        try:
            if self.preparing:
                await asyncio.wait([self.preparing])
            self.transcript = await self.utterance.finish()
        except Exception as error:
            body = self.context.stages.explain(error)
            self._emit_transcription(transcription_failed(self.id, body))
            if self.context.settings.audio.input.transcription is None:
                self.context.wire.emit_error(body)
        finally:
            await stop(self.preparing, self.classifying)
            await self.utterance.close()
        is_deleted = self.context.conversation.find(self.id) is None
        if self.transcript is not None and not is_deleted:
            self.item.text = self.transcript.text
            if self.item.text:
                self.context.conversation.language = self.transcript.language
            self._emit_transcription(transcribed(self.id, self.transcript))
        if self.wants_answer and self.item.text:
            self._enter(State.TRANSCRIBED)
        else:
            await self.finish()

    async def _hear(self, samples_n: Samples, only_if_idle: bool) -> Transcript | None:
        language = self.transcription.language if self.transcription else None
        prompt = self.transcription.prompt if self.transcription else None
        return await self.context.stages.hear(samples_n, language, prompt, only_if_idle)

    def _show(self, words: str) -> None:
        self._emit_transcription(partly_transcribed(self.id, f" {words}" if self.has_shown else words))
        self.has_shown = True

    def _emit_transcription(self, event: BaseModel) -> None:
        if self.context.settings.audio.input.transcription is not None:
            self.context.wire.emit(event)

    # The turn is answered.

    def answer(self, wanted: ResponseSettings = NO_OVERRIDES, ended_at: float | None = None) -> None:
        """Begin the response, or send the client an error. The caller must call `drop_draft` afterwards.

        This method awaits nothing: speech that begins meanwhile must find the response, to interrupt it.

        Args:
            wanted: settings of this response that replace the session's.
            ended_at: the time when the speech of the answered turn ended; monotonic.
        """
        context, language = self.context, self.context.conversation.language
        try:
            request = context.reply_request(wanted, language)
        except Exception as error:  # for example, there is no such voice
            self._enter(State.DONE)
            body = error.body if isinstance(error, EventError) else context.stages.explain(error)
            return context.wire.emit_error(body)
        if not request.messages:
            self._enter(State.DONE)
            message = "there is nothing to answer yet"
            return context.wire.emit_error({"type": "invalid_request_error", "code": "empty", "message": message})
        if self.draft and self.draft.request == request:
            reply, self.draft = self.draft.reply, None
        else:
            reply = request.begin(context.stages)
        self.response = self._response(reply, request, wanted, ended_at)
        context.answered = self
        self._enter(State.ANSWERING)
        self.responding = asyncio.create_task(self._respond(self.response, wanted, ended_at))

    def _response(
        self, reply: Reply, request: ReplyRequest, wanted: ResponseSettings, ended_at: float | None
    ) -> Response:
        context = self.context
        metadata = dict(wanted.metadata or {})
        if request.voice is None and context.wants_voice(wanted):
            metadata |= {"spoken": "false", "reason": f"no voice speaks {context.conversation.language}"}

        def on_sound() -> None:
            if ended_at is not None:
                context.on_first_sound(time.monotonic() - ended_at)

        return Response(
            reply=reply,
            request=request,
            conversation=context.conversation if wanted.conversation != "none" else None,
            metadata=metadata,
            wire=context.wire,
            explain=context.stages.explain,
            on_sound=on_sound,
            call_tool=context.hosted.call,
        )

    async def _respond(self, response: Response, wanted: ResponseSettings, ended_at: float | None) -> None:
        """Send the response, and as long as the model calls hosted tools, a further one with their results."""
        context = self.context
        try:
            await response.run()
            for round in range(1, MOST_ROUNDS + 1):
                if not response.goes_on:
                    break
                is_heard = response.sounds_since is not None
                request = context.reply_request(wanted, context.conversation.language, round=round)
                ended_at = None if is_heard else ended_at
                response = self._response(request.begin(context.stages), request, wanted, ended_at)
                self.response = response  # at once: speech that begins meanwhile must find it
                await response.run()
        except Exception as error:  # the response itself reports the errors of the models
            log.error("a response failed", exc_info=error)
            context.wire.emit_error(context.stages.explain(error))
        finally:
            self._enter(State.INTERRUPTED if response.cancelled else State.DONE)

    async def interrupt(self, reason: Reason) -> None:
        """End the active response, and keep the part that can have been played. Return after its `response.done`."""
        if self.state is not State.ANSWERING or self.response is None or self.responding is None:
            return
        if self.response.message.is_spoken:
            self.response.message.truncate(self.response.played_ms)
        await self.response.cancel(reason)
        await asyncio.wait([self.responding])

    async def drop_draft(self) -> None:
        """Close the draft, if there is one."""
        draft, self.draft = self.draft, None
        if draft:
            await draft.reply.close()

    async def finish(self) -> None:
        """End a turn that needs no answer of its own: it has no words, or the next answer covers it."""
        self._enter(State.DONE)
        await self.drop_draft()

    async def close(self) -> None:
        """End all work."""
        await stop(self.preparing, self.classifying, self.responding)
        await self.utterance.close()
        await self.drop_draft()
        if self.response:
            await self.response.reply.close()
        self.state = State.DONE


async def known(probability: Awaitable[float | None]) -> float | None:
    """Return a classifier's probability; None, and a line in the log, if the classifier fails."""
    try:
        return await probability
    except Exception:
        log.warning("an end-of-turn classifier failed", exc_info=True)
        return None
