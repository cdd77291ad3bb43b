"""Uploaded audio: a few files are decoded at a time, and the decoded audio in memory is limited."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import UploadFile

from voicechat_serve.api.errors import APIError
from voicechat_serve.audio import HEARING_RATE, AudioError, Samples, decode


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Limits in addition to those of each file (audio.DecodingLimits)."""

    simultaneous: int = 2
    """Files that are decoded at the same time. Each takes less than 200 MB during that: the file and half an hour of
    audio."""
    waiting: int = 32
    """Files that may wait; they wait on disk, where the form's parser puts files larger than 1 MB."""
    held_seconds: float = 2 * 60 * 60
    """Decoded audio in total before its transcription: 460 MB."""


class Uploads:
    """The uploads of one process, because the limits are for the process's memory."""

    def __init__(self, limits: UploadLimits = UploadLimits()):
        self.limits = limits
        # Its threads are the limit: after a disconnect, a decoding continues to its end and keeps its place until then.
        self.decoders = ThreadPoolExecutor(limits.simultaneous, thread_name_prefix="decoding")
        self.pending = 0
        self.held_samples = 0

    @contextlib.asynccontextmanager
    async def sound(self, file: UploadFile) -> AsyncIterator[Samples]:
        """Yield the audio of a file at 16 kHz; it counts towards the limit until the block ends.

        Raises:
            APIError: 400, the file holds no audio or more than is allowed; 503, too many other uploads.
        """
        if self.pending >= self.limits.simultaneous + self.limits.waiting:
            raise busy()
        self.pending += 1
        decoding = self.decoders.submit(lambda: decode(file.file.read()))
        loop = asyncio.get_running_loop()
        # Not at the end of the await: after a disconnect the thread runs on.
        decoding.add_done_callback(lambda _: loop.call_soon_threadsafe(self.decoded))
        try:
            samples_n = await asyncio.wrap_future(decoding)
        except AudioError as error:
            raise APIError(400, str(error), param="file", code="invalid_audio") from error
        if self.held_samples + len(samples_n) > self.limits.held_seconds * HEARING_RATE:
            raise busy()
        self.held_samples += len(samples_n)
        try:
            yield samples_n
        finally:
            self.held_samples -= len(samples_n)

    def decoded(self) -> None:
        self.pending -= 1


def busy() -> APIError:
    return APIError(503, "too many sounds are being transcribed; try again in a moment", code="overloaded")
