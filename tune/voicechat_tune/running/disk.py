"""Knowing a full disk from other faults."""

import errno
import shutil
from pathlib import Path

LEAST_FREE = 2**20
"""Bytes: with less than this left, whatever fails to be written fails for that."""


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error came of a full disk, or a full quota: torch and safetensors raise errors of their own for it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left on device" in str(error):
        return True
    return folder.exists() and shutil.disk_usage(folder).free < LEAST_FREE
