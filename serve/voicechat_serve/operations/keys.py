"""API keys in a file that a running service follows.

The file holds a hash of each key, never the key itself, which is shown once, at its creation. Without a file, no
request needs a key. With a file, even without a key in it, every request needs one.
"""

import asyncio
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings

log = logging.getLogger("ray.serve.voicechat.keys")

NAME = re.compile(r"\w[\w .@-]{0,63}")

REREAD_S = 1.0
"""The largest age of the service's copy of the file."""


class Key(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Short, for lists and for revocation."""
    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """None: the limit of the settings; the same below."""
    concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    operator: bool = False
    """Whether it may promote models, on the page."""

    def is_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


class KeysUnreadableError(InputError):
    """The keys file cannot be used, or does not exist although it must."""


class Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...]


def keys_path() -> Path:
    """Return the path of the keys file from the settings; the file need not exist."""
    chosen = settings().keys
    return chosen or settings().folder() / "keys.json"


def make_secret() -> str:
    """Return a new key of 256 random bits."""
    return f"vc-{secrets.token_urlsafe(32)}"


def fingerprint(secret: str) -> str:
    """Return the stored hash of a key.

    Plain SHA-256: slow, salted hashes protect passwords, which can be guessed. 256 random bits cannot be guessed, and
    every request computes this.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read the keys.

    Raises:
        FileNotFoundError: there is no file.
        KeysUnreadableError: the file cannot be read, or `create_key` did not write it.
    """
    try:
        return Content.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        raise
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        message = f"{path}: {where + ': ' if where else ''}{problem['msg']}"
        raise KeysUnreadableError(f"{message}; mend it, or delete it and create keys anew") from None
    except OSError as error:
        raise KeysUnreadableError(f"{path}: {error.strerror}; it must be readable by the service's user") from error


def create_key(
    path: Path,
    name: str,
    requests_per_minute: int | None = None,
    concurrent_requests: int | None = None,
    expires: datetime | None = None,
    operator: bool = False,
) -> tuple[Key, str]:
    """Add a key to the file.

    Returns:
        The stored entry, and the key itself, which is stored nowhere.

    Raises:
        InputError: the name is taken or invalid.
        KeysUnreadableError: as `read_keys`.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"a key's name is up to 64 letters, digits, spaces and .@_-, beginning with none of those: {name!r}"
        )
    secret = make_secret()
    with changing(path) as keys:
        taken = {word for key in keys for word in (key.id, key.name)}
        if name in taken:
            raise InputError(f"there is a key {name!r} already: choose another name, or revoke it first")
        key = Key(
            id=next(number for number in iter(lambda: secrets.token_hex(4), None) if number not in {*taken, name}),
            name=name,
            sha256=fingerprint(secret),
            created=datetime.now(UTC).replace(microsecond=0),
            expires=expires,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
            operator=operator,
        )
        keys.append(key)
    return key, secret


def revoke_key(path: Path, id_or_name: str) -> Key:
    """Remove a key from the file: running services refuse it within a second.

    Raises:
        InputError: there is no such key.
        KeysUnreadableError: as `read_keys`.
    """
    with changing(path) as keys:
        for key in keys:
            if id_or_name in (key.id, key.name):
                keys.remove(key)
                return key
        raise InputError(f"there is no key {id_or_name!r}; there are: {', '.join(k.name for k in keys) or 'none yet'}")


@contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """Yield the file's keys for changes in place; write them when the block ends without an error.

    The new file replaces the old one atomically, so that a reader sees one or the other. The lock is a separate file,
    because this one is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: VOICECHAT_KEYS names a file, such as {path / 'keys.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; see VOICECHAT_KEYS") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            keys = list(read_keys(path))
        except FileNotFoundError:
            keys = []
        yield keys
        content = json.loads(Content(keys=tuple(keys)).model_dump_json(exclude_defaults=True))
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)  # left by a killed process
        # Only its owner may read it.
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def find_key(keys: Sequence[Key], secret: str) -> Key | None:
    """Return the key with this secret, unless it has expired.

    Every hash is compared in constant time, so the duration reveals nothing about similar keys.
    """
    offered = fingerprint(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, offered):
            found = key
    return None if found is None or found.is_expired() else found


class KeysFollowed:
    """The keys file for a running service: checked at most once a second, and read again after a change.

    Args:
        path: the file.
        required: whether it must exist. After it has existed once it must exist, so that its loss admits nobody.
        clock: seconds, from any origin.
    """

    def __init__(self, path: Path, required: bool, clock: Callable[[], float] = time.monotonic):
        self.path, self.required, self.clock = path, required, clock
        self._looked_at = float("-inf")
        self._version: tuple[int, ...] = ()
        self._keys: tuple[Key, ...] | None = None
        self._error: KeysUnreadableError | None = None

    def keys(self) -> tuple[Key, ...] | None:
        """Return the keys, or None if no keys are needed.

        Raises:
            KeysUnreadableError: the file cannot be used, so no key can be recognised.
        """
        if self.clock() - self._looked_at >= REREAD_S:
            self._looked_at = self.clock()
            self._look()
        if self._error:
            raise self._error
        return self._keys

    async def until_gone(self, key: Key) -> None:
        """Return when an accepted key is revoked or has expired; while the file cannot be read, the key stays valid."""
        while not self._is_gone(key):
            await asyncio.sleep(REREAD_S / 2)

    def _is_gone(self, key: Key) -> bool:
        try:
            keys = self.keys()
        except KeysUnreadableError:
            return False
        return keys is not None and not any(other.id == key.id and not other.is_expired() for other in keys)

    def _look(self) -> None:
        before, self._error = self._error, None
        try:
            facts = self.path.stat()
            self.required = True
            version = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            if version != self._version or before:
                self._keys = read_keys(self.path)
                self._version = version
        except FileNotFoundError:
            if self.required:
                self._error = KeysUnreadableError(f"{self.path} is gone; put it back, or start the service anew")
        except OSError as error:
            self._error = KeysUnreadableError(f"{self.path}: {error.strerror}")
        except KeysUnreadableError as error:
            self._error = error
        if self._error and str(self._error) != str(before):
            log.error("every request is refused until the keys file can be read: %s", self._error)
