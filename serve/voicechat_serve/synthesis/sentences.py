"""Cut a text into sentences to speak, while the model still generates it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Sentence:
    """A part of a text that is spoken at once."""

    text: str
    """The original text, without surrounding white space."""
    start: int
    """The position in the whole text, in characters."""
    begins_line: bool


class SentenceSplitter:
    """Cuts a streamed text into sentences, each as early as its end is certain.

    A sentence ends at `. ! ? …` before a space, and at a line end, so verse is spoken line by line. The first cut may
    come after a clause (`, ; :`), because the first sound should not wait for a long sentence. No sentence is longer
    than MAX_CHARACTERS. A link, a span of code, a tag and a formula are never cut. The cuts depend only on the text,
    not on the pieces in which it arrives. The sentences contain the whole text in order, except for white space around
    the cuts.
    """

    MAX_CHARACTERS = 240
    # A shorter clause would be spoken before the next one is generated, which makes a gap.
    MIN_FIRST_CLAUSE_CHARACTERS = 18

    # An end is certain only when the white space after it has arrived: "3.14" and "10:30" contain no end.
    _SENTENCE_END = re.compile(r"[.!?…]+[*_~`]*[\"'”’)\]]*[*_~`]*(?=\s)|\n")
    _CLAUSE_END = re.compile(r"[,;:—–]+[*_~`]*[\"'”’)\]]*[*_~`]*(?=\s)")
    _ABBREVIATION = re.compile(
        r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|cf|approx|gen|capt|lt|col|rev|hon|e\.g|i\.e|a\.m|p\.m|ph\.d|al"
        r"|sgt|gov|sen|rep|mt|ft|ave|blvd|inc|ltd|corp|bros|dept|univ|est|incl|excl|resp|ca|viz|esp|w\.r\.t)"
        r"|(?<![\w'’])[a-z](?:\.[a-z])*"  # initials
        r"|^[\s>*+\-#]*\d{1,3})\.$",  # the number of a list's item
        re.IGNORECASE,
    )
    # These end a sentence unless a number follows: "No. 5", "Jan. 5", "Fig. 2".
    _BEFORE_NUMBER = re.compile(
        r"\b(?:no|nos|nr|p|pp|fig|figs|vol|ch|sec|art|eq|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$",
        re.IGNORECASE,
    )
    # A voice reads "Well... I see" without a break.
    _ELLIPSIS = re.compile(r"(?:\.{2,}|…)[\"'”’)\]]*$")
    # Stretches that are never cut: code, link or image, tag, formula. Then their starts without an end so far.
    _WHOLE = re.compile(
        r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)|!?\[[^\]\n]*\](?:\([^)\n]*\)|(?!\())|</?[A-Za-z][^>\n]*>"
        r"|\\\([^\n]*?\\\)|(?<![\\$\w])\$(?=[^\s\d$])[^$\n]*\$"
    )
    _BEGUN = re.compile(r"`|\[|</?[A-Za-z]|\\\(|(?<![\\$\w])\$(?=[^\s\d$])")

    def __init__(self) -> None:
        self._rest = ""
        self._first = True
        self._start = 0
        """The position of the rest in the whole text."""
        self._begins_line = True

    def feed(self, piece: str) -> list[Sentence]:
        """Return the sentences that `piece` completes; often none."""
        self._rest += piece
        sentences = []
        while (cut := self._cut()) is not None:
            sentences += self._take(cut)
        return sentences

    def flush(self) -> list[Sentence]:
        """Return the rest at the end of the text: one sentence or none."""
        return self._take(len(self._rest))

    def _take(self, cut: int) -> list[Sentence]:
        taken, self._rest = self._rest[:cut], self._rest[cut:]
        start, self._start = self._start, self._start + cut
        text = taken.strip()
        if not text:
            self._begins_line = self._begins_line or "\n" in taken
            return []
        before = taken[: len(taken) - len(taken.lstrip())]
        sentence = Sentence(text, start + len(before), self._begins_line or "\n" in before)
        self._begins_line = "\n" in taken[len(before) + len(text) :]
        self._first = False
        return [sentence]

    def _cut(self) -> int | None:
        """Return the end of the next sentence in the text so far, or None if it is not known yet."""
        # Blank text at the start is no part of the sentence, so it does not count towards the cap.
        start = len(self._rest) - len(self._rest.lstrip())
        window = self._rest[: start + self.MAX_CHARACTERS + 1]
        is_full = len(self._rest) - start > self.MAX_CHARACTERS
        ends = [match.end() for match in self._SENTENCE_END.finditer(window, start)]
        if self._first:
            clauses = (match.end() for match in self._CLAUSE_END.finditer(window, start))
            ends += [end for end in clauses if end - start >= self.MIN_FIRST_CLAUSE_CHARACTERS]
        wholes = [match.span() for match in self._WHOLE.finditer(window, start)]
        for end in sorted(ends):
            is_end = self._is_end(window, end, wholes, is_full)
            if is_end is None:
                return None
            if is_end:
                return end
        if not is_full:
            return None
        capped = window[: start + self.MAX_CHARACTERS]
        clause_ends = [match.end() for match in self._CLAUSE_END.finditer(capped, start)]
        space = max(capped.rfind(" ", start), capped.rfind("\t", start))
        return max(clause_ends, default=0) or (space if space > start else len(capped))

    def _is_end(self, window: str, end: int, wholes: list[tuple[int, int]], is_full: bool) -> bool | None:
        """Return whether a sentence or a clause ends there, or None if that depends on text that has not arrived."""
        if window[end - 1] == "\n":
            return True
        if any(begin < end < after for begin, after in wholes):
            return False
        line = window.rfind("\n", 0, end) + 1
        is_line_whole = is_full or "\n" in window[end:]
        spared = "".join(
            "\0" if any(begin <= place < after for begin, after in wholes) else window[place]
            for place in range(line, end)
        )
        if not is_line_whole and self._BEGUN.search(spared):
            return None
        if self._ABBREVIATION.search(window[:end]):
            return False
        if not self._BEFORE_NUMBER.search(window[:end]):
            return not self._ELLIPSIS.search(window[:end])
        following = window[end:].lstrip(" \t")[:1]
        if not following and not is_full:
            return None
        return not following.isdigit()
