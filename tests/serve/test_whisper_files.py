"""`whisper:` takes a size, a folder or a hub's repository, and what is no Whisper is refused before anything starts."""

import json
import re
import struct
from pathlib import Path

import faster_whisper
import jiwer
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from small_hub import asked_in_this_process, running_hub
from voicechat_platform import assets
from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings
from voicechat_serve.audio import decode
from voicechat_serve.transcription.languages import ENGLISH_ONLY, MULTILINGUAL
from voicechat_serve.transcription.short_context import CAUTIOUS
from voicechat_serve.transcription.transcriber import Transcription
from voicechat_serve.transcription.whisper import Whisper
from voicechat_serve.transcription.whisper_files import SIZES, check_name, find_whisper, model_id, require_whole


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " "))


def copy_of(name: str, folder: Path) -> Path:
    """A folder of a person's own, whose files are links."""
    folder.mkdir(parents=True)
    for path in locate(f"whisper-{name}").iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a link, whose file must stay as it is
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path) -> Path:
    return copy_of("tiny.en", tmp_path / "my-dutch")


def test_the_sizes_are_faster_whispers():
    assert sorted(SIZES) == sorted(faster_whisper.available_models())


def test_the_packaged_ones_are_measured_and_others_are_not(tmp_path):
    tiny, base = find_whisper("tiny.en"), find_whisper("base")
    assert (tiny.id, tiny.languages, tiny.is_measured) == ("whisper-tiny.en", ENGLISH_ONLY, True)
    assert (base.id, base.languages, base.is_measured) == ("whisper-base", MULTILINGUAL, True)
    own = find_whisper(str(copy_of("base", tmp_path / "base-of-mine")))
    assert (own.id, own.languages, own.is_measured) == ("whisper-base-of-mine", MULTILINGUAL, False)


def test_english_only_is_a_matter_of_the_model_and_not_of_its_name(folder):
    assert find_whisper(str(folder)).languages == ENGLISH_ONLY


def test_large_v3_knows_cantonese(tmp_path):
    """Its vocabulary has one language more."""
    folder = copy_of("base", tmp_path / "large-v3-of-mine")
    tokens = (folder / "vocabulary.txt").read_text().removesuffix("\n").split("\n")
    after = tokens.index("<|su|>") + 1
    (folder / "vocabulary.txt").unlink()
    (folder / "vocabulary.json").write_text(json.dumps([*tokens[:after], "<|yue|>", *tokens[after:]]))
    with pytest.raises(InputError, match=r"tokenizer\.json belongs to another model"):
        find_whisper(str(folder))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["id"] += token["id"] >= after
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": after, "content": "<|yue|>"})
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    replace(folder / "tokenizer.json", json.dumps(tokenizer).encode())
    assert find_whisper(str(folder)).languages == MULTILINGUAL | {"yue"}


@pytest.mark.parametrize(
    ("given", "id"),
    [
        ("large-v3", "whisper-large-v3"),
        ("./models/dutch/", "whisper-dutch"),
        ("/srv/whisper-dutch", "whisper-dutch"),
        ("Systran/faster-distil-whisper-small.en", "faster-distil-whisper-small.en"),
    ],
)
def test_the_name_in_the_api(given, id):
    assert model_id(given) == id


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("huge", "'huge' is no folder and no OWNER/NAME of a hub; the sizes are tiny.en, tiny, "),
        ("./gone", "'./gone' is no folder"),
        ("a/b/c", "'a/b/c' is no folder"),
    ],
)
def test_what_cannot_be_a_whisper_is_told_without_a_hub(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        check_name(given)
    assert message in str(refused.value)


def test_a_size_without_a_hub_says_what_is_packaged(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"did not give the Whisper 'Systran/faster-whisper-small'.*base and tiny\.en"):
        find_whisper("small")


def test_a_hubs_model_is_downloaded_once_and_only_if_it_is_converted(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "settings", lambda: Settings(home=tmp_path))
    whole = {path.name: path.read_bytes() for path in locate("whisper-tiny.en").iterdir() if path.is_file()}
    with running_hub() as hub, asked_in_this_process(hub):
        hub.repositories["openai/whisper-small"] = {
            "config.json": b'{"model_type": "whisper"}',
            "model.safetensors": b"",
        }
        hub.repositories["someone/whisper-dutch"] = whole | {"pytorch_model.bin": b"pickled"}
        with pytest.raises(InputError, match="ct2-transformers-converter --model openai/whisper-small --output_dir"):
            find_whisper("openai/whisper-small")
        assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
        found = find_whisper("someone/whisper-dutch")
        count = len(hub.downloads())
        assert find_whisper("someone/whisper-dutch") == found
        assert len(hub.downloads()) == count
    assert (found.id, found.folder) == ("whisper-dutch", tmp_path / "models" / "someone--whisper-dutch")
    assert not (found.folder / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.bin", None, "has no model.bin, so it is not a CTranslate2 Whisper"),
        ("model.bin", b"", r"model\.bin is broken or incomplete \(0 bytes\)"),
        ("model.bin", b"GGUF" + bytes(100), r"model\.bin is not a Whisper of CTranslate2"),
        ("tokenizer.json", None, "has no tokenizer.json: copy it from the repository of the original model"),
        ("tokenizer.json", b"{}", r"tokenizer\.json cannot be read"),
        ("vocabulary.txt", None, r"has no vocabulary\.json and no vocabulary\.txt"),
        ("vocabulary.txt", b"a\nb\n", r"tokenizer\.json belongs to another model than the vocabulary"),
        ("vocabulary.json", b'{"a": 1}', r"vocabulary\.json is not a list of tokens"),
        ("vocabulary.json", b"\xff", r"vocabulary\.json cannot be read"),
    ],
)
def test_a_folder_that_is_no_whisper(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        replace(folder / name, content)
    with pytest.raises(InputError, match=message):
        find_whisper(str(folder))


def test_a_model_of_transformers_says_how_to_convert_it(folder):
    (folder / "model.bin").unlink()
    (folder / "model.safetensors").touch()
    with pytest.raises(InputError, match=f"transformers' format.*ct2-transformers-converter --model {folder}"):
        find_whisper(str(folder))


def test_another_models_bin_is_told_by_its_kind(tmp_path):
    kind = b"TransformerDecoderModelSpec\0"
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<IH", 6, len(kind)) + kind + bytes(8))
    with pytest.raises(InputError, match="is not a Whisper of CTranslate2, but 'TransformerDecoderModelSpec'"):
        require_whole(path)


def test_a_file_in_place_of_a_folder(folder):
    with pytest.raises(InputError, match="is a file: give the folder"):
        find_whisper(str(folder / "model.bin"))


def test_a_model_that_is_cut_off_anywhere_is_refused(tmp_path):
    whole = (locate("whisper-tiny.en") / "model.bin").read_bytes()
    path = tmp_path / "model.bin"
    path.write_bytes(whole)
    require_whole(path)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(whole) - 1))
    def check(length):
        with path.open("r+b") as file:
            file.truncate(length)
            with pytest.raises(InputError, match="broken or incomplete"):
                require_whole(path)
            file.seek(0)
            file.write(whole)

    check()


async def test_any_folder_serves(folder, clips):
    sound_n = decode(clips[0][0].read_bytes())
    own = Transcription(find_whisper(str(folder)).folder, gates=CAUTIOUS)
    heard = await own.hear(sound_n)
    assert jiwer.wer(plain(clips[0][1]), plain(heard.text)) < 0.2


def test_the_features_have_as_many_bands_as_the_model(folder, monkeypatch):
    """large-v3 and turbo have 128; faster-whisper takes 80 where preprocessor_config.json is missing."""

    class Large:
        n_mels, is_multilingual, device = 128, True, "cpu"

    monkeypatch.setattr("faster_whisper.transcribe.ctranslate2.models.Whisper", lambda *_, **options: Large())
    model = Whisper(folder, "cpu", "int8", 1)
    assert model.feature_extractor.mel_filters.shape[0] == 128
    (folder / "preprocessor_config.json").write_text('{"feature_size": 128, "sampling_rate": 16000}')
    assert Whisper(folder, "cpu", "int8", 1).feature_extractor.mel_filters.shape[0] == 128
