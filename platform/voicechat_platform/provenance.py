"""The origin of a result: the commit of this code, the versions of the libraries that affect it, and the machine."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@cache
def provenance() -> dict[str, Any]:
    """Return the code's "commit" (None outside a repository), the libraries' "versions", and the "machine" of this
    process."""
    packages = ("llm-voice-chat", "torch", "transformers", "tokenizers", "ray", "optuna", "numpy")
    return {
        "commit": git_describe() or None,
        "versions": {name: version(name) for name in packages},
        "machine": machine(),
    }


def git_describe() -> str:
    """Return the commit of this code, or an empty string if there is no repository or no git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return described.stdout.strip()


def machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu_name()}, {os.cpu_count()} cores{gpu}"


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
