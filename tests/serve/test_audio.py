"""Every speech format survives a round trip through our own decoder; hostile files end in an error, not in memory."""

import contextlib
import io
import shutil
import wave

import numpy as np
import pytest

from voicechat_serve.audio import (
    HEARING_RATE,
    SPEECH_FORMATS,
    AudioError,
    DecodingLimits,
    SpeechEncoder,
    decode,
    encode,
)

RATE = 24_000


def tone(seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def chunks(samples_n, size=7_001):
    return [samples_n[start : start + size] for start in range(0, len(samples_n), size)]


def as_file(data: bytes, name: str) -> bytes:
    """Raw samples need a header before anything can decode them."""
    if name != "pcm":
        return data
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(data)
    return file.getvalue()


@pytest.mark.parametrize("name", SPEECH_FORMATS)
def test_formats_round_trip(name):
    data = b"".join(encode(chunks(tone(2.0)), name, RATE))
    heard_n = decode(as_file(data, name))
    assert len(heard_n) / HEARING_RATE == pytest.approx(2.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard_n))
    assert spectrum.argmax() * HEARING_RATE / len(heard_n) == pytest.approx(440, abs=2)
    assert np.sqrt((heard_n**2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("name", SPEECH_FORMATS)
def test_bytes_come_before_the_speech_ends(name):
    encoder = SpeechEncoder(name, RATE)
    assert len(encoder.encode(tone(3.0))) > 1000
    encoder.finish()


@pytest.mark.parametrize("name", SPEECH_FORMATS)
def test_nothing_said_is_still_a_whole_file(name):
    assert isinstance(b"".join(encode([], name, RATE)), bytes)


def test_wav_streams_open_in_players_that_trust_the_header():
    data = b"".join(encode(chunks(tone(1.0)), "wav", RATE))
    assert data[:4] == b"RIFF"
    assert data[8:12] == b"WAVE"


@pytest.mark.parametrize("upload", [b"", b"not sound at all", b"RIFF\xff\xff\xff\xffWAVEfmt ", bytes(4096)])
def test_what_is_not_sound_is_refused(upload):
    with pytest.raises(AudioError):
        decode(upload)


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav"])
def test_truncated_files_do_no_harm(name):
    data = b"".join(encode([tone(2.0)], name, RATE))
    for length in (10, 100, len(data) // 2):
        with contextlib.suppress(AudioError):
            assert len(decode(data[:length])) < 2.1 * HEARING_RATE


def test_limits_hold_while_decoding():
    silence = b"".join(encode([np.zeros(RATE * 120, np.float32)], "opus", RATE))
    assert len(silence) < 200_000
    with pytest.raises(AudioError, match="longer than 1 minutes"):
        decode(silence, DecodingLimits(seconds=60))
    with pytest.raises(AudioError, match="more samples"):
        decode(silence, DecodingLimits(samples=1_000_000))
    with pytest.raises(AudioError, match="MB"):
        decode(silence, DecodingLimits(upload_bytes=1000))


def test_forged_sample_rates_are_work_of_bounded_size():
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 1, 0, "NONE", ""))  # one sample a second: 16 000 times as many after resampling
        writer.writeframes(bytes(200_000))
    with pytest.raises(AudioError):
        decode(file.getvalue())


@pytest.mark.parametrize(
    "upload",
    [
        b"ffconcat version 1.0\nfile clip.wav\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 18460 RTP/AVP 0\n",
        b"#EXTM3U\n#EXTINF:1,\nclip.wav\n#EXT-X-ENDLIST\n",
    ],
)
def test_an_upload_never_opens_another_file_or_a_socket(upload, clips, tmp_path, monkeypatch):
    shutil.copy(clips[0][0], tmp_path / "clip.wav")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError, match="cannot be decoded"):
        decode(upload)
