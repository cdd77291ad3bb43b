"""Paths as people write them, and as addresses: the one place where a path is expanded or quoted."""

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from voicechat_platform.errors import InputError


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
