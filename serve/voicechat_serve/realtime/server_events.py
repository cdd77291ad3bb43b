"""Events that a session sends, in the types of `openai.types.realtime`: for items, for speech, and for errors.

response.py makes the events of a response. session.py makes those that answer one event of the client.
"""

from dataclasses import asdict
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
    RealtimeConversationItemFunctionCall,
    RealtimeConversationItemFunctionCallOutput,
    RealtimeConversationItemSystemMessage,
    RealtimeConversationItemUserMessage,
    RealtimeError,
    RealtimeErrorEvent,
    RealtimeMcpToolCall,
    RealtimeMcpToolExecutionError,
)
from openai.types.realtime.conversation_item_input_audio_transcription_completed_event import (
    UsageTranscriptTextUsageDuration,
)
from openai.types.realtime.conversation_item_input_audio_transcription_failed_event import Error

from voicechat_serve.realtime.items import CallItem, Item, MessageItem, ResultItem, Role, new_id
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


MessageResource = (
    RealtimeConversationItemSystemMessage
    | RealtimeConversationItemUserMessage
    | RealtimeConversationItemAssistantMessage
)

MESSAGE_TYPES: dict[Role, type[MessageResource]] = {
    "system": RealtimeConversationItemSystemMessage,
    "user": RealtimeConversationItemUserMessage,
    "assistant": RealtimeConversationItemAssistantMessage,
}

ItemResource = (
    MessageResource
    | RealtimeConversationItemFunctionCall
    | RealtimeConversationItemFunctionCallOutput
    | RealtimeMcpToolCall
)


def item_resource(item: Item) -> ItemResource:
    """Return an item as OpenAI's resource."""
    match item:
        case MessageItem():
            return message_resource(item)
        case CallItem():
            if item.server_label:
                error = RealtimeMcpToolExecutionError(type="tool_execution_error", message=item.error)
                return RealtimeMcpToolCall(
                    id=item.id,
                    type="mcp_call",
                    server_label=item.server_label,
                    name=item.name,
                    arguments=item.arguments,
                    output=item.output,
                    error=error if item.error else None,
                )
            return RealtimeConversationItemFunctionCall(
                object="realtime.item",
                id=item.id,
                type="function_call",
                status=item.status,
                call_id=item.call_id,
                name=item.name,
                arguments=item.arguments,
            )
        case ResultItem():
            return RealtimeConversationItemFunctionCallOutput(
                object="realtime.item",
                id=item.id,
                type="function_call_output",
                status="completed",
                call_id=item.call_id,
                output=item.output,
            )


def message_resource(item: MessageItem) -> MessageResource:
    """Return a message as OpenAI's resource, with the text that was heard. A reply that was paused and went on has one
    more field, ours."""
    if item.role == "assistant":
        kind = "output_audio" if item.is_spoken else "output_text"
    else:
        kind = "input_audio" if item.is_spoken else "input_text"
    content: dict[str, Any] = {"type": kind, "transcript" if item.is_spoken else "text": item.heard}
    if item.is_spoken and item.role == "user" and not item.text:
        content["transcript"] = None
    is_begun = item.status != "in_progress" or item.text
    overheard = {"overheard": [asdict(each) for each in item.overheard]} if item.overheard else {}
    return MESSAGE_TYPES[item.role].model_validate(
        {
            **overheard,
            "object": "realtime.item",
            "id": item.id,
            "type": "message",
            "role": item.role,
            "status": item.status,
            "content": [content] if is_begun else [],
        }
    )
