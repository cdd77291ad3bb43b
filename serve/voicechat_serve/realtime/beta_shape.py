"""Convert settings in the shape of the protocol's beta into the present shape.

Many clients still send the beta's flat fields (`modalities`, `turn_detection`, `input_audio_format`, …). Each of them
has exactly one place in the present shape. A client that gives a field in both shapes gets an error, because one of the
two values would be lost.
"""

from typing import Any

from voicechat_serve.realtime.errors import EventError

PLACES = {
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "output_audio_format": ("audio", "output", "format"),
    "input_audio_format": ("audio", "input", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
}
"""The beta's field -> its path in the present shape."""

FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
"""The beta's names of formats, and their types."""


def present_shape(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the same settings, with every field of the beta in its present place.

    Args:
        given: the settings of a session or a response, as the client sent them.
        prefix: their path in the event, such as "session.".

    Raises:
        EventError: a field is given in both shapes.
    """
    result = {name: value for name, value in given.items() if name not in PLACES}
    for name in given.keys() & PLACES.keys():
        *path, last = PLACES[name]
        inner = result
        for step in path:
            deeper = inner.get(step)
            inner[step] = dict(deeper) if isinstance(deeper, dict) else {}
            inner = inner[step]
        if last in inner:
            message = f"{prefix}{name} is the beta's name of {prefix}{'.'.join(PLACES[name])}: give one of the two"
            raise EventError("invalid_value", message, f"{prefix}{name}")
        inner[last] = present_value(name, given[name])
    return result


def present_value(name: str, value: Any) -> Any:
    if name.endswith("_format") and isinstance(value, str):
        return {"type": FORMATS.get(value, value)}
    if name == "modalities" and isinstance(value, list):
        return ["audio"] if "audio" in value and set(value) <= {"audio", "text"} else value
    return value
