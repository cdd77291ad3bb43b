"""Read and check the header of a GGUF file before llama.cpp opens it.

The file may come from anybody, and llama.cpp ends the process on some damage. So every count, length and offset has a
bound here: a file of any contents gives a description or an `InputError`, soon and in little memory. The package `gguf`
reads the same header without bounds, and makes an array of every token: 3.8 s for the packaged model, here 0.07 s.
"""

import math
import os
import re
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType

from voicechat_platform.errors import InputError

MOST_KEYS = 10_000
MOST_TENSORS = 100_000
MOST_ELEMENTS = 4_000_000
"""Of all arrays together. The largest vocabularies in use have 260,000 tokens and twice as many merges."""
LONGEST_NAME = 256
"""Of a key or a tensor; bytes."""
LONGEST_TEXT = 1 << 20
"""Of a text that we keep, such as the chat template; bytes."""
MOST_DIMENSIONS = 4

NUMBERS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}

KEPT_TEXTS = {
    "general.architecture",
    "general.type",
    "general.name",
    "general.basename",
    "tokenizer.ggml.model",
    "tokenizer.chat_template",
}

PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>(?!00000)[0-9]{5})\.gguf")
"""The name of one file of a split model; the first has the number 00001."""


@dataclass(frozen=True)
class GGUFFile:
    """What the header says about a model."""

    path: Path
    """The file, or the first one of a split model."""
    architecture: str
    name: str
    context: int
    """The longest text that the model was made for, in tokens."""
    layers: int
    vocabulary: int
    """The number of tokens."""
    parameters: int
    size_bytes: int
    """Of all files."""
    file_type: str
    """The kind of most weights, such as Q4_K_M or F16."""
    chat_template: str | None
    """A Jinja template, as it is written in the file."""
    tokenizer: str
    """llama.cpp's name of the algorithm: gpt2 for byte pairs, llama for SentencePiece, and others."""


@dataclass(frozen=True)
class Items:
    """An array of the header. We need its length, and not its values."""

    kind: GGUFValueType
    count: int


@dataclass(frozen=True)
class Header:
    """One file's keys and the sum of its tensors."""

    size_bytes: int

    values: dict[str, Any]
    """Numbers and `Items`, and the texts of KEPT_TEXTS."""
    parameters: int
    bytes_of_types: Counter[str]
    """The name of a tensor type -> the bytes of the tensors of that type."""


def read_gguf(path: Path) -> GGUFFile:
    """Return the description of a language model in a GGUF file; of all its files, if it is split.

    Raises:
        InputError: the file is not GGUF, is cut off or damaged, holds no language model, or lacks other parts.
    """
    paths = all_parts(path)
    headers = [read_header(each) for each in paths]
    found = describe(path, headers[0].values, sum(header.size_bytes for header in headers))
    if headers[0].values.get("split.count", 1) not in (len(paths), 0):
        raise InputError(
            f"{path} is one of {headers[0].values['split.count']} parts of a model and has been renamed: "
            "give the files their names NAME-00001-of-00003.gguf back, in one folder"
        )
    types = sum((header.bytes_of_types for header in headers), Counter[str]())
    if not types:
        raise InputError(f"{path} holds no weights, only a vocabulary")
    return replace(
        found,
        parameters=sum(header.parameters for header in headers),
        file_type=found.file_type or types.most_common(1)[0][0],
    )


def require_adapter(path: Path) -> None:
    """Check that a GGUF file holds an adapter (LoRA).

    Raises:
        InputError: the file is not GGUF, is cut off or damaged, or holds no adapter.
    """
    header = read_header(path)
    kind = header.values.get("general.type", "model")
    if kind != "adapter" or header.values.get("adapter.type") != "lora":
        raise InputError(f"{path} is a GGUF file of the type {kind}, and not an adapter (LoRA)")
    if wrong := sorted(kind for kind in header.bytes_of_types if kind.startswith("I") and kind[1:].isdigit()):
        raise InputError(f"{path} is damaged: its tensors are whole numbers ({wrong[0]})")


def all_parts(path: Path) -> list[Path]:
    """Return the files of a model: one, or all files of a split one.

    Raises:
        InputError: the file is not the first of a split model, or others are missing.
    """
    found = PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    parts = [path.with_name(f"{found['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = next((part.name for part in parts if not part.is_file()), None)
    if missing is not None:
        raise InputError(f"{path} is a part of a model in {count} files, and {missing} is not beside it: put all there")
    if path != parts[0]:
        raise InputError(f"{path} is a part of a model: name the first one, {parts[0].name}")
    return parts


def describe(path: Path, values: dict[str, Any], size: int) -> GGUFFile:
    """Return what the keys say; file_type is empty if there is no such key."""

    def positive(key: str) -> int:
        value = values.get(f"{architecture}.{key}")
        if type(value) is not int or not 0 < value < 1 << 31:
            raise InputError(f"{path} is no language model that can run: its {architecture}.{key} is {value}")
        return value

    kind = values.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{path} holds no complete model: its general.type is {kind!r}")
    architecture = values.get("general.architecture")
    if not architecture:
        raise InputError(f"{path} does not name an architecture (the key general.architecture)")
    tokenizer = values.get("tokenizer.ggml.model", "none")
    tokens = values.get("tokenizer.ggml.tokens")
    if tokenizer in ("none", "no_vocab") or not isinstance(tokens, Items) or tokens.kind is not GGUFValueType.STRING:
        raise InputError(f"{path} has no tokenizer (the keys tokenizer.ggml.*): it cannot read text")
    check_vocabulary(path, values, tokens.count)
    file_type = values.get("general.file_type")
    return GGUFFile(
        path=path,
        architecture=architecture,
        name=values.get("general.name") or values.get("general.basename") or path.stem,
        context=positive("context_length"),
        layers=positive("block_count"),
        vocabulary=tokens.count,
        parameters=0,
        size_bytes=size,
        file_type="" if file_type is None else file_type_name(file_type),
        chat_template=values.get("tokenizer.chat_template"),
        tokenizer=tokenizer,
    )


def check_vocabulary(path: Path, values: dict[str, Any], count: int) -> None:
    """Check that every token has its type and score, and that special tokens are tokens."""
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        found = values.get(key, Items(GGUFValueType.INT32, count))
        if not isinstance(found, Items) or found.count != count:
            raise InputError(f"{path} is damaged: {key} does not have one value for each of the {count} tokens")
    for key, value in values.items():
        if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
            continue
        # 2**32 - 1 is llama.cpp's "no such token".
        if not isinstance(value, int) or not (0 <= value < count or value in (-1, 2**32 - 1)):
            raise InputError(f"{path} is damaged: {key} is {value}, and there are {count} tokens")


def file_type_name(number: Any) -> str:
    """Return llama.cpp's name of a file's kind, such as Q4_K_M for 15."""
    try:
        return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"type {number}"


def read_header(path: Path) -> Header:
    """Read one file up to its tensors' data.

    Raises:
        InputError: the file cannot be read, is not GGUF, is cut off or damaged.
    """
    if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
        raise InputError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            return HeaderReader(path, file).read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


class HeaderReader:
    """Reads one file from its start. `left` never becomes negative, so no read is longer than the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.left = self.size
        self.elements_left = MOST_ELEMENTS

    def damaged(self, problem: str) -> InputError:
        return InputError(f"{self.path} is damaged: {problem}")

    def read(self) -> Header:
        if self.file.read(4) != b"GGUF":
            raise InputError(f"{self.path} is not a GGUF file: it does not begin with the letters GGUF")
        self.left -= 4
        version = self.number("<I")
        if version & 0xFFFF == 0:
            raise InputError(f"{self.path} is for big-endian machines: get the file for usual ones")
        if version not in (2, 3):
            raise InputError(f"{self.path} has version {version} of GGUF; 2 and 3 can be read")
        tensors = self.bounded("the number of tensors", MOST_TENSORS)
        keys = self.bounded("the number of keys", MOST_KEYS)
        values = self.values(keys)
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment}, not a power of two")
        return self.tensors(tensors, alignment, values)

    def values(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self.text("a key", LONGEST_NAME)
            if key in values:
                raise self.damaged(f"the key {key!r} is there twice")
            values[key] = self.value(key, self.kind(key))
        return values

    def value(self, key: str, kind: GGUFValueType) -> Any:
        if key in KEPT_TEXTS:
            if kind is not GGUFValueType.STRING:
                raise self.damaged(f"{key} is not a text")
            return self.text(key, LONGEST_TEXT)
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind is GGUFValueType.STRING:
            self.skip(self.number("<Q"))
            return None
        inner = self.kind(key)
        if inner is GGUFValueType.ARRAY:
            raise self.damaged(f"{key} is an array of arrays")
        count = self.bounded(f"the length of {key}", self.elements_left)
        self.elements_left -= count
        if inner in NUMBERS:
            self.skip(count * struct.calcsize(NUMBERS[inner]))
        else:
            for _ in range(count):
                self.skip(self.number("<Q"))
        return Items(inner, count)

    def tensors(self, count: int, alignment: int, values: dict[str, Any]) -> Header:
        """Check that the tensors' data lie one behind another, as llama.cpp demands it, and inside the file."""
        names: set[str] = set()
        parameters, expected, end = 0, 0, 0
        bytes_of_types: Counter[str] = Counter()
        for _ in range(count):
            name = self.text("the name of a tensor", LONGEST_NAME)
            if name in names:
                raise self.damaged(f"the tensor {name!r} is there twice")
            names.add(name)
            dimensions = self.number("<I")
            if dimensions > MOST_DIMENSIONS:
                raise self.damaged(f"the tensor {name!r} has {dimensions} dimensions")
            shape = [self.number("<Q") for _ in range(dimensions)]
            kind, offset = self.number("<I"), self.number("<Q")
            elements = math.prod(shape)
            if kind not in GGML_QUANT_SIZES:
                raise self.damaged(f"the tensor {name!r} has the type {kind}, which is not known")
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if elements == 0 or (shape[0] if shape else 1) % block:
                raise self.damaged(f"the tensor {name!r} has the shape {shape}, which its type does not allow")
            if offset != expected:
                raise self.damaged(f"the data of the tensor {name!r} begin at {offset} and not at {expected}")
            length = elements // block * block_bytes
            end = offset + length
            if end > self.size:  # checked here, so that a long list of huge tensors ends early
                raise self.cut_off(end)
            expected = padded(end, alignment)
            parameters += elements
            bytes_of_types[GGMLQuantizationType(kind).name] += length
        start = padded(self.size - self.left, alignment)
        if count and start + end > self.size:
            raise self.cut_off(start + end)
        return Header(self.size, values, parameters, bytes_of_types)

    def cut_off(self, needed: int) -> InputError:
        return InputError(
            f"{self.path} is cut off: its weights need {needed:,} bytes and it has {self.size:,}; get it again"
        )

    def kind(self, key: str) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.damaged(f"{key} has a value of the unknown type {number}") from None

    def bounded(self, what: str, most: int) -> int:
        number = int(self.number("<Q"))
        if number > most:
            raise self.damaged(f"{what} is {number:,}, and at most {most:,} are allowed")
        return number

    def text(self, what: str, longest: int) -> str:
        length = self.bounded(f"the length of {what}", longest)
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not text in UTF-8") from None

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take(self, count: int) -> bytes:
        self.spend(count)
        taken = self.file.read(count)
        if len(taken) < count:  # somebody has shortened the file meanwhile
            raise self.cut_off(self.size)
        return taken

    def skip(self, count: int) -> None:
        self.spend(count)
        self.file.seek(count, 1)

    def spend(self, count: int) -> None:
        if count > self.left:
            raise InputError(f"{self.path} is cut off in its header, or damaged: it has {self.size:,} bytes")
        self.left -= count


def padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
