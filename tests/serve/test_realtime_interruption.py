"""Speech over a reply, with `turn_detection.interruption: "adaptive"`: real speech and detector, made-up models."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import soxr

from realtime_session import Client, MadeUpStages, connected, silence
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.realtime.interruption import PlayedSound, Sound, Words, bands, judge, likeness, measure
from voicechat_serve.synthesis.voices import SPEECH_RATE

PAUSED, RESUMED = "output_audio_buffer.paused", "output_audio_buffer.resumed"
STARTED = "input_audio_buffer.speech_started"
VOICE = Sound(voiced=0.9, flatness=0.05, brightness=0.3, echo=0.2)


async def adapt(client: Client, **settings: Any) -> None:
    detection = {"type": "server_vad", "interruption": "adaptive"} | settings
    client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
    told = await client.until("session.updated")
    assert told["session"]["audio"]["input"]["turn_detection"]["interruption"] == "adaptive"


@contextlib.asynccontextmanager
async def replying(question: np.ndarray, **stages_with: Any) -> AsyncIterator[Client]:
    """A session whose reply is audible, and is not generated to its end yet."""
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 40, 1.0
    for name, value in stages_with.items():
        setattr(stages, name, value)
    async with connected(stages) as client:
        await adapt(client)
        client.play(question)
        await client.until("response.output_audio.delta")
        stages.waits.clear()
        await client.settled()
        yield client
        stages.waits.set()


def syllable(question: np.ndarray, seconds: float = 0.4) -> np.ndarray:
    """The beginning of real speech, and enough silence for the pause after it."""
    begin = np.flatnonzero(np.abs(question) > 0.05)[0]
    return np.concatenate([silence(0.3), question[begin : begin + int(seconds * SPEECH_RATE)], silence(0.4)])


async def test_agreement_pauses_the_reply_and_it_goes_on(question):
    async with replying(question) as client:
        client.stages.words = "Mm-hmm."
        client.play(syllable(question))
        resumed = await client.until(RESUMED)
        paused = client.all(PAUSED)[0]
        response = client.session.context.response
        assert (resumed["reason"], resumed["transcript"]) == ("backchannel", "Mm-hmm.")
        assert paused["response_id"] == resumed["response_id"] == response.id
        assert paused["item_id"] == resumed["item_id"] == response.message.id
        assert 3000 < paused["audio_start_ms"] < 1000 * len(question) / SPEECH_RATE + 600
        client.play(silence(1))
        client.stages.waits.set()
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        assert len(client.all(STARTED)) == len(client.all("input_audio_buffer.committed")) == 1
        assert len(client.stages.asked) == 1
        overheard = done["response"]["output"][0]["overheard"]
        assert [each["transcript"] for each in overheard] == ["Mm-hmm."]
        assert [item.role for item in client.session.conversation.items] == ["user", "assistant"]


async def test_other_words_interrupt_with_their_sound_from_the_beginning(question):
    async with replying(question) as client:
        client.stages.words = "Wait, I have another question"
        before = len(client.stages.heard)
        client.play(question)
        done = await client.until("response.done")
        client.stages.waits.set()
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        await client.until("conversation.item.input_audio_transcription.completed", 2)
        assert len(client.all(PAUSED)) == 1
        assert not client.all(RESUMED)
        started = client.all(STARTED)[1]
        assert started["audio_start_ms"] <= client.all(PAUSED)[0]["audio_start_ms"]
        assert max(client.stages.heard[before:]) > 2.5


async def test_agreement_that_goes_on_interrupts_afterwards(question):
    async with replying(question) as client:
        heard = client.stages.hear

        async def hear(samples_n, *others):
            client.stages.words = "yeah" if len(samples_n) < HEARING_RATE else "yeah yeah but wait"
            return await heard(samples_n, *others)

        client.stages.hear = hear
        client.play(question)
        await client.until(STARTED, 2)
        client.stages.waits.set()
        kinds = [event["type"] for event in client.events if event["type"] in (PAUSED, RESUMED, STARTED)]
        assert kinds == [STARTED, PAUSED, RESUMED, STARTED]
        completed = await client.until("conversation.item.input_audio_transcription.completed", 2)
        assert completed["transcript"] == "yeah yeah but wait"


@pytest.mark.parametrize("trouble", ["late", "failed", "empty"])
async def test_without_words_in_time_it_is_an_interruption(question, trouble):
    async with replying(question) as client:
        if trouble == "late":
            client.stages.hearing_allowed.clear()
        elif trouble == "failed":
            client.stages.failing = "transcription"
        else:
            client.stages.words = ""
        client.play(question[: 2 * SPEECH_RATE])
        await client.until(STARTED, 2)
        assert not client.all(RESUMED)
        client.stages.hearing_allowed.set()
        client.stages.failing = ""
        await client.until("response.done")


async def test_its_own_voice_does_not_interrupt_and_is_not_transcribed(question):
    begin = np.flatnonzero(np.abs(question) > 0.05)[0]
    reply_n = question[begin : begin + 3 * SPEECH_RATE]
    stages = MadeUpStages()

    async def speak(sentence, speed, voice):
        yield reply_n

    stages.speak = speak
    async with connected(stages) as client:
        await adapt(client)
        client.play(question)
        await client.until("response.done")
        response, before = client.session.context.response, len(stages.heard)
        response.sounds_since -= 0.3  # it has played for a while when its echo begins
        client.play(np.concatenate([0.3 * reply_n[: SPEECH_RATE // 3], silence(1)]))  # it ends with the pause
        resumed = await client.until(RESUMED)
        await client.settled()
        assert (resumed["reason"], resumed["transcript"]) == ("echo", None)
        assert len(client.all(STARTED)) == 1
        assert len(stages.heard) == before


async def test_a_client_that_cancels_while_paused_has_the_speech_as_a_turn(question):
    async with replying(question) as client:
        client.stages.hearing_allowed.clear()
        client.play(syllable(question, 0.2)[: int(0.5 * SPEECH_RATE)])
        await client.until(PAUSED)
        client.send("response.cancel")
        done = await client.until("response.done")
        assert done["response"]["status_details"]["reason"] == "client_cancelled"
        client.stages.hearing_allowed.set()
        client.stages.waits.set()
        client.play(silence(1))
        await client.until("input_audio_buffer.committed", 2)
        assert not client.all(RESUMED)
        await client.until("response.done", 2)


async def test_a_reply_that_is_generated_to_its_end_while_paused_goes_on(question):
    async with replying(question) as client:
        client.stages.hearing_allowed.clear()
        client.stages.words = "okay"
        client.play(syllable(question)[: int(0.6 * SPEECH_RATE)])
        await client.until(PAUSED)
        played_ms = client.session.context.response.played_ms
        client.stages.waits.set()
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        assert client.session.context.response.played_ms == played_ms
        client.stages.hearing_allowed.set()
        client.play(silence(0.5))
        assert (await client.until(RESUMED))["reason"] == "backchannel"
        assert client.session.context.response.is_playing


@pytest.mark.parametrize("kind", ["input_audio_buffer.clear", "input_audio_buffer.commit"])
async def test_a_client_that_clears_or_commits_while_paused(question, kind):
    async with replying(question) as client:
        client.stages.hearing_allowed.clear()
        client.play(syllable(question)[: int(0.6 * SPEECH_RATE)])
        await client.until(PAUSED)
        client.send(kind)
        if kind == "input_audio_buffer.clear":
            assert (await client.until(RESUMED))["transcript"] is None
        else:
            await client.until("input_audio_buffer.committed", 2)
            assert len(client.all(STARTED)) == 2
        client.stages.hearing_allowed.set()


async def test_a_written_reply_is_not_paused(question):
    stages = MadeUpStages()
    stages.reply = "word " * 400
    async with connected(stages) as client:
        await adapt(client)
        client.send("session.update", session={"output_modalities": ["text"]})
        client.play(question)
        await client.until("response.output_text.delta")
        stages.waits.clear()
        client.play(question)
        done = await client.until("response.done")
        stages.waits.set()
        assert done["response"]["status"] == "cancelled"
        assert not client.all(PAUSED)


async def test_sound_that_stops_while_paused_is_decided_by_the_clock(question):
    async with replying(question) as client:
        client.stages.words = "yeah"
        client.play(syllable(question)[: int(0.6 * SPEECH_RATE)])
        assert (await client.until(RESUMED))["reason"] == "backchannel"


@pytest.mark.parametrize(
    ("kind", "detection", "param"),
    [
        ("realtime", {"interrupt_response": False}, "interruption"),
        ("transcription", {}, "interruption"),
    ],
)
async def test_combinations_without_sense_are_refused_by_name(kind, detection, param):
    async with connected(type=kind) as client:
        wanted = {"type": "server_vad", "interruption": "adaptive"} | detection
        client.send("session.update", session={"audio": {"input": {"turn_detection": wanted}}})
        error = (await client.until("error"))["error"]
        assert error["param"] == f"session.audio.input.turn_detection.{param}"
        assert client.session.context.settings.audio.input.turn_detection.interruption == "immediate"


async def test_interrupt_response_cannot_be_switched_off_under_adaptive():
    async with connected() as client:
        await adapt(client)
        client.send("session.update", session={"audio": {"input": {"turn_detection": {"interrupt_response": False}}}})
        error = (await client.until("error"))["error"]
        assert error["param"] == "session.audio.input.turn_detection.interrupt_response"
        assert client.session.context.settings.audio.input.turn_detection.interrupt_response


# The decision alone.


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Mm-hmm.", "en"),
        ("Yeah, yeah, okay.", "en"),
        ("Uh-huh", "fr"),
        ("I see.", "en"),
        ("Hahaha!", "de"),
        ("Ja, genau.", "de"),
        ("Sí, claro.", "es"),
        ("D’accord.", "fr"),
        ("va bene", "it"),
        ("うんうん。", "ja"),
    ],
)
def test_agreement_in_several_languages(text, language):
    assert judge(VOICE, Words(text, language)) == "backchannel"


@pytest.mark.parametrize("text", ["Stop.", "No.", "Yeah, but wait", "Okay, what about Paris?", "", "Sí, claro."])
def test_everything_else_interrupts(text):
    assert judge(VOICE, Words(text, "en")) == "interruption"


def test_a_brief_sound_without_words_is_agreement():
    brief = Sound(voiced=0.9, flatness=0.05, brightness=0.3, echo=0.2, is_brief=True)
    assert judge(brief, Words("", "en")) == "backchannel"
    assert judge(brief, Words("Stop.", "en")) == "interruption"


def test_words_of_the_reply_are_an_echo_only_if_the_sound_is_alike():
    words = Words("the capital of France is", "en", "Well, the capital of France is Paris.")
    assert judge(VOICE, words) == "interruption"
    assert judge(Sound(0.9, 0.05, 0.3, echo=0.65), words) == "echo"


def test_a_cough_is_noise_and_speech_is_not(question):
    generator = np.random.default_rng(0)
    cough_n = generator.standard_normal(HEARING_RATE // 3).astype(np.float32) * 0.2
    nothing_fb = bands(np.zeros(HEARING_RATE, np.float32), HEARING_RATE)
    assert judge(measure(cough_n, nothing_fb)) == "noise"
    speech_n = question[::3][: HEARING_RATE // 2]  # about a voice, at any rate
    assert judge(measure(speech_n, nothing_fb)) is None


def test_an_echo_is_found_at_any_delay_and_other_speech_is_not(question):
    speech_n = soxr.resample(question, SPEECH_RATE, HEARING_RATE)
    played = PlayedSound(SPEECH_RATE)
    for start in range(0, len(question), 1000):
        played.append(question[start : start + 1000])
    begin = HEARING_RATE
    heard_fb = bands(0.1 * speech_n[begin : begin + HEARING_RATE // 2], HEARING_RATE)
    assert likeness(heard_fb, played.between(700, 1700)) > 0.9
    assert likeness(heard_fb, played.between(1600, 2600)) < 0.7
    assert played.between(-500, 500).shape == (100, 12)
    assert not played.between(10_000, 10_500).any()
