"""Audio input and output: any file to 16 kHz mono within limits, and samples to any of OpenAI's speech formats.

Letters: n samples, c channels.
"""

import ctypes
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from numpy.typing import NDArray

from voicechat_platform.errors import InputError

Samples = NDArray[np.float32]
"""(n,) mono, between -1 and 1."""

HEARING_RATE = 16_000
"""The sample rate of transcription, in Hz."""


def is_sound_decoder(name: str) -> bool:
    try:
        return Codec(name, "r").type == "audio"
    except UnknownCodecError:  # this codec only encodes
        return False


CONTAINERS = "wav,mp3,ogg,flac,aac,mov,matroska,webm,aiff,au,caf,amr,w64,asf"
"""Audio formats. FFmpeg also reads playlists and session descriptions, which open other files and sockets."""

DECODERS = ",".join(name for name in sorted(av.codecs_available) if is_sound_decoder(name))
"""FFmpeg would also decode pictures of any size, only to describe the file."""

STREAMS = 8
LARGEST_ALLOCATION = 32 * 2**20
"""The most bytes that FFmpeg may allocate at once: more than any upload has, so enough for its real content. Without
this limit, an MP4 file of one kilobyte that claims 60 million samples takes 2 GB for their index. Each stream can make
such a claim, so the number of streams has a limit, too."""

# PyAV does not offer this setting. The linker finds a symbol of FFmpeg through any module of PyAV.
ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(LARGEST_ALLOCATION))

LOWEST_RATE = 1_000
"""The resampler would turn one frame with a lower (forged) rate into gigabytes."""

HIGHEST_RATE = 768_000
"""No recorder uses a higher rate, and the resampler's filter grows with the rate."""


OPENING = {
    "format_whitelist": CONTAINERS,
    "codec_whitelist": DECODERS,
    "protocol_whitelist": "none",
    "max_streams": str(STREAMS),
}


class AudioError(InputError):
    """The upload cannot be decoded, or is larger than allowed."""


@dataclass(frozen=True, kw_only=True)
class DecodingLimits:
    """Limits during decoding: a small file can hold many hours, and its header may be wrong."""

    upload_bytes: int = 25 * 1024 * 1024
    """OpenAI's own limit."""
    seconds: float = 30 * 60
    """Of decoded audio, after resampling."""
    samples: int = 400_000_000
    """Of decoded audio before resampling, over all channels; a forged sample rate would make endless work."""


def decode(upload: bytes, limits: DecodingLimits = DecodingLimits()) -> Samples:
    """Decode a file of any container and codec that FFmpeg reads, to 16 kHz.

    Raises:
        AudioError: the file is empty, no audio, corrupt, or beyond the limits.
    """
    if not upload:
        raise AudioError("the audio file is empty")
    if len(upload) > limits.upload_bytes:
        raise AudioError(f"the audio file has more than {limits.upload_bytes // 2**20} MB")
    try:
        with av.open(io.BytesIO(upload), metadata_errors="ignore", options=OPENING) as container:
            if not container.streams.audio:
                raise AudioError("the file holds no audio")
            sound = bytearray()  # grows in place: a list of parts would need twice the memory when joined
            for part_n in decoded_parts(container, limits):
                sound += part_n.tobytes()
    except (av.FFmpegError, ValueError, EOFError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"the audio file cannot be decoded: {getattr(error, 'strerror', error)}") from error
    samples_n = np.frombuffer(sound, np.float32)
    if not len(samples_n):
        raise AudioError("the audio file holds no sound at all")
    return samples_n


def decoded_parts(container, limits: DecodingLimits) -> Iterator[Samples]:
    resampler = AudioResampler(format="fltp", layout="mono", rate=HEARING_RATE)
    read = given = 0
    for frame in container.decode(audio=0):
        if not LOWEST_RATE <= frame.sample_rate <= HIGHEST_RATE:
            raise AudioError(
                f"the audio file claims {frame.sample_rate} samples per second; audio has {LOWEST_RATE} to "
                f"{HIGHEST_RATE}"
            )
        read += frame.samples * frame.layout.nb_channels
        if read > limits.samples:
            raise AudioError("the audio file decodes to more samples than allowed")
        for resampled in resampler.resample(frame):
            given += resampled.samples
            if given > limits.seconds * HEARING_RATE:
                raise AudioError(f"the audio is longer than {limits.seconds / 60:g} minutes")
            yield resampled.to_ndarray()[0]
    for resampled in resampler.resample(None):
        yield resampled.to_ndarray()[0]


@dataclass(frozen=True)
class SpeechFormat:
    media_type: str
    container: str
    codec: str
    rate: int | None = None
    """Set if the codec does not support all rates."""
    bit_rate: int | None = None


SPEECH_FORMATS = {
    "mp3": SpeechFormat("audio/mpeg", "mp3", "libmp3lame", bit_rate=96_000),
    "opus": SpeechFormat("audio/ogg", "ogg", "libopus", rate=48_000, bit_rate=48_000),
    "aac": SpeechFormat("audio/aac", "adts", "aac", bit_rate=96_000),
    "flac": SpeechFormat("audio/flac", "flac", "flac"),
    "wav": SpeechFormat("audio/wav", "wav", "pcm_s16le"),
    "pcm": SpeechFormat("audio/pcm", "s16le", "pcm_s16le"),
}


class Sink(io.RawIOBase):
    """The output of the muxer: a pipe without seeking, emptied after every chunk."""

    def __init__(self):
        self.pending = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.pending += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self.pending)
        self.pending.clear()
        return taken


class SpeechEncoder:
    """An encoder for speech that arrives in chunks.

    Args:
        name: one of `SPEECH_FORMATS`; "pcm" is raw 16-bit little-endian at the given rate, as in OpenAI's API.
        rate: sample rate of the input of `encode`, in Hz.
    """

    def __init__(self, name: str, rate: int):
        self.format = SPEECH_FORMATS[name]
        self.rate = rate
        self.sink = Sink()
        # Metadata would contain the encoder's version. A WAV header cannot know the length of future speech.
        self.container = av.open(self.sink, "w", format=self.format.container, options={"fflags": "+bitexact"})
        stream = self.container.add_stream(self.format.codec, rate=self.format.rate or rate, layout="mono")
        if self.format.bit_rate:
            stream.bit_rate = self.format.bit_rate
        self.stream = stream
        self.written = 0

    def encode(self, samples_n: Samples) -> bytes:
        """Return the bytes that are ready after this chunk; the codec may hold a frame back."""
        pcm_1n = (np.clip(samples_n, -1, 1) * 32767).astype(np.int16)[None]
        # One second at a time: for minutes at once the resampler needs more than LARGEST_ALLOCATION.
        for start in range(0, len(samples_n), self.rate):
            part_1n = pcm_1n[:, start : start + self.rate]
            frame = av.AudioFrame.from_ndarray(part_1n, format="s16", layout="mono")
            frame.sample_rate = self.rate
            frame.pts = self.written
            self.written += part_1n.shape[1]
            self.container.mux(self.stream.encode(frame))
        return self.sink.take()

    def finish(self) -> bytes:
        """Return the rest of the file."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.sink.take()


def encode(chunks: Iterable[Samples], name: str, rate: int) -> Iterator[bytes]:
    """Encode speech, chunk by chunk, as the bytes of one file."""
    encoder = SpeechEncoder(name, rate)
    for samples_n in chunks:
        yield encoder.encode(samples_n)
    yield encoder.finish()
