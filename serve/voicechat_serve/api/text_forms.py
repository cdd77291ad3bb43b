"""What the text of an answer must be: response_format, and the same wishes under vLLM's names."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Body, Part, Text
from voicechat_serve.api.schemas import require_usable
from voicechat_serve.api.tool_fields import Name
from voicechat_serve.generation.answer_form import Schema, TextForm

LONGEST_REGEX, LONGEST_GRAMMAR = 4096, 16_384
MOST_CHOICES, LONGEST_CHOICE = 256, 1024
"""Characters, except the number of choices."""

ANY_OBJECT: Schema = {"type": "object"}

Regex = Annotated[Text, Field(min_length=1, max_length=LONGEST_REGEX)]
Grammar = Annotated[Text, Field(min_length=1, max_length=LONGEST_GRAMMAR)]
OneOf = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=LONGEST_CHOICE)]], Field(min_length=1, max_length=MOST_CHOICES)
]


class PlainFormat(Part):
    type: Literal["text", "json_object"]


class NamedSchema(Part):
    name: Name
    description: Text | None = None
    """For OpenAI's models; ours read only the messages."""
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: NamedSchema


def kind_of(given: Any) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return "[schema]" if kind == "json_schema" else "[plain]"


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("[plain]")] | Annotated[SchemaFormat, Tag("[schema]")], Discriminator(kind_of)
]


class StructuredOutputs(Part):
    """vLLM's newer name for the fields guided_..."""

    json_schema: dict[str, Any] | None = Field(None, alias="json")
    regex: Regex | None = None
    choice: OneOf | None = None
    grammar: Grammar | None = None


class FormFields(Body):
    """The fields of a request for the form of its text; only response_format is OpenAI's, the others are vLLM's."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: Regex | None = None
    guided_choice: OneOf | None = None
    guided_grammar: Grammar | None = None
    structured_outputs: StructuredOutputs | None = None

    def text_form(self) -> TextForm | None:
        """Return what the text of an answer must be; None for any text.

        Raises:
            APIError: 400, a schema cannot be used, or there are several forms.
        """
        newer = self.structured_outputs or StructuredOutputs.model_validate({})
        given = {
            "response_format": form_of_format(self.response_format),
            "guided_json": form_of_schema(self.guided_json, "guided_json"),
            "guided_regex": self.guided_regex and TextForm("regex", self.guided_regex),
            "guided_choice": self.guided_choice and TextForm("choice", self.guided_choice),
            "guided_grammar": self.guided_grammar and TextForm("grammar", self.guided_grammar),
            "structured_outputs.json": form_of_schema(newer.json_schema, "structured_outputs.json"),
            "structured_outputs.regex": newer.regex and TextForm("regex", newer.regex),
            "structured_outputs.choice": newer.choice and TextForm("choice", newer.choice),
            "structured_outputs.grammar": newer.grammar and TextForm("grammar", newer.grammar),
        }
        forms = {name: form for name, form in given.items() if form}
        if len(forms) > 1:
            first, second, *_ = forms
            raise APIError(400, f"{second} and {first} exclude each other", param=second, code="invalid_value")
        return next(iter(forms.values()), None)


def form_of_format(given: PlainFormat | SchemaFormat | None) -> TextForm | None:
    if given is None or given.type == "text":
        return None
    if isinstance(given, PlainFormat) or given.json_schema.json_schema is None:
        return TextForm("json_schema", ANY_OBJECT)
    place = "response_format.json_schema.schema"
    return form_of_schema(given.json_schema.json_schema, place, bool(given.json_schema.strict))


def form_of_schema(schema: Schema | None, param: str, is_strict: bool = True) -> TextForm | None:
    if schema is None:
        return None
    require_usable(schema, param, is_strict)
    return TextForm("json_schema", schema, is_strict)
