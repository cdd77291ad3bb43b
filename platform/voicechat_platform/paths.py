"""Paths and addresses as people write them: the one place where they are expanded, quoted, and looked at before work
begins that is to end there."""

import contextlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pydantic import HttpUrl, TypeAdapter, ValidationError

from voicechat_platform.errors import InputError

WEB_ADDRESS = TypeAdapter(HttpUrl)


def given_path(text: str | Path) -> Path:
    """A path that a person has given, absolute, with ~ for the home of a user.

    Raises:
        InputError: no file system has such a path, or there is no such user.
    """
    if "\0" in str(text):
        raise InputError(f"the path {str(text)!r} cannot be: it holds a zero byte")
    try:
        path = Path(text).expanduser().absolute()
        path.exists()
    except RuntimeError:
        raise InputError(f"the path {str(text)!r} names a user that this machine has not") from None
    except OSError as error:
        raise InputError(f"the path {str(text)!r} cannot be used: {error.strerror}") from None
    return path


def writable_folder(given: str | Path, *files: str) -> Path:
    """A folder that something is to be written into, absolute. It need not be there, and is not made.

    Tried out, not guessed from its permissions, which say little of a full, a read-only or somebody else's disk.

    Args:
        given: the folder, as a person gave it.
        files: what is to be written there, which may be there already.

    Raises:
        InputError: it is a file, it cannot be made or written, or what is there already cannot be overwritten.
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
    """A file that is to be written, absolute; it, and its folder, need not be there. An old one stays as it is.

    Raises:
        InputError: it is a folder, or it cannot be written.
    """
    path = given_path(given)
    if not path.exists():
        writable_folder(path.parent)
    check_can_be_file(path)
    return path


def check_can_be_file(path: Path) -> None:
    """
    Raises:
        InputError: there is something of that name that is not a file, or a file that cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, so no file can be written in its place: name another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"the file {path} is there and cannot be overwritten: name another place")


def api_address(given: str) -> str:
    """The base URL of an API, such as http://127.0.0.1:8000/v1, as a person gave it, without a slash at its end.

    Raises:
        InputError: it is no such URL.
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
    """file:///… of an absolute path."""
    return f"file://{quote(str(path))}"


def path_at(address: str) -> Path | None:
    """The path of a file:///… address; None for any other."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def sqlite_address(path: Path) -> str:
    """SQLAlchemy's address of a SQLite file. Without its driver's name MLflow would take the quotes for the path's."""
    return f"sqlite+pysqlite:///{quote(str(path))}"
