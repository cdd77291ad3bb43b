"""Cuts a text that is still being written into sentences to speak."""

import re


class SentenceSplitter:
    """Cuts a streamed text into what is worth speaking at once, as early as that is certain.

    Sentences end at `. ! ? …` before a space, and at line ends, so verse is spoken line by line. The first cut may fall
    after a clause instead (`, ; :`), because the first sound should not wait for a long sentence. No sentence is longer
    than MAX_CHARACTERS. The cuts depend on the text alone, never on how it was chopped into pieces, and all of the
    text comes back in order, but for white space around the cuts.
    """

    MAX_CHARACTERS = 240
    # A shorter clause is spoken sooner than the next one can be written, and then there is a gap.
    MIN_FIRST_CLAUSE_CHARACTERS = 18

    # Every end is certain only when the white space after it is seen: "3.14" and "10:30" are not ends.
    _SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n")
    _CLAUSE_END = re.compile(r"[,;:—–]+[\"'”’)\]]*(?=\s)")
    _ABBREVIATION = re.compile(
        r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|cf|approx|vol|fig|gen|capt|lt|col|rev|hon|e\.g|i\.e|a\.m|p\.m)"
        r"|(?<![\w'’])[a-z](?:\.[a-z])*"  # initials
        r"|^\s*\d{1,3})\.$",  # the number of a list's item
        re.IGNORECASE,
    )

    def __init__(self) -> None:
        self._rest = ""
        self._first = True

    def feed(self, piece: str) -> list[str]:
        """The sentences that are complete now that `piece` follows; often none."""
        self._rest += piece
        sentences = []
        while (cut := self._cut()) is not None:
            sentence, self._rest = self._rest[:cut].strip(), self._rest[cut:]
            if sentence:
                sentences.append(sentence)
                self._first = False
        return sentences

    def flush(self) -> list[str]:
        """What is left when the text is over: one sentence or none."""
        sentence, self._rest = self._rest.strip(), ""
        return [sentence] if sentence else []

    def _cut(self) -> int | None:
        """Where the next sentence ends in the text at hand; None if that cannot be known yet."""
        # Blank text at the start is no part of the sentence, so it does not count towards the cap.
        start = len(self._rest) - len(self._rest.lstrip())
        window = self._rest[: start + self.MAX_CHARACTERS + 1]
        ends = [
            match.end()
            for match in self._SENTENCE_END.finditer(window, start)
            if not self._ABBREVIATION.search(window[: match.end()])
        ]
        if self._first:
            clauses = (match.end() for match in self._CLAUSE_END.finditer(window, start))
            ends += [end for end in clauses if end - start >= self.MIN_FIRST_CLAUSE_CHARACTERS]
        if ends:
            return min(ends)
        if len(self._rest) - start <= self.MAX_CHARACTERS:
            return None
        capped = window[: start + self.MAX_CHARACTERS]
        clause_ends = [match.end() for match in self._CLAUSE_END.finditer(capped, start)]
        space = max(capped.rfind(" ", start), capped.rfind("\t", start))
        return max(clause_ends, default=0) or (space if space > start else len(capped))
