"""Convert clients' names of languages to Whisper's."""

from langcodes import standardize_tag
from langcodes.tag_parser import LanguageTagError
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from voicechat_platform.errors import InputError

LONGEST_TAG = 35
"""The number of characters that RFC 5646 requires software to support."""

MULTILINGUAL = frozenset(LANGUAGES.keys() - {"yue"})
"""Whisper's codes in most multilingual models; only large-v3 and those made of it have a token for Cantonese."""

OTHER_CODES = {"jv": "jw", "nb": "no", "fil": "tl"}
"""Codes that differ from Whisper's own -> Whisper's."""

ENGLISH_ONLY = frozenset({"en"})


def whisper_language(tag: str, model: str, languages: frozenset[str]) -> str:
    """Return Whisper's code for a language.

    Args:
        tag: a BCP 47 tag ("en", "en-US", "pt_BR", "deu", in upper or lower case) or the language's English name.
        model: the Whisper model's name, for the message.
        languages: Whisper's codes of the languages that the model knows.

    Raises:
        InputError: the tag names no language, or one that the model does not know.
    """
    code = known_code(tag)
    if code is None:
        shown = tag if len(tag) <= LONGEST_TAG else f"{tag[:LONGEST_TAG]}…"
        codes = ", ".join(sorted(languages))
        raise InputError(f"the language {shown!r} is none that Whisper knows: give one of {codes}, or leave it out")
    if languages == ENGLISH_ONLY and code != "en":
        raise InputError(
            f"the model {model} knows only English, not {LANGUAGES[code]} ({code}): leave the language out, or "
            "serve a model for many languages, such as whisper-base"
        )
    if code not in languages:
        raise InputError(
            f"the model {model} does not know the language {tag!r}, {LANGUAGES[code]}: give one of "
            f"{', '.join(sorted(languages))}, or leave it out"
        )
    return code


def known_code(tag: str) -> str | None:
    tag = tag.strip()
    if tag.lower() in TO_LANGUAGE_CODE:
        codes = [TO_LANGUAGE_CODE[tag.lower()]]
    else:
        try:  # with its macrolanguage: Mandarin (cmn) is Whisper's Chinese (zh)
            languages = [standardize_tag(tag, macro=macro).split("-")[0] for macro in (False, True)]
        except LanguageTagError:
            return None
        codes = [OTHER_CODES.get(language, language) for language in languages]
    return next((code for code in codes if code in LANGUAGES), None)
