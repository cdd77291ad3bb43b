import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from voicechat_platform.errors import InputError
from voicechat_serve.transcription.languages import ENGLISH_ONLY, MULTILINGUAL, whisper_language


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        *[("en", "en"), ("EN", "en"), ("en-US", "en"), ("en_GB", "en"), ("eng", "en"), ("English", "en")],
        *[("de", "de"), ("ger", "de"), ("deu-AT", "de"), ("GERMAN", "de"), (" de ", "de")],
        *[("zh-Hans-CN", "zh"), ("cmn", "zh"), ("mandarin", "zh"), ("pt-br", "pt"), ("iw", "he"), ("jv", "jw")],
        *[("jw", "jw"), ("nb-NO", "no"), ("nn", "nn"), ("fil", "tl"), ("castilian", "es"), ("haitian creole", "ht")],
    ],
)
def test_a_language_has_whispers_code_however_it_is_named(tag, code):
    assert whisper_language(tag, "whisper-base", MULTILINGUAL) == code


@pytest.mark.parametrize("code", sorted(LANGUAGES.keys() - {"yue"}))
def test_whispers_own_codes_and_names_are_understood(code):
    for tag in (code, LANGUAGES[code].upper()):
        assert whisper_language(tag, "whisper-base", MULTILINGUAL) == code


@pytest.mark.parametrize("tag", ["", "xx", "tlh", "und", "auto", "en-", "yue", "cantonese", "e", "../en", "e" * 10_000])
def test_what_whisper_does_not_know_is_named(tag):
    with pytest.raises(InputError) as raised:
        whisper_language(tag, "whisper-base", MULTILINGUAL)
    assert f"'{tag[:35]}" in str(raised.value)
    assert "en, es, " in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_an_english_model_knows_english():
    assert whisper_language("en-GB", "whisper-tiny.en", ENGLISH_ONLY) == "en"
    with pytest.raises(InputError, match=r"whisper-tiny\.en knows only English, not german \(de\)"):
        whisper_language("de-DE", "whisper-tiny.en", ENGLISH_ONLY)


def test_cantonese_is_known_where_the_model_has_a_token_for_it():
    for tag in ("yue", "cantonese"):
        assert whisper_language(tag, "whisper-large-v3", MULTILINGUAL | {"yue"}) == "yue"
        with pytest.raises(InputError, match=f"whisper-base does not know the language '{tag}', cantonese: give one"):
            whisper_language(tag, "whisper-base", MULTILINGUAL)


@given(st.text(max_size=50))
def test_any_text_is_a_code_or_an_error(tag):
    with contextlib.suppress(InputError):
        assert whisper_language(tag, "whisper-base", MULTILINGUAL) in LANGUAGES
