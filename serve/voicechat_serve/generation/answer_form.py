"""What a client asks of a model: the messages, and what the answer may be: any text, what a schema allows, or calls of
tools."""

from dataclasses import dataclass
from typing import Any, Literal

from voicechat_platform.tool_text import described

Message = dict[str, Any]
"""{"role": ..., "content": a text}, perhaps with "tool_calls" as in OpenAI's messages, but "arguments" as an object; of
the role tool with "name", the tool's, and "tool_call_id"."""

Schema = dict[str, Any]
"""A JSON Schema, as the client sent it."""


MOST_TOOLS = 128
"""The most tools that a client gives; OpenAI's own limit."""

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
"""The pattern of a tool's name in OpenAI's API."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function of the client that the model may call."""

    name: str
    description: str = ""
    parameters: Schema | None = None
    """The schema of its arguments; None for a function without arguments."""
    is_strict: bool = False
    """Whether a keyword of the schema that cannot be kept is an error; otherwise it is left out."""

    def described(self) -> dict[str, Any]:
        """Return the tool in the form that chat templates show to a model."""
        return described(self.name, self.description, self.parameters)


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """The tools of a request, and whether the model must call one."""

    tools: tuple[Tool, ...] = ()
    callable: frozenset[str] | None = None
    """The names of those that the model may call; None for all. The prompt describes no others."""
    is_required: bool = False
    """Whether the answer must be a call."""
    is_parallel: bool = True
    """Whether the answer may have several calls."""

    @property
    def allowed(self) -> tuple[Tool, ...]:
        """The tools that the model may call."""
        return tuple(tool for tool in self.tools if self.callable is None or tool.name in self.callable)


NO_TOOLS = ToolUse()


@dataclass(frozen=True)
class TextForm:
    """What the text of an answer must be."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    content: Any
    """A `Schema`, a regular expression, a list of texts, or a grammar in Lark or in llama.cpp's GBNF."""
    is_strict: bool = True
    """As in `Tool`, for a schema."""

    @property
    def field(self) -> str:
        """The name of the request's field, for errors."""
        return "response_format" if self.kind == "json_schema" else f"guided_{self.kind}"


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call of a tool."""

    index: int
    """The call's number in its answer, from 0 on."""
    name: str = ""
    """The tool's name, on the call's first piece."""
    arguments: str = ""
    """The next characters of the arguments, a JSON object."""
