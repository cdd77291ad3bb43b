"""Find a language model by a path, a name or an address, and keep the models that a person adds.

A model of the hub lies in models/added/NAME of the home folder. source.json beside its files says the address, the
commit, and the checksum of each file. It stays at this commit until it is removed. Of a model that lies elsewhere there
is only source.json.
"""

import re
import shutil
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from voicechat_platform import hub
from voicechat_platform.assets import EMBEDDING_MODELS, LANGUAGE_MODELS, locate, locate_gguf
from voicechat_platform.errors import InputError
from voicechat_platform.folders import locked, made_once
from voicechat_platform.gguf_file import PART, read_gguf
from voicechat_platform.hub_address import RECORD, REPOSITORY, Address, chosen_files, parse_address
from voicechat_platform.paths import given_path
from voicechat_platform.registry import Registry, parse_version
from voicechat_platform.settings import settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AddedFile(BaseModel):
    file: str
    """Its path in the repository."""
    sha256: str
    """git's SHA-1 for a small file, which the hub keeps without SHA-256."""
    size: int


class AddedModel(BaseModel):
    """The contents of source.json."""

    name: str
    source: str
    """The address or the absolute path."""
    kind: Literal["gguf", "folder"]
    path: Path
    """Of the GGUF file or the folder; for a model of the hub relative to the folder of source.json."""
    size: int
    """Bytes."""
    parameters: int | None
    repository: str | None = None
    revision: str | None = None
    """The commit."""
    files: tuple[AddedFile, ...] = ()
    date: str

    def found(self) -> Path:
        """Return the absolute path of the model.

        Raises:
            InputError: it is not there any more.
        """
        path = store() / self.name / self.path
        if not path.exists():
            raise InputError(
                f"the model {self.name} is not at {path} any more: put it back, or forget it with "
                f"`voicechat models remove {self.name}`"
            )
        return path


def store() -> Path:
    return settings().home / "models" / "added"


def find_model(source: str, folders_only: bool = False) -> Path:
    """Return the GGUF file or the Hugging Face folder of a language model; download it if it is on the hub.

    Args:
        source: a path, hf:OWNER/REPO[@REVISION][:FILE or QUANTISATION], OWNER/REPO, the name of an added or a packaged
            model, NAME@NUMBER, or NAME for the champion of that name.
        folders_only: refuse what is known to be a GGUF file before it is downloaded.

    Raises:
        InputError: there is no such model, or its file is damaged.
        HubError: the hub does not give it.
        RegistryError: the registry does not answer.
    """
    address = parse_address(source)
    if address is None:
        path = given_path(source)
        if path.is_file():
            read_gguf(path)
        if path.exists():
            return path
        if is_added(source):
            return read_record(source).found()
        if source in (*LANGUAGE_MODELS, *EMBEDDING_MODELS):
            return locate_gguf(source)
        if "/" not in source:
            return find_in_registry(source)
        address = as_repository(source)
        try:
            return obtain(address, folders_only)
        except hub.HubError as error:
            raise hub.HubError(f"{source!r}: there is no such folder, and {error}") from None
    return obtain(address, folders_only)


def obtain(address: Address, folders_only: bool) -> Path:
    """Return what was added from an address before, or download it."""
    known = next((model for model in added_models() if model.source == str(address)), None)
    return (known or add_from_hub(address, None, folders_only)).found()


def find_checkpoint(reference: str) -> Path:
    """Return the folder of a model to train on, evaluate or sample from. `find_model` describes the reference.

    Raises:
        InputError: there is no such model, or it is a GGUF file.
    """
    if reference in LANGUAGE_MODELS and not given_path(reference).exists():
        return locate(reference)
    found = find_model(reference, folders_only=True)
    if found.is_file():
        raise InputError(f"{reference} is a GGUF file: it can be served, but not trained or evaluated; name a folder")
    return found


def as_repository(source: str) -> Address:
    """Return the address of OWNER/REPO.

    Raises:
        InputError: it must be a path, and nothing is there.
    """
    if not REPOSITORY.fullmatch(source) or source.endswith(".gguf"):
        raise InputError(f"there is no file or folder {source!r}")
    return Address(source)


def find_in_registry(source: str) -> Path:
    registry = Registry()
    if "@" in source:
        return registry.version(*parse_version(source)).checkpoint()
    champion = next((version for version in registry.champions() if version.name == source), None)
    if champion is None:
        raise InputError(
            f"{source!r} is neither a folder, an added model nor one with a champion; `voicechat models` lists what "
            f"there is, and {', '.join(LANGUAGE_MODELS)} is packaged"
        )
    return champion.checkpoint()


def is_added(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and (store() / name).is_dir()


def added_models() -> list[AddedModel]:
    """Return the models that were added, in the order of their names.

    Raises:
        InputError: a source.json is damaged.
    """
    return [read_record(path.parent.name) for path in sorted(store().glob(f"[!.]*/{RECORD}"))]


def read_record(name: str) -> AddedModel:
    path = store() / name / RECORD
    try:
        return AddedModel.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise InputError(
            f"{path} is damaged: remove the model with `voicechat models remove {name}`, and add it again"
        ) from None


def add_model(source: str, name: str | None = None) -> AddedModel:
    """Add a model of the hub, or one that lies on this machine and stays where it is.

    Args:
        source: an address of the hub, OWNER/REPO, or a path.
        name: its name here; by default that of its GGUF file, its folder, or its repository.

    Raises:
        InputError: there is no such model, it is damaged, or the name is taken.
        HubError: the hub does not give it.
    """
    address = parse_address(source)
    if address is None and (path := given_path(source)).exists():
        name = free_name(name or (path.stem if path.is_file() else path.name))
        record = AddedModel(name=name, source=str(path), path=path, **described(path))
        made_once(settings().folder("models", "added") / name, lambda folder: write(record, folder))
        return as_asked(read_record(name), {"path": path, "repository": None, "revision": None, "files": ()})
    if address is None and "/" not in source:
        raise InputError(f"there is no file or folder {source!r}, and an address of the hub is written hf:OWNER/REPO")
    return add_from_hub(address or as_repository(source), name)


def add_from_hub(address: Address, name: str | None, folders_only: bool = False) -> AddedModel:
    """Download a model. Raises the errors of `add_model`."""
    if hub.is_offline():
        raise hub.HubError(
            f"{address} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it. With a connection, run: "
            f"HF_HUB_OFFLINE=0 voicechat models add {address}"
        )
    listing = hub.list_files(address.repository, address.revision)
    files = chosen_files(listing, address, folders_only)
    path, default = Path(), address.repository.partition("/")[2]
    if files[0].name.endswith(".gguf"):
        path = Path(files[0].name)
        default = PART.sub(r"\g<stem>.gguf", path.name).removesuffix(".gguf")
    name = free_name(name or default)
    facts: dict[str, Any] = {
        "name": name,
        "source": str(address),
        "path": path,
        "repository": address.repository,
        "revision": listing.commit,
        "files": tuple(AddedFile(file=file.path, sha256=file.digest, size=file.size) for file in files),
    }

    def record(folder: Path) -> None:
        write(AddedModel(**facts, **described(folder / path)), folder)

    hub.fetch(listing, files, settings().folder("models", "added") / name, record)
    return as_asked(read_record(name), facts)


def free_name(name: str) -> str:
    """Return the name if a model can have it.

    Raises:
        InputError: it cannot be the name of a folder, or it is a packaged model's.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be a model's name: give one of letters, digits, dots, dashes and underscores with --name"
        )
    if name in (*LANGUAGE_MODELS, *EMBEDDING_MODELS):
        raise InputError(f"{name} is the packaged model: give another name with --name")
    return name


def as_asked(there: AddedModel, asked: dict[str, Any]) -> AddedModel:
    """Return the model that is there now.

    Raises:
        InputError: another model had the name already.
    """
    if any(getattr(there, key) != asked[key] for key in ("path", "repository", "revision", "files")):
        raise InputError(
            f"the name {there.name} is taken by {there.source}: give another name with --name, or first run "
            f"`voicechat models remove {there.name}`"
        )
    return there


def described(path: Path) -> dict[str, Any]:
    """Return the facts of a record that the files themselves tell.

    Raises:
        InputError: the path is neither a sound GGUF file nor a folder with config.json.
    """
    facts: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    if path.is_file():
        gguf = read_gguf(path)
        return facts | {"kind": "gguf", "size": gguf.size_bytes, "parameters": gguf.parameters}
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is no folder of a language model: it has no config.json")
    return facts | {"kind": "folder", "size": bytes_below(path), "parameters": parameters_of(path)}


def parameters_of(folder: Path) -> int | None:
    """Return the number of parameters in the safetensors files; None if there is none, or one is damaged."""
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "numpy") as weights:
                total += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return total or None


def write(record: AddedModel, folder: Path) -> None:
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n")


def unfinished_downloads() -> list[tuple[str, int]]:
    """Return the name and the bytes of each download that was interrupted."""
    rests = sorted(store().glob(f".*{hub.DOWNLOAD}"))
    return [(rest.name[1:].removesuffix(hub.DOWNLOAD), bytes_below(rest)) for rest in rests]


def remove_model(name: str) -> int:
    """Remove an added model, or what was downloaded of it. Return the bytes that this freed.

    A model that lies elsewhere is only forgotten.

    Raises:
        InputError: no model of that name was added.
    """
    folder, download = require_there(name)
    with locked(folder):
        freed = bytes_below(folder) + bytes_below(download)
        for each in (folder / RECORD, folder, download):  # without its record it is no model, even if this is killed
            each.unlink(missing_ok=True) if each.is_file() else shutil.rmtree(each, ignore_errors=True)
    return freed


def require_there(name: str) -> tuple[Path, Path]:
    """Return the folders of an added model and of its unfinished download; one of them exists. Errors as above."""
    folder, download = store() / name, store() / f".{name}{hub.DOWNLOAD}"
    if not NAME.fullmatch(name) or not (folder.is_dir() or download.is_dir()):
        there = {*(path.name for path in store().glob("[!.]*")), *(rest for rest, _ in unfinished_downloads())}
        raise InputError(f"no model {name!r} was added; there is {', '.join(sorted(there)) or 'none'}")
    return folder, download


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
