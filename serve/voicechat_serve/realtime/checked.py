"""The common rules of all events and settings that a client sends: strict types, and no unknown field."""

import json
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(max_length=256)]


class Checked(BaseModel):
    """A model that refuses unknown fields: otherwise a misspelt field would be lost without an error. Null means the
    default, unless null is a value of the field itself."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def null_is_not_given(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or not cls.has_default(name)}

    @classmethod
    def has_default(cls, name: str) -> bool:
        """Return whether there is a field of that name, and null means its default."""
        field = cls.model_fields.get(name)
        return field is not None and not field.is_required() and type(None) not in get_args(field.annotation)


def require_neutral(*values: Any) -> AfterValidator:
    """Return the check of an unsupported field of OpenAI: it may be null, or have a value that changes nothing."""

    def check(given: Any) -> Any:
        if given is not None and given not in values:
            allowed = f" beyond {json.dumps(values[0])}" if values else ""
            raise ValueError(f"it is not supported{allowed}: leave it out")
        return given

    return AfterValidator(check)


NotSupported = Annotated[Any, require_neutral()]
NoList = Annotated[Any, require_neutral([])]
AutoTruncation = Annotated[Any, require_neutral("auto")]
