"""The common rules for all requests' fields: valid text, null as "not given", and no field that is silently ignored."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from voicechat_serve.api.errors import APIError

WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        "prediction",
    }
)
"""Fields that change nothing in a response, with any value."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "store": (False,),
    "background": (False,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "stop_token_ids": ([],),
    "chat_template_kwargs": ({},),
    "logit_processors": ([],),
    "logits_processors": ([],),
    "vad_filter": (False, "false", "0"),
}
"""Unsupported fields -> their values without an effect; null never has one."""


def valid_unicode(text: str) -> str:
    """Refuse half a surrogate pair, which JSON can express and no tokenizer and no response can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no valid Unicode at character {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(valid_unicode)]


class Body(BaseModel):
    """A JSON body. Null means "not given" in every field."""

    model_config = ConfigDict(strict=True)
    refused: ClassVar[dict[str, str]] = {}
    """Unsupported fields -> what to do instead."""

    @model_validator(mode="before")
    @classmethod
    def only_what_is_known(cls, body: Any) -> Any:
        """Refuse unknown and unsupported fields.

        Raises:
            APIError: 400, the content type is not JSON, or a field is not supported.
        """
        if isinstance(body, bytes):
            raise APIError(400, "the body is not read as JSON: send Content-Type: application/json")
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        require_known(given, cls.model_fields, cls.refused)
        return {name: value for name, value in given.items() if name in cls.model_fields}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Declare that every optional field may also be null."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        optional = schema["properties"].keys() - set(schema.get("required", ()))
        schema["properties"] |= {name: {"anyOf": [schema["properties"][name], {"type": "null"}]} for name in optional}
        return schema


class Part(BaseModel):
    """An object inside a body, whose unknown fields are refused. Null means "not given" in every field."""

    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra=lambda schema: schema.pop("additionalProperties")
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """As `NEUTRAL`, for this object."""

    @model_validator(mode="before")
    @classmethod
    def only_what_counts(cls, part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {
            name: value for name, value in part.items() if value is not None and value not in cls.neutral.get(name, ())
        }


FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
"""Content types. The second one holds no file, so the error then names the missing file."""


async def require_known_form(request: Request) -> None:
    """Check a form; a dependency of the routes with forms. An empty value means "not given".

    Raises:
        APIError: 400, there is no form, or a field is not supported, or occurs twice and is not a list.
    """
    if not request.headers.get("content-type", "").lower().startswith(FORMS):
        raise APIError(400, "the body is not read as a form: send Content-Type: multipart/form-data")
    given = [(name, value) for name, value in (await request.form()).multi_items() if value != ""]
    known = [field.alias for field in request.scope["route"].dependant.body_params]
    for name, value in given:
        require_known({name: value}, known)
    for name, times in Counter(name for name, _ in given).items():
        if times > 1 and name in known and not name.endswith("[]"):
            raise APIError(400, f"{name} is given {times} times", param=name, code="invalid_value")


def require_known(given: Mapping[str, Any], known: Iterable[str], refused: Mapping[str, str] = {}) -> None:
    """Check that all given fields are known.

    Args:
        given: the fields with their values.
        known: the names of supported fields.
        refused: unsupported fields -> what to do instead.

    Raises:
        APIError: 400, a field is not supported with its value.
    """
    known = list(known)
    for name, value in given.items():
        if name in known or name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ()):
            continue
        message = f"{name} is not supported"
        if name in refused:
            message += f": {refused[name]}"
        elif NEUTRAL.get(name):
            message += f" beyond {json.dumps(NEUTRAL[name][0])}"
        elif name not in NEUTRAL and (nearest := difflib.get_close_matches(name[:100], known, n=1)):
            message += f"; did you mean {nearest[0]}?"
        raise APIError(400, message, param=name, code="unsupported_parameter")
