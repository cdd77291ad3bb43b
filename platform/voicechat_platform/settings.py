"""Settings from the environment: the VOICECHAT_* variables, one documented field each."""

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from voicechat_platform.errors import InputError
from voicechat_platform.paths import given_path


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="VOICECHAT_")

    home: Path = Field(default=Path(".voicechat"), validate_default=True)
    """VOICECHAT_HOME: the folder of runs, checkpoints, the registry and prepared models; absolute."""

    registry_uri: str = ""
    """VOICECHAT_REGISTRY_URI: an MLflow tracking server; the default is SQLite in the home folder."""

    port: int = Field(default=8000, ge=1, le=65535)
    """VOICECHAT_PORT: the port of the page and the API."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """VOICECHAT_HOST: the address that they listen on; an address beyond this machine needs a key (`voicechat keys`).
    """

    keys: Path | None = None
    """VOICECHAT_KEYS: the file of the keys; the default is keys.json in the home folder."""

    requests_per_minute: int = Field(default=600, ge=1)
    """VOICECHAT_REQUESTS_PER_MINUTE: the limit of each key without a limit of its own."""

    concurrent_requests: int = Field(default=16, ge=1)
    """VOICECHAT_CONCURRENT_REQUESTS: the limit of each key without a limit of its own."""

    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """VOICECHAT_ALLOWED_ORIGINS: web pages that may call the API from a browser, and addresses under which a proxy
    publishes the service, such as https://chat.example.com, separated by commas; none by default."""

    api_key: SecretStr = SecretStr("")
    """VOICECHAT_API_KEY: the key with which `voicechat page` calls the API."""

    whisper: str | None = Field(default=None, min_length=1)
    """VOICECHAT_WHISPER: the transcription model (a size of Whisper, a folder, or OWNER/NAME of the hub); the default
    is that of the application file. tiny.en is twice as fast and knows English only."""

    ray_address: str = "local"
    """VOICECHAT_RAY_ADDRESS: the address of the Ray cluster, "auto" on a cluster's head; by default the command starts
    a
    local Ray."""

    cpus: int | None = Field(default=None, ge=1)
    """VOICECHAT_CPUS: the number of CPUs for the local Ray; all by default."""

    @field_validator("home", "keys")
    @classmethod
    def as_given(cls, path: Path | None) -> Path | None:
        return path and given_path(path)

    @field_validator("registry_uri")
    @classmethod
    def names_a_server(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if uri and ("://" not in uri or not (parts.netloc or parts.path.strip("/"))):
            raise ValueError(f"the address of an MLflow server is written http://HOST:PORT; not {uri!r}")
        return uri

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def split_at_commas(cls, given: Any) -> Any:
        return tuple(origin.strip() for origin in given.split(",")) if isinstance(given, str) and given else given or ()

    @field_validator("allowed_origins")
    @classmethod
    def as_browsers_write_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.hostname
                or origin != f"{parts.scheme}://{parts.netloc.lower()}"
            ):
                raise ValueError(f"an origin is written https://chat.example.com, without a path; not {origin!r}")
        return origins

    def folder(self, *parts: str) -> Path:
        """Return the absolute path of a folder below the home, for writing; create it if it does not exist.

        Raises:
            InputError: the folder cannot be created or written.
        """
        path = self.home.joinpath(*parts)
        problem = ""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = error.strerror or str(error)
        if not problem and not os.access(path, os.W_OK | os.X_OK):
            problem = "it cannot be written"
        if problem:
            raise InputError(f"the folder {path}: {problem}; set VOICECHAT_HOME to a folder that can be written")
        return path


@cache
def settings() -> Settings:
    """Return the settings of this process.

    Raises:
        InputError: a variable has an invalid value.
    """
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors()[0]
        variable = f"VOICECHAT_{problem['loc'][0]}".upper()
        raise InputError(f"the environment's {variable}: {problem['msg']} (got {problem['input']!r})") from None
