"""Whether a model fits into the memory that this process may still take, asked before anything loads it."""

from pathlib import Path

import psutil

from voicechat_platform.errors import InputError

CONTAINER = Path("/sys/fs/cgroup")
"""A container's limit and use, in version 2 of Linux's control groups."""


def require_memory(path: Path, size: int) -> None:
    """Check that the weights fit.

    Args:
        path: the model's files.
        size: bytes of its weights in memory.

    Raises:
        InputError: they do not.
    """
    free = free_memory()
    if size > free:
        raise InputError(
            f"{path} needs {size / 2**30:.1f} GiB of memory for its weights alone, and {free / 2**30:.1f} GiB are "
            "free here: take a smaller model or a smaller quantisation of it"
        )


def free_memory() -> int:
    """Return the bytes that this process may still take."""
    free = psutil.virtual_memory().available
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        used = int((CONTAINER / "memory.current").read_text())
        lines = (CONTAINER / "memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):  # there is no container, or it has no limit
        return free
    return min(free, limit - used + cached)
