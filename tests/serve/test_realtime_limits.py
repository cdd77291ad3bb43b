"""What breaks a session, and what bounds it: wrong events, failing models, too much of anything."""

import asyncio
import base64
import contextlib
from typing import Any

import numpy as np
import pytest

from realtime_session import Client, MadeUpStages, connected, silence, written
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.realtime import answering as answering_module
from voicechat_serve.realtime import conversation as conversation_module
from voicechat_serve.realtime import listening as listening_module
from voicechat_serve.realtime import session as session_module
from voicechat_serve.realtime import wire as wire_module
from voicechat_serve.realtime.items import MessageItem
from voicechat_serve.synthesis.voices import SPEECH_RATE


async def test_silence_noise_and_music_begin_no_turn():
    generator = np.random.default_rng(0)
    time_n = np.arange(10 * SPEECH_RATE) / SPEECH_RATE
    notes_n = 220 * 2 ** (np.floor(time_n * 4) % 12 / 12)
    music_n = 0.2 * sum(np.sin(2 * np.pi * np.cumsum(notes_n * k) / SPEECH_RATE) / k for k in (1, 2, 3))
    async with connected() as client:
        for sound_n in (silence(10), 0.1 * generator.standard_normal(10 * SPEECH_RATE), music_n):
            client.play(sound_n)
        client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert [event["type"] for event in client.events] == ["session.created", "input_audio_buffer.cleared"]
        assert not client.stages.heard


@pytest.mark.parametrize("seconds", [70, pytest.param(640, marks=pytest.mark.nightly)])
async def test_a_monologue_without_a_pause_is_written_down_as_it_comes(question, seconds):
    speech_n = question[int(0.5 * SPEECH_RATE) : -int(1.1 * SPEECH_RATE)]
    stages = MadeUpStages()
    async with connected(stages) as client:
        for _ in range(int(seconds * SPEECH_RATE / len(speech_n))):
            client.play(speech_n)
            while client.frames.qsize() or client.session.wire.inbox.qsize():
                await asyncio.sleep(0.001)
            turn = client.session.listening.turn
            assert turn is None or turn.utterance.tail_samples <= 26 * HEARING_RATE
        client.play(silence(1))
        await client.until("response.done")
        assert max(stages.heard) <= 26
        assert client.all("input_audio_buffer.committed")
        assert client.all("conversation.item.input_audio_transcription.completed")


async def test_a_wrong_offset_of_a_cut_is_told_and_does_no_harm(question):
    async with connected() as client:
        client.play(question)
        item_id = (await client.until("response.done"))["response"]["output"][0]["id"]
        for offset in (-1, 10_000_000):
            client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=offset)
        await client.until("error", 2)
        client.play(question)
        await client.until("response.done", 2)
        assert client.stages.asked[-1][1][1]["content"] == client.stages.reply


@pytest.mark.parametrize("failing", ["transcription", "generation"])
async def test_a_failing_model_ends_the_turn_and_the_next_one_works(question, failing):
    stages = MadeUpStages()
    stages.failing = failing
    async with connected(stages) as client:
        client.play(question)
        if failing == "transcription":
            failed = await client.until("conversation.item.input_audio_transcription.failed")
            assert failed["error"]["type"] == "server_error"
        else:
            done = await client.until("response.done")
            assert done["response"]["status"] == "failed"
            assert done["response"]["status_details"]["error"]["type"] == "server_error"
        stages.failing = ""
        client.play(question)
        done = await client.until("response.done", 1 if failing == "transcription" else 2)
        assert done["response"]["status"] == "completed"


async def test_settings_are_checked_and_those_given_before_stay():
    async with connected() as client:
        client.send("session.update", session={"audio": {"output": {"speed": 1.5, "voice": "alloy"}}, "model": "poet"})
        updated = await client.until("session.updated")
        assert updated["session"]["model"] == "poet"
        assert updated["session"]["audio"]["output"]["speed"] == 1.5
        assert updated["session"]["audio"]["input"]["transcription"]["model"] == "whisper-tiny.en"
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"audio": {"output": {"speed": 9}}}, "session.audio.output.speed"),
            ({"audio": {"output": {"voice": "nobody"}}}, "voice"),
            ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "session.audio.input.format.type"),
            (
                {"audio": {"input": {"turn_detection": {"type": "sematic_vad"}}}},
                "session.audio.input.turn_detection.type",
            ),
            ({"model": "nobody"}, "model"),
            ({"tools": [{"type": "function"}]}, "session.tools.0.name"),
            ({"temperature": 3}, "session.temperature"),
            ({"output_modalities": ["text", "audio"]}, "session.output_modalities"),
        ]
        for number, (patch, param) in enumerate(wrong, 1):
            client.send("session.update", session=patch)
            error = await client.until("error", number)
            assert error["error"]["param"] == param, error
        client.send("session.update", session={"instructions": "x"})
        updated = await client.until("session.updated", len(wrong) + 1)  # one of these is refused whole
        assert updated["session"]["instructions"] == "x"
        assert updated["session"]["audio"]["output"]["speed"] == 1.5


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        "[]",
        "{}",
        '{"type": 5}',
        '{"type": "unknown.event"}',
        '{"type": "input_audio_buffer.append"}',
        '{"type": "input_audio_buffer.append", "audio": "***"}',
        '{"type": "input_audio_buffer.append", "audio": "AAAA"}',
        '{"type": "session.update", "session": []}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}}',
        '{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": "5"}',
        '{"type": "response.create", "response": {"max_output_tokens": 0}}',
        '{"type": "response.create"}',
        "[" * 100_000,
    ],
)
async def test_a_wrong_event_is_told_and_the_session_goes_on(frame):
    async with connected() as client:
        client.frames.put_nowait(frame)
        error = (await client.until("error"))["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        client.send("session.update", session={})
        await client.until("session.updated")


async def ended(client: Client) -> tuple[int, str]:
    return await asyncio.wait_for(client.session.run(), 20)


async def test_a_session_that_nobody_uses_ends(monkeypatch):
    monkeypatch.setattr(session_module, "LIMITS_CHECKED_S", 0.01)
    monkeypatch.setattr(session_module, "IDLE_S", 0.05)
    client = Client(MadeUpStages())
    assert await ended(client) == (1000, "session_idle")
    assert client.events[-1]["error"]["code"] == "session_idle"


async def test_a_session_does_not_last_for_ever(monkeypatch):
    monkeypatch.setattr(session_module, "LIMITS_CHECKED_S", 0.01)
    monkeypatch.setattr(session_module, "SESSION_S", 0.05)
    assert await ended(Client(MadeUpStages())) == (1000, "session_expired")


async def test_what_comes_faster_than_it_can_be_heard_is_bounded(monkeypatch):
    monkeypatch.setattr(wire_module, "MOST_UNHANDLED_BYTES", 100_000)
    client = Client(MadeUpStages())
    client.play(silence(10))
    assert await ended(client) == (1008, "too_fast")


async def test_what_no_frame_can_hold_is_not_sent_back():
    async with connected() as client:
        client.send("response.cancel", event_id="\ud800mine")
        error = (await client.until("error"))["error"]
        assert error["event_id"] == "?mine"


async def test_a_long_history_is_restored_at_once():
    async with connected() as client:
        for number in range(1500):
            client.send("conversation.item.create", item=written(str(number)))
        await client.until("conversation.item.done", 1500)


async def test_a_pause_does_not_cost_what_was_said_long_before(question):
    end = np.flatnonzero(np.abs(question) > 0.02)[-1]
    speech_n = question[int(0.5 * SPEECH_RATE) : end]
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        for _ in range(int(28 * SPEECH_RATE / len(speech_n)) + 1):
            client.play(speech_n)
        client.play(silence(0.3))  # an answer is anticipated, and waits for the part before
        client.play(speech_n)
        client.play(silence(1))
        await client.until("input_audio_buffer.speech_stopped")
        stages.hearing_allowed.set()
        await client.until("response.done")


async def test_leaving_ends_also_the_turns_that_wait(question):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.play(question)
        client.play(question)
        await client.until("input_audio_buffer.speech_stopped", 2)
        await client.settled()


async def test_a_buffer_that_is_full_takes_no_more(monkeypatch):
    monkeypatch.setattr(listening_module, "LONGEST_UTTERANCE_S", 2)
    async with connected() as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        second = base64.b64encode(bytes(2 * SPEECH_RATE)).decode()
        for _ in range(10):
            client.send("input_audio_buffer.append", audio=second)
        errors = [await client.until("error", number) for number in range(1, 9)]
        assert {event["error"]["code"] for event in errors} == {"input_audio_buffer_full"}
        assert len(client.session.listening.rest_n) < 512
        client.send("input_audio_buffer.commit")
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["usage"]["seconds"] == pytest.approx(2, abs=0.1)


async def test_the_clock_goes_on_over_what_is_cleared():
    async with connected() as client:
        for _ in range(30):
            client.play(silence(0.7))
            client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared", 30)
        assert client.session.listening.heard_ms == pytest.approx(30 * 700, abs=64)


async def test_speech_that_a_change_of_detection_throws_away_is_told(question):
    async with connected() as client:
        client.play(question[: len(question) // 2])
        await client.until("input_audio_buffer.speech_started")
        for detection in (None, {"type": "server_vad"}):
            client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
            client.play(silence(0.1))  # without detection, in the buffer already
        await client.until("session.updated", 2)
        kinds = [e["type"] for e in client.events if not e["type"].endswith("delta")]
        assert kinds[-4:] == ["input_audio_buffer.cleared", "session.updated"] * 2
        client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        await client.until("session.updated", 3)
        assert len(client.all("input_audio_buffer.cleared")) == 2, "there was nothing to throw away"


async def test_turns_that_wait_are_bounded():
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        for _ in range(50):
            client.play(silence(0.3))
            client.send("input_audio_buffer.commit")
        client.send("response.create")
        error = (await client.until("error"))["error"]
        assert error["code"] == "too_many_turns"
        client.send("response.create", event_id="mine")
        while client.all("error")[-1]["error"]["event_id"] != "mine":
            await asyncio.sleep(0.01)
        assert len(client.session.answering.queue) == answering_module.MOST_TURNS
        stages.hearing_allowed.set()
        await client.until("conversation.item.input_audio_transcription.completed", answering_module.MOST_TURNS)


async def test_frames_of_next_to_nothing_are_bounded_too(monkeypatch):
    monkeypatch.setattr(wire_module, "MOST_UNHANDLED_BYTES", 100_000)
    client = Client(MadeUpStages())
    for _ in range(10_000):
        client.frames.put_nowait("")
    assert await ended(client) == (1008, "too_fast")


async def test_a_frame_is_not_too_long_to_be_read_in_passing():
    async with connected() as client:
        client.send("session.update", session={"x": [[]] * 2_000_000})
        error = (await client.until("error"))["error"]
        assert error["code"] == "too_large"


async def test_a_conversation_keeps_no_more_text_than_a_model_could_read():
    async with connected() as client:
        for number in range(40):
            client.send("conversation.item.create", item=written(f"{number:02} " + "x" * 60_000))
        await client.until("conversation.item.done", 40)
        items = client.session.conversation.items
        assert items[-1].text.startswith("39 ")
        assert sum(len(item.text) for item in items) <= conversation_module.MOST_CHARACTERS
        parts = [{"type": "input_text", "text": "x" * 60_000}] * 2
        client.send("conversation.item.create", item={"type": "message", "role": "user", "content": parts})
        await client.until("error")


async def test_an_ear_that_is_cancelled_from_within_is_told_as_a_failure(question):
    stages = MadeUpStages()

    async def hear(samples_n, language, prompt, only_if_idle):
        raise asyncio.CancelledError

    usual, stages.hear = stages.hear, hear
    async with connected(stages) as client:
        client.play(question)
        await client.until("conversation.item.input_audio_transcription.failed")
        stages.hear = usual
        client.play(question)
        await client.until("response.done")


async def test_a_failure_is_told_to_a_client_that_wants_no_transcripts_too(question):
    stages = MadeUpStages()
    stages.failing = "transcription"
    async with connected(stages) as client:
        client.send("session.update", session={"audio": {"input": {"transcription": None}}})
        client.play(question)
        assert (await client.until("error"))["error"]["type"] == "server_error"


async def test_an_utterance_keeps_its_id(question):
    async with connected() as client:
        client.play(question[: len(question) // 2])
        id = (await client.until("input_audio_buffer.speech_started"))["item_id"]
        client.send("conversation.item.create", item=written("Mine.") | {"id": id})
        assert (await client.until("error"))["error"]["code"] == "item_create_duplicate_item_id"


class NotTaking(Client):
    """Takes a few events, and then no more."""

    takes = 3

    async def take(self, frame: str) -> None:
        if len(self.events) >= self.takes:
            await asyncio.Event().wait()
        await super().take(frame)


async def test_a_client_that_takes_nothing_is_left_in_time(monkeypatch):
    monkeypatch.setattr(wire_module, "UNSENT_S", 0.2)
    monkeypatch.setattr(wire_module, "FAREWELL_S", 0.05)
    client = NotTaking(MadeUpStages())
    for number in range(20):
        client.send("conversation.item.create", item=written(str(number)))
    assert await ended(client) == (1008, "too_slow")


async def test_what_a_client_asks_for_and_does_not_take_does_not_pile_up(monkeypatch):
    monkeypatch.setattr(wire_module, "FAREWELL_S", 0.05)
    client = NotTaking(MadeUpStages())
    client.send("conversation.item.create", item=written("x" * 60_000) | {"id": "long"})
    for _ in range(1000):
        client.send("conversation.item.retrieve", item_id="long")
    running = asyncio.create_task(client.session.run())
    wire = client.session.wire
    async with asyncio.timeout(20):
        while wire.has_room.is_set():
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert wire.unsent_bytes < wire_module.UNSENT_BYTES + 100_000
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_too_much_that_a_response_tells_ends_the_session_not_the_response(monkeypatch):
    """The end is raised where the session waits for it, whichever task has emitted too much."""
    monkeypatch.setattr(wire_module, "MOST_UNSENT_BYTES", 10_000)
    monkeypatch.setattr(wire_module, "FAREWELL_S", 0.05)
    stages = MadeUpStages()
    stages.reply = "word " * 5000
    client = NotTaking(stages)
    client.send("session.update", session={"output_modalities": ["text"]})
    client.send("conversation.item.create", item=written("Hello."))
    client.send("response.create")
    assert await ended(client) == (1008, "too_slow")
    assert stages.at_work == 0


async def test_a_response_that_breaks_off_is_told(monkeypatch):
    async with connected() as client:
        monkeypatch.setattr("voicechat_serve.realtime.response.item_resource", lambda item: 1 / 0)
        client.session.conversation.add(MessageItem(role="user", text="Hello."))
        client.send("response.create")
        assert (await client.until("error"))["error"]["type"] == "server_error"
