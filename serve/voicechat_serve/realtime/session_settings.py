"""The settings of a session, checked: OpenAI's fields that have an effect here. Also the events that a client sends.

Unknown fields are refused. OpenAI's fields that are not supported here are refused too, unless their value changes
nothing. Three fields are ours: `temperature`, a `model` that may change between turns, and
`turn_detection.anticipate`.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from voicechat_serve.realtime.beta_shape import present_shape
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.synthesis.voices import HEART, VoiceId

LONGEST_INSTRUCTIONS = 32_768
LONGEST_TEXT = 65_536
MOST_TOKENS = 4096
"""The most tokens of a reply: half an hour of speech."""

Name = Annotated[str, StringConstraints(max_length=256)]


class Checked(BaseModel):
    """A model that refuses unknown fields: otherwise a misspelt field would be lost without an error. Null means the
    default, unless null is a value of the field itself."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def null_is_not_given(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or not cls.has_default(name)}

    @classmethod
    def has_default(cls, name: str) -> bool:
        """Return whether there is a field of that name, and null means its default."""
        field = cls.model_fields.get(name)
        return field is not None and not field.is_required() and type(None) not in get_args(field.annotation)


def require_neutral(*values: Any) -> AfterValidator:
    """Return the check of an unsupported field of OpenAI: it may be null, or have a value that changes nothing."""

    def check(given: Any) -> Any:
        if given is not None and given not in values:
            allowed = f" beyond {json.dumps(values[0])}" if values else ""
            raise ValueError(f"it is not supported{allowed}: leave it out")
        return given

    return AfterValidator(check)


NotSupported = Annotated[Any, require_neutral()]
NoList = Annotated[Any, require_neutral([])]
NoToolChoice = Annotated[Any, require_neutral("auto", "none")]
AutoTruncation = Annotated[Any, require_neutral("auto")]


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
    """Empty for the server's own model."""
    language: Annotated[str, StringConstraints(max_length=64)] | None = None
    """The spoken language, as in BCP 47 or ISO 639-1; the session returns Whisper's code. None: it is detected."""
    prompt: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Names and words to expect."""
    languages: NoList = Field(default=None, exclude=True)
    keywords: NoList = Field(default=None, exclude=True)
    delay: NotSupported = Field(default=None, exclude=True)


@dataclass(frozen=True)
class Patience:
    """The length of the silence that ends a turn, in milliseconds. It depends on the words before the silence."""

    finished: int
    undecided: int
    unfinished: int


EAGERNESS = {
    "low": Patience(600, 1200, 3000),
    "medium": Patience(300, 700, 1500),
    "high": Patience(300, 500, 1000),
}

FINISHED_PROBABILITY, UNFINISHED_PROBABILITY = 0.2, 0.005
"""An utterance is finished if its end probability is at least the first value, and unfinished if it is at most the
second. Measured on Whisper tiny.en's transcripts of 63 whole utterances and 304 that break off at any word: 78% of the
whole ones and 10% of the others are classified as finished, 3% and 66% as unfinished."""


class TurnDetection(Checked):
    """How the end of a turn is detected: by a silence. With semantic_vad its length depends on the words before it."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0.05, le=0.95)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=200, le=5000)
    """Only for server_vad."""
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    """Only for semantic_vad; auto is medium."""
    create_response: bool = True
    interrupt_response: bool = True
    anticipate: bool = True
    """Begin the answer at the first short pause; it is discarded if the person continues."""
    idle_timeout_ms: NotSupported = Field(default=None, exclude=True)

    def resource(self) -> dict[str, Any]:
        """Return the fields that the type of detection has."""
        return self.model_dump(exclude={"silence_duration_ms" if self.is_by_words else "eagerness"})

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
        """The silence that ends the turn in any case."""
        return self.patience.unfinished

    def silence_ms(self, end_probability: float | None) -> int:
        """Return the silence that ends the turn.

        Args:
            end_probability: the probability that the turn ends after its words; None if it is not known.
        """
        if end_probability is None:
            return self.patience.undecided
        if end_probability >= FINISHED_PROBABILITY:
            return self.patience.finished
        return self.patience.unfinished if end_probability <= UNFINISHED_PROBABILITY else self.patience.undecided


class AudioInput(Checked):
    format: Format = Format()
    transcription: TranscriptionSettings | None = TranscriptionSettings()
    """None: speech is still transcribed for the model, but the client receives no transcript."""
    turn_detection: TurnDetection | None = TurnDetection()
    """None: the client commits the input audio buffer."""
    noise_reduction: NotSupported = Field(default=None, exclude=True)


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
    tool_choice: NoToolChoice = Field(default=None, exclude=True)
    parallel_tool_calls: bool | None = Field(default=None, exclude=True)
    include: NoList = Field(default=None, exclude=True)
    prompt: NotSupported = Field(default=None, exclude=True)
    reasoning: NotSupported = Field(default=None, exclude=True)
    truncation: AutoTruncation = Field(default=None, exclude=True)
    tracing: str | dict[str, Any] | None = Field(default=None, exclude=True)
    """Accepted without an effect, because the Agents SDK always sends it."""
    id: Name | None = Field(default=None, exclude=True)
    object: Name | None = Field(default=None, exclude=True)
    expires_at: int | None = Field(default=None, exclude=True)
    """A client that returns the session as it received it sends these three too."""

    def updated(self, patch: dict[str, Any]) -> "SessionSettings":
        """Return the settings with the changes of a patch.

        Args:
            patch: the changes as the client sent them, in the present shape or the beta's.

        Raises:
            ValidationError: a field of the patch is wrong.
            EventError: a field has no effect in this session.
        """
        patch = present_shape(patch, "session.")
        settings = SessionSettings.model_validate(merged(self.model_dump(), patch))
        settings.require_effect(patch)
        return settings

    def require_effect(self, patch: dict[str, Any]) -> None:
        """Require that each field of a patch has an effect.

        Raises:
            EventError: a field has no effect in a session of this type, or with this turn detection.
        """
        if self.type == "transcription":
            of_responses = [name for name in patch if name not in TRANSCRIPTION_FIELDS and patch[name] is not None]
            if "output" in (patch.get("audio") or {}):
                of_responses.append("audio.output")
            if of_responses:
                message = f"session.{of_responses[0]}: a transcription session gives no responses"
                raise EventError("invalid_value", message, f"session.{of_responses[0]}")
        detection = self.audio.input.turn_detection
        given = ((patch.get("audio") or {}).get("input") or {}).get("turn_detection") or {}
        if detection is not None:
            foreign = "silence_duration_ms" if detection.is_by_words else "eagerness"
            if given.get(foreign) is not None:
                param = f"session.audio.input.turn_detection.{foreign}"
                raise EventError("invalid_value", f"{param}: {detection.type} has no such field", param)

    def resource(self) -> dict[str, Any]:
        """Return the settings as the fields of OpenAI's resource."""
        fields = self.model_dump() | {"object": "realtime.session"}
        if detection := self.audio.input.turn_detection:
            fields["audio"]["input"]["turn_detection"] = detection.resource()
        if self.type == "realtime":
            return fields | {
                "tool_choice": "auto",
                "tracing": None,
                "include": None,
                "prompt": None,
                "truncation": "auto",
            }
        return {
            "type": self.type,
            "object": "realtime.transcription_session",
            "audio": {"input": fields["audio"]["input"]},
        }


TRANSCRIPTION_FIELDS = ("type", "audio", "include", "id", "object", "expires_at")


def merged(whole: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of both; those of the patch replace the others."""
    result = dict(whole)
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
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
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    """A client that returns an item as it received it sends these two too."""
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
    """The settings of one response, which replace the session's."""

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
    """The messages to answer instead of the conversation."""
    audio: ResponseAudio | None = None
    tools: Tools | None = None
    tool_choice: NoToolChoice = None
    parallel_tool_calls: bool | None = None
    prompt: NotSupported = None
    reasoning: NotSupported = None

    @model_validator(mode="before")
    @classmethod
    def in_the_present_shape(cls, given: Any) -> Any:
        return present_shape(given, "response.") if isinstance(given, dict) else given


class ClientEvent(Checked):
    type: str
    event_id: Annotated[str, StringConstraints(max_length=512)] | None = None


class SessionUpdate(ClientEvent):
    session: dict[str, Any]


class Append(ClientEvent):
    audio: str


class CreateItem(ClientEvent):
    item: ClientItem
    previous_item_id: Name | None = None


class NamedItem(ClientEvent):
    """The event `conversation.item.retrieve` or `.delete`."""

    item_id: Name


class Truncate(ClientEvent):
    item_id: Name
    content_index: int = 0
    audio_end_ms: int


class CreateResponse(ClientEvent):
    response: ResponseSettings | None = None


class CancelResponse(ClientEvent):
    response_id: Name | None = None


class Nothing(ClientEvent):
    """An event that has no fields but its type and id."""


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
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

KNOWN_FIELDS = sorted(
    {name for model in (*CLIENT_EVENTS.values(), *Checked.__subclasses__()) for name in model.model_fields}
)
"""The fields of all events and settings: an error about an unknown field names the most similar one."""
