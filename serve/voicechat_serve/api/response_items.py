"""The items of /responses: those of a request as messages for a model, and those of an answer."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from voicechat_serve.api.answers import Call
from voicechat_serve.api.chat import openai_logprobs
from voicechat_serve.api.chat_messages import arguments_of
from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.fields import Part, Text
from voicechat_serve.generation.answer_form import Message
from voicechat_serve.generation.loaded_model import ScoredToken

TEXTS = ("input_text", "output_text")
"""The types of parts that have a text."""


class ContentPart(Part):
    neutral: ClassVar = {"annotations": ([],), "logprobs": ([],)}  # as in answers

    type: str
    text: Text | None = None
    annotations: Any = None
    """The sources of an answer, which stay out of the prompt, as do its logprobs."""
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None

    @model_validator(mode="before")
    @classmethod
    def type_alone_of_others(cls, part: Any) -> Any:
        """Refuse every part except text by its type, with any fields."""
        return part if not isinstance(part, dict) or part.get("type") in TEXTS else {"type": part.get("type")}


Content = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[list[ContentPart], Tag("[parts]")],
    Discriminator(lambda content: "[parts]" if isinstance(content, list) else "[text]"),
]


class Item(Part):
    id: Text | None = None
    """Nothing is stored, so that ids and states of items have no effect."""
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class MessageItem(Item):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Item):
    neutral: ClassVar = {"caller": ({"type": "direct"},)}

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text
    """A JSON object."""


class CallOutputItem(Item):
    neutral: ClassVar = {"caller": ({"type": "direct"},)}

    type: Literal["function_call_output"]
    call_id: Text
    output: Content
    name: Text | None = None


class ReasoningItem(Item):
    """Of an answer of another model; it stays out of the prompt."""

    type: Literal["reasoning"]
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None


def type_of(value: Any, of_others: str, default: str) -> str:
    """Return the type of an object.

    Args:
        value: as the client sent it.
        of_others: the type of a value that is no object.
        default: the type of an object that has none.
    """
    return str(value.get("type") or default) if isinstance(value, dict) else of_others


InputItem = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[CallItem, Tag("[function_call]")]
    | Annotated[CallOutputItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    Discriminator(lambda item: f"[{type_of(item, 'message', 'message')}]"),
]

Input = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[list[InputItem], Field(min_length=1, max_length=2048), Tag("[items]")],
    Discriminator(lambda content: "[items]" if isinstance(content, list) else "[text]"),
]

KNOWN_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def require_known_items(given: Any) -> Any:
    """Check the types of a request's items, and return the items.

    Raises:
        APIError: 400, a type is not supported.
    """
    for position, item in enumerate(given if isinstance(given, list) else ()):
        kind = type_of(item, "message", "message")
        if kind in KNOWN_ITEMS:
            continue
        message = f"the type {shortened(kind, 100)} is not supported, only {', '.join(KNOWN_ITEMS)}"
        if kind == "item_reference":
            message = "nothing is stored here that an item_reference could name: send the item itself"
        raise invalid(f"input.{position}", message, "unsupported_parameter")
    return given


def conversation(given: str | Sequence[InputItem], instructions: str | None) -> list[Message]:
    """Return the messages for the chat template.

    Args:
        given: the request's input.
        instructions: a system message before it.

    Raises:
        APIError: 400, the items are not a conversation: content that is no text, a result without its call, a call
            without its result, or no message at all.
    """
    messages: list[Message] = [{"role": "user", "content": given}] if isinstance(given, str) else []
    tools: dict[str, str] = {}
    """The name of the tool of each call, by the call's id."""
    open_calls: dict[str, str] = {}
    """The place of each call that has no result yet."""
    for position, item in enumerate(() if isinstance(given, str) else given):
        param = f"input.{position}"
        if isinstance(item, MessageItem):
            # The same role under OpenAI's newer name.
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": text_of(item.content, f"{param}.content")})
        elif isinstance(item, CallItem):
            if item.call_id in tools:
                raise invalid(f"{param}.call_id", f"two calls have the id {shortened(item.call_id, 100)}")
            tools[item.call_id], open_calls[item.call_id] = item.name, param
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.name, "arguments": arguments_of(item.arguments, f"{param}.arguments")}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, CallOutputItem):
            if open_calls.pop(item.call_id, None) is None:
                message = f"no function_call before it waits for a result with the id {shortened(item.call_id, 100)}"
                raise invalid(f"{param}.call_id", message)
            content = text_of(item.output, f"{param}.output")
            known = {"name": tools[item.call_id], "tool_call_id": item.call_id}
            messages.append({"role": "tool", "content": content} | known)
    for call_id, param in open_calls.items():
        raise invalid(param, f"there is no function_call_output for the call {shortened(call_id, 100)}")
    if not messages:
        raise invalid("input", "there is no message")
    if instructions:
        # Many templates take one system message only.
        first = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        messages.insert(0, {"role": "system", "content": "\n\n".join([instructions] + [first] * bool(first))})
    return messages


def text_of(content: Content, param: str) -> str:
    """Return the text.

    Raises:
        APIError: 400, the content is not text.
    """
    if isinstance(content, str):
        return content
    if any(part.type not in TEXTS or part.text is None for part in content):
        raise invalid(param, "only text content is supported", "unsupported_parameter")
    return "".join(part.text or "" for part in content)


def invalid(param: str, message: str, code: str = "invalid_value") -> APIError:
    return APIError(400, f"{shortened(param, 100)}: {message}", param=param, code=code)


Status = Literal["in_progress", "completed", "incomplete"]


@dataclass
class OutputMessage:
    """The text of an answer."""

    text: str = ""
    scores: list[ScoredToken] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")

    def part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": logprobs(self.scores),
        }

    def item(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": content}


@dataclass
class OutputCall:
    """A call of a tool."""

    call: Call
    id: str = field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")

    def item(self, status: Status) -> dict[str, Any]:
        call = {"call_id": self.call.id, "name": self.call.name, "arguments": self.call.arguments}
        return {"type": "function_call", "id": self.id, "status": status} | call


def logprobs(scores: Sequence[ScoredToken]) -> list[dict[str, Any]]:
    return (openai_logprobs(scores) or {"content": []})["content"]


def output_items(items: Sequence[OutputMessage | OutputCall], is_cut_off: bool) -> list[dict[str, Any]]:
    """Return the output of a response: all items are complete, perhaps except the last one."""
    last = len(items) - 1
    return [
        item.item("incomplete" if is_cut_off and number == last else "completed") for number, item in enumerate(items)
    ]
