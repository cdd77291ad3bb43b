"""Expand, quote and check the paths and addresses that people give, before any work starts."""

import contextlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pydantic import HttpUrl, TypeAdapter, ValidationError

from voicechat_platform.errors import InputError

WEB_ADDRESS = TypeAdapter(HttpUrl)


def given_path(text: str | Path) -> Path:
    """Return a path from a person as an absolute path, with ~ expanded to the home of a user.

    Raises:
        InputError: no file system can have such a path, or the user does not exist.
    """
    if "\0" in str(text):
        raise InputError(f"the path {str(text)!r} is invalid: it contains a zero byte")
    try:
        path = Path(text).expanduser().absolute()
        path.exists()
    except RuntimeError:
        raise InputError(f"the path {str(text)!r} names a user that does not exist on this machine") from None
    except OSError as error:
        raise InputError(f"the path {str(text)!r} cannot be used: {error.strerror}") from None
    return path


def writable_folder(given: str | Path, *files: str) -> Path:
    """Return the absolute path of a folder after a check that files can be written into it.

    The folder need not exist, and this function does not create it. It tries to write a file, because the permissions
    say little about a full disk, a read-only disk, or another user's disk.

    Args:
        given: the folder, as a person gave it.
        files: names of the files to write there; they may exist already.

    Raises:
        InputError: the path is a file, the folder cannot be created or written, or a file there cannot be overwritten.
    """
    folder = given_path(given)
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"full?")
    except FileExistsError:
        raise InputError(f"{folder} is not a folder, so nothing can be written into it: name another one") from None
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be written: {error.strerror}; name another one") from None
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()
    for name in files:
        check_can_be_file(folder / name)
    return folder


def writable_file(given: str | Path) -> Path:
    """Return the absolute path of a file after a check that it can be written.

    The file and its folder need not exist. An existing file stays unchanged.

    Raises:
        InputError: the path is a folder, or the file cannot be written.
    """
    path = given_path(given)
    if not path.exists():
        writable_folder(path.parent)
    check_can_be_file(path)
    return path


def check_can_be_file(path: Path) -> None:
    """Check that a file can be written at this path.

    Raises:
        InputError: the path is not a file, or the file cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, so no file can be written in its place: name another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"the file {path} exists and cannot be overwritten: name another place")


def api_address(given: str) -> str:
    """Return the base URL of an API, such as http://127.0.0.1:8000/v1, without a slash at its end.

    Raises:
        InputError: the text is not such a URL.
    """
    problem = ""
    try:
        url = WEB_ADDRESS.validate_python(given)
        if "://" not in given or url.query or url.fragment:
            problem = "it has a part behind ? or #" if "://" in given else "it has no //"
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Input should be a valid URL, ")
        problem = problem.replace("relative URL without a base", "it does not begin with http:// or https://")
    if problem:
        shown = given if len(given) <= 200 else f"{given[:200]}…"
        raise InputError(f"{shown!r} is not the base URL of an API ({problem}): write it as http://127.0.0.1:8000/v1")
    return str(url).rstrip("/")


def file_address(path: Path) -> str:
    """Return the file:///… address of an absolute path."""
    return f"file://{quote(str(path))}"


def path_at(address: str) -> Path | None:
    """Return the path of a file:///… address, or None for any other address."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def sqlite_address(path: Path) -> str:
    """Return SQLAlchemy's address of a SQLite file. It names the driver; without that, MLflow would take the quotes for
    a
    part of the path."""
    return f"sqlite+pysqlite:///{quote(str(path))}"
