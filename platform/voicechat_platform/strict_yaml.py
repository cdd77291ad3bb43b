"""Reading a YAML file into a pydantic model; errors name the file, the line, the field and what is allowed."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from voicechat_platform.errors import InputError


class Strict(BaseModel):
    """A configuration model: unknown keys are refused, values are checked at once and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, model: type[Model]) -> Model:
    """The file as a validated model.

    Raises:
        InputError: the file is missing, not YAML, or has a field that is unknown or impossible.
    """
    values, root = compose_yaml(path)
    return validate(values, model, str(path), root)


def compose_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node]:
    """The file's values, and the document itself, which knows its lines; errors as in `read_yaml`."""
    try:
        text = path.read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict) or root is None:
        raise InputError(f"{path}: expected a mapping of fields to values, such as `name: shakespeare`")
    return values, root


def validate(
    values: Any, model: type[Model], where: str, root: yaml.Node | None = None, at: Sequence[str | int] = ()
) -> Model:
    """The values as a validated model.

    Args:
        where: what the values were read from, for messages.
        root: the composed YAML document, when there is one, for line numbers.
        at: where in the document the values stand.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            location = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
            line = line_of(root, [*at, *location]) if at or location else None
            place = f"{where}:{line}" if line else where
            field = ".".join(str(part) for part in (*at, *location))
            lines.append(": ".join(part for part in (place, field, explain(problem, location, model)) if part))
        raise InputError("\n".join(lines)) from None


def explain(problem: Any, location: list[Any], model: type[BaseModel]) -> str:
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{message} (got {problem['input']!r})" if problem["type"] not in ("missing", "value_error") else message
    allowed = allowed_fields(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return (
        f"unknown field{hint} Allowed: {', '.join(allowed)}"
        if hint
        else f"unknown field; allowed: {', '.join(allowed)}"
    )


def allowed_fields(model: type[BaseModel], location: list[Any]) -> list[str]:
    """The fields of the model that stands at the location inside `model`."""
    for part in location:
        field = model.model_fields.get(str(part))
        inner = model_within(field.annotation) if field else None
        model = inner or model
    return list(model.model_fields)


def model_within(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that holds one, perhaps, or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_within(inner))), None)


def line_of(node: yaml.Node | None, location: list[Any]) -> int | None:
    """The line, from 1, of the innermost part of the location that the document has."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
