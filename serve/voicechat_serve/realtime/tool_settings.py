"""The tools of a session or of a response: the client's functions, and which of them the model may or must call."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from voicechat_serve.generation.answer_form import MOST_TOOLS, NO_TOOLS, TOOL_NAME, Tool, ToolUse
from voicechat_serve.realtime.checked import Checked, Name, NotSupported, require_neutral
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.stages import Stages

LONGEST_DESCRIPTION = 8192

ToolName = Annotated[str, StringConstraints(pattern=TOOL_NAME)]


class FunctionTool(Checked):
    """A function of the client that the model may call."""

    type: Literal["function"] = "function"
    name: ToolName
    description: Annotated[str, StringConstraints(max_length=LONGEST_DESCRIPTION)] = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False
    """Ours; as in OpenAI's other endpoints."""

    @model_validator(mode="before")
    @classmethod
    def only_functions(cls, given: Any) -> Any:
        """Refuse every other tool by its type, with any fields."""
        if isinstance(given, dict) and given.get("type") not in (None, "function"):
            raise ValueError(f"a tool must be a function here, and not {str(given['type'])[:50]!r}")
        return given


Functions = Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)]


def require_absent(given: Any) -> Any:
    if given is not None:
        raise ValueError("only the operator names servers, in the application file: give server_label alone")
    return given


OperatorsOwn = Annotated[Any, AfterValidator(require_absent)]


class AllowedTools(Checked):
    tool_names: list[ToolName]
    read_only: NotSupported = Field(default=None, exclude=True)


class HostedTools(Checked):
    """The tools of a server that the operator names: this service calls them."""

    type: Literal["mcp"]
    server_label: Name
    allowed_tools: list[ToolName] | AllowedTools | None = None
    """Of those that the operator allows; None for all."""
    require_approval: Annotated[Any, require_neutral("never")] = None
    """The operator has approved all that is listed."""
    server_url: OperatorsOwn = Field(default=None, exclude=True)
    connector_id: OperatorsOwn = Field(default=None, exclude=True)
    tunnel_id: OperatorsOwn = Field(default=None, exclude=True)
    authorization: OperatorsOwn = Field(default=None, exclude=True)
    headers: OperatorsOwn = Field(default=None, exclude=True)
    server_description: NotSupported = Field(default=None, exclude=True)
    allowed_callers: NotSupported = Field(default=None, exclude=True)
    defer_loading: Annotated[Any, require_neutral(False)] = Field(default=None, exclude=True)

    def allows(self, name: str) -> bool:
        allowed = self.allowed_tools
        return allowed is None or name in (allowed.tool_names if isinstance(allowed, AllowedTools) else allowed)


def tag_of(given: Any) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return "[mcp]" if kind == "mcp" else "[function]"


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("[function]")] | Annotated[HostedTools, Tag("[mcp]")], Discriminator(tag_of)
]
Tools = Annotated[list[AnyTool], Field(max_length=MOST_TOOLS)]


def functions_in(tools: Sequence[AnyTool]) -> list[FunctionTool]:
    return [tool for tool in tools if isinstance(tool, FunctionTool)]


def hosted_in(tools: Sequence[AnyTool]) -> list[HostedTools]:
    return [tool for tool in tools if isinstance(tool, HostedTools)]


def require_choice(given: Any) -> Any:
    if not isinstance(given, (str, dict)):
        raise PydanticCustomError("choice_type", "it must be a text or an object")
    is_named = isinstance(given, dict) and given == {"type": "function", "name": str(given.get("name"))}
    if given not in ("auto", "none", "required") and not is_named:
        raise ValueError('it must be "auto", "none", "required" or {"type": "function", "name": NAME}')
    return given


ToolChoice = Annotated[Any, AfterValidator(require_choice)]
"""As a client sends it: a word, or the function that the model must call."""


def tool_use(
    tools: Sequence[FunctionTool], hosted: Sequence[Tool], choice: str | dict[str, str], is_parallel: bool
) -> ToolUse:
    """Return the tools of a request to a model: the client's, and those that this service calls."""
    if not (tools or hosted):
        return NO_TOOLS
    named = choice["name"] if isinstance(choice, dict) else None
    names = [named] if named else [] if choice == "none" else None
    described = [
        Tool(name=tool.name, description=tool.description, parameters=tool.parameters or None, is_strict=tool.strict)
        for tool in tools
    ]
    return ToolUse(
        tools=(*described, *hosted),
        callable=None if names is None else frozenset(names),
        is_required=choice == "required" or named is not None,
        is_parallel=is_parallel and not named,
    )


def faults_of(tools: Sequence[AnyTool], prefix: str, stages: Stages) -> Iterator[tuple[int, Exception]]:
    """Yield the tools that cannot be used, each as (its number, its error).

    Args:
        tools: the tools.
        prefix: their path in the event, such as "session.".
        stages: the models and the operator's servers of tools.
    """
    names, labels = set[str](), set[str]()
    for number, tool in enumerate(tools):
        place = f"{prefix}tools.{number}"
        if isinstance(tool, HostedTools):
            if tool.server_label not in stages.tool_servers:
                known = ", ".join(stages.tool_servers) or "none: the operator names them in the application file"
                message = f"{place}.server_label: there is no server {tool.server_label[:100]!r}; there are {known}"
                yield number, EventError("invalid_value", message, f"{place}.server_label")
            elif tool.server_label in labels:
                message = f"{place}: the server {tool.server_label!r} is there already"
                yield number, EventError("invalid_value", message, place)
            labels.add(tool.server_label)
            continue
        if tool.name in names:
            yield number, EventError("invalid_value", f"{place}: there is a tool {tool.name!r} already", place)
        names.add(tool.name)
        if tool.parameters:
            try:
                stages.require_schema(tool.parameters, f"{place}.parameters", tool.strict)
            except Exception as error:
                yield number, error


def misfit(choice: str | dict[str, str], tools: Sequence[AnyTool]) -> str | None:
    """Return why no tool fits a choice; None if one does, or none is needed."""
    if isinstance(choice, dict) and all(tool.name != choice["name"] for tool in functions_in(tools)):
        return f"there is no tool {choice['name'][:100]!r}"
    return "there are no tools" if choice == "required" and not tools else None
