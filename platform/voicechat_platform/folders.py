"""Folders that appear whole or not at all, once, and temporary ones that no killed process leaves behind for ever.

Whoever works in a temporary folder holds a lock beside it. The lock ends with its process: a temporary folder that
nobody holds is a killed process's, and the next one that writes there sweeps it away.
"""

import contextlib
import hashlib
import logging
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

PARTIAL = ".partial"
LONGEST_LABEL = 40


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder; where it is not there yet, `make` is given an empty one to fill, which then takes its name.

    One process makes it, the others wait for that: on a shared disk those of other machines, too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_partials(folder.parent)
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                with appearing_whole(folder) as partial:
                    make(partial)
    return folder


@contextlib.contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A new folder that appears under its name only when the block has ended well, never half made.

    For the one process that may write there; `made_once` chooses it among several.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process's
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for as long as the block runs; those of the same prefix that killed processes left are swept away."""
    for other in parent.glob(f"{prefix}[!.]*"):
        sweep(other, owner=other)
    folder = parent / f"{prefix}{secrets.token_hex(6)}"
    with locked(folder):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep_partials(parent: Path) -> None:
    """Remove what killed processes left that were making folders in `parent`."""
    for partial in parent.glob(f".*{PARTIAL}"):
        sweep(partial, owner=partial.with_name(partial.name[1:].removesuffix(PARTIAL)))


def sweep(rest: Path, owner: Path) -> None:
    """Remove a temporary folder, unless a living process holds the lock of `owner`."""
    try:
        with locked(owner, wait=False):
            shutil.rmtree(rest, ignore_errors=True)
    except Timeout:
        pass  # its process lives
    except OSError as error:  # another user's
        log.debug("%s is left where it is: %s", rest, error)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Only one block at a time, of all processes, for each folder's name.

    Raises:
        Timeout: it is held, and `wait` is false.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with FileLock(path, blocking=wait):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: who waits for this file notices, and makes a new one


def folder_name(label: str, identity: Iterable[object]) -> str:
    """A short name for what is made from something: a label to read, and a hash that no other thing has.

    Args:
        label: anything; what does not suit a file's name is left out.
        identity: all that makes it another thing when it differs.
    """
    readable = re.sub(r"[^A-Za-z0-9._@-]+", "-", label)[:LONGEST_LABEL].strip(".-")
    digest = hashlib.sha256(ascii([str(part) for part in identity]).encode()).hexdigest()[:16]
    return f"{readable}-{digest}".lstrip("-")
