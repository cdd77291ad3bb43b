"""The items that a client creates: messages, calls of a conversation that it restores, and the results of calls."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from voicechat_serve.json_values import object_of
from voicechat_serve.realtime.checked import Checked, Name
from voicechat_serve.realtime.conversation import Conversation
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.items import CallItem, MessageItem, ResultItem, new_id
from voicechat_serve.realtime.tool_settings import ToolName

LONGEST_TEXT = 65_536

LongText = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]


class ItemContent(Checked):
    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: LongText | None = None
    transcript: LongText | None = None
    audio: str | None = None


class ClientItem(Checked):
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    """A client that returns an item as it received it sends these two too."""
    id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class ClientMessage(ClientItem):
    type: Literal["message"]
    overheard: list[Any] | None = Field(default=None, max_length=1000)
    """Our field of a reply, accepted without an effect."""
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[ItemContent], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def require_bounded_text(self) -> "ClientMessage":
        if len(self.text) > LONGEST_TEXT:
            raise ValueError(f"an item has at most {LONGEST_TEXT} characters")
        return self

    @property
    def text(self) -> str:
        return "".join(part.text or part.transcript or "" for part in self.content)

    def item(self, conversation: Conversation) -> MessageItem:
        """Return the item for a conversation; as in `conversation_of`."""
        if any(part.text is None and part.transcript is None for part in self.content):
            message = "an item must have text; send sound to the input audio buffer"
            raise EventError("unsupported_parameter", message, "item.content")
        return MessageItem(self.role, id=self.id or new_id("item"), text=self.text)


class ClientCall(ClientItem):
    type: Literal["function_call"]
    name: ToolName
    arguments: LongText
    call_id: Annotated[Name, StringConstraints(min_length=1)] | None = None

    def item(self, conversation: Conversation) -> CallItem:
        """Return the item for a conversation; as in `conversation_of`."""
        if object_of(self.arguments) is None:
            raise EventError("invalid_value", "item.arguments: it must be a JSON object, as a text", "item.arguments")
        if self.call_id and conversation.made_call(self.call_id):
            message = f"item.call_id: there is a call {self.call_id!r} already"
            raise EventError("invalid_value", message, "item.call_id")
        call_id = self.call_id or new_id("call")
        return CallItem(self.name, self.arguments, call_id=call_id, id=self.id or new_id("item"))


class ClientResult(ClientItem):
    type: Literal["function_call_output"]
    call_id: Name
    output: LongText

    def item(self, conversation: Conversation) -> ResultItem:
        """Return the item for a conversation; as in `conversation_of`."""
        if conversation.made_call(self.call_id) is None:
            message = f"item.call_id: no call {self.call_id[:100]!r} was made here, or it was interrupted"
            raise EventError("invalid_value", message, "item.call_id")
        if conversation.has_result(self.call_id):
            message = f"item.call_id: the call {self.call_id!r} has a result already: delete that item first"
            raise EventError("invalid_value", message, "item.call_id")
        return ResultItem(self.call_id, self.output, id=self.id or new_id("item"))


class HostedCallError(Checked):
    type: Name
    message: LongText


class ClientHostedCall(ClientItem):
    """A call that this service made in another session."""

    type: Literal["mcp_call"]
    server_label: Annotated[Name, StringConstraints(min_length=1)]
    name: ToolName
    arguments: LongText
    output: LongText | None = None
    error: HostedCallError | None = None
    approval_request_id: None = None

    def item(self, conversation: Conversation) -> CallItem:
        """Return the item for a conversation; as in `conversation_of`."""
        if object_of(self.arguments) is None:
            raise EventError("invalid_value", "item.arguments: it must be a JSON object, as a text", "item.arguments")
        error = self.error.message if self.error else "" if self.output is not None else "it has no result"
        item = CallItem(self.name, self.arguments, id=self.id or new_id("item"), server_label=self.server_label)
        item.output, item.error = self.output, error
        return item


def tag_of(given: Any) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return f"[{kind}]"


AnyClientItem = Annotated[
    Annotated[ClientMessage, Tag("[message]")]
    | Annotated[ClientCall, Tag("[function_call]")]
    | Annotated[ClientResult, Tag("[function_call_output]")]
    | Annotated[ClientHostedCall, Tag("[mcp_call]")],
    Discriminator(
        tag_of,
        custom_error_type="item_kind",
        custom_error_message="an item is an object of type message, function_call, function_call_output or mcp_call",
    ),
]


def conversation_of(given: Sequence[AnyClientItem]) -> Conversation:
    """Return a conversation of a client's items.

    Raises:
        EventError: an item has only sound, a call has no arguments or was made already, or a result has no call.
    """
    conversation = Conversation()
    for item in given:
        conversation.add(item.item(conversation))
    return conversation
