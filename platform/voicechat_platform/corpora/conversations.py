"""Conversations of a JSON-lines file, with tools and calls, in the form that OpenAI takes for fine-tuning."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from voicechat_platform.corpora.texts import Text
from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import Strict
from voicechat_platform.tool_text import NO_PARAMETERS, described

SUFFIX = ".jsonl"
"""Of a corpus of conversations."""


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that the assistant may call, both in the form for chat templates (`tool_text`)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)

    def schema_of(self, tool: str) -> dict[str, Any] | None:
        """Return the schema of a tool's arguments, or None if there is no such tool."""
        functions = [each["function"] for each in self.tools]
        return next((function["parameters"] for function in functions if function["name"] == tool), None)


def fault_of(arguments: dict[str, Any], schema: dict[str, Any]) -> str | None:
    """Return why a schema does not allow the arguments, or None if it does."""
    try:  # an own registry: the default one would fetch a schema from any address
        fault = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(arguments))
    except Unresolvable as error:
        return f"the schema names another one that is not in it: {error.ref}"
    return fault.message if fault else None


class Function(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def must_have_a_schema(self) -> "Function":
        try:
            Draft202012Validator.check_schema(self.parameters or NO_PARAMETERS)
        except SchemaError as error:
            raise ValueError(f"parameters is no JSON Schema: {error.message}") from None
        return self


class ToolLine(Strict):
    type: Literal["function"]
    function: Function


def from_json(arguments: Any) -> Any:
    """Return the object of a JSON text."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise ValueError(f"arguments is no JSON: {error}") from None


class CalledFunction(Strict):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(from_json)]


class CallLine(Strict):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class MessageLine(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[CallLine] | None = Field(default=None, min_length=1)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def must_suit_its_role(self) -> "MessageLine":
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError(f"tool_calls belongs to the role assistant, not to {self.role}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of the role tool, and no other, has a tool_call_id")
        if self.content is None and self.tool_calls is None:
            raise ValueError("a message needs content or tool_calls")
        return self


class ConversationLine(Strict):
    tools: list[ToolLine] = Field(default_factory=list)
    messages: list[MessageLine] = Field(min_length=2)

    @model_validator(mode="after")
    def must_be_a_conversation(self) -> "ConversationLine":
        tools = {tool.function.name: tool.function for tool in self.tools}
        if len(tools) < len(self.tools):
            raise ValueError("two tools have one name")
        if all(message.role != "assistant" for message in self.messages):
            raise ValueError("no message is of the role assistant")
        waiting: set[str] = set()
        for message in self.messages:
            if message.role == "tool":
                if message.tool_call_id not in waiting:
                    raise ValueError(f"the message before makes no call {message.tool_call_id!r}")
                waiting.remove(message.tool_call_id)
            elif waiting:
                raise ValueError(f"no result follows the calls {', '.join(sorted(waiting))}")
            for call in message.tool_calls or ():
                if (tool := tools.get(call.function.name)) is None:
                    raise ValueError(f"the call {call.id!r} is of {call.function.name!r}, which is not in tools")
                if fault := fault_of(call.function.arguments, tool.parameters or NO_PARAMETERS):
                    raise ValueError(f"the arguments of the call {call.id!r} break the tool's schema: {fault}")
                waiting.add(call.id)
        return self

    def conversation(self) -> Conversation:
        """Return the conversation as the service hands it to a chat template."""
        functions = [tool.function for tool in self.tools]
        schemas = {function.name: function.parameters or NO_PARAMETERS for function in functions}
        names: dict[str, str] = {}
        messages = []
        for line in self.messages:
            message: dict[str, Any] = {"role": line.role, "content": line.content or ""}
            if line.tool_calls:
                message["tool_calls"] = [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {
                            "name": call.function.name,
                            "arguments": in_order(call.function.arguments, schemas[call.function.name]),
                        },
                    }
                    for call in line.tool_calls
                ]
                names |= {call.id: call.function.name for call in line.tool_calls}
            if line.tool_call_id is not None:
                message |= {"name": names[line.tool_call_id], "tool_call_id": line.tool_call_id}
            messages.append(message)
        return Conversation(messages, [described(each.name, each.description, each.parameters) for each in functions])


def in_order(value: Any, schema: Any) -> Any:
    """Return arguments with their names in the schema's order, in which a constrained model writes them."""
    if isinstance(value, list) and isinstance(schema, dict):
        return [in_order(each, schema.get("items")) for each in value]
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return value
    properties = schema.get("properties", {})
    names = [name for name in properties if name in value] + [name for name in value if name not in properties]
    return {name: in_order(value[name], properties.get(name)) for name in names}


def read_conversations(text: Text) -> list[Conversation]:
    """Return the conversations of a file with one JSON object a line: {"tools": [...], "messages": [...]}.

    Raises:
        InputError: a line is no such conversation; names the line and the field.
    """
    found = []
    for number, line in enumerate(text.characters.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(ConversationLine.model_validate_json(line).conversation())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{text.source}, line {number}{place and f', {place}'}: {reason}") from None
    if not found:
        raise InputError(f"{text.source} has no conversation")
    return found
