"""The models behind a session, as it asks them; api/realtime.py puts the deployments there."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from voicechat_serve.audio import Samples
from voicechat_serve.generation.chat_tokenizer import Message
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.transcription.transcriber import Transcript


class Stages(Protocol):
    transcription_model: str

    async def hear(
        self, samples_n: Samples, language: str | None, prompt: str | None, only_if_idle: bool
    ) -> Transcript | None:
        """A sound of up to 30 s written down; None where Whisper is busy and was only wanted if idle."""

    async def end_probability(self, words: str) -> float | None:
        """That what is said ends after these words, 0 to 1; None where nobody judges."""

    def write(self, model: str, messages: list[Message], sampling: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """The model's next message."""

    def speak(self, sentence: str, speed: float, voice: str) -> AsyncGenerator[Samples, None]:
        """A sentence's sound."""

    def require_model(self, name: str) -> None:
        """Raises APIError where there is none of that name."""

    def require_transcription(self, name: str) -> None:
        """Raises APIError where there is none of that name."""

    def language_code(self, tag: str) -> str:
        """The transcription model's code for a language. Raises APIError where it does not know it."""

    def voice(self, name: str, language: str | None) -> str | None:
        """The voice of that name, or another that speaks the language; None where none does. Raises APIError."""

    def language_of(self, voice: str) -> str:
        """ISO-639-1 code of what the voice speaks, by an id that `voice` gave."""

    def explain(self, error: Exception) -> dict[str, Any]:
        """{"type", "code", "message", "param"} of any error."""
