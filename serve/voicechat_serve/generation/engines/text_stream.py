"""Convert token ids to streamed text, and hold back incomplete characters and possible stop strings."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes token by token. The pieces together equal the decoding of all tokens at once.

    A character may span tokens (byte-level byte pairs). Decoders show its first bytes as U+FFFD, so a trailing U+FFFD
    waits for the next token.
    """

    def __init__(self, decode: Decode):
        self.decode = decode
        # Each window begins with one finished token, because some decoders strip a space off the first token.
        self.window_ids: list[int] = []
        self.given = 0

    def push(self, token_id: int) -> str:
        self.window_ids.append(token_id)
        text = self.decode(self.window_ids)
        settled = text.removesuffix(INCOMPLETE)
        new = settled[self.given :]
        self.given = max(self.given, len(settled))
        if new and len(settled) == len(text):
            self.window_ids = [token_id]
            self.given = len(self.decode(self.window_ids))
        return new

    def finish(self) -> str:
        """Return the rest when no more tokens come."""
        return self.decode(self.window_ids)[self.given :]


class TextStream:
    """The text of one answer, cut at the stop string that is complete first."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()):
        self.detokenizer = Detokenizer(decode)
        self.ending = StopStrings(stop)

    def push(self, token_id: int) -> tuple[str, bool]:
        """Return the text that is now certain, and whether a stop string ended it."""
        return self.ending.release(self.detokenizer.push(token_id))

    def finish(self) -> str:
        """Return the rest if the answer ended for another reason than a stop string."""
        return self.ending.finish(self.detokenizer.finish())


class StopStrings:
    """Cuts a text that arrives in pieces at the stop string that is complete first."""

    def __init__(self, stop: Sequence[str] = ()):
        self.stop = tuple(string for string in stop if string)
        self.held = ""

    def finish(self, text: str = "") -> str:
        """Return the rest, with the last piece, if the answer ended for another reason than a stop string."""
        text, stopped = self.release(text)
        return text if stopped else text + self.held

    def release(self, text: str) -> tuple[str, bool]:
        """Return the text that is now certain, and whether a stop string ended it."""
        if not self.stop:
            return text, False
        text = self.held + text
        # The one that is complete first, so that the cut does not depend on the division of the text into tokens.
        found = [(start + len(string), start) for string in self.stop if (start := text.find(string)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)[1]], True
        keep = max(possible_stop(text, string) for string in self.stop)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def possible_stop(text: str, stop: str) -> int:
    """Return the length of the longest end of the text with which the stop string may begin."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
