"""Aliases: the names that clients send by themselves, such as gpt-4o-mini-transcribe, for models that are served here.

The names of audio models are built in. An application file adds others, or changes these (`aliases`). An alias that
ends in a * stands for all names with this beginning; the longest one counts.
"""

from collections.abc import Collection, Mapping

from voicechat_platform.errors import InputError

SYNTHESIS_MODEL = "hibari"

TRANSCRIPTION_ALIASES = (
    *("whisper-1", "whisper-large-v3", "whisper-large-v3-turbo", "gpt-transcribe", "gpt-realtime-whisper"),
    *("gpt-4o-transcribe", "gpt-4o-transcribe-*", "gpt-4o-mini-transcribe", "gpt-4o-mini-transcribe-*"),
)
SYNTHESIS_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-*")


def built_in(transcription_model: str) -> dict[str, str]:
    """Return the aliases that every service has -> the model of each."""
    audio = {transcription_model: TRANSCRIPTION_ALIASES, SYNTHESIS_MODEL: SYNTHESIS_ALIASES}
    return {alias: model for model, aliases in audio.items() for alias in aliases if alias != model}


def named_by(alias: str, aliases: Mapping[str, str]) -> str | None:
    """Return the model that a name stands for, or None if it is no alias."""
    if alias in aliases:
        return aliases[alias]
    beginnings = [each for each in aliases if each.endswith("*") and alias.startswith(each[:-1])]
    return aliases[max(beginnings, key=len)] if beginnings else None


def require_form(alias: str) -> None:
    """Check the form of an alias.

    Raises:
        ValueError: it is empty, too long, has an @, or a * elsewhere than at its end.
    """
    if not alias.strip() or len(alias) > 200:
        raise ValueError("an alias has 1 to 200 characters")
    if "@" in alias:
        raise ValueError(f"{alias!r} has an @, which means a version: choose another alias")
    if "*" in alias[:-1]:
        raise ValueError(f"{alias!r}: a * may only be the last character of an alias")


def require_targets(aliases: Mapping[str, str], models: Collection[str], transcription_model: str) -> None:
    """Check the aliases of an application file against the models of the service, those of audio included.

    Raises:
        InputError: an alias hides a model, or stands for no model, or for another alias.
    """
    for alias, target in aliases.items():
        if alias in models:
            raise InputError(f"aliases: {alias!r} is the name of a model here, which the alias would hide: remove it")
        if target in models:
            continue
        if named_by(target, built_in(transcription_model) | dict(aliases)) is not None:
            raise InputError(f"aliases: {alias!r} stands for {target!r}, another alias: write the model's own name")
        known = ", ".join(sorted(models))
        raise InputError(f"aliases: {alias!r} stands for {target!r}, which is no model here; there are {known}")
