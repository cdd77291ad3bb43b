"""The transcription model that `whisper:` names: find or download it, and check its files before anything starts.

Only the beginning of each tensor is read, so this takes milliseconds for any size, and loads no library.
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voicechat_platform.assets import CATALOGUE, download_whisper, locate
from voicechat_platform.errors import InputError
from voicechat_platform.paths import given_path

SIZES = {
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "tiny": "Systran/faster-whisper-tiny",
    "base.en": "Systran/faster-whisper-base.en",
    "base": "Systran/faster-whisper-base",
    "small.en": "Systran/faster-whisper-small.en",
    "small": "Systran/faster-whisper-small",
    "medium.en": "Systran/faster-whisper-medium.en",
    "medium": "Systran/faster-whisper-medium",
    "large-v1": "Systran/faster-whisper-large-v1",
    "large-v2": "Systran/faster-whisper-large-v2",
    "large-v3": "Systran/faster-whisper-large-v3",
    "large": "Systran/faster-whisper-large-v3",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
"""faster-whisper's names -> the repositories of the Hugging Face hub."""

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

MULTILINGUAL_TOKENS = 51865
"""CTranslate2's own rule: a smaller vocabulary is that of an English-only model. Its tokens do not tell: an English
vocabulary has those of all languages, too."""

LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")

CONVERT = (
    "ct2-transformers-converter --model {model} --output_dir NEW_FOLDER --quantization float16 "
    "--copy_files tokenizer.json preprocessor_config.json"
)
"""The command that makes CTranslate2's form from transformers'."""


@dataclass(frozen=True)
class WhisperFiles:
    """A Whisper in CTranslate2's form whose files are complete."""

    id: str
    """The model's name in the API."""
    folder: Path
    languages: frozenset[str]
    """Whisper's codes of the languages that it knows; only "en" for an English-only model."""
    is_measured: bool
    """Whether the thresholds of `short_context` were measured with this model."""


def model_id(given: str) -> str:
    """Return the API's name for the value of `whisper:`: the last part of it, behind "whisper-" if it does not contain
    "whisper" itself."""
    last = given.rstrip("/").rpartition("/")[2]
    return last if "whisper" in last else f"whisper-{last}"


def check_name(given: str) -> str:
    """Check what can be checked without a hub: the value is a size, a folder that exists, or OWNER/NAME.

    Raises:
        InputError: it is none of them.
    """
    if given in SIZES:
        return given
    path = given_path(given)
    if path.is_dir() or (REPOSITORY.fullmatch(given) and not path.exists()):
        return given
    if path.is_file():
        raise InputError(f"{given} is a file: give the folder of a CTranslate2 Whisper (model.bin, tokenizer.json, …)")
    raise InputError(f"{given!r} is no folder and no OWNER/NAME of a hub; the sizes are {', '.join(SIZES)}")


def find_whisper(given: str) -> WhisperFiles:
    """Return the files of the model that a person named. Downloads it the first time.

    Args:
        given: a size of SIZES, a folder, or OWNER/NAME of the Hugging Face hub. A size wins over a folder of that name,
            and a folder over a hub's repository.

    Raises:
        InputError: there is no such model, the hub does not give it, or it is not a complete CTranslate2 Whisper.
    """
    check_name(given)
    asset = f"whisper-{given}"
    if asset in CATALOGUE:
        folder = locate(asset)
    elif given in SIZES:
        folder = download_whisper(SIZES[given], require_converted)
    elif (path := given_path(given)).is_dir():
        folder = path
    else:
        folder = download_whisper(given, require_converted)
    return WhisperFiles(model_id(given), folder, checked_languages(folder), asset in CATALOGUE)


def checked_languages(folder: Path) -> frozenset[str]:
    """Check the files of a CTranslate2 Whisper, and return the languages of its vocabulary.

    Raises:
        InputError: a file is missing, broken, or belongs to another model.
    """
    require_converted(folder)
    require_whole(folder / "model.bin")
    vocabulary = read_vocabulary(folder)
    require_tokenizer(folder, vocabulary)
    if len(vocabulary) < MULTILINGUAL_TOKENS:
        return frozenset({"en"})
    return frozenset(found[1] for token in vocabulary if (found := LANGUAGE.fullmatch(token)))


def require_converted(folder: Path, source: str = "") -> None:
    """Check that the folder has CTranslate2's form.

    Args:
        source: how the person named the model; by default the folder.

    Raises:
        InputError: it has not; says how to convert a model of transformers.
    """
    source = source or str(folder)
    if (folder / "model.bin").exists():
        return
    if (folder / "model.safetensors").exists() or (folder / "pytorch_model.bin").exists() or is_of_transformers(folder):
        raise InputError(
            f"{source} is a Whisper in transformers' format; convert it once, and give the new folder: "
            f"{CONVERT.format(model=source)}"
        )
    raise InputError(f"{source} has no model.bin, so it is not a CTranslate2 Whisper")


def is_of_transformers(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type") == "whisper"
    except (OSError, ValueError, AttributeError):
        return False


def require_whole(path: Path) -> None:
    """Check that a CTranslate2 model.bin holds a Whisper, and that none of it is missing.

    Raises:
        InputError: it is another model, or it is cut off.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            version, kind = unpacked(file, "<I"), text(file)
            if kind != "WhisperSpec":
                raise InputError(f"{path} is not a Whisper of CTranslate2, but {kind[:40]!r}")
            _, variables = unpacked(file, "<I"), unpacked(file, "<I")
            for _ in range(variables):
                text(file)
                file.seek(4 * unpacked(file, "<B") + 1, 1)  # its shape and type
                file.seek(unpacked(file, "<I"), 1)
                if file.tell() > size:
                    raise EOFError
            for _ in range(unpacked(file, "<I") if version >= 3 else 0):  # second names of variables
                text(file), text(file)
    except (EOFError, UnicodeDecodeError):
        raise InputError(f"{path} is broken or incomplete ({size:,} bytes): copy or convert it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def unpacked(file: BinaryIO, form: str) -> int:
    length = struct.calcsize(form)
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return int(struct.unpack(form, data)[0])


def text(file: BinaryIO) -> str:
    length = unpacked(file, "<H")
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data.rstrip(b"\0").decode()


def read_vocabulary(folder: Path) -> list[str]:
    """Return the model's tokens in order.

    Raises:
        InputError: there is no vocabulary.
    """
    try:
        if (path := folder / "vocabulary.json").exists():
            tokens = json.loads(path.read_text())
            if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
                return tokens
        elif (path := folder / "vocabulary.txt").exists():
            return path.read_text().removesuffix("\n").split("\n")
        else:
            raise InputError(f"{folder} has no vocabulary.json and no vocabulary.txt: copy or convert the model again")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    raise InputError(f"{path} is not a list of tokens: copy or convert the model again")


def require_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    """Check that tokenizer.json is there and fits the vocabulary. Without it, faster-whisper would ask the hub for that
    of another model.

    Raises:
        InputError: it is missing, broken, or of another model.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    advice = f"copy it from the repository of the original model, or convert again with {CONVERT.format(model='MODEL')}"
    if not path.exists():
        raise InputError(f"{folder} has no tokenizer.json: {advice}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises only Exception
        raise InputError(f"{path} cannot be read ({error}): {advice}") from None
    marks = ("<|startoftranscript|>", "<|notimestamps|>")
    if any(mark not in vocabulary or tokenizer.token_to_id(mark) != vocabulary.index(mark) for mark in marks):
        raise InputError(f"{path} belongs to another model than the vocabulary beside it: {advice}")
