"""Turns of a session alone: real speech through the real voice detector, made-up models."""

import asyncio
import base64
import logging
import random
from typing import Any

import numpy as np
import pytest
from openai.types.realtime import InputAudioBufferClearedEvent

from realtime_session import Client, MadeUpStages, connected, silence, up_to_the_pause, written
from voicechat_serve.realtime.turn import State, Turn
from voicechat_serve.realtime.wire import Wire
from voicechat_serve.synthesis.voices import SPEECH_RATE

TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.completed",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
"""Its order, repetitions and partial transcripts left out."""


async def test_a_spoken_turn_in_openais_order(question):
    async with connected() as client:
        client.play(question)
        done = await client.until("response.done")
        assert client.kinds()[1:] == TURN
        assert client.stages.asked[-1] == ("bard", [{"role": "user", "content": "What is love"}], {"max_tokens": 512})
        started, stopped = client.all("input_audio_buffer.speech_started")[0], client.all(TURN[1])[0]
        assert 0 <= started["audio_start_ms"] < 600
        assert 2000 < stopped["audio_end_ms"] < 1000 * len(question) / SPEECH_RATE - 900
        completed = client.all(TURN[5])[0]
        assert completed["item_id"] == started["item_id"] == client.all("input_audio_buffer.committed")[0]["item_id"]
        assert completed["transcript"] == "What is love"
        assert completed["languages"] == [{"code": "en"}]
        response = done["response"]
        assert response["status"] == "completed"
        assert response["output"][0]["content"] == [{"type": "output_audio", "transcript": client.stages.reply + " "}]
        assert response["usage"] == {"input_tokens": 7, "output_tokens": 12, "total_tokens": 19}
        sound = b"".join(base64.b64decode(delta["delta"]) for delta in client.all("response.output_audio.delta"))
        assert len(sound) == 3 * SPEECH_RATE  # three sentences of half a second, 16 bits
        text = "".join(delta["delta"] for delta in client.all("response.output_audio_transcript.delta"))
        assert text == client.stages.reply + " "
        assert len({event["event_id"] for event in client.events}) == len(client.events)


async def test_words_come_while_they_are_spoken_and_are_not_taken_back(question):
    stages = MadeUpStages()
    stages.words = "one two three four five six seven eight"
    async with connected(stages) as client:
        client.play(question)
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        deltas = client.all("conversation.item.input_audio_transcription.delta")
        first_stop = client.events.index(client.all("input_audio_buffer.speech_stopped")[0])
        assert deltas
        assert client.events.index(deltas[0]) < first_stop
        assert completed["transcript"].startswith("".join(delta["delta"] for delta in deltas))


async def test_the_next_turn_sees_the_history_and_the_instructions(question):
    async with connected() as client:
        client.send("session.update", session={"type": "realtime", "instructions": "Be brief.", "temperature": 0.3})
        client.play(question)
        await client.until("response.done")
        client.play(question)
        await client.until("response.done", 2)
        _, messages, sampling = client.stages.asked[-1]
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        assert messages[0]["content"] == "Be brief."
        assert messages[2]["content"] == client.stages.reply
        assert sampling == {"max_tokens": 512, "temperature": 0.3}


async def test_the_answer_is_begun_at_the_pause_and_used_at_the_endpoint(question):
    async with connected() as client:
        client.play(up_to_the_pause(question))
        await client.until_asked()
        assert not client.all("input_audio_buffer.speech_stopped")
        client.play(silence(0.5))
        await client.until("response.done")
        assert len(client.stages.asked) == 1, "the draft is what is said"


async def test_without_anticipation_the_answer_is_begun_at_the_endpoint(question):
    async with connected() as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": {"anticipate": False}}}})
        client.play(up_to_the_pause(question))
        await client.settled()
        assert not client.stages.asked
        client.play(silence(0.5))
        await client.until("response.done")


async def test_a_draft_is_thrown_away_when_the_person_goes_on(question):
    async with connected() as client:
        client.stages.words = "one two three"
        client.play(up_to_the_pause(question))
        await client.until_asked()
        client.stages.words = "one two three four five six"
        client.play(question[np.flatnonzero(np.abs(question) > 0.02)[0] :])
        await client.until("response.done")
        assert len(client.all("response.created")) == 1
        assert len(client.all("input_audio_buffer.speech_started")) == 1
        assert client.stages.asked[-1][1][-1]["content"] == "one two three four five six"


async def by_words(client: Client, **settings: Any) -> None:
    detection = {"type": "semantic_vad"} | settings
    client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
    await client.until("session.updated")


async def classified_pause(client: Client, question: np.ndarray) -> None:
    """Speaks up to a pause that is not yet the end, and waits until somebody was asked whether it is."""
    client.play(up_to_the_pause(question))
    await client.until_classified()


@pytest.mark.parametrize(
    ("eagerness", "sound", "words", "silence_ms"),
    [
        ("auto", 0.99, 0.9, 300),
        ("auto", None, 0.9, 300),
        ("auto", 0.01, 1e-4, 1500),
        ("low", 0.99, 0.9, 600),
        ("medium", 0.01, 0.01, 893),
        ("medium", 0.99, 0.01, 407),
        ("high", 0.01, 1e-4, 1000),
        ("medium", None, None, 700),
        ("medium", 1.0, None, 300),
    ],
)
async def test_sound_and_words_decide_how_long_a_silence_ends_the_turn(question, eagerness, sound, words, silence_ms):
    stages = MadeUpStages()
    stages.probability, stages.sound_probability = words, sound
    async with connected(stages) as client:
        await by_words(client, eagerness=eagerness)
        speech_n = question[: np.flatnonzero(np.abs(question) > 0.02)[-1]]
        client.play(np.concatenate([speech_n, silence(0.26)]))
        await client.until_classified()
        await client.settled()
        assert not client.all("input_audio_buffer.speech_stopped")
        assert len(stages.asked) == 1, "the answer is begun meanwhile"
        client.play(silence(4))
        stopped = await client.until("input_audio_buffer.speech_stopped")
        assert client.session.listening.heard_ms >= stopped["audio_end_ms"] + silence_ms
        heard_s = (await client.until("conversation.item.input_audio_transcription.completed"))["usage"]["seconds"]
        started_ms = client.all("input_audio_buffer.speech_started")[0]["audio_start_ms"]
        assert started_ms + 1000 * heard_s - stopped["audio_end_ms"] == pytest.approx(silence_ms, abs=33)
        await client.until("response.done")


async def test_speech_that_continues_after_a_silence_is_classified_again(question):
    stages = MadeUpStages()
    stages.probability = 0.001
    async with connected(stages) as client:
        await by_words(client)
        await classified_pause(client, question)
        stages.probability = 0.9
        client.play(np.concatenate([silence(0.6), question[np.flatnonzero(np.abs(question) > 0.02)[0] :], silence(1)]))
        await client.until("response.done")
        assert len(stages.classified) == 2
        assert len(client.all("input_audio_buffer.speech_started")) == 1
        assert client.session.listening.voice_activity.silence_ms == 1500, "until the next utterance is classified"


async def test_a_turn_does_not_wait_for_ever_for_the_classifier_and_a_late_result_does_not_end_the_next_one(question):
    stages = MadeUpStages()
    stages.probability = 0.9
    stages.classifying_allowed.clear()
    async with connected(stages) as client:
        await by_words(client)
        await classified_pause(client, question)
        client.play(silence(0.7))
        client.send("session.update", session={"instructions": "Be brief."})
        await client.until("session.updated", 2)
        assert not client.all("input_audio_buffer.speech_stopped"), "the classifier may still find that more follows"
        client.play(silence(0.8))
        await client.until("response.done")
        client.play(question[: len(question) // 2])
        await client.until("input_audio_buffer.speech_started", 2)
        stages.classifying_allowed.set()
        await client.settled()
        assert client.session.listening.voice_activity.silence_ms == 1500


async def test_a_setting_that_changes_in_a_pause_does_not_end_it(question):
    stages = MadeUpStages()
    stages.probability = 0.001
    async with connected(stages) as client:
        await by_words(client)
        await classified_pause(client, question)
        await client.settled()
        client.send("session.update", session={"instructions": "Be brief."})
        client.play(silence(0.7))
        client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert not client.all("input_audio_buffer.speech_stopped")


@pytest.mark.parametrize("begin_with", [{}, {"type": "transcription"}])
async def test_a_turn_that_nobody_answers_ends_by_its_words_too(question, begin_with):
    stages = MadeUpStages()
    stages.probability = 0.9
    async with connected(stages, **begin_with) as client:
        await by_words(client, create_response=False)
        await classified_pause(client, question)
        await client.until("session.updated")
        client.play(silence(0.1))
        await client.until("conversation.item.input_audio_transcription.completed")
        assert not stages.asked


async def test_without_a_classifier_a_silence_of_middling_length_ends_the_turn(question):
    stages = MadeUpStages()

    async def no_classifier(given):
        raise OSError("no classifier")

    stages.end_by_words = stages.end_by_sound = no_classifier
    async with connected(stages) as client:
        await by_words(client)
        client.play(up_to_the_pause(question))
        await client.until_asked()
        await client.settled()
        client.play(silence(0.5))
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        assert not client.all("error")


async def test_another_language_is_classified_by_its_sound_alone(question):
    stages = MadeUpStages()
    stages.language, stages.probability = "de", 0.001
    async with connected(stages) as client:
        await by_words(client)
        client.play(up_to_the_pause(question))
        await client.until_asked()
        await client.settled()
        client.play(silence(0.5))
        await client.until("response.done")
        assert not stages.classified
        assert len(stages.ends_heard) == 1


async def test_by_words_but_without_anticipation_nothing_is_answered_early(question):
    stages = MadeUpStages()
    stages.probability = 0.1
    async with connected(stages) as client:
        await by_words(client, anticipate=False)
        await classified_pause(client, question)
        await client.settled()
        assert not stages.asked
        client.play(silence(0.5))
        await client.until("response.done")


async def test_speaking_over_a_reply_ends_it_and_what_was_heard_stays(question):
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 40, 1.0
    async with connected(stages) as client:
        client.play(question)
        await client.until("response.output_audio.delta")
        stages.waits.clear()  # the reply is not at its end before it is interrupted
        client.play(question)
        done = await client.until("response.done")
        stages.waits.set()
        assert done["response"]["status"] == "cancelled"
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        item_id = done["response"]["output"][0]["id"]
        late = [
            event
            for event in client.events[client.events.index(done) :]
            if event["type"] == "response.output_audio.delta" and event["item_id"] == item_id
        ]
        assert not late
        client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1000)
        await client.until("conversation.item.truncated")
        client.send("conversation.item.retrieve", item_id=item_id)
        retrieved = await client.until("conversation.item.retrieved")
        assert retrieved["item"]["content"][0]["transcript"] == "One sentence."
        assert retrieved["item"]["status"] == "incomplete"


async def test_the_next_turn_after_an_interruption_knows_what_was_heard(question):
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 40, 1.0
    async with connected(stages) as client:
        client.play(question)
        await client.until("response.output_audio.delta")
        stages.waits.clear()
        client.play(question[: len(question) // 2])
        item_id = (await client.until("response.done"))["response"]["output"][0]["id"]
        stages.waits.set()
        client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=2000)
        stages.reply = "Well."
        client.play(question[len(question) // 2 :])
        await client.until("response.done", 2)
        said = [message["content"] for message in stages.asked[-1][1]]
        assert said == ["What is love", "One sentence. One sentence.", "What is love"]


def cough() -> np.ndarray:
    """A burst of noise that dies away within a quarter of a second, twice."""
    generator = np.random.default_rng(0)
    burst_n = generator.standard_normal(SPEECH_RATE // 4) * np.exp(-np.arange(SPEECH_RATE // 4) / 1500)
    return np.concatenate([0.4 * burst_n, silence(0.15), 0.3 * burst_n]).astype(np.float32)


async def test_coughs_and_knocks_do_not_interrupt(question):
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 4, 1.0
    async with connected(stages) as client:
        client.play(question)
        await client.until("response.output_audio.delta")
        knock = silence(0.3)
        knock[:200] = 0.9
        client.play(np.concatenate([cough(), silence(0.5), knock, silence(0.5)]))
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        assert len(client.all("input_audio_buffer.speech_started")) == 1


async def test_where_no_word_was_said_nobody_answers(question):
    stages = MadeUpStages()
    stages.words = ""
    async with connected(stages) as client:
        client.play(question)
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == ""
        await client.settled()
        assert not client.all("response.created")
        assert not client.all("error")
        assert not stages.asked


async def test_a_client_that_commits_by_itself(question):
    detection = {"audio": {"input": {"turn_detection": None}}}
    async with connected() as client:
        client.send("session.update", session=detection)
        client.play(question)
        client.send("input_audio_buffer.commit")
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["usage"]["seconds"] == pytest.approx(len(question) / SPEECH_RATE, abs=0.05)
        assert not client.all("input_audio_buffer.speech_started")
        assert not client.all("response.created")
        client.send("response.create")
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        client.send("input_audio_buffer.commit", event_id="mine")
        error = (await client.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
        client.play(question)
        client.send("input_audio_buffer.clear")
        client.send("input_audio_buffer.commit")
        assert (await client.until("error", 2))["error"]["code"] == "input_audio_buffer_commit_empty"


async def test_commit_and_create_at_once_answer_what_was_committed(question):
    async with connected() as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        client.play(question)
        client.send("input_audio_buffer.commit")
        client.send("response.create", response={"instructions": "Be brief.", "metadata": {"mine": "1"}})
        done = await client.until("response.done")
        assert [m["role"] for m in client.stages.asked[-1][1]] == ["system", "user"]
        assert done["response"]["metadata"] == {"mine": "1"}


async def test_a_turn_in_writing():
    async with connected() as client:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is love?"}]}
        client.send("conversation.item.create", item=item | {"id": "mine"})
        client.send("response.create", response={"output_modalities": ["text"]})
        done = await client.until("response.done")
        assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": client.stages.reply + " "}]
        assert client.all("response.output_text.delta")
        assert not client.all("response.output_audio.delta")
        assert client.all("conversation.item.added")[0]["item"]["id"] == "mine"
        client.send("conversation.item.create", item=item)
        client.send("response.create", response={"conversation": "none", "input": [item]})
        await client.until("response.done", 2)
        assert len(client.stages.asked[-1][1]) == 1
        assert client.all("response.output_audio.delta"), "the session's own modality again"


async def test_one_response_may_have_a_voice_and_a_speed_of_its_own():
    async with connected() as client:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is love?"}]}
        client.send("conversation.item.create", item=item)
        client.send("response.create", response={"audio": {"output": {"speed": 2.0, "voice": {"id": "alloy"}}}})
        await client.until("response.done")
        assert client.stages.spoken_as == ("heart", 2.0)
        client.send("response.create", response={"audio": {"output": {"voice": "nobody"}}})
        assert (await client.until("error"))["error"]["param"] == "voice"
        client.send("response.create")
        await client.until("response.done", 2)
        assert client.stages.spoken_as == ("heart", 1.0)


async def test_items_are_put_cut_and_taken_out():
    async with connected() as client:

        def create(text: str, **where: Any) -> None:
            content = [{"type": "input_text", "text": text}]
            client.send(
                "conversation.item.create", item={"type": "message", "role": "user", "content": content}, **where
            )

        create("two")
        second = (await client.until("conversation.item.done"))["item"]["id"]
        create("one", previous_item_id="root")
        create("three", previous_item_id=second)
        last = await client.until("conversation.item.done", 3)
        assert last["previous_item_id"] == second
        client.send("conversation.item.delete", item_id=second)
        await client.until("conversation.item.deleted")
        assert [item.text for item in client.session.conversation.items] == ["one", "three"]
        for kind, fields in (
            ("conversation.item.delete", {"item_id": "none"}),
            ("conversation.item.retrieve", {"item_id": "none"}),
            ("conversation.item.truncate", {"item_id": last["item"]["id"], "audio_end_ms": 5, "content_index": 0}),
            ("conversation.item.create", {"item": last["item"]}),
            ("response.cancel", {}),
        ):
            client.send(kind, **fields)
        await client.until("error", 5)
        codes = [event["error"]["code"] for event in client.all("error")]
        assert codes == [
            "item_delete_invalid_item_id",
            "item_retrieve_invalid_item_id",
            "item_truncate_invalid_item_id",
            "item_create_duplicate_item_id",
            "response_cancel_not_active",
        ]


async def test_a_client_that_cancels():
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 40, 1.0
    async with connected(stages) as client:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go on."}]}
        client.send("conversation.item.create", item=item)
        client.send("response.create")
        client.send("response.create")  # before the first is through
        created = await client.until("response.created")
        await client.until("response.output_audio.delta")
        client.send("response.cancel", response_id=created["response"]["id"])
        done = await client.until("response.done")
        assert done["response"]["status_details"]["reason"] == "client_cancelled"
        codes = [event["error"]["code"] for event in client.all("error")]
        assert codes == ["conversation_already_has_active_response"]
        client.send("response.create")
        await client.until("response.output_audio.delta", len(client.all("response.output_audio.delta")) + 1)
        client.send("output_audio_buffer.clear")
        await client.until("output_audio_buffer.cleared")
        assert len(client.all("response.done")) == 2


@pytest.mark.parametrize(
    ("reply", "metadata"),
    [
        (
            "Say \u4f60\u597d now. And \u041f\u0440\u0438\u0432\u0435\u0442.",
            {"unspoken": "\u4f60\u597d; \u041f\u0440\u0438\u0432\u0435\u0442"},
        ),
        (
            "\u4f60\u597d",
            {"unspoken": "\u4f60\u597d", "spoken": "false", "reason": "the reply has no word that the voice can speak"},
        ),
        ("...", {"spoken": "false", "reason": "the reply has no word that the voice can speak"}),
        ("\u4f60" * 600, {"unspoken": "; ".join(["\u4f60" * 240] * 3)[:512], "spoken": "false"}),
        ("All of it.", None),
    ],
)
async def test_what_is_left_unspoken_of_a_reply_is_told(reply, metadata):
    stages = MadeUpStages()
    stages.reply = reply
    async with connected(stages) as client:
        client.send("conversation.item.create", item=written("Hello"))
        client.send("response.create")
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        told = done["response"]["metadata"]
        assert (told and {name: told[name] for name in metadata}) == metadata
        assert done["response"]["output"][0]["content"][0]["transcript"].strip() == reply


async def test_a_language_that_no_voice_speaks_is_answered_in_writing(question):
    stages = MadeUpStages()
    stages.language = "de"
    async with connected(stages) as client:
        client.play(question)
        done = await client.until("response.done")
        assert done["response"]["output_modalities"] == ["text"]
        assert done["response"]["metadata"] == {"spoken": "false", "reason": "no voice speaks de"}
        assert client.all("response.output_text.delta")


async def test_a_transcription_session_only_writes_down(question):
    async with connected(type="transcription") as client:
        assert client.events[0]["session"]["type"] == "transcription"
        client.play(question)
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == "What is love"
        client.send("response.create")
        await client.until("error")
        assert not client.stages.asked


async def test_after_an_interruption_nothing_is_heard_any_more(question):
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 40, 1.0
    async with connected(stages) as client:
        client.send("conversation.item.create", item=written("Go on."))
        client.send("response.create")
        await client.until("response.output_audio.delta")
        assert client.session.context.is_audible
        client.send("response.cancel")
        await client.until("response.done")
        assert not client.session.context.is_audible


async def test_an_early_answer_to_what_the_client_commits_is_not_left_at_work(question):
    stages = MadeUpStages()
    stages.reply = "One sentence. " * 400
    async with connected(stages) as client:
        client.play(up_to_the_pause(question))
        await client.until_asked()
        client.send("input_audio_buffer.commit")
        await client.until("conversation.item.input_audio_transcription.completed")
        await client.settled()
        assert stages.at_work == 0


async def test_two_utterances_before_an_answer_are_answered_once(question):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.play(question)
        client.play(question)
        await client.until("input_audio_buffer.speech_stopped", 2)
        stages.hearing_allowed.set()
        await client.until("response.done")
        await client.settled()
        assert len(client.all("response.created")) == 1
        assert stages.asked[-1][1] == [{"role": "user", "content": "What is love\nWhat is love"}]


@pytest.mark.parametrize("broken_off_by", ["input_audio_buffer.clear", "session.update", "a failure"])
async def test_what_was_said_before_an_utterance_that_comes_to_nothing_is_answered(question, broken_off_by):
    stages = MadeUpStages()
    stages.hearing_allowed.clear()
    async with connected(stages) as client:
        client.play(question)
        await client.until("input_audio_buffer.speech_stopped")
        client.play(question[: len(question) // 2])
        await client.until("input_audio_buffer.speech_started", 2)
        stages.hearing_allowed.set()
        await client.until("conversation.item.input_audio_transcription.completed")
        await client.settled()
        assert not client.all("response.created")
        if broken_off_by == "a failure":
            stages.failing = "transcription"
            client.play(silence(1))
        else:
            client.send(broken_off_by, session={"audio": {"input": {"turn_detection": None}}})
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"


async def test_speech_that_begins_while_an_early_answer_is_thrown_away_is_not_spoken_over(question):
    stages = MadeUpStages()
    stages.reply = "One sentence. " * 400
    closing = asyncio.Event()

    async def speak(sentence, speed, voice):
        try:
            await asyncio.sleep(3600)
            yield np.zeros(0, np.float32)
        finally:
            await closing.wait()

    async with connected(stages) as client:
        stages.speak, usual = speak, stages.speak
        client.play(up_to_the_pause(question))
        await client.until_asked()
        await client.settled()
        client.send("session.update", session={"model": "poet"})  # so the draft is not what is wanted
        client.play(silence(0.5))
        await client.until("conversation.item.input_audio_transcription.completed")
        stages.speak = usual
        client.play(question[: len(question) // 2])
        await client.until("input_audio_buffer.speech_started", 2)
        closing.set()
        await client.settled()
        responses = client.all("response.created"), client.all("response.done")
        assert len(responses[0]) == len(responses[1]), "a reply goes on while the person speaks"


async def test_the_first_sound_of_each_turn_is_timed_from_its_own_end(question):
    stages = MadeUpStages()
    stages.waits.clear()
    async with connected(stages) as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": {"interrupt_response": False}}}})
        client.play(question)
        await client.until("response.created")
        await asyncio.sleep(0.3)
        client.play(question)
        await client.until("input_audio_buffer.speech_stopped", 2)
        stages.waits.set()
        await client.until("response.done", 2)
        first, second = client.first_sounds
        assert first >= 0.3
        assert second > 0


async def test_a_written_turn_is_not_in_the_language_of_a_spoken_one_before(question):
    stages = MadeUpStages()
    stages.language = "de"
    async with connected(stages) as client:
        client.play(question)
        await client.until("response.done")
        client.send("conversation.item.create", item=written("And in English?"))
        client.send("response.create")
        done = await client.until("response.done", 2)
        assert done["response"]["output_modalities"] == ["audio"]


async def test_a_reply_that_is_cancelled_before_its_first_word_has_no_item():
    stages = MadeUpStages()
    stages.waits.clear()
    async with connected(stages) as client:
        client.send("conversation.item.create", item=written("Go on."))
        client.send("response.create")
        await client.until("response.created")
        client.send("response.cancel")
        done = await client.until("response.done")
        assert (done["response"]["status"], done["response"]["output"]) == ("cancelled", [])
        assert not client.all("response.output_item.added")
        assert len(client.session.conversation.items) == 1


async def test_a_reply_comes_before_what_is_created_while_it_begins():
    stages = MadeUpStages()
    stages.waits.clear()
    async with connected(stages) as client:
        client.send("conversation.item.create", item=written("Go on.") | {"id": "first"})
        client.send("response.create")
        client.send("conversation.item.create", item=written("And then?") | {"id": "last"})
        await client.until("conversation.item.done", 2)
        stages.waits.set()
        item = (await client.until("response.output_item.added"))["item"]
        client.send("conversation.item.retrieve", item_id=item["id"])
        assert (await client.until("conversation.item.retrieved"))["item"]["role"] == "assistant"
        await client.until("response.done")
        assert [each.id for each in client.session.conversation.items] == ["first", item["id"], "last"]
        assert client.all("conversation.item.added")[2]["previous_item_id"] == "first"


async def test_a_farewell_that_nobody_hears_is_logged(caplog, monkeypatch):
    async def send(frame):
        raise OSError("the connection is gone")

    wire = Wire(receive=None, send=send)
    wire.emit(InputAudioBufferClearedEvent(type="input_audio_buffer.cleared", event_id="event_1"))
    logger = logging.getLogger("ray.serve.voicechat.realtime")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # Serve, once started here, hands nothing on to the root
    monkeypatch.setattr(logger, "propagate", False)
    with caplog.at_level("INFO", logger.name):
        await wire.farewell({"type": "invalid_request_error", "code": "session_idle", "message": "nothing was said"})
    assert caplog.text.count("the connection is gone") == 2


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_a_client_does_no_turn_leaves_its_states(question, seed, monkeypatch):
    chance = random.Random(seed)
    seen: set[tuple[State, State]] = set()

    def enter(turn: Turn, state: State) -> None:
        seen.add((turn.state, state))
        usual(turn, state)

    usual = Turn._enter
    monkeypatch.setattr(Turn, "_enter", enter)
    async with connected() as client:
        client.send("conversation.item.create", item=written("Hello"))
        for _ in range(12):
            match chance.randrange(8):
                case 0 | 1 | 2:
                    client.play(question[: chance.choice([len(question) // 2, len(question)])])
                case 3:
                    client.play(up_to_the_pause(question))
                    await client.until_asked()
                case 4:
                    client.send("input_audio_buffer.clear")
                case 5:
                    client.send("input_audio_buffer.commit")
                case 6:
                    client.send("response.create")
                case 7:
                    client.send("response.cancel")
            if chance.random() < 0.5:
                await asyncio.sleep(0.01)
        client.stages.reply = "Well."
        client.play(np.concatenate([question, silence(1)]))
        client.send("session.update", session={})
        await client.until("session.updated")
        while client.session.answering.queue or client.session.context.is_responding:
            await asyncio.sleep(0.01)
        assert not [event for event in client.all("error") if event["error"]["type"] == "server_error"]
    assert {
        (State.PAUSED, State.WAITING),
        (State.TRANSCRIBED, State.ANSWERING),
        (State.ANSWERING, State.DONE),
    } <= seen
