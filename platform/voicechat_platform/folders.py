"""Create folders atomically and only once, and remove the temporary folders of killed processes.

A process that works in a temporary folder holds a lock beside it. The lock ends with the process. So a temporary folder
without a held lock belongs to a killed process, and the next process that writes there removes it.
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
    """Return the folder; if it does not exist, call `make` with an empty folder and rename that to `folder`.

    One process creates the folder, and the others wait for it. On a shared disk, this includes processes of other
    machines.
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
    """Create a new folder that gets its name only when the block ends without an error.

    Only one process may write there; `made_once` selects it.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a folder for the duration of the block, and remove those of killed processes with the same prefix."""
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
    """Remove the partial folders that killed processes left in `parent`."""
    for partial in parent.glob(f".*{PARTIAL}"):
        sweep(partial, owner=partial.with_name(partial.name[1:].removesuffix(PARTIAL)))


def sweep(rest: Path, owner: Path) -> None:
    """Remove a temporary folder, unless a live process holds the lock of `owner`."""
    try:
        with locked(owner, wait=False):
            shutil.rmtree(rest, ignore_errors=True)
    except Timeout:
        pass  # its process is alive
    except OSError as error:  # it belongs to another user
        log.debug("%s stays: %s", rest, error)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock for the folder's name, so that only one block of all processes runs at one time.

    Raises:
        Timeout: another process holds the lock, and `wait` is false.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with FileLock(path, blocking=wait):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while the lock is held: a process that waits for it makes a new one


def file_identity(files: Iterable[Path]) -> list[object]:
    """Return what changes when one of the files changes.

    It has the status change time, in addition to the modification time, which copying tools may set to any value.
    """
    stats = [(path.name, path.stat()) for path in files]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]


def folder_name(label: str, identity: Iterable[object]) -> str:
    """Return a short folder name: a readable label, and a hash that identifies the contents.

    Args:
        label: any text; characters that do not suit a file name are replaced.
        identity: all values that distinguish these contents from others.
    """
    readable = re.sub(r"[^A-Za-z0-9._@-]+", "-", label)[:LONGEST_LABEL].strip(".-")
    digest = hashlib.sha256(ascii([str(part) for part in identity]).encode()).hexdigest()[:16]
    return f"{readable}-{digest}".lstrip("-")
