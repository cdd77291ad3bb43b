"""Replicas whose every call fails must not stay in service; calls that nobody answers end in time."""

import asyncio
import sys
import threading
from contextlib import suppress
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from voicechat_platform.errors import InputError
from voicechat_serve.api import services as services_module
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.services import answered, streamed
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling
from voicechat_serve.generation.engines.vllm_engine import VLLMEngine
from voicechat_serve.generation.language_model import LanguageModel
from voicechat_serve.operations import health as health_module
from voicechat_serve.operations.health import MOST_FAILURES, Health, UnhealthyError
from voicechat_serve.operations.load import OverloadedError
from voicechat_serve.synthesis.synthesizer import Synthesis
from voicechat_serve.synthesis.voices import HEART
from voicechat_serve.transcription.transcriber import Transcription


def step(health: Health, kind: str, error: Exception | None = None) -> None:
    with suppress(Exception), health.step(kind):
        if error:
            raise error


def test_each_kind_of_step_is_counted_by_itself_and_a_success_begins_anew():
    health = Health(KeyError)
    for _ in range(MOST_FAILURES - 1):
        step(health, "decoding", OSError("broken"))
        step(health, "reading")
        health.check()
    step(health, "decoding")
    for error in (InputError("bad"), OverloadedError("busy"), KeyError("harmless")):
        for _ in range(MOST_FAILURES):
            step(health, "decoding", error)
    for _ in range(MOST_FAILURES):
        health.check()
        step(health, "decoding", OSError("broken"))
        step(health, "reading")
    with pytest.raises(UnhealthyError, match=r"last 5 steps failed \(decoding\).*broken"):
        health.check()


def test_a_step_that_does_not_get_on(monkeypatch):
    now = 0.0
    monkeypatch.setattr(health_module, "time", SimpleNamespace(monotonic=lambda: now))
    health = Health()
    with health.step("decoding") as gets_on:
        now += health_module.STUCK_S
        health.check()
        gets_on()
        now += health_module.STUCK_S
        health.check()
        now += 1
        with pytest.raises(UnhealthyError):
            health.check()
    health.check()


async def test_an_ear_that_fails_at_every_sound():
    def broken(*arguments, **settings):
        raise RuntimeError("no ear")

    ear = object.__new__(Transcription)
    model = SimpleNamespace(is_multilingual=False)
    ear.model = SimpleNamespace(model=model, transcribe=broken, supported_languages=["en"], abandoned=None)
    ear.worker, ear.at_work, ear.health, ear.batched = None, 0, Health(), None
    for _ in range(2 * MOST_FAILURES):
        with pytest.raises(InputError):
            await ear.transcribe(np.zeros(16000, np.float32), "fr")
    ear.check_health()
    for _ in range(MOST_FAILURES):
        with pytest.raises(RuntimeError, match="no ear"):
            await ear.transcribe(np.zeros(16000, np.float32))
    with pytest.raises(UnhealthyError):
        ear.check_health()


async def test_a_voice_that_fails_at_every_sentence():
    class Broken:
        def speak(self, text, speed):
            raise RuntimeError("no voice")
            yield

    voice = object.__new__(Synthesis)
    voice.speakers, voice.health = {HEART: Broken()}, Health()
    for name, error, count in (("nobody", InputError, 2 * MOST_FAILURES), (HEART.id, RuntimeError, MOST_FAILURES)):
        voice.check_health()
        for _ in range(count):
            with pytest.raises(error):
                await anext(voice.speak("Hello.", voice=name))
    with pytest.raises(UnhealthyError):
        voice.check_health()


def test_any_version_that_fails_is_a_reason_to_replace_the_replica():
    model = object.__new__(LanguageModel)
    broken, works = Health(), Health()
    model.champions, model.adapters = None, {}
    model.current = SimpleNamespace(engine=works)
    model.versions = {2: model.current, 1: SimpleNamespace(engine=broken)}
    model.check_health()
    for _ in range(MOST_FAILURES):
        step(broken, "decoding", OSError("broken"))
    with pytest.raises(UnhealthyError):
        model.check_health()


class Silent:
    """A call that gives what it is told to, and then nothing more for ever."""

    def __init__(self, *pieces):
        self.pieces, self.cancelled = list(pieces), False

    def options(self, stream):
        return self

    def ask(self, *arguments):
        return self

    def __getattr__(self, method):
        return SimpleNamespace(remote=self.ask)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.pieces:
            return self.pieces.pop(0)
        return await asyncio.Event().wait()

    def __await__(self):
        return asyncio.Event().wait().__await__()

    def cancel(self):
        self.cancelled = True


@pytest.mark.parametrize(
    ("limit", "pieces"), [("FIRST_PIECE_S", ()), ("NEXT_PIECE_S", ("a",)), ("WHOLE_S", ("a", "b"))]
)
async def test_a_stream_that_stands_still_is_given_up(limit, pieces, monkeypatch):
    monkeypatch.setattr(services_module, limit, 0.05)
    silent, given = Silent(*pieces), []

    async def read() -> None:
        async with streamed(silent, "chat") as stream:
            async for piece in stream:
                given.append(piece)

    with pytest.raises(APIError) as late:
        await asyncio.wait_for(read(), 10)
    assert (late.value.status_code, late.value.code, tuple(given)) == (504, "timeout", pieces)
    assert "0.05 s" in late.value.detail
    assert silent.cancelled


async def test_a_call_that_is_not_answered_is_given_up():
    silent = Silent()
    with pytest.raises(APIError) as late:
        await asyncio.wait_for(answered(silent, 0.05), 10)
    assert late.value.status_code == 504
    assert silent.cancelled


class MadeUpLLM:
    """In place of vLLM's: a token of each answer, then an end that is none."""

    errored = False

    def __init__(self, ending: str):
        self.ending = ending

    async def generate(self, prompt, params, name):
        yield SimpleNamespace(prompt_logprobs=None, outputs=[SimpleNamespace(token_ids=[7], logprobs=None)])
        if self.ending == "raises":
            raise OSError("a worker died")
        if self.ending == "is cancelled":
            raise asyncio.CancelledError


@pytest.mark.parametrize("ending", ["ends early", "raises", "is cancelled"])
async def test_a_stream_of_vllm_that_ends_early_ends_for_its_reader_too(ending, monkeypatch):
    parameters = ModuleType("vllm.sampling_params")
    parameters.RequestOutputKind = SimpleNamespace(DELTA=1)
    parameters.SamplingParams = dict
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    engine = object.__new__(VLLMEngine)
    engine.decode_text, engine.end_ids, engine.context, engine.capacity = str, [0], 64, 8
    engine.held, engine.health, engine.llm = {}, Health(), MadeUpLLM(ending)
    engine.loop = asyncio.new_event_loop()
    engine.thread = threading.Thread(target=engine.loop.run_forever)
    engine.thread.start()
    try:
        for _ in range(MOST_FAILURES):
            engine.check()
            stream = engine.generate(GenerationRequest(prompt_ids=[1], sampling=Sampling(max_tokens=9)))
            assert [token.id for token in await anext(stream)] == [7]
            with pytest.raises((RuntimeError, OSError)):
                await asyncio.wait_for(anext(stream), 10)
        if ending == "raises":
            with pytest.raises(UnhealthyError):
                engine.check()
    finally:
        engine.loop.call_soon_threadsafe(engine.loop.stop)
        engine.thread.join()
    with pytest.raises(RuntimeError, match="has ended"):
        engine.check()
    with pytest.raises(RuntimeError, match="has ended"):
        await anext(engine.generate(GenerationRequest(prompt_ids=[1])))
    assert not engine.held
    engine.loop.close()
