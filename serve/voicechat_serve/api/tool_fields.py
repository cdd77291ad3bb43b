"""The tools of a request, and which of them the model may or must call."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.fields import Part, Text
from voicechat_serve.api.schemas import require_usable
from voicechat_serve.generation.answer_form import MOST_TOOLS, NO_TOOLS, TOOL_NAME, Tool, ToolUse

Name = Annotated[str, StringConstraints(pattern=TOOL_NAME)]
"""Of a tool, or of a schema."""


class FunctionFields(Part):
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolFields(Part):
    type: str
    function: FunctionFields | None = None

    @model_validator(mode="before")
    @classmethod
    def type_alone_of_others(cls, tool: Any) -> Any:
        """Refuse every other kind of tool by its type, with any fields."""
        return tool if not isinstance(tool, dict) or tool.get("type") == "function" else {"type": tool.get("type")}


class NamedFunction(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Part):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MOST_TOOLS)


class AllowedToolsChoice(Part):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def kind_of(choice: Any) -> str:
    if isinstance(choice, str):
        return "[mode]"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return "[allowed]" if kind == "allowed_tools" else "[named]"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[mode]")]
    | Annotated[NamedTool, Tag("[named]")]
    | Annotated[AllowedToolsChoice, Tag("[allowed]")],
    Discriminator(kind_of),
]


def tools_of(given: list[ToolFields]) -> list[Tool]:
    """Return the tools.

    Raises:
        APIError: 400, one is no function, has a schema that cannot be used, or has the name of another one.
    """
    functions = list[tuple[str, FunctionFields]]()
    for position, tool in enumerate(given):
        place = f"tools.{position}"
        if tool.type != "function":
            kind = shortened(tool.type, 100)
            message = f"{place}: tools of the type {kind} are not supported, only function"
            raise APIError(400, message, param=f"{place}.type", code="unsupported_value")
        if tool.function is None:
            raise APIError(400, f"{place}.function is missing", param=f"{place}.function", code="invalid_value")
        functions.append((f"{place}.function", tool.function))
    return distinct_tools(functions)


def distinct_tools(functions: Iterable[tuple[str, FunctionFields]]) -> list[Tool]:
    """Return the tools of functions with their places in the request.

    Raises:
        APIError: 400, one has a schema that cannot be used, or the name of another one.
    """
    tools: list[Tool] = []
    for place, function in functions:
        if any(other.name == function.name for other in tools):
            message = f"{place}: two tools have the name {function.name}"
            raise APIError(400, message, param=f"{place}.name", code="invalid_value")
        parameters, is_strict = function.parameters or None, bool(function.strict)
        if parameters is not None:
            require_parameters(parameters, f"{place}.parameters", is_strict)
        tools.append(
            Tool(
                name=function.name,
                description=function.description or "",
                parameters=parameters,
                is_strict=is_strict,
            )
        )
    return tools


def require_parameters(schema: dict[str, Any], param: str, is_strict: bool) -> None:
    """Check the schema of a tool's arguments, which are always an object; errors as in `require_usable`."""
    require_usable(schema, param, is_strict)
    if schema.get("type", "object") != "object":
        message = f"{param}: the arguments of a tool are an object, so the schema's type is object"
        raise APIError(400, message, param=f"{param}.type", code="invalid_json_schema")


@dataclass(frozen=True)
class Chosen:
    """What a tool_choice says."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: dict[str, str] | None = None
    """The names of the tools that the model may call, by their places in the request; None for all."""
    is_single: bool = False
    """Whether the answer has one call."""


def chosen(choice: Any) -> Chosen:
    """Return what a `ToolChoice` says; None says the default."""
    if isinstance(choice, NamedTool):
        return Chosen("required", {"tool_choice.function.name": choice.function.name}, is_single=True)
    if isinstance(choice, AllowedToolsChoice):
        place, allowed = "tool_choice.allowed_tools.tools", choice.allowed_tools
        names = {f"{place}.{number}.function.name": tool.function.name for number, tool in enumerate(allowed.tools)}
        return Chosen(allowed.mode, names)
    return Chosen(choice or "auto")


def tool_use(tools: list[Tool], choice: Chosen, is_parallel: bool) -> ToolUse:
    """Return which tools the model may call, and whether it must.

    Args:
        tools: of the request.
        choice: the request's tool_choice.
        is_parallel: whether an answer may have several calls.

    Raises:
        APIError: 400, the choice names a tool that the request does not have.
    """
    if not tools:
        if choice.names is None and choice.mode != "required":
            return NO_TOOLS
        raise APIError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
    known = {tool.name for tool in tools}
    for place, name in (choice.names or {}).items():
        if name not in known:
            message = f"{place}: there is no tool {shortened(name, 64)}"
            raise APIError(400, message, param=place, code="invalid_value")
    names = {} if choice.mode == "none" else choice.names
    return ToolUse(
        tools=tuple(tools),
        callable=None if names is None else frozenset(names.values()),
        is_required=choice.mode == "required",
        is_parallel=is_parallel and not choice.is_single,
    )
