"""Read a YAML 1.2 file into a pydantic model. Errors name the file, the line, the field and the allowed values."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from voicechat_platform.errors import InputError
from voicechat_platform.paths import given_path

LARGEST_FILE = 2**20
"""Bytes."""
MOST_VALUES = 100_000
"""The most values in one file. Each alias counts as all values that it stands for."""
MOST_FAULTS = 20
"""The most faults in one message."""


class Strict(BaseModel):
    """A configuration model: it refuses unknown keys, validates values at once, and never changes.

    A number must be a finite number: text and booleans are refused.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


Model = TypeVar("Model", bound=BaseModel)


def usable_path(given: str) -> str:
    """Check that a file system can hold the path.

    Raises:
        ValueError: no file system can hold it, or (InputError) it names the home of a user that does not exist.
    """
    if not given or any(len(part.encode()) > 255 for part in given.split("/")) or len(given.encode()) > 4000:
        raise ValueError("a path needs 1 to 4000 bytes, and each of its parts 255 at most")
    if not given.isprintable():
        raise ValueError("a path has no line breaks or control characters")
    given_path(given)
    return given


PathText = Annotated[str, AfterValidator(usable_path)]
"""A path, or a name that may be one."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""All random generators accept 32 bits."""


class CoreSchema(SafeConstructor):
    """YAML 1.2's core schema: dates, `1_000` and `0b11` are text; binary values, sets and ordered maps do not exist."""

    def construct_core_int(self, node: ScalarNode) -> int | str:
        is_core = "_" not in node.value and not node.value.lstrip("+-").startswith("0b")
        return self.construct_yaml_int(node) if is_core else node.value

    def construct_core_float(self, node: ScalarNode) -> float | str:
        return self.construct_yaml_float(node) if "_" not in node.value else node.value


CoreSchema.add_constructor("tag:yaml.org,2002:int", CoreSchema.construct_core_int)
CoreSchema.add_constructor("tag:yaml.org,2002:float", CoreSchema.construct_core_float)
CoreSchema.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
for unknown in ("binary", "set", "omap", "pairs"):
    CoreSchema.add_constructor(f"tag:yaml.org,2002:{unknown}", SafeConstructor.construct_undefined)


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Return the file as a validated model.

    Raises:
        InputError: the file is missing, is not YAML, or has a field that is unknown or impossible.
    """
    values, root = compose_yaml(path)
    return validate(values, model, str(path), root)


def compose_yaml(path: Path) -> tuple[dict[str, Any], Node]:
    """Return the file's values, and the document with its line numbers. Raises the errors of `read_yaml`."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: has more than {LARGEST_FILE:,} bytes, so it is none of our files")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = CoreSchema
    try:
        root = yaml.compose(text)
        if isinstance(root, MappingNode):
            if yaml.resolver.processing_version != (1, 2):
                raise InputError(f"{path}: is YAML 1.2; leave the %YAML line out")
            check_nodes(root, str(path))
            values = yaml.constructor.construct_document(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML 1.2: {error.problem or error.context}") from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML 1.2: values are nested too deeply") from None
    except (YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid YAML 1.2: {error}") from None
    if not isinstance(root, MappingNode):
        raise InputError(f"{path}: expected a mapping of fields to values, such as `name: shakespeare`")
    return values, root


def check_nodes(root: Node, where: str) -> None:
    """Check the document for structures that we refuse.

    Raises:
        InputError: the document contains itself, is too large, merges mappings, or has an invalid key or text.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        place = f"{where}:{node.start_mark.line + 1}"
        if id(node) in open_nodes:
            raise InputError(f"{place}: an alias refers to a value that contains it: write the value out")
        if id(node) in sizes:
            return sizes[id(node)]
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, ScalarNode):
            if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
                raise InputError(f"{place}: text cannot hold NUL bytes or halves of surrogate pairs")
            if len(node.value) > 1000 and str(node.tag).endswith((":int", ":float")):
                raise InputError(f"{place}: a number of {len(node.value)} digits")
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                if not isinstance(key, ScalarNode) or not str(key.tag).endswith((":str", ":timestamp")):
                    shown = repr(key.value) if isinstance(key, ScalarNode) else "a list or mapping"
                    line = key.start_mark.line + 1
                    if isinstance(key, ScalarNode) and str(key.tag).endswith(":merge"):
                        raise InputError(f"{where}:{line}: YAML 1.2 has no merge keys (<<): write the fields out")
                    raise InputError(f"{where}:{line}: a key must be text, not {shown}: put it in quotes")
                total += size(key) + size(value)
        elif isinstance(node, SequenceNode):
            total += sum(size(value) for value in node.value)
        if total > MOST_VALUES:
            raise InputError(f"{place}: more than {MOST_VALUES:,} values, aliases counted: write a smaller file")
        open_nodes.remove(id(node))
        sizes[id(node)] = total
        return total

    size(root)


def validate(
    values: Any, model: type[Model], where: str, root: Node | None = None, at: Sequence[str | int] = ()
) -> Model:
    """Return the values as a validated model.

    Args:
        where: the source of the values, for messages.
        root: the composed YAML document for line numbers, if there is one.
        at: the location of the values in the document.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        faults = error.errors()
        for problem in faults[:MOST_FAULTS]:
            location = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
            line = line_of(root, [*at, *location]) if at or location else None
            place = f"{where}:{line}" if line else where
            field = ".".join(str(part) for part in (*at, *location))
            lines.append(": ".join(part for part in (place, field, explain(problem, location, model)) if part))
        if len(faults) > MOST_FAULTS:
            lines.append(f"and {len(faults) - MOST_FAULTS} more faults")
        raise InputError("\n".join(lines)) from None


def explain(problem: Any, location: list[Any], model: type[BaseModel]) -> str:
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return (
            f"{message} (got {shortened(problem['input'])})"
            if problem["type"] not in ("missing", "value_error")
            else message
        )
    allowed = allowed_fields(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return (
        f"unknown field{hint} Allowed: {', '.join(allowed)}"
        if hint
        else f"unknown field; allowed: {', '.join(allowed)}"
    )


def shortened(value: Any) -> str:
    """Return the value as text, shortened for a message."""
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**100 else "a number of over 100 digits"
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def allowed_fields(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Return the fields of the model at the location inside `model`."""
    for part in location:
        field = model.model_fields.get(str(part))
        inner = model_within(field.annotation) if field else None
        model = inner or model
    return [field.alias or name for name, field in model.model_fields.items()]


def model_within(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_within(inner))), None)


def line_of(node: Node | None, location: list[Any]) -> int | None:
    """Return the line, from 1, of the innermost part of the location that the document has."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
