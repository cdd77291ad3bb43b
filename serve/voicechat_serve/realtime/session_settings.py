"""The settings of a session, checked: OpenAI's fields that have an effect here. Also the events that a client sends.

Unknown fields are refused. OpenAI's fields that are not supported here are refused too, unless their value changes
nothing. Four fields are ours: `temperature`, a `model` that may change between turns, `turn_detection.anticipate` and
`turn_detection.interruption`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from voicechat_serve.realtime.beta_shape import present_shape
from voicechat_serve.realtime.checked import AutoTruncation, Checked, Name, NoList, NotSupported
from voicechat_serve.realtime.client_items import AnyClientItem
from voicechat_serve.realtime.noise_reduction import NoiseReductionSettings
from voicechat_serve.realtime.sound_formats import Format
from voicechat_serve.realtime.tool_settings import Functions, ToolChoice, Tools
from voicechat_serve.realtime.turn_end import EAGERNESS, Patience
from voicechat_serve.synthesis.voices import HEART, VoiceId

LONGEST_INSTRUCTIONS = 32_768
MOST_TOKENS = 4096
"""The most tokens of a reply: half an hour of speech."""


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


class TurnDetection(Checked):
    """How the end of a turn is detected: by a silence. With semantic_vad its length depends on the sound and the words
    before it."""

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
    interruption: Literal["immediate", "adaptive"] = "immediate"
    """With adaptive, speech pauses the reply first, and ends it only if it is neither agreement nor echo nor noise."""
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
            return Patience(self.silence_duration_ms, self.silence_duration_ms, self.silence_duration_ms, odds=1)
        return EAGERNESS["medium" if self.eagerness == "auto" else self.eagerness]

    @property
    def longest_silence_ms(self) -> int:
        """The silence that ends the turn in any case."""
        return self.patience.most_ms


class AudioInput(Checked):
    format: Format = Format()
    transcription: TranscriptionSettings | None = TranscriptionSettings()
    """None: speech is still transcribed for the model, but the client receives no transcript."""
    turn_detection: TurnDetection | None = TurnDetection()
    """None: the client commits the input audio buffer."""
    noise_reduction: NoiseReductionSettings | None = None


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
    output_modalities: Modalities = Field(default=["audio"])
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | Literal["inf"] = 512
    temperature: float | None = Field(default=None, ge=0, le=2)
    audio: Audio = Audio()
    tools: Tools = Field(default=[])
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
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
            patch: the changes, in the present shape.

        Raises:
            ValidationError: a field of the patch is wrong.
        """
        whole = {name: patch[name] for name in ("tool_choice",) if name in patch}
        return SessionSettings.model_validate(merged(self.model_dump(), patch) | whole)

    def without_effect(self, patch: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the fields of a patch that have no effect in a session of this type, or with this turn detection, each
        as (its path, the reason)."""
        if self.type == "transcription":
            for name, value in patch.items():
                if name not in TRANSCRIPTION_FIELDS and value is not None:
                    yield (name,), "a transcription session gives no responses"
            if "output" in (patch.get("audio") or {}):
                yield ("audio", "output"), "a transcription session gives no responses"
        detection = self.audio.input.turn_detection
        given = ((patch.get("audio") or {}).get("input") or {}).get("turn_detection") or {}
        if detection is not None:
            foreign = "silence_duration_ms" if detection.is_by_words else "eagerness"
            if given.get(foreign) is not None:
                yield ("audio", "input", "turn_detection", foreign), f"{detection.type} has no such field"
            if detection.interruption == "adaptive":
                given_name = "interruption" if given.get("interruption") else "interrupt_response"
                path = ("audio", "input", "turn_detection", given_name)
                if self.type == "transcription":
                    yield path, "a transcription session has no reply that speech can interrupt"
                elif not detection.interrupt_response:
                    yield path, "interruption 'adaptive' has no effect without interrupt_response"

    def resource(self) -> dict[str, Any]:
        """Return the settings as the fields of OpenAI's resource."""
        fields = self.model_dump() | {"object": "realtime.session"}
        if detection := self.audio.input.turn_detection:
            fields["audio"]["input"]["turn_detection"] = detection.resource()
        if self.type == "realtime":
            return fields | {"tracing": None, "include": None, "prompt": None, "truncation": "auto"}
        return {
            "type": self.type,
            "object": "realtime.transcription_session",
            "audio": {"input": fields["audio"]["input"]},
        }


TRANSCRIPTION_FIELDS = ("type", "audio", "include", "id", "object", "expires_at")


def merged(whole: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of both; those of the patch replace the others. A format is replaced as a whole."""
    result = dict(whole)
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict) and name != "format":
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


class ResponseOutput(Checked):
    format: Format | None = None
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
    input: Annotated[list[AnyClientItem], Field(max_length=1000)] | None = None
    """The items to answer instead of the conversation."""
    audio: ResponseAudio | None = None
    tools: Functions | None = None
    """They replace all tools of the session, also those that this service calls."""
    tool_choice: ToolChoice = None
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
    item: AnyClientItem
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


def models_of(base: type[Checked]) -> Iterator[type[Checked]]:
    for model in base.__subclasses__():
        yield model
        yield from models_of(model)


KNOWN_FIELDS = sorted({name for model in models_of(Checked) for name in model.model_fields})
"""The fields of all events and settings: an error about an unknown field names the most similar one."""
