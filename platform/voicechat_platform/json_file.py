"""Read a JSON file that a program wrote. Errors name the file and the line."""

import json
from pathlib import Path
from typing import Any

from voicechat_platform.errors import InputError


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        InputError: the file is missing, cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno} is damaged: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # invalid UTF-8, a number too long, lists nested too deeply
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return found
