"""From token ids to text as it comes: incomplete characters and possible stop strings are held back."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes token by token; what it gives out adds up to the decoding of all the tokens at once.

    A character may span tokens (byte-level byte pairs): decoders show its first bytes as U+FFFD, and so one trailing
    U+FFFD is not given out until the next token settles what it is.
    """

    def __init__(self, decode: Decode):
        self.decode = decode
        # Each window begins with one token that is done, because some decoders strip a space off the first token.
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
        """What was held back, when no more tokens come."""
        return self.decode(self.window_ids)[self.given :]


class TextStream:
    """One answer's text, cut at the stop string that is first complete."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()):
        self.detokenizer = Detokenizer(decode)
        self.stop = tuple(string for string in stop if string)
        self.held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text that is now certain, and whether a stop string ended it."""
        return self.release(self.detokenizer.push(token_id))

    def finish(self) -> str:
        """The rest, when the answer ended for another reason than a stop string."""
        text, stopped = self.release(self.detokenizer.finish())
        return text if stopped else text + self.held

    def release(self, text: str) -> tuple[str, bool]:
        if not self.stop:
            return text, False
        text = self.held + text
        # The one that is complete first, so that the cut does not depend on how the text was split into tokens.
        found = [(start + len(string), start) for string in self.stop if (start := text.find(string)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)[1]], True
        keep = max(possible_stop(text, string) for string in self.stop)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def possible_stop(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string may begin."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
