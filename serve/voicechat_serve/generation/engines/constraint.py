"""Constrained decoding: at each step a grammar allows only the tokens with which the answer can still become valid.

The grammars are llguidance's (https://github.com/guidance-ai/llguidance, docs/syntax.md): JSON schemas, regular
expressions and Lark. It keeps one bit for each token of the vocabulary, in 32-bit words.

Letters: b constrained row, w word of 32 bits, v vocabulary.
"""

import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from voicechat_platform.errors import InputError
from voicechat_serve.generation.vocabularies import Vocabulary

MOST_KEPT, MOST_TEXTS = 32, 4096
"""Compiled grammars, and tokens of forced texts, in memory."""

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms to compile
    step_lexer_fuel=100_000,  # about 7 ms for a step
    step_max_items=20_000,
    max_lexer_states=16_000,  # of 1 to 2 KB
    max_grammar_size=50_000,
    verbose_errors=False,
)
"""Of one grammar: a client writes it, and other answers wait for its steps."""

LEAST_GROWTH, MOST_GROWTH = 32, 128
"""Tokens by which the end of an answer may move away with one token, such as one that begins an object: as far as the
end of the shortest answer is at its beginning, within these limits."""

CLOSERS = ("}", "]", ",", "null", "true", '"', "@", ".", "0")
"""Texts that lead an answer in JSON to its end, the best one first."""

TEXT_PROBES = ("}", "z")
"""Texts that are possible together only where any text is, inside a string."""

LONGEST_TRIAL = 128
"""In tokens: an answer that has come so far has met no character without a token."""

ATTEMPTS = 4
"""Attempts to find an end: the first one takes the longest tokens, the others random ones."""

SEARCH_S = 0.25
"""The most seconds of the processor for one search of an end, for which other answers wait: some 4,000 tokens of a
usual grammar."""


class GrammarError(InputError):
    """A grammar is invalid, or too complex."""


class Grammars:
    """The grammars of one model, compiled for its vocabulary; any thread may use them.

    Args:
        vocabulary: the model's.
        end_ids: tokens that end an answer.
    """

    def __init__(self, vocabulary: Vocabulary, end_ids: Sequence[int]):
        self.tokens = TokensOf(vocabulary, end_ids)
        self.tokenizer = LLTokenizer(TokenizerWrapper(self.tokens), eos_token=self.tokens.end_ids)
        self.tokens.longest_first = self.tokenizer.greedy_tokenize
        self.closers, self.probes = self.first_tokens(CLOSERS), self.first_tokens(TEXT_PROBES)
        self.closers_in_text = self.first_tokens(('"',))
        self.compiled: OrderedDict[str, tuple[LLMatcher, int]] = OrderedDict()
        """Grammars, and the tokens by which an end may move away."""
        self.lock = threading.Lock()

    def first_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the first token of each text; a model of characters may have none."""
        return [ids[0] for text in texts if (ids := self.tokens.longest_first(text))]

    def start(self, grammar: str) -> "Constraint":
        """Return the state of a new answer; a new grammar takes some milliseconds.

        Args:
            grammar: in Lark, or llguidance's JSON.

        Raises:
            GrammarError: it is invalid, or too complex.
        """
        with self.lock:
            found = self.compiled.get(grammar)
        if found is None:
            found = self.compile(grammar)
        with self.lock:
            self.compiled[grammar] = found
            self.compiled.move_to_end(grammar)
            while len(self.compiled) > MOST_KEPT:
                self.compiled.popitem(last=False)
        matcher, growth = found
        return Constraint(self, matcher.deep_copy(), growth)

    def compile(self, grammar: str) -> tuple[LLMatcher, int]:
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be used: {first_line(matcher.get_error())}")
        trial = Constraint(self, matcher)
        shortest = trial.way_to_end(LONGEST_TRIAL)
        if shortest is None and trial.way_to_end(LONGEST_TRIAL, is_trial=True) is None:
            raise GrammarError("no text in this model's vocabulary satisfies the grammar")
        growth = MOST_GROWTH if shortest is None else min(MOST_GROWTH, max(LEAST_GROWTH, len(shortest)))
        return matcher, growth


class TokensOf:
    """A vocabulary in the form that llguidance reads.

    A model without an end token gets one that it never samples, because llguidance needs one.
    """

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, end_ids: Sequence[int]):
        self.encode: Callable[..., list[int]] = vocabulary.encode
        self.ids_of = lru_cache(MOST_TEXTS)(self.ids_in)
        self.longest_first: Callable[[str], list[int]]
        special = set(vocabulary.special_ids) | set(end_ids)
        # 0xff is in no text: so no text becomes a special token.
        self.tokens = [
            b"\xff" + vocabulary.name(token_id).encode() if token_id in special else vocabulary.token_bytes(token_id)
            for token_id in range(vocabulary.size)
        ]
        self.end_id = next(iter(end_ids), None)
        """One of the model's end tokens; None if it has none."""
        if self.end_id is None:
            special.add(len(self.tokens))
            self.tokens.append(b"\xff<end>")
        self.end_ids = list(end_ids) or [len(self.tokens) - 1]
        self.eos_token_id, self.special_token_ids = self.end_ids[0], sorted(special)
        self.lengths_v = np.array([len(token) for token in self.tokens])

    def __call__(self, text: str) -> list[int]:
        return self.ids_of(text)

    def ids_in(self, text: str) -> list[int]:
        """Return the tokens that the model would write; some tokenizers begin every text with a space, which the
        middle of an answer has not."""
        ids = self.encode(text, add_special=False)
        if b"".join(self.tokens[token_id] for token_id in ids) == text.encode():
            return ids
        return self.longest_first(text)


class Constraint:
    """The state of one answer under a grammar."""

    def __init__(self, grammars: Grammars, matcher: LLMatcher, growth: int = MOST_GROWTH):
        self.grammars, self.matcher, self.growth = grammars, matcher, growth
        self.forced: deque[int] = deque(matcher.compute_ff_tokens())
        """The next tokens, if only these are possible."""
        self.closing: list[int] | None = None
        """The shortest end of the answer that was found from here; None if it was not looked for, or not found."""
        self.check_at = math.inf
        """The room at which an end is looked for again; the first token always looks for one."""

    @property
    def is_complete(self) -> bool:
        """Whether no further token is possible."""
        return self.matcher.is_stopped()

    def allow(self, words_w: np.ndarray) -> None:
        """Write the bits of the allowed tokens: all, if the grammar became too complex, which `require_valid` says."""
        if self.forced:
            words_w[:] = 0
            words_w.view(np.uint32)[self.forced[0] // 32] = np.uint32(1 << self.forced[0] % 32)
            return
        self.matcher.unsafe_compute_mask_ptr(words_w.ctypes.data, words_w.nbytes)
        if self.matcher.is_error():
            words_w[:] = -1

    def accept(self, token_id: int, room: int) -> int:
        """Take the next token, and return it, or another one that leads to the end in time.

        Args:
            token_id: one of the allowed tokens.
            room: the most tokens that may follow.
        """
        if self.forced:
            self.forced.popleft()
        self.matcher.consume_token(token_id)
        if room <= self.check_at and not self.is_complete:
            found, end_id = self.way_to_end(room), self.grammars.tokens.end_id
            if found is None and (ending := self.ending()):
                self.matcher.rollback(1)
                self.forced = deque(ending)
                self.closing = None
                self.check_at = -1
                token_id = self.forced.popleft()
                self.matcher.consume_token(token_id)
                return token_id
            self.closing = found
            self.check_at = room // 2 if found is None else min(room - 1, len(found) + self.growth)
            if found and len(found) > MOST_GROWTH and self.check_at == room - 1 and end_id is not None:
                # To look for such a long end after each further token would take too long.
                self.forced, self.closing, self.check_at = deque([*found, end_id]), None, -1
        else:
            self.closing = None
        if not self.forced:
            self.forced = deque(self.matcher.compute_ff_tokens())
        return token_id

    def ending(self) -> list[int]:
        """Return the tokens that would have ended the answer before the last token; none if there are none."""
        end_id = self.grammars.tokens.end_id
        return self.closing or ([] if self.closing is None or end_id is None else [end_id])

    def way_to_end(self, limit: int, is_trial: bool = False) -> list[int] | None:
        """Return tokens that complete the answer, not always the fewest; None if no attempt finds them.

        Args:
            limit: the most tokens.
            is_trial: whether tokens up to the limit, or the deadline, are enough: they met no place without a token.
        """
        deadline = time.thread_time() + SEARCH_S
        for attempt in range(ATTEMPTS):
            found = self.attempt_to_end(limit, deadline, random.Random(attempt) if attempt else None, is_trial)
            if found is not None:
                return found
        return None

    def attempt_to_end(
        self, limit: int, deadline: float, generator: random.Random | None, is_trial: bool
    ) -> list[int] | None:
        """Return tokens that complete the answer; None if there are more than the limit, or after a dead end.

        Args:
            limit: as for `way_to_end`.
            deadline: of this thread's time on the processor.
            generator: for random choices; None for the longest tokens.
            is_trial: as for `way_to_end`.
        """
        matcher, found = self.matcher.deep_copy(), list(self.forced)
        matcher.consume_tokens(found)
        while len(found) <= limit and not matcher.is_error() and time.thread_time() < deadline:
            if matcher.is_accepting():
                return found
            following = matcher.compute_ff_tokens() or [self.one_towards_end(matcher, generator)]
            matcher.consume_tokens(following)
            found += following
        return found if is_trial and not matcher.is_error() else None

    def one_towards_end(self, matcher: LLMatcher, generator: random.Random | None) -> int:
        grammars = self.grammars
        is_in_text = all(matcher.validate_tokens([token_id]) for token_id in grammars.probes)
        for token_id in grammars.closers_in_text if is_in_text else grammars.closers:
            if matcher.validate_tokens([token_id]):
                return token_id
        bits_v = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed_v = bits_v[: len(grammars.tokens.tokens)].view(bool)
        if not allowed_v.any():
            return grammars.tokens.eos_token_id  # which is an error here, and ends the search
        if generator:
            return int(generator.choice(np.flatnonzero(allowed_v)))
        return int(np.where(allowed_v, grammars.tokens.lengths_v, -1).argmax())

    def require_valid(self) -> None:
        """Check the state after a step.

        Raises:
            GrammarError: the grammar became too complex.
        """
        if self.matcher.is_error():
            raise GrammarError(f"the grammar is too complex to follow: {first_line(self.matcher.get_error())}")


def masked(logits_bv: Tensor, places: Sequence[int], constraints: Sequence[Constraint]) -> Tensor:
    """Return logits with -inf for the tokens that the grammars of some rows do not allow.

    Args:
        logits_bv: of all rows.
        places: the constrained rows.
        constraints: theirs.
    """
    size = logits_bv.shape[-1]
    words_bw = np.zeros((len(places), (max(size, constraints[0].grammars.tokenizer.vocab_size) + 31) // 32), np.int32)
    for words_w, constraint in zip(words_bw, constraints, strict=True):
        constraint.allow(words_w)
    allowed_bv = np.unpackbits(words_bw.view(np.uint8), axis=-1, bitorder="little")[:, :size].view(bool)
    masked_bv = logits_bv.float().clone()
    rows = torch.tensor(places, device=logits_bv.device)
    allowed = torch.from_numpy(allowed_bv).to(logits_bv.device)
    masked_bv[rows] = masked_bv[rows].masked_fill(~allowed, float("-inf"))
    return masked_bv


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
