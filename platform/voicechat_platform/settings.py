"""Every setting that the environment can give: VOICECHAT_* variables, one documented field each."""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from voicechat_platform.errors import InputError


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="VOICECHAT_")

    home: Path = Path(".voicechat")
    """VOICECHAT_HOME: where runs, checkpoints, the registry and prepared models are kept."""

    registry_uri: str = ""
    """VOICECHAT_REGISTRY_URI: an MLflow tracking server; by default SQLite in the home folder."""

    port: int = Field(default=8000, ge=1, le=65535)
    """VOICECHAT_PORT: where the page and the API listen, on loopback."""

    whisper: Literal["base", "tiny.en"] = "base"
    """VOICECHAT_WHISPER: the transcription model; tiny.en is twice as fast and hears English only."""

    ray_address: str = "local"
    """VOICECHAT_RAY_ADDRESS: the Ray to join, "auto" on a cluster's head; by default one of our own is started."""

    cpus: int | None = Field(default=None, ge=1)
    """VOICECHAT_CPUS: how many CPUs the local Ray may use; all of them by default."""

    def folder(self, *parts: str) -> Path:
        """An existing folder below the home, as an absolute path."""
        path = self.home.absolute().joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path


@cache
def settings() -> Settings:
    """The settings of this process.

    Raises:
        InputError: a variable has an impossible value.
    """
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors()[0]
        variable = f"VOICECHAT_{problem['loc'][0]}".upper()
        raise InputError(f"the environment's {variable}: {problem['msg']} (got {problem['input']!r})") from None
