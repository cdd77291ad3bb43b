"""The messages of a chat request, and their order: the results of calls follow the calls."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.fields import Part, Text
from voicechat_serve.api.tool_fields import Name
from voicechat_serve.generation.answer_form import MOST_TOOLS, Message
from voicechat_serve.json_values import object_of


class ContentPart(Part):
    type: str
    text: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def type_alone_of_others(cls, part: Any) -> Any:
        """Refuse every part except text by its type, with any fields."""
        return part if not isinstance(part, dict) or part.get("type") == "text" else {"type": part.get("type")}


Content = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[list[ContentPart], Tag("[parts]")],
    Discriminator(lambda content: "[parts]" if isinstance(content, list) else "[text]"),
]


class CalledFunction(Part):
    name: Name
    arguments: Text
    parsed_arguments: Any = None
    """Without an effect: openai's `parse` puts it beside the arguments, and the next request has it again."""


class CallFields(Part):
    id: Text = Field(min_length=1, max_length=256)
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None
    """Without an effect: openai's client puts it into the message that it makes of a stream."""

    def as_prompt(self, place: str) -> dict[str, Any]:
        """Return the call with its arguments as an object.

        Raises:
            APIError: 400, they are none.
        """
        arguments = arguments_of(self.function.arguments, f"{place}.function.arguments")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


def arguments_of(text: str, param: str) -> dict[str, Any]:
    """Return the arguments of a call; an empty text has none.

    Raises:
        APIError: 400, they are no JSON object.
    """
    arguments = object_of(text or "{}")
    if arguments is None:
        raise APIError(400, f"{param} is not the text of a JSON object", param=param, code="invalid_value")
    return arguments


class ChatMessage(Part):
    neutral: ClassVar = {"tool_calls": ([],), "annotations": ([],), "refusal": ("",)}  # as in OpenAI's responses

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Text | None = None
    """The speaker, if several share one role: chat templates have no place for it."""
    tool_calls: list[CallFields] | None = Field(None, max_length=MOST_TOOLS)
    tool_call_id: Text | None = None
    parsed: Any = None
    """Without an effect: openai's `parse` puts it beside the content."""

    def as_prompt(self, position: int) -> Message:
        """Return the message for the chat template.

        Raises:
            APIError: 400, the content is not text, or is missing, or a field belongs to another role.
        """
        place = f"messages.{position}"
        for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) is not None and self.role != role:
                message = f"{place}.{name}: only {role} messages have {name}"
                raise APIError(400, message, param=f"{place}.{name}", code="unsupported_parameter")
        # The same field under OpenAI's newer name.
        role = "system" if self.role == "developer" else self.role
        prompt: Message = {"role": role, "content": self.text(place)}
        if self.tool_calls:
            calls = enumerate(self.tool_calls)
            prompt["tool_calls"] = [call.as_prompt(f"{place}.tool_calls.{number}") for number, call in calls]
        if self.role == "tool":
            prompt["tool_call_id"] = self.tool_call_id
        return prompt

    def text(self, place: str) -> str:
        content = self.content
        if content is None:
            if self.role != "assistant":
                raise APIError(400, f"a {self.role} message needs content", param=f"{place}.content")
            return ""
        if isinstance(content, str):
            return content
        if any(part.type != "text" or part.text is None for part in content):
            raise APIError(400, "only text content is supported", param=f"{place}.content")
        return "".join(part.text or "" for part in content)


def conversation_of(given: Sequence[ChatMessage]) -> list[Message]:
    """Return messages for the chat template, in which each result has the name of its tool.

    Raises:
        APIError: 400, a message is wrong, a result has no call, or a call has no result.
    """
    messages: list[Message] = []
    waiting: dict[str, str] = {}
    """The ids of calls without a result so far -> the names of their tools."""
    caller = 0
    """The position of the message with these calls."""
    for position, each in enumerate(given):
        message = each.as_prompt(position)
        if each.role == "tool":
            name = waiting.pop(each.tool_call_id or "", None)
            if name is None:
                raise APIError(400, unknown_call(each, position), param=f"messages.{position}.tool_call_id")
            message["name"] = name
        elif waiting:
            raise missing(waiting, caller)
        for number, call in enumerate(message.get("tool_calls", ())):
            if call["id"] in waiting:
                param = f"messages.{position}.tool_calls.{number}.id"
                raise APIError(400, f"{param}: two calls have this id", param=param, code="invalid_value")
            waiting[call["id"]], caller = call["function"]["name"], position
        messages.append(message)
    if waiting:
        raise missing(waiting, caller)
    return messages


def unknown_call(message: ChatMessage, position: int) -> str:
    place = f"messages.{position}.tool_call_id"
    if message.tool_call_id is None:
        return f"{place} is missing: a tool message names the call that it answers"
    wanted = shortened(message.tool_call_id, 100)
    return f"{place}: the assistant message before makes no call {wanted}, or it is answered already"


def missing(waiting: dict[str, str], caller: int) -> APIError:
    ids = shortened(", ".join(waiting), 200)
    message = f"messages.{caller}.tool_calls: tool messages with the results must follow; these are missing: {ids}"
    return APIError(400, message, param=f"messages.{caller}.tool_calls", code="invalid_value")
