"""This machine's microphone and loudspeaker, through the library `sounddevice` (the extra `talk`)."""

import asyncio
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from voicechat_platform.errors import InputError

if TYPE_CHECKING:
    from voicechat_ui.talk.echo import EchoCanceller

RATE = 24_000
"""Samples per second in the realtime protocol."""

PIECE_SAMPLES = RATE // 25
BYTES_PER_SAMPLE = 2

PIECES_KEPT = 250
"""Ten seconds of the microphone's sound, for a server that does not accept them immediately."""


def sound_library() -> ModuleType:
    """Return the package sounddevice.

    Raises:
        InputError: it is not installed, or the system has no PortAudio.
    """
    try:
        import sounddevice
    except ImportError:
        raise InputError(
            "this machine's microphone and loudspeaker need the package sounddevice: pip install "
            "'llm-voice-chat[talk]'. A sound file (voicechat talk question.wav) works without it"
        ) from None
    except OSError as error:
        raise InputError(
            f"sounddevice cannot work here ({error}): install PortAudio, on Debian with apt-get install "
            f"libportaudio2. A sound file (voicechat talk question.wav) works without it"
        ) from None
    return sounddevice


class Microphone:
    """A source of 24 kHz signed 16-bit mono samples in pieces of 40 ms, from `start` on.

    Args:
        canceller: removes the loudspeaker's sound; None to keep it.

    Raises:
        InputError: there is no microphone, or it cannot be opened.
    """

    def __init__(self, canceller: "EchoCanceller | None" = None) -> None:
        library = sound_library()
        self._canceller = canceller
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue(PIECES_KEPT)
        self._loop = asyncio.get_running_loop()
        try:
            self._stream = library.RawInputStream(
                samplerate=RATE, channels=1, dtype="int16", blocksize=PIECE_SAMPLES, callback=self._take
            )
        except library.PortAudioError as error:
            raise InputError(f"no microphone can be opened ({error}): give a WAV file, or type with --text") from None

    def _take(self, samples: Any, *about: Any) -> None:
        """Keep the samples. A thread of PortAudio calls this."""
        piece = self._canceller.clean(bytes(samples)) if self._canceller else bytes(samples)
        self._loop.call_soon_threadsafe(self._keep, piece)

    def _keep(self, piece: bytes) -> None:
        if not self.pieces.full():  # drop the piece if the server has not accepted sound for ten seconds
            self.pieces.put_nowait(piece)

    def start(self) -> None:
        self._stream.start()

    def close(self) -> None:
        self._stream.close()


class Loudspeaker:
    """Plays 24 kHz signed 16-bit mono samples as they arrive, without gaps between them.

    Args:
        canceller: is given what is played; None if nothing is recorded.

    Raises:
        InputError: there is no loudspeaker, or it cannot be opened.
    """

    def __init__(self, canceller: "EchoCanceller | None" = None) -> None:
        library = sound_library()
        self._canceller = canceller
        self._waiting = bytearray()
        self._is_paused = False
        self._lock = threading.Lock()
        self.num_played = 0
        """The total number of bytes that the device has played."""
        try:
            self._stream = library.RawOutputStream(samplerate=RATE, channels=1, dtype="int16", callback=self._give)
        except library.PortAudioError as error:
            raise InputError(f"no loudspeaker can be opened ({error}): write the sound to a file with --out") from None
        self._stream.start()

    def _give(self, out: Any, frames: int, *about: Any) -> None:
        """Fill `out` with this number of samples. A thread of PortAudio calls this."""
        with self._lock:
            sound = b"" if self._is_paused else bytes(self._waiting[: frames * BYTES_PER_SAMPLE])
            del self._waiting[: len(sound)]
            self.num_played += len(sound)
        out[:] = sound.ljust(frames * BYTES_PER_SAMPLE, b"\0")
        if self._canceller:
            self._canceller.played(bytes(out))

    @property
    def is_playing(self) -> bool:
        return bool(self._waiting)

    def write(self, pcm: bytes) -> None:
        with self._lock:
            self._waiting += pcm

    def pause(self) -> None:
        """Stand still until `resume` or `drop`."""
        self._is_paused = True

    def resume(self) -> None:
        """Go on at the same place."""
        self._is_paused = False

    def drop(self) -> None:
        """Stop playing immediately."""
        with self._lock:
            self._waiting.clear()
        self._is_paused = False

    def close(self) -> None:
        self._stream.close()
