"""From a text as it is written to what a voice says of it, a sentence at a time.

    sentence -> without markup (markup.py) -> in letters that the voice reads -> in words (spoken_english.py)

The voices of other languages read numbers and symbols by themselves, as they do in English where no rule is given.
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
"""A language -> the script that it is written in, beside Latin letters, which every voice reads."""

READABLE_LATIN = set("ÀÁÂÃÄÅÆÇÉÊÌÍÎÏÑÒÓÔÕÖØÚÜÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ")
"""Letters with accents that hibari reads; it is silent at some others."""
COMPATIBLE = ("<font>", "<wide>", "<narrow>", "<circle>", "<square>", "<compat>", "<fraction>", "<noBreak>")
"""Kinds of characters that only look different from plain ones."""
SKIN_TONES = dict.fromkeys(range(0x1F3FB, 0x1F400))
DECORATION = regex.compile(r"[\u2500-\u25ff\u2800-\u28ff\u2022\u2023\u2043\ufffc\u00a6\u00b7\u00a8\u00af\u00b4\u00b8`]")
"""Frames, bullets and the like: nobody reads them."""
SYMBOL = regex.compile(r"([[\p{So}\p{Sm}\p{Sc}]--[\x00-\xff]])\1*", regex.V1)


@dataclass(frozen=True)
class Reading:
    """What a voice says of a sentence."""

    aloud: str
    """Empty where it has no word."""
    unspoken: tuple[str, ...] = ()
    """What of it is in letters that the voice cannot read, and is left out."""


class Reader:
    """Reads a text's sentences in their order.

    Args:
        language: ISO-639-1 code of what the voice speaks.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._markup = Markup(is_english=language == "en")

    def read(self, sentence: str, begins_line: bool) -> Reading:
        """
        Args:
            sentence: as it is written, without line breaks.
            begins_line: whether it stands at the beginning of a line.
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
    """A whole text at once, a line of speech for each line of it that is read."""
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
    """The text in ordinary characters: emoji by their names, letters of special shapes as the usual ones."""
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
            pass  # invisible, or an accent of no letter that has one
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
    """The text with what symbols are left called by their Unicode names, as of ♪."""

    def name(found: regex.Match[str]) -> str:
        words = unicodedata.name(found[1], "").lower()
        return " " + regex.sub(r"\b(?:black|white|heavy|sign|symbol)\b ?", "", words) + " "

    return SYMBOL.sub(name, text)


def is_latin_letter(one: str) -> bool:
    return one.isalpha() and regex.match(r"\p{Latin}", one) is not None


def is_foreign(text: str) -> bool:
    """Whether it ends in a letter that is none of Latin's, whose marks are more than accents."""
    return text[-1:].isalpha() and not is_latin_letter(text[-1])


def named_emoji(text: str, language: str) -> str:
    """Each emoji in words; the same one again and again only once."""
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
    """Finds words in letters that the language's voices cannot read, neighbours together."""
    own = f"\\p{{{SCRIPTS[language]}}}" if language in SCRIPTS else ""
    # Of Greek an English voice names single letters, as in mathematics.
    greek = r"(?!(?<!\p{Greek})\p{Greek}(?!\p{Greek}))" if language == "en" else ""
    # Of Latin letters only these are left in English, but for a few that have no likeness.
    latin = r"[\p{Latin}&&[\x00-\xff]]" if language == "en" else r"\p{Latin}"
    known = rf"{latin}{own}µªº\u02b9-\u02df[\p{{N}}&&\p{{Common}}]"
    letter = rf"{greek}[[\p{{L}}\p{{N}}\p{{Co}}\p{{Cn}}]--[{known}]]\p{{M}}*[\u200c\u200d]*"
    return regex.compile(rf"(?:{letter})+(?:[\s\p{{P}}]*(?:{letter})+)*", regex.V1)


def with_short_addresses(text: str) -> str:
    """Web addresses as somebody would name them; the voice knows how its language reads the signs in them."""

    def short(found: regex.Match[str]) -> str:
        host, path = found["host"].removeprefix("www."), (found["path"] or "").rstrip("/")
        return host if len(path) > 30 or regex.search(r"[?#=&%]", path) else host + path

    return URL.sub(short, text)
