"""The tools of a session or of a response: the client's functions, and which of them the model may or must call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from voicechat_serve.generation.answer_form import NO_TOOLS, Tool, ToolUse
from voicechat_serve.realtime.checked import Checked
from voicechat_serve.realtime.errors import EventError

MOST_TOOLS = 128
LONGEST_DESCRIPTION = 8192

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


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


Tools = Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)]


def require_choice(given: Any) -> Any:
    if not isinstance(given, (str, dict)):
        raise PydanticCustomError("choice_type", "it must be a text or an object")
    is_named = isinstance(given, dict) and given == {"type": "function", "name": str(given.get("name"))}
    if given not in ("auto", "none", "required") and not is_named:
        raise ValueError('it must be "auto", "none", "required" or {"type": "function", "name": NAME}')
    return given


ToolChoice = Annotated[Any, AfterValidator(require_choice)]
"""As a client sends it: a word, or the function that the model must call."""


def tool_use(tools: Sequence[FunctionTool], choice: str | dict[str, str], is_parallel: bool) -> ToolUse:
    """Return the tools of a request to a model."""
    if not tools:
        return NO_TOOLS
    named = choice["name"] if isinstance(choice, dict) else None
    names = [named] if named else [] if choice == "none" else None
    described = [
        Tool(name=tool.name, description=tool.description, parameters=tool.parameters or None, is_strict=tool.strict)
        for tool in tools
    ]
    return ToolUse(
        tools=tuple(described),
        callable=None if names is None else frozenset(names),
        is_required=choice == "required" or named is not None,
        is_parallel=is_parallel and not named,
    )


def faults_of(
    tools: Sequence[FunctionTool], prefix: str, require_schema: Callable[[Any, str, bool], None]
) -> Iterator[tuple[int, Exception]]:
    """Yield the tools that cannot be used, each as (its number, its error).

    Args:
        tools: the tools.
        prefix: their path in the event, such as "session.".
        require_schema: as in `Stages`.
    """
    names = set[str]()
    for number, tool in enumerate(tools):
        place = f"{prefix}tools.{number}"
        if tool.name in names:
            yield number, EventError("invalid_value", f"{place}: there is a tool {tool.name!r} already", place)
        names.add(tool.name)
        if tool.parameters:
            try:
                require_schema(tool.parameters, f"{place}.parameters", tool.strict)
            except Exception as error:
                yield number, error


def misfit(choice: str | dict[str, str], tools: Sequence[FunctionTool]) -> str | None:
    """Return why no tool fits a choice; None if one does, or none is needed."""
    if isinstance(choice, dict) and all(tool.name != choice["name"] for tool in tools):
        return f"there is no tool {choice['name'][:100]!r}"
    return "there are no tools" if choice == "required" and not tools else None
