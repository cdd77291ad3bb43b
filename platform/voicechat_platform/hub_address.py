"""hf:OWNER/REPO[@REVISION][:FILE or QUANTISATION], the address of a model on the hub, and the files that it means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from voicechat_platform.errors import InputError
from voicechat_platform.gguf_file import PART
from voicechat_platform.hub import HubFile, Listing, readable

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
ADDRESS = re.compile(r"hf:(?P<repository>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<part>.+))?")

QUANTISATIONS = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32")
"""In the order of our choice when an address names none."""

READ = (".json", ".safetensors", ".txt", ".jinja", ".model")
"""What is fetched for a folder. Pickled weights and Python files are not: they could run code."""

RECORD = "source.json"
"""The model store writes this file beside those of the repository."""


@dataclass(frozen=True)
class Address:
    repository: str
    revision: str | None = None
    part: str | None = None
    """A GGUF file or a quantisation."""

    def __str__(self) -> str:
        revision, part = f"@{self.revision}" if self.revision else "", f":{self.part}" if self.part else ""
        return f"hf:{self.repository}{revision}{part}"


def parse_address(source: str) -> Address | None:
    """Return the parts of an address, or None for a source that does not begin with hf:.

    Raises:
        InputError: it begins with hf: and is not an address.
    """
    if not source.startswith("hf:"):
        return None
    parts = ADDRESS.fullmatch(source)
    if parts is None or not REPOSITORY.fullmatch(parts["repository"]):
        raise InputError(
            f"{source!r} is not an address of the hub: write hf:OWNER/REPO, hf:OWNER/REPO:QUANTISATION or "
            "hf:OWNER/REPO@REVISION:FILE"
        )
    return Address(parts["repository"], parts["revision"], parts["part"])


def chosen_files(listing: Listing, address: Address, folders_only: bool = False) -> list[HubFile]:
    """Return the files to fetch: those of a whole folder, or all parts of one GGUF model, the first part first.

    Args:
        folders_only: a GGUF file is refused.

    Raises:
        InputError: the repository has no such file, or several; the message lists what there is.
    """
    repository = address.repository
    if address.part is None and (folder := folder_files(listing.files)):
        return folder
    if folders_only:
        raise InputError(
            f"{address} is no folder with config.json and *.safetensors, and nothing else can be used here"
        )
    models = gguf_models(listing.files)
    if not models:
        raise InputError(f"{repository} holds no model: neither a folder with *.safetensors nor a GGUF file")
    found = named(models, address.part) if address.part else preferred(models)
    if len(found) == 1:
        return models[found[0]]
    problem = f"{len(found)} GGUF models {address.part or ''}".rstrip() if found else f"no GGUF model {address.part}"
    there = "".join(f"\n  {path} ({readable(sum(file.size for file in models[path]))})" for path in found or models)
    raise InputError(f"{repository} has {problem}; name one of these as hf:{repository}:FILE{there}")


def folder_files(files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files of a Hugging Face folder; empty if the repository holds none."""
    read = [file for file in files if "/" not in file.path and file.name.endswith(READ)]
    read = [file for file in read if not file.name.startswith(".") and file.name != RECORD]
    weights = [file.name for file in read if file.name.endswith(".safetensors")]
    if not weights or "config.json" not in {file.name for file in read}:
        return []
    # Some repositories hold the same weights a second time under this name, for another program.
    consolidated = {name for name in weights if name.startswith("consolidated")}
    return [file for file in read if file.name not in consolidated or len(consolidated) == len(weights)]


def gguf_models(files: Sequence[HubFile]) -> dict[str, list[HubFile]]:
    """Return the path of the first file of each model -> its files, in order.

    What else is kept in this format is left out: a second model that sees pictures, and statistics for quantisation.
    """
    models: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if not file.name.endswith(".gguf") or re.match(r"\.|mmproj|imatrix", file.name):
            continue
        part = PART.fullmatch(file.path)
        first = f"{part['stem']}-00001-of-{part['count']}.gguf" if part else file.path
        models.setdefault(first, []).append(file)
    return models


def named(models: dict[str, list[HubFile]], part: str) -> list[str]:
    """Return the models that have this file, or this quantisation in their names."""
    if part.endswith(".gguf"):
        return [path for path, files in models.items() if part in {file.path for file in files}]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return [path for path in models if word.search(path.removesuffix(".gguf").rpartition("/")[2])]


def preferred(models: dict[str, list[HubFile]]) -> list[str]:
    """Return the models of the first quantisation in our order that there is, or all models."""
    return next((found for each in QUANTISATIONS if (found := named(models, each))), list(models))
