"""Client secrets: short-lived keys for browsers, which open spoken conversations and nothing else.

No replica of the API stores a secret, and each can check it: ek_KEY.EXPIRES.SESSION.SIGNATURE names the key that made
it, and the signature needs the stored hash of that key. So a secret ends with its key. SESSION holds the settings of
the conversation, compressed; whoever has the secret can read them.
"""

import base64
import hmac
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voicechat_platform.errors import InputError
from voicechat_serve.operations.keys import Key

PREFIX = "ek_"

LONGEST = 6144
"""Characters of a secret. A browser sends it in a header, and servers accept lines of 8 KB."""

LARGEST_SESSION = 2**20
"""Bytes of the settings."""


class InvalidSecretError(Exception):
    """A client secret is not valid, or not any more. The message is for the client."""


@dataclass(frozen=True)
class ClientSecret:
    key: Key | None
    """The key that made it; None on a service without keys."""
    session: dict[str, Any]
    """The settings with which its conversations begin, as the client gave them."""


def make_client_secret(key: Key | None, expires_at: int, session: dict[str, Any]) -> str:
    """Return a client secret.

    Args:
        key: the key whose limits it has, and with which it ends; None on a service without keys.
        expires_at: when it opens no more conversations, in seconds since 1970.
        session: the settings.

    Raises:
        InputError: the settings are too long.
    """
    content = encoded(zlib.compress(json.dumps(session).encode(), 9))
    signed = f"{key.id if key else ''}.{expires_at}.{content}"
    secret = f"{PREFIX}{signed}.{signature(key, signed)}"
    if len(secret) > LONGEST:
        raise InputError(
            f"the client secret would have {len(secret):,} characters, but a browser can send {LONGEST:,}: shorten the "
            "instructions, or let the browser send them with session.update"
        )
    return secret


def read_client_secret(secret: str, keys: Sequence[Key] | None) -> ClientSecret:
    """Check a client secret.

    Args:
        secret: what the client sent.
        keys: those of the service; None if none are needed.

    Raises:
        InvalidSecretError: it is wrong, it has expired, or its key is revoked or has expired.
    """
    signed, _, given = secret.removeprefix(PREFIX).rpartition(".")
    key_id, *rest = signed.split(".")
    key = next((key for key in keys or () if key.id == key_id and not key.is_expired()), None)
    is_known = key is not None or (keys is None and not key_id)
    if not is_known or not hmac.compare_digest(given.encode("utf-8", "replace"), signature(key, signed).encode()):
        raise InvalidSecretError("the client secret is wrong, or its key was revoked")
    try:
        expires_at, content = rest
        is_over = int(expires_at) <= time.time()
        session = json.loads(decompressed(content))
        if not isinstance(session, dict):
            raise ValueError("the settings are an object")
    except (ValueError, RecursionError, zlib.error):  # without keys, anybody can sign
        raise InvalidSecretError("the client secret is damaged") from None
    if is_over:
        raise InvalidSecretError("the client secret has expired")
    return ClientSecret(key, session)


def signature(key: Key | None, signed: str) -> str:
    secret_of_key = bytes.fromhex(key.sha256) if key else b"no keys"
    return encoded(hmac.digest(secret_of_key, b"client secret " + signed.encode("utf-8", "surrogatepass"), "sha256"))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decompressed(content: str) -> bytes:
    data = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))
    return zlib.decompressobj().decompress(data, LARGEST_SESSION)
