"""Build this program as one wheel, which a Ray cluster installs for a job in a second.

Ray installs a wheel of `py_modules` with `pip install --target`. With requirements, this would download torch and all
other packages again for each job. So this wheel has no requirements: the cluster's machines have the packages.
"""

import base64
import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from voicechat_tune.search.sweep_file import quickstart

PACKAGES = ("voicechat_platform", "voicechat_tune", "voicechat_serve", "voicechat_ui")


def build_wheel(folder: Path) -> Path:
    """Pack the installed packages into a wheel, with the same bytes for the same files.

    Its version ends with a checksum of the files, because for Ray two wheels with one name are the same wheel.

    Args:
        folder: the folder for the wheel; it is created if it does not exist.
    """
    files = {name: path.read_bytes() for name, path in sorted(package_files().items())}
    content = hashlib.sha256()
    for name, data in files.items():
        content.update(f"{name}\0{len(data)}\0".encode() + data)
    released = version("llm-voice-chat").partition("+")[0]  # the installed version may be such a wheel
    name = f"llm_voice_chat-{released}+g{content.hexdigest()[:12]}"
    files |= description(name)
    files[f"{name}.dist-info/RECORD"] = record(files, name)

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-py3-none-any.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return wheel


def package_files() -> dict[str, Path]:
    """Return the wheel's files by their paths in it: each package's files, and the packaged sweeps."""
    folders = {"voicechat_tune/sweeps": quickstart().parent}  # in a source tree it is beside the package
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        folders[package] = Path(spec.submodule_search_locations[0])
    return {
        f"{place}/{path.relative_to(folder).as_posix()}": path
        for place, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
    }


def description(name: str) -> dict[str, bytes]:
    """Return the metadata files of a wheel, without any requirement."""
    project, number = name.split("-")
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {project.replace('_', '-')}\nVersion: {number}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: voicechat\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[console_scripts]\nvoicechat = voicechat_ui.cli:main\n",
    }
    return {f"{name}.dist-info/{file}": text.encode() for file, text in texts.items()}


def record(files: dict[str, bytes], name: str) -> bytes:
    """Return the list of a wheel's files, each with its checksum and length, except for the list itself."""
    lines = []
    for path, data in files.items():
        checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={checksum},{len(data)}\n")
    return "".join([*lines, f"{name}.dist-info/RECORD,,\n"]).encode()
