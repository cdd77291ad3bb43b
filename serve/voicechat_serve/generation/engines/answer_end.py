"""The search for a short end of an answer under a grammar, so that it is complete before its limit.

Letters: v vocabulary.
"""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
from llguidance import LLMatcher

CLOSERS = ("}", "]", ",")
WORDS = ("null", "true")
IN_TEXT = ('"', "@", ".", "Z", "0")
"""Texts that lead an answer in JSON to its end, the best one first: after a value, in its place, inside a string."""

TEXT_PROBES = ("}", "z")
"""Texts that are possible together only where almost any text is, inside a string."""

ATTEMPTS = 4
"""Attempts to find an end: the first one takes the closers and else the longest tokens, the others also random ones."""

SEARCH_S = 0.25
"""The most seconds of the processor for one search, for which other answers wait: some 4,000 tokens of a usual
grammar."""


class EndSearch:
    """Finds ends of answers in one vocabulary.

    Args:
        lengths_v: bytes of each token.
        end_id: the token that ends an answer.
        tokenize: a text's tokens, the longest first.
    """

    def __init__(self, lengths_v: np.ndarray, end_id: int, tokenize: Callable[[str], list[int]]):
        self.lengths_v, self.end_id = lengths_v, end_id

        def first_tokens(texts: Sequence[str]) -> list[int]:
            return [ids[0] for text in texts if (ids := tokenize(text))]  # a model of characters may have none

        self.closers, self.in_text = first_tokens(CLOSERS), first_tokens(IN_TEXT)
        self.probes = first_tokens(TEXT_PROBES)
        self.words = [tokenize(word) for word in WORDS]

    def end(self, state: LLMatcher, limit: int, known: Sequence[int] = ()) -> list[int] | None:
        """Return tokens that complete the answer, not always the fewest; None if no attempt finds them.

        Args:
            state: after the answer so far.
            limit: the most tokens.
            known: an end from before the last token. Where a part of it still completes the answer, it is taken.
        """
        return self.search(state, limit, known)[0]

    def search(self, state: LLMatcher, limit: int, known: Sequence[int] = ()) -> tuple[list[int] | None, bool]:
        """Return what `end` returns, and whether the answer may have an end: one was found, or an attempt came up to
        the limit or the deadline, so that it has met no character without a token."""
        if limit >= len(known) and self.completes(state, known):
            return list(known), True
        deadline, may_end = time.thread_time() + SEARCH_S, False
        for attempt in range(ATTEMPTS):
            generator = random.Random(attempt) if attempt else None
            found, is_end = self.attempt(state, limit, known, deadline, generator)
            if is_end:
                return found, True
            may_end = may_end or len(found) > limit or time.thread_time() >= deadline
        return None, may_end

    def attempt(
        self, state: LLMatcher, limit: int, known: Sequence[int], deadline: float, generator: random.Random | None
    ) -> tuple[list[int], bool]:
        """Return tokens, and whether they complete the answer; if not, there are more than the limit, or they lead to
        a dead end.

        Args:
            state: as for `end`.
            limit: as for `end`.
            known: as for `end`.
            deadline: of this thread's time on the processor.
            generator: for random choices; None for the longest tokens.
        """
        matcher, found = state.deep_copy(), list[int]()
        while len(found) <= limit and not matcher.is_error() and time.thread_time() < deadline:
            if matcher.is_accepting():
                return found, True
            if (rest := self.shortest_rest(matcher, known)) is not None:
                return found + rest, len(found) + len(rest) <= limit
            following = matcher.compute_ff_tokens() or [self.one_towards_end(matcher, generator)]
            matcher.consume_tokens(following)
            found += following
        return found, False

    def shortest_rest(self, matcher: LLMatcher, known: Sequence[int]) -> list[int] | None:
        """Return the shortest rest of a known end that completes the answer; None if there is none."""
        possible = {token_id for token_id in set(known) if matcher.validate_tokens([token_id])}
        for start in reversed(range(len(known))):
            if known[start] in possible and self.completes(matcher, known[start:]):
                return list(known[start:])
        return None

    def completes(self, matcher: LLMatcher, tokens: Sequence[int]) -> bool:
        """Return whether the answer is complete after these tokens; takes 0.25 µs a token."""
        return matcher.validate_tokens([*tokens, self.end_id]) > len(tokens)

    def one_towards_end(self, matcher: LLMatcher, generator: random.Random | None) -> int:
        def first_possible(token_ids: Sequence[int]) -> int | None:
            return next((token_id for token_id in token_ids if matcher.validate_tokens([token_id])), None)

        is_in_text = all(matcher.validate_tokens([token_id]) for token_id in self.probes)
        if not is_in_text and (closer := first_possible(self.closers)) is not None:
            return closer
        for word in () if is_in_text else self.words:
            # Inside a string of letters the word is possible, too, but no end of a value after it.
            if any(matcher.validate_tokens([*word, after]) > len(word) for after in (*self.closers, self.end_id)):
                return word[0]
        follows = generator is None or generator.random() < 0.5
        if follows and (closer := first_possible(self.in_text)) is not None:
            return closer
        bits_v = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed_v = bits_v[: len(self.lengths_v)].view(bool)
        if not allowed_v.any():
            return self.end_id  # which is an error here, and ends the search
        if generator:
            return int(generator.choice(np.flatnonzero(allowed_v)))
        return int(np.where(allowed_v, self.lengths_v, -1).argmax())
