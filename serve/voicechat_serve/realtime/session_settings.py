"""What a session can be told: OpenAI's fields that mean something here, checked; and the events that a client sends.

Fields of OpenAI's that have no counterpart (noise_reduction, tracing, include, …) are passed over. Three are ours:
`temperature`, a `model` that may change between turns, and `turn_detection.anticipate`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from voicechat_serve.voices import HEART

LONGEST_INSTRUCTIONS = 32_768
LONGEST_TEXT = 65_536
MOST_TOKENS = 4096
"""Of a reply: half an hour of speech."""

Name = Annotated[str, StringConstraints(max_length=256)]


class Checked(BaseModel):
    model_config = ConfigDict(strict=True)


def require_no_tools(tools: list[Any]) -> list[Any]:
    if tools:
        raise ValueError("the models here call no tools: leave them out")
    return tools


Tools = Annotated[list[Any], AfterValidator(require_no_tools)]


class Format(Checked):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class TranscriptionSettings(Checked):
    model: Name = ""
    """The server's own when empty."""
    language: Annotated[str, StringConstraints(max_length=8)] | None = None
    """ISO-639-1 code of what is spoken; detected when not given."""
    prompt: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Names and words to expect."""


@dataclass(frozen=True)
class Patience:
    """How long a silence ends a turn, in milliseconds, by the words before it."""

    finished: int
    undecided: int
    unfinished: int


EAGERNESS = {
    "low": Patience(600, 1200, 3000),
    "medium": Patience(300, 700, 1500),
    "high": Patience(300, 500, 1000),
}

FINISHED_PROBABILITY, UNFINISHED_PROBABILITY = 0.2, 0.005
"""What a sentence's end must have at least, to be finished, and at most, to be unfinished. Measured on 63 whole
utterances and 304 that break off at any word, as Whisper tiny.en hears them: 78% of the ones and 10% of the others are
taken for finished, 3% and 66% for unfinished."""


class TurnDetection(Checked):
    """When the person has finished: a silence says so, or (semantic_vad) the words and a silence that suits them."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0.05, le=0.95)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=200, le=5000)
    """Of server_vad."""
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    """Of semantic_vad; auto is medium."""
    create_response: bool = True
    interrupt_response: bool = True
    anticipate: bool = True
    """Begin to answer at the first short pause; thrown away if the person goes on."""

    @property
    def is_by_words(self) -> bool:
        return self.type == "semantic_vad"

    @property
    def patience(self) -> Patience:
        if not self.is_by_words:
            return Patience(*[self.silence_duration_ms] * 3)
        return EAGERNESS["medium" if self.eagerness == "auto" else self.eagerness]

    @property
    def longest_silence_ms(self) -> int:
        """What ends the turn in any case."""
        return self.patience.unfinished

    def silence_ms(self, end_probability: float | None) -> int:
        """The silence that ends the turn.

        Args:
            end_probability: that a sentence ends after what was said; None where nobody can tell.
        """
        if end_probability is None:
            return self.patience.undecided
        if end_probability >= FINISHED_PROBABILITY:
            return self.patience.finished
        return self.patience.unfinished if end_probability <= UNFINISHED_PROBABILITY else self.patience.undecided


class AudioInput(Checked):
    format: Format = Format()
    transcription: TranscriptionSettings | None = TranscriptionSettings()
    """None: what is said is still written down for the model, but not told to the client."""
    turn_detection: TurnDetection | None = TurnDetection()
    """None: the client commits."""


class VoiceId(Checked):
    id: Name


class AudioOutput(Checked):
    format: Format = Format()
    voice: Name | VoiceId = HEART.id
    speed: float = Field(default=1.0, ge=0.25, le=4)

    @property
    def voice_id(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id


class Audio(Checked):
    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]


class SessionSettings(Checked):
    type: Literal["realtime", "transcription"] = "realtime"
    model: Name = ""
    instructions: Annotated[str, StringConstraints(max_length=LONGEST_INSTRUCTIONS)] = ""
    output_modalities: Modalities = ["audio"]
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | Literal["inf"] = 512
    temperature: float | None = Field(default=None, ge=0, le=2)
    audio: Audio = Audio()
    tools: Tools = []

    def updated(self, patch: dict[str, Any]) -> "SessionSettings":
        """
        Raises:
            ValidationError: a field of the patch is wrong.
        """
        return SessionSettings.model_validate(merged(self.model_dump(), patch))

    def told(self) -> dict[str, Any]:
        """As the client is told them."""
        if self.type == "realtime":
            return self.model_dump(exclude={"tools"}) | {"object": "realtime.session", "tools": []}
        return {
            "type": self.type,
            "object": "realtime.transcription_session",
            "audio": {"input": self.audio.input.model_dump()},
        }


NULLABLE = ("turn_detection", "transcription", "language", "prompt", "temperature")


def merged(whole: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The patch's fields over the others; null is a value where it means something, and the default elsewhere."""
    result = dict(whole)
    for name, value in patch.items():
        if value is None and name not in NULLABLE:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


class ItemContent(Checked):
    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: Annotated[str, StringConstraints(max_length=LONGEST_TEXT)] | None = None
    transcript: Annotated[str, StringConstraints(max_length=LONGEST_TEXT)] | None = None
    audio: str | None = None


class ClientItem(Checked):
    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[ItemContent], Field(min_length=1, max_length=64)]
    id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def require_bounded_text(self) -> "ClientItem":
        if len(self.text) > LONGEST_TEXT:
            raise ValueError(f"an item has at most {LONGEST_TEXT} characters")
        return self

    @property
    def text(self) -> str:
        return "".join(part.text or part.transcript or "" for part in self.content)

    @property
    def has_sound_only(self) -> bool:
        return any(part.text is None and part.transcript is None for part in self.content)


class ResponseOutput(Checked):
    format: Format = Format()
    voice: Name | VoiceId | None = None
    speed: float | None = Field(default=None, ge=0.25, le=4)


class ResponseAudio(Checked):
    output: ResponseOutput = ResponseOutput()


class ResponseSettings(Checked):
    """What one response is to have instead of the session's."""

    instructions: Annotated[str, StringConstraints(max_length=LONGEST_INSTRUCTIONS)] | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | Literal["inf"] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    metadata: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)] | None = (
        None
    )
    conversation: Literal["auto", "none"] | None = None
    """With "none", the response does not become a part of the conversation."""
    input: Annotated[list[ClientItem], Field(max_length=1000)] | None = None
    """What to answer instead of the conversation."""
    audio: ResponseAudio | None = None
    tools: Tools | None = None


class SessionUpdate(Checked):
    session: dict[str, Any]


class Append(Checked):
    audio: str


class CreateItem(Checked):
    item: ClientItem
    previous_item_id: Name | None = None


class NamedItem(Checked):
    """For `conversation.item.retrieve` and `.delete`."""

    item_id: Name


class Truncate(Checked):
    item_id: Name
    content_index: int = 0
    audio_end_ms: int


class CreateResponse(Checked):
    response: ResponseSettings | None = None


class CancelResponse(Checked):
    response_id: Name | None = None


class Nothing(Checked):
    """An event that says all by its type."""


CLIENT_EVENTS: dict[str, type[Checked]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": Append,
    "input_audio_buffer.commit": Nothing,
    "input_audio_buffer.clear": Nothing,
    "conversation.item.create": CreateItem,
    "conversation.item.retrieve": NamedItem,
    "conversation.item.delete": NamedItem,
    "conversation.item.truncate": Truncate,
    "response.create": CreateResponse,
    "response.cancel": CancelResponse,
    "output_audio_buffer.clear": Nothing,
}
