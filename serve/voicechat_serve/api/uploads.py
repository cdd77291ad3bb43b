"""Sound that clients upload, decoded a few files at a time and held only up to a limit."""

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
    """Beside those of each file (audio.DecodingLimits)."""

    simultaneous: int = 2
    """Files that are decoded at the same time. One takes less than 200 MB while it is: the file and half an hour
    of sound."""
    waiting: int = 32
    """Files that may wait to be decoded; they wait on disk, where the form's parser puts what is larger than 1 MB."""
    held_seconds: float = 2 * 60 * 60
    """Of decoded sound in all, until it is transcribed: 460 MB."""


class Uploads:
    """One for a process: what it counts is the process's memory."""

    def __init__(self, limits: UploadLimits = UploadLimits()):
        self.limits = limits
        # Its threads are the limit: a decoding whose client leaves goes on to its end, and keeps its place until then.
        self.decoders = ThreadPoolExecutor(limits.simultaneous, thread_name_prefix="decoding")
        self.pending = 0
        self.held_samples = 0

    @contextlib.asynccontextmanager
    async def sound(self, file: UploadFile) -> AsyncIterator[Samples]:
        """The sound of a file, at 16 kHz; it counts as held until the block ends.

        Raises:
            APIError: 400, the file holds no sound or more than is allowed; 503, too many others are at it.
        """
        if self.pending >= self.limits.simultaneous + self.limits.waiting:
            raise busy()
        self.pending += 1
        decoding = self.decoders.submit(lambda: decode(file.file.read()))
        loop = asyncio.get_running_loop()
        # Not where the await ends, which for a client that leaves is before the thread does.
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
