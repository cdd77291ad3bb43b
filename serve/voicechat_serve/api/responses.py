"""/responses: the next turn of a conversation in OpenAI's newer form. Nothing is stored: a request has all items."""

import time
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from voicechat_serve.api.answers import STREAM_DOCUMENTED, ChoiceRequest, Tally, event_stream, whole_answer
from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.fields import Body, Part, Text
from voicechat_serve.api.response_events import Item, ResponseEvents, finished
from voicechat_serve.api.response_items import (
    Input,
    OutputCall,
    OutputMessage,
    conversation,
    invalid,
    require_known_items,
    type_of,
)
from voicechat_serve.api.services import Services
from voicechat_serve.api.text_forms import NamedSchema, PlainFormat, form_of_format, form_of_schema, kind_of
from voicechat_serve.api.tool_fields import Chosen, FunctionFields, distinct_tools, tool_use
from voicechat_serve.generation.answer_form import MOST_TOOLS, TextForm, ToolUse
from voicechat_serve.generation.loaded_model import GenerationOptions, Truncation

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
"""Answers here have nothing of what all but the first one would add."""


class FunctionTool(FunctionFields):
    neutral: ClassVar = {"defer_loading": (False,), "async": (False,), "allowed_callers": (["direct"],)}

    type: Literal["function"]

    def described(self) -> dict[str, Any]:
        """Return the tool for the response."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function"} | about | {"strict": bool(self.strict)}


class FunctionChoice(Part):
    type: Literal["function"]
    name: Text


class AllowedTools(Part):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1, max_length=MOST_TOOLS)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[mode]")]
    | Annotated[FunctionChoice, Tag("[function]")]
    | Annotated[AllowedTools, Tag("[allowed_tools]")],
    Discriminator(lambda choice: f"[{type_of(choice, 'mode', 'function')}]"),
]


class SchemaFormat(NamedSchema):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


TextFormat = Annotated[
    Annotated[PlainFormat, Tag("[plain]")] | Annotated[SchemaFormat, Tag("[schema]")], Discriminator(kind_of)
]


class TextOptions(Part):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Without an effect."""

    def form(self) -> TextForm | None:
        """Return what the text must be; None for any text. Raises the errors of `require_usable`."""
        if isinstance(self.format, SchemaFormat):
            return form_of_schema(self.format.json_schema, "text.format.schema", bool(self.format.strict))
        return form_of_format(self.format)

    def described(self) -> dict[str, Any]:
        """Return the options for the response."""
        given = self.format or PlainFormat(type="text")
        strict = {"strict": bool(given.strict)} if isinstance(given, SchemaFormat) else {}
        return {"format": given.model_dump(by_alias=True) | strict, "verbosity": self.verbosity or "medium"}


class StreamOptions(Part):
    neutral: ClassVar = {"include_obfuscation": (False,)}


class ResponseRequest(Body):
    refused: ClassVar = {
        "previous_response_id": "no response is stored: send the items of the conversation as input",
        "conversation": "no conversation is stored: send its items as input",
        "prompt": "no prompt is stored: send it as instructions and input",
        "background": "wait for the answer, or ask for a stream",
    }

    model: Text
    input: Input
    instructions: Text | None = None
    tools: list[FunctionTool] = Field([], max_length=MOST_TOOLS)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = Field(None, ge=1)
    """Of tools that run in the server, and there are none."""
    text: TextOptions = TextOptions()
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Includable] = Field([])
    truncation: Truncation = "disabled"
    metadata: dict[Text, Text] = Field({}, max_length=16)
    reasoning: dict[str, Any] | None = None
    """Without an effect."""
    store: bool | None = None
    """Nothing is stored in any case."""
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("input", mode="before")
    @classmethod
    def items_are_known(cls, given: Any) -> Any:
        return require_known_items(given)

    @field_validator("tools", mode="before")
    @classmethod
    def tools_are_functions(cls, tools: Any) -> Any:
        for position, tool in enumerate(tools if isinstance(tools, list) else ()):
            require_function(tool, f"tools.{position}", ("function",))
        return tools

    @field_validator("tool_choice", mode="before")
    @classmethod
    def choice_is_of_functions(cls, choice: Any) -> Any:
        require_function(choice, "tool_choice", ("function", "allowed_tools"))
        return choice

    @model_validator(mode="after")
    def stream_options_have_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "they need stream to be true")
        return self

    def choice_request(self, model: str, version: int | None) -> ChoiceRequest:
        """Return the request for the one choice.

        Raises:
            APIError: 400, a field has a value that is not supported.
        """
        messages = conversation(self.input, self.instructions)
        tools = self.tool_use()
        has_scores = LOGPROBS in self.include
        if self.top_logprobs and not has_scores:
            raise invalid("top_logprobs", f"it needs include to have {LOGPROBS}")
        if has_scores and tools.allowed:
            raise invalid("include", f"{LOGPROBS} is not supported together with tools", "unsupported_parameter")
        given = {"max_tokens": self.max_output_tokens, "temperature": self.temperature, "top_p": self.top_p}
        options = GenerationOptions(
            sampling={name: value for name, value in given.items() if value is not None},
            top_scores=(self.top_logprobs or 0) if has_scores else None,
            tools=tools,
            text=self.text.form(),
            truncation=self.truncation,
            model=model,
            version=version,
        )
        return ChoiceRequest("chat", messages, options)

    def tool_use(self) -> ToolUse:
        """Return the tools for the model.

        Raises:
            APIError: 400, two tools have one name, a schema cannot be used, or the choice names another tool.
        """
        tools = distinct_tools((f"tools.{position}", tool) for position, tool in enumerate(self.tools))
        choice = self.tool_choice
        if isinstance(choice, FunctionChoice):
            said = Chosen("required", {"tool_choice.name": choice.name}, is_single=True)
        elif isinstance(choice, AllowedTools):
            names = {f"tool_choice.tools.{number}.name": tool.name for number, tool in enumerate(choice.tools)}
            said = Chosen(choice.mode, names)
        else:
            said = Chosen(choice)
        return tool_use(tools, said, self.parallel_tool_calls)

    def head(self) -> dict[str, Any]:
        """Return the response's object before the first word."""
        choice = self.tool_choice
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "model": self.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": None,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": self.text.described(),
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.described() for tool in self.tools],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation,
            "usage": None,
            "user": self.user,
            "metadata": self.metadata,
        }


def require_function(given: Any, param: str, known: Iterable[str]) -> None:
    """Check the type of a tool, or of a choice of one.

    Raises:
        APIError: 400, it is not known.
    """
    kind = given.get("type") if isinstance(given, dict) else None
    if kind is not None and kind not in known:
        message = f"the type {shortened(str(kind), 100)} is not supported: models here call functions of the client"
        raise invalid(f"{param}.type", message, "unsupported_value")


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/responses", responses=STREAM_DOCUMENTED)
    async def create_response(request: ResponseRequest) -> Any:
        handle, model, version = services.language_model(request.model)
        choice_requests = [request.choice_request(model, version)]
        tally = Tally(choices_per_prompt=1)
        head = request.head()
        if request.stream:
            return await event_stream(handle, choice_requests, tally, ResponseEvents(head, tally))
        (choice,) = await whole_answer(handle, choice_requests, tally)
        calls: list[Item] = [OutputCall(call) for call in choice.calls]
        texts: list[Item] = [OutputMessage(choice.text, choice.scores)] if choice.text or not calls else []
        return finished(head, texts + calls, choice.finish_reason, tally)

    @routes.get("/responses/{response_id}")
    @routes.delete("/responses/{response_id}")
    async def find_response(response_id: str) -> Any:
        """No response is stored."""
        message = f"there is no response {shortened(response_id, 100)}: this server stores none"
        raise APIError(404, message, param="response_id", code="not_found")

    return routes
