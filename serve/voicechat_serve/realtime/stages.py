"""The interface between a session and the models; api/realtime.py implements it with the deployments."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from voicechat_serve.application_file import ToolServer
from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import Message, ToolUse
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.transcription.transcriber import Transcript


class Stages(Protocol):
    transcription_model: str
    tool_servers: dict[str, ToolServer]
    """The operator's servers of tools by their labels."""

    async def hear(
        self, samples_n: Samples, language: str | None, prompt: str | None, only_if_idle: bool
    ) -> Transcript | None:
        """Transcribe a sound of up to 30 s. Return None with `only_if_idle` if Whisper is busy."""

    async def glimpse(self, samples_n: Samples, language: str | None, prompt: str | None) -> Transcript:
        """Transcribe a sound of a few seconds as soon as possible; the words may be wrong."""

    async def end_by_words(self, words: str) -> float | None:
        """Return the probability, 0 to 1, that a sentence ends after these words; None without a classifier."""

    async def end_by_sound(self, samples_n: Samples) -> float | None:
        """Return the probability, 0 to 1, that the turn is over after this sound; None without a classifier."""

    def write(
        self, model: str, messages: list[Message], sampling: dict[str, Any], tools: ToolUse
    ) -> AsyncGenerator[Delta, None]:
        """Generate the model's next message, piece by piece."""

    def speak(self, sentence: str, speed: float, voice: str) -> AsyncGenerator[Samples, None]:
        """Synthesize a sentence, chunk by chunk."""

    def require_model(self, name: str) -> None:
        """Require a language model of that name. Raises APIError if there is none."""

    def require_transcription(self, name: str) -> None:
        """Require a transcription model of that name. Raises APIError if there is none."""

    def language_code(self, tag: str) -> str:
        """Return the transcription model's code for a language. Raises APIError if it does not know the language."""

    def require_schema(self, schema: Any, param: str, is_strict: bool) -> None:
        """Require that a tool's arguments can be kept to a schema. Raises APIError for `param` if not."""

    def voice(self, name: str, language: str | None) -> str | None:
        """Return the id of the voice of that name, or of another that speaks the language; None if no voice speaks it.

        Raises APIError if there is no voice of that name.
        """

    def language_of(self, voice: str) -> str:
        """Return the ISO-639-1 code of the voice's language, for an id from `voice`."""

    def explain(self, error: Exception) -> dict[str, Any]:
        """Return {"type", "code", "message", "param"} for any error."""
