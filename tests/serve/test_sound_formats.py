"""Telephony's sounds in a conversation: mu-law and A-law (ITU-T G.711) in and out."""

import base64
from typing import Any

import av
import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from realtime_session import Client, connected
from voicechat_serve.realtime.sound_formats import TELEPHONE_RATE, Format, Type
from voicechat_serve.synthesis.voices import SPEECH_RATE

CODECS: dict[Type, str] = {"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}


@pytest.mark.parametrize("law", CODECS)
def test_every_code_means_what_ffmpeg_says(law):
    codes = bytes(range(256))
    codec: Any = av.CodecContext.create(CODECS[law], "r")
    codec.sample_rate, codec.layout = TELEPHONE_RATE, "mono"
    theirs_n = codec.decode(av.Packet(codes))[0].to_ndarray()[0]
    ours_n = Format(type=law).decode(codes)
    assert np.array_equal(32768 * ours_n, theirs_n)
    assert np.array_equal(Format(type=law).decode(Format(type=law).encode(ours_n)), ours_n)


@pytest.mark.parametrize("law", CODECS)
@given(sample=st.floats(-2, 2))
def test_a_sample_becomes_the_nearest_level(law, sample):
    format = Format(type=law)
    levels_c = format.decode(bytes(range(256)))
    given_n = np.array([sample], np.float32)
    nearest = np.abs(levels_c - np.clip(sample, -1, 1)).min()
    assert abs(format.decode(format.encode(given_n))[0] - np.clip(sample, -1, 1)) <= nearest + 1e-4


def play(client: Client, sound_n: np.ndarray, format: Format) -> None:
    """Send sound of SPEECH_RATE as a telephone does, 20 ms at a time."""
    sound = format.encode(soxr.resample(sound_n, SPEECH_RATE, TELEPHONE_RATE))
    for start in range(0, len(sound), TELEPHONE_RATE // 50):
        piece = sound[start : start + TELEPHONE_RATE // 50]
        client.send("input_audio_buffer.append", audio=base64.b64encode(piece).decode())


@pytest.mark.parametrize("law", CODECS)
async def test_a_conversation_over_the_telephone(question, law):
    format = Format(type=law)
    async with connected() as client:
        given = {"format": {"type": law}}
        client.send("session.update", session={"audio": {"input": given, "output": given}})
        updated = await client.until("session.updated")
        assert updated["session"]["audio"]["input"]["format"] == updated["session"]["audio"]["output"]["format"]
        assert updated["session"]["audio"]["input"]["format"] == {"type": law}
        play(client, question, format)
        done = await client.until("response.done")
        assert done["response"]["audio"]["output"]["format"] == {"type": law}
        started, stopped = (client.all(f"input_audio_buffer.speech_{kind}")[0] for kind in ("started", "stopped"))
        assert 0 <= started["audio_start_ms"] < 600
        assert 2000 < stopped["audio_end_ms"] < 1000 * len(question) / SPEECH_RATE - 900
        sound = b"".join(base64.b64decode(delta["delta"]) for delta in client.all("response.output_audio.delta"))
        assert len(sound) == 1.5 * TELEPHONE_RATE  # three sentences of half a second
        played = np.concatenate(client.session.context.response.played.parts)  # 10 ms each, compared with an echo
        assert len(played) == pytest.approx(150, abs=3)
        item_id = done["response"]["output"][0]["id"]
        client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1500)
        await client.until("conversation.item.truncated")


async def test_each_side_and_each_response_has_a_format_of_its_own(question):
    async with connected() as client:
        client.send("session.update", session={"input_audio_format": "g711_alaw"})
        updated = await client.until("session.updated")
        assert updated["session"]["audio"]["input"]["format"] == {"type": "audio/pcma"}
        assert updated["session"]["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": SPEECH_RATE}
        play(client, question, Format(type="audio/pcma"))
        done = await client.until("response.done")
        sound = b"".join(base64.b64decode(delta["delta"]) for delta in client.all("response.output_audio.delta"))
        assert len(sound) == 3 * SPEECH_RATE
        client.send("response.create", response={"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
        done = await client.until("response.done", 2)
        assert done["response"]["audio"]["output"]["format"] == {"type": "audio/pcmu"}
        client.send("session.update", session={"audio": {"input": {"format": {"type": "audio/pcm"}}}})
        await client.until("session.updated", 2)
        client.play(question)
        await client.until("response.done", 3)


async def test_a_rate_belongs_to_pcm_only():
    async with connected() as client:
        wrong = {"format": {"type": "audio/pcmu", "rate": 24000}}
        client.send("session.update", session={"audio": {"input": wrong}})
        error = await client.until("error")
        assert error["error"]["param"] == "session.audio.input.format"
        assert "8000 Hz" in error["error"]["message"]
