"""Convert a written text to the text that a voice speaks, one sentence at a time.

    sentence -> without markup (markup.py) -> in letters that the voice reads -> in words (spoken_english.py)

The voices of other languages read numbers and symbols by themselves. So do English voices where there is no rule.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache

import emoji
import regex
from anyascii import anyascii

from voicechat_serve.synthesis.markup import Markup
from voicechat_serve.synthesis.sentences import SentenceSplitter
from voicechat_serve.synthesis.spoken_english import URL, in_english

SCRIPTS = {
    **{language: "Cyrillic" for language in ("ru", "uk", "bg", "mk", "kk", "ky", "be", "mn", "tt", "sr")},
    **{language: "Arabic" for language in ("ar", "fa", "ur", "ku", "ug", "ps", "sd")},
    **{language: "Devanagari" for language in ("hi", "mr", "ne", "kok", "sa")},
    **{"el": "Greek", "he": "Hebrew", "yi": "Hebrew", "ka": "Georgian", "hy": "Armenian", "bn": "Bengali"},
    **{"gu": "Gujarati", "pa": "Gurmukhi", "kn": "Kannada", "ml": "Malayalam", "or": "Oriya", "ta": "Tamil"},
    **{"te": "Telugu", "si": "Sinhala", "th": "Thai", "my": "Myanmar", "am": "Ethiopic", "ko": "Hangul"},
    **{"zh": "Han", "cmn": "Han", "yue": "Han", "ja": "Han}\\p{Hiragana}\\p{Katakana"},
}
"""A language -> its script, beside Latin letters, which every voice reads."""

READABLE_LATIN = set("ÀÁÂÃÄÅÆÇÉÊÌÍÎÏÑÒÓÔÕÖØÚÜÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ")
"""Letters with accents that hibari reads; it is silent at some others."""
COMPATIBLE = ("<font>", "<wide>", "<narrow>", "<circle>", "<square>", "<compat>", "<fraction>", "<noBreak>")
"""Kinds of characters that differ from plain ones only in their look."""
SKIN_TONES = dict.fromkeys(range(0x1F3FB, 0x1F400))
DECORATION = regex.compile(r"[\u2500-\u25ff\u2800-\u28ff\u2022\u2023\u2043\ufffc\u00a6\u00b7\u00a8\u00af\u00b4\u00b8`]")
"""Frames, bullets and the like, which are not read."""
SYMBOL = regex.compile(r"([[\p{So}\p{Sm}\p{Sc}]--[\x00-\xff]])\1*", regex.V1)


@dataclass(frozen=True)
class Reading:
    """The spoken form of a sentence."""

    aloud: str
    """Empty if the sentence has no word."""
    unspoken: tuple[str, ...] = ()
    """The parts in letters that the voice cannot read; they are omitted."""


class Reader:
    """Converts a text's sentences in their order.

    Args:
        language: ISO-639-1 code of the voice's language.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._markup = Markup(is_english=language == "en")

    def read(self, sentence: str, begins_line: bool) -> Reading:
        """Convert one sentence.

        Args:
            sentence: the original text, without line breaks.
            begins_line: whether it is at the start of a line.
        """
        text = self._markup.without(sentence, begins_line)
        if not text:
            return Reading("")
        text = plain(text, self.language)
        unspoken = tuple(found[0] for found in foreign(self.language).finditer(text))
        text = foreign(self.language).sub(" ", text)
        text = with_named_symbols(in_english(text)) if self.language == "en" else with_short_addresses(text)
        text = " ".join(text.split())
        return Reading(text if any(one.isalnum() for one in text) else "", unspoken)


def read_all(text: str, language: str) -> Reading:
    """Convert a whole text, one line of speech for each line that is read."""
    reader, splitter = Reader(language), SentenceSplitter()
    aloud = ""
    unspoken: list[str] = []
    for sentence in splitter.feed(text) + splitter.flush():
        reading = reader.read(sentence.text, sentence.begins_line)
        unspoken += reading.unspoken
        if reading.aloud:
            aloud += ("\n" if sentence.begins_line else " ") + reading.aloud
    return Reading(aloud.strip(), tuple(unspoken))


def plain(text: str, language: str) -> str:
    """Return the text in ordinary characters: emoji by their names, letters of special forms as normal ones."""
    text = unicodedata.normalize("NFC", named_emoji(text.translate(SKIN_TONES), language))
    is_latin = language not in SCRIPTS
    plain = ""
    for one in text:
        kind = unicodedata.category(one)
        if one.isspace():
            plain += " "
        elif (
            kind == "Cc" or (kind == "Cf" and is_latin) or (kind in ("Mn", "Me") and is_latin and not is_foreign(plain))
        ):
            pass  # invisible, or an accent that combines with no letter
        elif one.isdecimal() and is_latin:
            plain += str(unicodedata.decimal(one))
        elif kind == "No" and not unicodedata.decomposition(one) and is_latin:
            plain += f"{unicodedata.numeric(one):g}"
        elif (one.isalnum() or kind == "So") and unicodedata.decomposition(one).startswith(COMPATIBLE):
            plain += (
                unicodedata.normalize("NFKC", one).replace("\N{FRACTION SLASH}", "/") if one not in "½¼¾℃℉№™" else one
            )
        elif language == "en" and ord(one) > 127 and one not in READABLE_LATIN and is_latin_letter(one):
            plain += anyascii(one) if anyascii(one).isalnum() else one
        else:
            plain += one
    if language == "en":
        plain = DECORATION.sub(" ", plain)
    return plain


def with_named_symbols(text: str) -> str:
    """Return the text with the remaining symbols replaced by their Unicode names, as for ♪."""

    def name(found: regex.Match[str]) -> str:
        words = unicodedata.name(found[1], "").lower()
        return " " + regex.sub(r"\b(?:black|white|heavy|sign|symbol)\b ?", "", words) + " "

    return SYMBOL.sub(name, text)


def is_latin_letter(one: str) -> bool:
    return one.isalpha() and regex.match(r"\p{Latin}", one) is not None


def is_foreign(text: str) -> bool:
    """Return whether the text ends in a letter outside of Latin, whose marks are more than accents."""
    return text[-1:].isalpha() and not is_latin_letter(text[-1])


def named_emoji(text: str, language: str) -> str:
    """Return the text with each emoji in words; equal emoji in a row only once."""
    known = language if language in emoji.LANGUAGES else "en"
    if known != "en":
        emoji.config.load_language(known)

    def name(found: str, facts: dict[str, str]) -> str:
        if found in "©®™‼⁉ℹ↔":
            return found
        words = facts.get(known, facts["en"]).strip(":").replace("_", " ").removeprefix("keycap ")
        return f"\0{words}\0"

    marked = emoji.replace_emoji(text, replace=name)
    if "\0" not in marked:
        return text
    marked = regex.sub(r"\s*\0([^\0]+)\0(?:\s*\0\1\0)*", r", \1, ", marked)
    return regex.sub(r"(?:\s*,)+\s*(?=[.!?;:]|$)|^[\s,]+", "", regex.sub(r"(?:\s*,){2,}", ",", marked))


@cache
def foreign(language: str) -> regex.Pattern[str]:
    """Return a pattern for words in letters that the language's voices cannot read, with neighbours joined."""
    own = f"\\p{{{SCRIPTS[language]}}}" if language in SCRIPTS else ""
    # An English voice names single Greek letters, as in mathematics.
    greek = r"(?!(?<!\p{Greek})\p{Greek}(?!\p{Greek}))" if language == "en" else ""
    # In English only these Latin letters remain, and a few without a plain form.
    latin = r"[\p{Latin}&&[\x00-\xff]]" if language == "en" else r"\p{Latin}"
    known = rf"{latin}{own}µªº\u02b9-\u02df[\p{{N}}&&\p{{Common}}]"
    letter = rf"{greek}[[\p{{L}}\p{{N}}\p{{Co}}\p{{Cn}}]--[{known}]]\p{{M}}*[\u200c\u200d]*"
    return regex.compile(rf"(?:{letter})+(?:[\s\p{{P}}]*(?:{letter})+)*", regex.V1)


def with_short_addresses(text: str) -> str:
    """Return the text with short names for web addresses; the voice reads the signs in them in its language."""

    def short(found: regex.Match[str]) -> str:
        host, path = found["host"].removeprefix("www."), (found["path"] or "").rstrip("/")
        return host if len(path) > 30 or regex.search(r"[?#=&%]", path) else host + path

    return URL.sub(short, text)
