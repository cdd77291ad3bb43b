"""Distinguish a full disk from other faults."""

import errno
import shutil
from pathlib import Path

LEAST_FREE = 2**20
"""In bytes. With less free space, a full disk is the reason for any failed write."""


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Return whether a full disk or quota caused an error; torch and safetensors raise their own errors for it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left on device" in str(error):
        return True
    return folder.exists() and shutil.disk_usage(folder).free < LEAST_FREE
