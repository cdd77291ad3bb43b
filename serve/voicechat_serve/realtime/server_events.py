"""Events that a session sends, in the types of `openai.types.realtime`: for items, for speech, and for errors.

response.py makes the events of a response. session.py makes those that answer one event of the client.
"""

from typing import Any

from openai.types.audio.transcription_language import TranscriptionLanguage
from openai.types.realtime import (
    ConversationItemAdded,
    ConversationItemDone,
    ConversationItemInputAudioTranscriptionCompletedEvent,
    ConversationItemInputAudioTranscriptionDeltaEvent,
    ConversationItemInputAudioTranscriptionFailedEvent,
    InputAudioBufferCommittedEvent,
    InputAudioBufferSpeechStartedEvent,
    InputAudioBufferSpeechStoppedEvent,
    RealtimeConversationItemAssistantMessage,
    RealtimeConversationItemSystemMessage,
    RealtimeConversationItemUserMessage,
    RealtimeError,
    RealtimeErrorEvent,
)
from openai.types.realtime.conversation_item_input_audio_transcription_completed_event import (
    UsageTranscriptTextUsageDuration,
)
from openai.types.realtime.conversation_item_input_audio_transcription_failed_event import Error

from voicechat_serve.realtime.conversation import Item, Role, new_id
from voicechat_serve.transcription.transcriber import Transcript


def error_event(body: dict[str, Any], event_id: str | None = None) -> RealtimeErrorEvent:
    """Return an error event.

    Args:
        body: OpenAI's type, code and message.
        event_id: the `event_id` of the client's event that has the error.
    """
    given = {"param": None, **body, "event_id": event_id}
    # The client's text may hold halves of characters (lone surrogates): JSON allows them, a WebSocket frame does not.
    sendable = {name: text and text.encode(errors="replace").decode() for name, text in given.items()}
    return RealtimeErrorEvent(type="error", event_id=new_id("event"), error=RealtimeError(**sendable))


def speech_started(item_id: str, start_ms: int) -> InputAudioBufferSpeechStartedEvent:
    return InputAudioBufferSpeechStartedEvent(
        type="input_audio_buffer.speech_started", event_id=new_id("event"), audio_start_ms=start_ms, item_id=item_id
    )


def speech_stopped(item_id: str, end_ms: int) -> InputAudioBufferSpeechStoppedEvent:
    return InputAudioBufferSpeechStoppedEvent(
        type="input_audio_buffer.speech_stopped", event_id=new_id("event"), audio_end_ms=end_ms, item_id=item_id
    )


def committed(item_id: str, previous: str | None) -> InputAudioBufferCommittedEvent:
    return InputAudioBufferCommittedEvent(
        type="input_audio_buffer.committed", event_id=new_id("event"), item_id=item_id, previous_item_id=previous
    )


def partly_transcribed(item_id: str, delta: str) -> ConversationItemInputAudioTranscriptionDeltaEvent:
    return ConversationItemInputAudioTranscriptionDeltaEvent(
        type="conversation.item.input_audio_transcription.delta",
        event_id=new_id("event"),
        item_id=item_id,
        content_index=0,
        delta=delta,
    )


def transcribed(item_id: str, transcript: Transcript) -> ConversationItemInputAudioTranscriptionCompletedEvent:
    return ConversationItemInputAudioTranscriptionCompletedEvent(
        type="conversation.item.input_audio_transcription.completed",
        event_id=new_id("event"),
        item_id=item_id,
        content_index=0,
        transcript=transcript.text,
        usage=UsageTranscriptTextUsageDuration(type="duration", seconds=float(transcript.seconds)),
        languages=[TranscriptionLanguage(code=transcript.language)] if transcript.text else None,
    )


def transcription_failed(item_id: str, error: dict[str, Any]) -> ConversationItemInputAudioTranscriptionFailedEvent:
    return ConversationItemInputAudioTranscriptionFailedEvent(
        type="conversation.item.input_audio_transcription.failed",
        event_id=new_id("event"),
        item_id=item_id,
        content_index=0,
        error=Error(**error),
    )


def item_added(item: Item, previous: str | None) -> ConversationItemAdded:
    return ConversationItemAdded(
        type="conversation.item.added", event_id=new_id("event"), previous_item_id=previous, item=item_resource(item)
    )


def item_done(item: Item, previous: str | None) -> ConversationItemDone:
    return ConversationItemDone(
        type="conversation.item.done", event_id=new_id("event"), previous_item_id=previous, item=item_resource(item)
    )


ItemMessage = (
    RealtimeConversationItemSystemMessage
    | RealtimeConversationItemUserMessage
    | RealtimeConversationItemAssistantMessage
)

ITEM_TYPES: dict[Role, type[ItemMessage]] = {
    "system": RealtimeConversationItemSystemMessage,
    "user": RealtimeConversationItemUserMessage,
    "assistant": RealtimeConversationItemAssistantMessage,
}


def item_resource(item: Item) -> ItemMessage:
    """Return an item as OpenAI's resource, with the text that was heard."""
    if item.role == "assistant":
        kind = "output_audio" if item.is_spoken else "output_text"
        status = "in_progress" if item.is_in_progress else "completed" if item.is_complete else "incomplete"
    else:
        kind, status = "input_audio" if item.is_spoken else "input_text", "completed"
    content: dict[str, Any] = {"type": kind, "transcript" if item.is_spoken else "text": item.heard}
    if item.is_spoken and item.role == "user" and not item.text:
        content["transcript"] = None
    is_empty = status == "in_progress" and not item.text
    return ITEM_TYPES[item.role].model_validate(
        {
            "object": "realtime.item",
            "id": item.id,
            "type": "message",
            "role": item.role,
            "status": status,
            "content": [] if is_empty else [content],
        }
    )
