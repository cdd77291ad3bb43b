"""How many uploads are decoded and held at once, and that each gives its place back however it ends."""

import asyncio
import io
import threading

import numpy as np
import pytest
from fastapi import UploadFile

from voicechat_serve.api import uploads as uploads_module
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.uploads import UploadLimits, Uploads
from voicechat_serve.audio import HEARING_RATE, AudioError


class Decoder:
    """In place of `decode`: a second of sound for each byte, once it may."""

    def __init__(self):
        self.may = threading.Event()
        self.running = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, upload: bytes) -> np.ndarray:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.may.wait()
        with self.lock:
            self.running -= 1
        if not upload:
            raise AudioError("the audio file is empty")
        return np.zeros(len(upload) * HEARING_RATE, np.float32)


@pytest.fixture
def decoder(monkeypatch):
    decoder = Decoder()
    monkeypatch.setattr(uploads_module, "decode", decoder)
    yield decoder
    decoder.may.set()  # the threads end


async def seconds(uploads: Uploads, upload: bytes) -> float:
    async with uploads.sound(UploadFile(io.BytesIO(upload))) as samples_n:
        return len(samples_n) / HEARING_RATE


async def test_few_at_once_some_wait_and_more_are_refused(decoder):
    uploads = Uploads(UploadLimits(simultaneous=2, waiting=3))
    tasks = [asyncio.create_task(seconds(uploads, b"1")) for _ in range(9)]
    refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in refused:
        error = task.exception()
        assert isinstance(error, APIError)
        assert (error.status_code, error.code, error.kind) == (503, "overloaded", "server_error")
        assert error.headers["Retry-After"]
    decoder.may.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, float) for end in ended] == [True] * 5 + [False] * 4
    assert decoder.most == 2
    assert await seconds(uploads, b"12") == 2


async def test_those_who_leave_keep_their_place_until_the_decoder_is_free(decoder):
    uploads = Uploads(UploadLimits(simultaneous=1, waiting=1))
    running, waiting = (asyncio.create_task(seconds(uploads, b"1")) for _ in range(2))
    await asyncio.sleep(0)
    while not decoder.running:
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.sleep(0)
    assert uploads.pending == 1  # the one that waited had not begun
    running.cancel()
    await asyncio.wait([running])
    assert uploads.pending == 1  # its thread cannot be stopped, so it still counts
    decoder.may.set()
    assert await seconds(uploads, b"123") == 3
    await asyncio.sleep(0)
    assert (uploads.pending, uploads.held_samples, decoder.most) == (0, 0, 1)


async def test_sound_is_held_up_to_a_limit(decoder):
    decoder.may.set()
    uploads = Uploads(UploadLimits(held_seconds=10))
    async with uploads.sound(UploadFile(io.BytesIO(bytes(6)))):
        with pytest.raises(APIError) as refused:
            await seconds(uploads, bytes(5))
        assert refused.value.status_code == 503
        assert await seconds(uploads, bytes(4)) == 4
        with pytest.raises(APIError) as invalid:
            await seconds(uploads, b"")
        assert (invalid.value.status_code, invalid.value.param) == (400, "file")
    assert await seconds(uploads, bytes(10)) == 10
    assert (uploads.pending, uploads.held_samples) == (0, 0)
