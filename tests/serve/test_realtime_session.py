"""A session of the realtime protocol alone: real speech through the real voice detector, made-up models.

Every event that it sends is checked, strictly, against the `openai` package's types.
"""

import asyncio
import base64
import contextlib
import json
import wave
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import numpy as np
import pytest
import soxr
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from voicechat_serve import conversation as conversation_module
from voicechat_serve.api.errors import APIError, api_error
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.loaded_model import Delta
from voicechat_serve.realtime import listening as listening_module
from voicechat_serve.realtime import session as session_module
from voicechat_serve.realtime import wire as wire_module
from voicechat_serve.realtime.session import Session
from voicechat_serve.realtime.session_settings import SessionSettings
from voicechat_serve.transcription import Transcript
from voicechat_serve.voices import SPEECH_RATE

EVENT = TypeAdapter(RealtimeServerEvent)

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


class MadeUpStages:
    """Models that say what they were asked."""

    transcription_model = "whisper-tiny.en"

    def __init__(self) -> None:
        self.words = "What is love"
        self.language = "en"
        self.reply = "Love is patient. Love is kind, as they say. And so on."
        self.sound_s = 0.5
        self.heard: list[float] = []
        """Seconds of each sound that was transcribed."""
        self.asked: list[tuple[str, list[dict[str, str]], dict[str, Any]]] = []
        self.at_work = 0
        self.spoken_as: tuple[str, float] | None = None
        self.failing = ""
        self.waits = asyncio.Event()
        """Set: a piece of a reply is written at once."""
        self.waits.set()
        self.hearing_allowed = asyncio.Event()
        self.hearing_allowed.set()

    async def hear(self, samples_n, language, prompt, only_if_idle):
        self.heard.append(len(samples_n) / HEARING_RATE)
        await self.hearing_allowed.wait()
        if self.failing == "transcription":
            raise OSError("no ear")
        num_words = min(len(self.words.split()), 1 + int(2 * self.heard[-1]))
        return Transcript(" ".join(self.words.split()[:num_words]), language or self.language, self.heard[-1])

    async def write(self, model, messages, sampling) -> AsyncGenerator[Delta, None]:
        self.asked.append((model, messages, sampling))
        self.at_work += 1
        try:
            words = self.reply.split()
            for number, word in enumerate(words, 1):
                await asyncio.sleep(0)
                await self.waits.wait()
                if self.failing == "generation":
                    raise OSError("no model")
                yield Delta(word + " ", 7, number, "stop" if number == len(words) else None)
        finally:
            self.at_work -= 1

    async def speak(self, sentence, speed, voice) -> AsyncGenerator[np.ndarray, None]:
        self.at_work += 1
        self.spoken_as = (voice, speed)
        try:
            await asyncio.sleep(0)
            yield np.full(int(self.sound_s * SPEECH_RATE), 0.1, np.float32)
        finally:
            self.at_work -= 1

    def require_model(self, name):
        if name not in ("bard", "poet"):
            raise APIError(404, f"the model {name} does not exist here", param="model", code="model_not_found")

    def require_transcription(self, name):
        if name != "whisper-1":
            raise APIError(404, "no such model", param="model", code="model_not_found")

    def voice(self, name, language):
        if name not in ("", "heart", "alloy"):
            raise APIError(400, "no such voice", param="voice", code="invalid_value")
        return "heart" if language in (None, "en") else None

    def explain(self, error):
        return api_error(error).body()["error"]


class Client:
    """The other end of a session."""

    def __init__(self, stages: MadeUpStages, **begin_with: Any):
        self.stages = stages
        self.frames: asyncio.Queue[str] = asyncio.Queue()
        self.events: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.session = Session(SessionSettings(model="bard", **begin_with), stages, self.frames.get, self.take)

    async def take(self, frame: str) -> None:
        event = json.loads(frame)
        EVENT.validate_python(event, strict=True)
        self.events.append(event)
        self.news.set()

    def send(self, kind: str, **fields: Any) -> None:
        self.frames.put_nowait(json.dumps({"type": kind, **fields}))

    def play(self, sound_n: np.ndarray) -> None:
        """20 ms at a time, as a microphone would, but at once."""
        pcm = (np.clip(sound_n, -1, 1) * 32767).astype("<i2").tobytes()
        for start in range(0, len(pcm), 960):
            self.send("input_audio_buffer.append", audio=base64.b64encode(pcm[start : start + 960]).decode())

    async def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Waits for the count-th event of a kind."""
        async with asyncio.timeout(20):
            while len(found := self.all(kind)) < count:
                self.news.clear()
                await self.news.wait()
        return found[count - 1]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        """In their order, without repetitions in a row and partial transcripts."""
        kinds = [e["type"] for e in self.events if not e["type"].endswith("input_audio_transcription.delta")]
        seen: list[str] = []
        for kind in kinds:
            is_delta = kind.endswith(".delta")
            if not (is_delta and kind in seen[-2:]):
                seen.append(kind)
        return seen


@contextlib.asynccontextmanager
async def connected(stages: MadeUpStages | None = None, **begin_with: Any) -> AsyncIterator[Client]:
    client = Client(stages or MadeUpStages(), **begin_with)
    running = asyncio.create_task(client.session.run())
    before = asyncio.all_tasks()
    try:
        await client.until("session.created")
        yield client
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert client.stages.at_work == 0
    assert asyncio.all_tasks() <= before, "a task was left behind"


@pytest.fixture(scope="module")
def question(clips) -> np.ndarray:
    """Three seconds of real speech and a second of silence, at 24 kHz."""
    path = min(clips, key=lambda clip: clip[0].stat().st_size)[0]
    with wave.open(str(path)) as file:
        rate, samples_n = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    speech_n = soxr.resample(samples_n.astype(np.float32) / 32768, rate, SPEECH_RATE)
    return np.concatenate([silence(0.4), speech_n, silence(1.0)])


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SPEECH_RATE), np.float32)


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
        end = np.flatnonzero(np.abs(question) > 0.02)[-1]
        client.play(question[: end + int(0.35 * SPEECH_RATE)])  # the pause, but not yet the endpoint
        async with asyncio.timeout(10):
            while not client.stages.asked:
                await asyncio.sleep(0.01)
        assert not client.all("input_audio_buffer.speech_stopped")
        client.play(silence(0.5))
        await client.until("response.done")
        assert len(client.stages.asked) == 1, "the draft is what is said"


async def test_without_anticipation_the_answer_is_begun_at_the_endpoint(question):
    async with connected() as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": {"anticipate": False}}}})
        end = np.flatnonzero(np.abs(question) > 0.02)[-1]
        client.play(question[: end + int(0.35 * SPEECH_RATE)])
        await asyncio.sleep(0.2)
        assert not client.stages.asked
        client.play(silence(0.5))
        await client.until("response.done")


async def test_a_draft_is_thrown_away_when_the_person_goes_on(question):
    end = np.flatnonzero(np.abs(question) > 0.02)[-1]
    first = question[: end + int(0.35 * SPEECH_RATE)]
    async with connected() as client:
        client.stages.words = "one two three"
        client.play(first)
        async with asyncio.timeout(10):
            while not client.stages.asked:
                await asyncio.sleep(0.01)
        client.stages.words = "one two three four five six"
        client.play(question[np.flatnonzero(np.abs(question) > 0.02)[0] :])
        await client.until("response.done")
        assert len(client.all("response.created")) == 1
        assert len(client.all("input_audio_buffer.speech_started")) == 1
        assert client.stages.asked[-1][1][-1]["content"] == "one two three four five six"


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


async def test_where_no_word_was_said_nobody_answers(question):
    stages = MadeUpStages()
    stages.words = ""
    async with connected(stages) as client:
        client.play(question)
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == ""
        await asyncio.sleep(0.05)
        assert not client.all("response.created")
        assert not stages.asked


@pytest.mark.parametrize("seconds", [70, pytest.param(640, marks=pytest.mark.nightly)])
async def test_a_monologue_without_a_pause_is_written_down_as_it_comes(question, seconds):
    speech_n = question[int(0.5 * SPEECH_RATE) : -int(1.1 * SPEECH_RATE)]
    stages = MadeUpStages()
    async with connected(stages) as client:
        for _ in range(int(seconds * SPEECH_RATE / len(speech_n))):
            client.play(speech_n)
            while client.frames.qsize() or client.session.wire.inbox.qsize():
                await asyncio.sleep(0.001)
            utterance = client.session.listening.utterance
            assert utterance is None or utterance.tail_samples <= 26 * HEARING_RATE
        client.play(silence(1))
        await client.until("response.done")
        assert max(stages.heard) <= 26
        assert client.all("input_audio_buffer.committed")
        assert client.all("conversation.item.input_audio_transcription.completed")


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
            ("conversation.item.truncate", {"item_id": last["item"]["id"], "audio_end_ms": 5}),
            ("conversation.item.create", {"item": last["item"]}),
            ("response.cancel", {}),
        ):
            client.send(kind, content_index=0, **fields)
        await client.until("error", 5)
        codes = [event["error"]["code"] for event in client.all("error")]
        assert codes == ["item_not_found"] * 2 + ["invalid_value", "item_exists", "response_cancel_not_active"]


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
            ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "session.audio.input.format.type"),
            (
                {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}},
                "session.audio.input.turn_detection.type",
            ),
            ({"model": "nobody"}, "model"),
            ({"tools": [{"type": "function"}]}, "session.tools"),
            ({"temperature": 3}, "session.temperature"),
            ({"output_modalities": ["text", "audio"]}, "session.output_modalities"),
        ]
        for number, (patch, param) in enumerate(wrong, 1):
            client.send("session.update", session=patch)
            error = await client.until("error", number)
            assert error["error"]["param"] == param, error
        client.send("session.update", session={"instructions": "x"})
        updated = await client.until("session.updated", 2)
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


def written(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


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
        await asyncio.sleep(0.05)


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


async def test_after_an_interruption_nothing_is_heard_any_more(question):
    stages = MadeUpStages()
    stages.reply, stages.sound_s = "One sentence. " * 40, 1.0
    async with connected(stages) as client:
        client.send("conversation.item.create", item=written("Go on."))
        client.send("response.create")
        await client.until("response.output_audio.delta")
        assert client.session.answering.is_heard()
        client.send("response.cancel")
        await client.until("response.done")
        assert not client.session.answering.is_heard()


async def test_an_early_answer_to_what_the_client_commits_is_not_left_at_work(question):
    end = np.flatnonzero(np.abs(question) > 0.02)[-1]
    stages = MadeUpStages()
    stages.reply = "One sentence. " * 400
    async with connected(stages) as client:
        client.play(question[: end + int(0.35 * SPEECH_RATE)])
        async with asyncio.timeout(10):
            while not stages.asked:
                await asyncio.sleep(0.01)
        client.send("input_audio_buffer.commit")
        await client.until("conversation.item.input_audio_transcription.completed")
        await asyncio.sleep(0.05)
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
        await asyncio.sleep(0.05)
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
        await asyncio.sleep(0.05)
        assert not client.all("response.created")
        if broken_off_by == "a failure":
            stages.failing = "transcription"
            client.play(silence(1))
        else:
            client.send(broken_off_by, session={"audio": {"input": {"turn_detection": None}}})
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"


async def test_speech_that_begins_while_an_early_answer_is_thrown_away_is_not_spoken_over(question):
    end = np.flatnonzero(np.abs(question) > 0.02)[-1]
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
        client.play(question[: end + int(0.35 * SPEECH_RATE)])
        async with asyncio.timeout(10):
            while not stages.asked:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        client.send("session.update", session={"model": "poet"})  # so the draft is not what is wanted
        client.play(silence(0.5))
        await client.until("conversation.item.input_audio_transcription.completed")
        stages.speak = usual
        client.play(question[: len(question) // 2])
        await client.until("input_audio_buffer.speech_started", 2)
        closing.set()
        await asyncio.sleep(0.1)
        responses = client.all("response.created"), client.all("response.done")
        assert len(responses[0]) == len(responses[1]), "a reply goes on while the person speaks"


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
        assert len(client.session.turns) == session_module.MOST_TURNS
        stages.hearing_allowed.set()
        await client.until("conversation.item.input_audio_transcription.completed", session_module.MOST_TURNS)


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


async def test_a_reply_that_is_cancelled_before_its_first_word_is_not_in_progress_for_good():
    stages = MadeUpStages()
    stages.waits.clear()
    async with connected(stages) as client:
        client.send("conversation.item.create", item=written("Go on."))
        client.send("response.create")
        added = await client.until("response.output_item.added")
        client.send("conversation.item.retrieve", item_id=added["item"]["id"])
        assert (await client.until("conversation.item.retrieved"))["item"]["status"] == "in_progress"
        client.send("response.cancel")
        done = await client.until("response.done")
        assert done["response"]["output"][0]["status"] == "incomplete"
        assert client.all("response.output_item.done")[0]["item"]["status"] == "incomplete"


async def test_an_utterance_keeps_its_id(question):
    async with connected() as client:
        client.play(question[: len(question) // 2])
        id = (await client.until("input_audio_buffer.speech_started"))["item_id"]
        client.send("conversation.item.create", item=written("Mine.") | {"id": id})
        assert (await client.until("error"))["error"]["code"] == "item_exists"
