"""The voices: hibari's always, Piper's and Kokoro's if they are installed.

Each engine has one file with the same two parts: `installed`, which finds its voices and loads none, and a `Speaker`.
"""

from collections.abc import Callable

from voicechat_platform.errors import InputError
from voicechat_serve.synthesis.voices import hibari, kokoro, piper
from voicechat_serve.synthesis.voices.hibari import HEART
from voicechat_serve.synthesis.voices.interface import ONNX_ON_GPU, SPEECH_RATE, Speaker, Voice, VoiceId

__all__ = [
    "HEART",
    "ONNX_ON_GPU",
    "SPEECH_RATE",
    "Speaker",
    "Voice",
    "VoiceId",
    "find_voice",
    "installed",
    "installed_voices",
]

# The names that OpenAI's clients send. All mean the default voice.
OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
    *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
)


def installed() -> dict[Voice, Callable[[bool], Speaker]]:
    """Return every voice with the function that loads its model, on a GPU or not. Of two with one name, the first
    wins; hibari's is first."""
    found: dict[Voice, Callable[[bool], Speaker]] = {}
    for engine in (hibari, piper, kokoro):
        for voice, load in engine.installed():
            if voice.id not in {other.id for other in found}:
                found[voice] = load
    return found


def installed_voices() -> tuple[Voice, ...]:
    return tuple(installed())


def find_voice(name: str, voices: tuple[Voice, ...]) -> Voice:
    """Return the voice of that name; OpenAI's names mean the first voice.

    Raises:
        InputError: there is no such voice.
    """
    for voice in voices:
        if name == voice.id:
            return voice
    if name in OPENAI_VOICES:
        return voices[0]
    names = ", ".join((*(voice.id for voice in voices), *OPENAI_VOICES))
    raise InputError(f"unknown voice {name[:100]!r}; there are {names}")
