"""What waits in a session, for sound or for a transcript, and what ends the waiting; and what its errors say."""

import asyncio
import gc
import json
import weakref

import numpy as np
import pytest

from realtime_session import MadeUpStages, connected, silence, up_to_the_pause, written
from voicechat_serve.realtime import listening


def speech_alone(question_n: np.ndarray) -> np.ndarray:
    """Up to the last loud sample: the client stops sending in the middle of the last sound."""
    return question_n[: np.flatnonzero(np.abs(question_n) > 0.02)[-1]]


@pytest.mark.parametrize("kind", ["server_vad", "semantic_vad"])
@pytest.mark.parametrize("silent_s", [0.0, 0.26, 1.0])
async def test_a_turn_ends_although_no_more_sound_comes(question, kind, silent_s):
    async with connected() as client:
        detection = {"type": kind} if kind == "semantic_vad" else {"type": kind, "silence_duration_ms": 1200}
        client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        client.play(np.concatenate([speech_alone(question), silence(silent_s)]))
        stopped = await client.until("input_audio_buffer.speech_stopped")
        done = await client.until("response.done")
    assert done["response"]["status"] == "completed"
    assert stopped["audio_end_ms"] <= client.session.listening.heard_ms, "a time of the sound that was sent"


async def test_a_classification_that_comes_after_the_last_sound_ends_the_turn(question, monkeypatch):
    monkeypatch.setattr(listening, "SOUND_LATE_S", 1000.0)
    stages = MadeUpStages()
    stages.probability = 0.9
    stages.classifying_allowed.clear()
    async with connected(stages) as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}})
        client.play(np.concatenate([speech_alone(question), silence(1)]))
        await client.until_classified()
        assert not client.all("input_audio_buffer.speech_stopped")
        stages.classifying_allowed.set()
        await client.until("response.done")


async def test_a_network_that_stalls_for_a_moment_ends_no_turn(question):
    async with connected() as client:
        client.play(up_to_the_pause(question))
        await client.until_asked()
        await asyncio.sleep(0.4)
        client.play(question[np.flatnonzero(np.abs(question) > 0.02)[0] :])
        await client.until("response.done")
        assert len(client.all("input_audio_buffer.speech_started")) == 1


@pytest.mark.parametrize("by_client", [True, False], ids=["response.create", "turn detection"])
async def test_a_response_that_waits_for_a_transcript_can_be_cancelled(question, by_client):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        detection = None if by_client else {"type": "server_vad", "anticipate": False}
        client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        client.play(question)
        if by_client:
            client.send("input_audio_buffer.commit")
            client.send("response.create")
            client.send("response.create", event_id="second")
            again = (await client.until("error"))["error"]
            assert (again["code"], again["event_id"]) == ("conversation_already_has_active_response", "second")
        await client.until("input_audio_buffer.committed")
        client.send("response.cancel")
        response = (await client.until("response.done"))["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        stages.hearing_allowed.set()
        await client.until("conversation.item.input_audio_transcription.completed")
        client.send("response.cancel", event_id="late")
        late = (await client.until("error", 2 if by_client else 1))["error"]
        assert (late["code"], late["event_id"]) == ("response_cancel_not_active", "late")
        assert not stages.asked, "nothing is answered"
        client.send("conversation.item.create", item=written("And now?"))
        client.send("response.create")
        assert (await client.until("response.done", 2))["response"]["status"] == "completed"


async def test_speech_ends_a_response_that_waits_for_a_transcript(question):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        detection = {"type": "server_vad", "create_response": False, "anticipate": False}
        client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        client.play(question)
        await client.until("input_audio_buffer.committed")
        client.send("response.create")
        client.play(question[: len(question) // 2])
        response = (await client.until("response.done"))["response"]
        assert response["status_details"]["reason"] == "turn_detected"
        stages.hearing_allowed.set()
        await client.until("conversation.item.input_audio_transcription.completed", 2)
        assert not stages.asked


async def test_an_item_that_is_deleted_while_it_is_written_down_is_not_answered(question):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.play(question)
        item_id = (await client.until("input_audio_buffer.committed"))["item_id"]
        client.send("conversation.item.delete", item_id=item_id)
        await client.until("conversation.item.deleted")
        stages.hearing_allowed.set()
        while client.session.answering.queue:
            await asyncio.sleep(0.01)
        client.send("conversation.item.retrieve", item_id=item_id)
        await client.until("error")
        told = {event["type"] for event in client.events}
        assert not {"response.created", "conversation.item.input_audio_transcription.completed"} & told
        assert all("What is love" not in json.dumps(messages) for _, messages, _ in stages.asked[1:])


async def test_a_session_that_has_ended_is_freed_whatever_errors_it_told():
    ended = []
    for _ in range(5):
        async with connected() as client:
            client.stages.waits.clear()
            client.send("conversation.item.create", item=written("Hello"))
            client.send("response.create")
            await client.until("response.created")
            client.send("response.create")
            client.send("response.cancel", response_id="another")
            await client.until("error", 2)
            client.stages.waits.set()
            ended.append(weakref.ref(client.session))
        del client
    await asyncio.sleep(0)
    gc.collect()
    assert [reference() for reference in ended] == [None] * 5


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"type": "response.crate"}, "invalid_value", "type"),
        ({"type": 7}, "invalid_event", "type"),
        ({}, "invalid_event", "type"),
        ({"type": "conversation.item.retrieve", "item_id": "x"}, "item_retrieve_invalid_item_id", "item_id"),
        ({"type": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id", "item_id"),
        (
            {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 0},
            "item_truncate_invalid_item_id",
            "item_id",
        ),
        (
            {"type": "conversation.item.create", "item": written("Hi"), "previous_item_id": "x"},
            "item_create_invalid_previous_item_id",
            "previous_item_id",
        ),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
        ({"type": "response.cancel"}, "response_cancel_not_active", None),
    ],
)
async def test_an_error_has_openais_code_and_names_the_event(event, code, param):
    async with connected() as client:
        client.frames.put_nowait(json.dumps(event | {"event_id": "mine"}))
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"], error["event_id"]) == (code, param, "mine")


@pytest.mark.parametrize("content_index", [1, -1, 10**9])
async def test_a_reply_has_one_part_to_cut(content_index):
    async with connected() as client:
        client.send("conversation.item.create", item=written("Hello"))
        client.send("response.create")
        item_id = (await client.until("response.done"))["response"]["output"][0]["id"]
        client.send("conversation.item.truncate", item_id=item_id, content_index=content_index, audio_end_ms=1)
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "content_index")
        assert not client.all("conversation.item.truncated")


async def test_what_follows_a_cancelled_response_does_not_overtake_what_came_before(question):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        client.play(question)
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        client.play(question)
        client.send("input_audio_buffer.commit")
        await client.until("input_audio_buffer.committed", 2)
        client.send("response.cancel")
        await client.until("response.done")
        await client.settled()
        assert len(stages.heard) == 1, "the second waits for the first"


async def test_a_cancelled_answer_is_no_longer_drafted(question):
    stages = MadeUpStages()
    stages.waits.clear()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.play(question)
        await client.until("input_audio_buffer.speech_stopped")
        first_allowed, stages.hearing_allowed = stages.hearing_allowed, asyncio.Event()
        stages.hearing_allowed.set()
        client.play(up_to_the_pause(question))
        await client.until_asked()
        client.play(silence(1))
        await client.until("input_audio_buffer.speech_stopped", 2)
        assert stages.at_work == 1
        client.send("response.cancel")
        await client.until("response.done")
        assert stages.at_work == 0, "nobody waits for the draft"
        first_allowed.set()
        await client.until("conversation.item.input_audio_transcription.completed", 2)
        assert len(client.all("response.done")) == 1
