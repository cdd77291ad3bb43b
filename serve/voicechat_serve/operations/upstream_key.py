"""This service's key for another server. No setting holds it, because Ray's dashboard and logs show settings."""

import os

from voicechat_platform.errors import InputError


def upstream_key(variable: str, url: str) -> str:
    """Return the key from this process's environment.

    Args:
        variable: the environment variable with the key.
        url: the other server, for the error.

    Raises:
        InputError: the variable is not set, or its value cannot be sent.
    """
    key = os.environ.get(variable, "").strip()
    problem = "is not set" if not key else "" if key.isascii() and key.isprintable() else "holds no key"
    if problem:
        raise InputError(f"the environment variable {variable} {problem}: set it to the key of {url} before Ray starts")
    return key
