"""A transcript in each of OpenAI's formats."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from transformers.models.whisper.tokenization_whisper import LANGUAGES

from voicechat_serve.transcription.transcriber import Segment, Transcript

TranscriptFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["segment", "word"]

ENCODER_RATE = 50
"""States of Whisper's encoder per second of audio, reported as its audio tokens."""


def as_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def as_srt(transcript: Transcript) -> str:
    cues = (f"{segment.id + 1}\n{times(segment, ',')}\n{cue_text(segment)}\n\n" for segment in transcript.segments)
    return "".join(cues)


def as_vtt(transcript: Transcript) -> str:
    cues = (f"{times(segment, '.')}\n{escaped(cue_text(segment))}\n\n" for segment in transcript.segments)
    return "WEBVTT\n\n" + "".join(cues)


PLAIN_FORMATS: dict[str, Callable[[Transcript], str]] = {"text": as_text, "srt": as_srt, "vtt": as_vtt}
"""Formats that are not JSON; OpenAI sends all of them as plain text."""


def times(segment: Segment, point: str) -> str:
    return f"{clock(segment.start, point)} --> {clock(segment.end, point)}"


def clock(seconds: float, point: str) -> str:
    """Return hours, minutes, seconds and, after the point, milliseconds."""
    milliseconds = round(seconds * 1000)
    hours, minutes = milliseconds // 3_600_000, milliseconds // 60_000 % 60
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000 % 60:02}{point}{milliseconds % 1000:03}"


def cue_text(segment: Segment) -> str:
    """Remove arrows and empty lines, which would end the cue."""
    return " ".join(segment.text.split()).replace("-->", "->")


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_verbose_json(transcript: Transcript, granularities: Iterable[Granularity]) -> dict[str, Any]:
    """Return the JSON of a transcription; that of a translation differs in `task` and `language`, and has no usage."""
    verbose: dict[str, Any] = {
        "task": "transcribe",
        "language": LANGUAGES.get(transcript.language, transcript.language),
        "duration": transcript.seconds,
        "text": transcript.text,
    }
    if "segment" in granularities:
        verbose["segments"] = [segment_json(segment) for segment in transcript.segments]
    if "word" in granularities:
        words = (word for segment in transcript.segments for word in segment.words)
        verbose["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in words]
    return verbose | {"usage": duration_usage(transcript)}


def segment_json(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def duration_usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": transcript.seconds}


def token_usage(transcript: Transcript) -> dict[str, Any]:
    """Return the usage of a stream, for which OpenAI counts tokens. It omits the prompt, whose tokens only Whisper
    knows."""
    audio = round(transcript.seconds * ENCODER_RATE)
    written = sum(len(segment.tokens) for segment in transcript.segments)
    return {
        "type": "tokens",
        "input_tokens": audio,
        "input_token_details": {"audio_tokens": audio, "text_tokens": 0},
        "output_tokens": written,
        "total_tokens": audio + written,
    }
