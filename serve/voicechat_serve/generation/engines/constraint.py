"""Constrained decoding: at each step a grammar allows only the tokens with which the answer can still become valid.

The grammars are llguidance's (https://github.com/guidance-ai/llguidance, docs/syntax.md): JSON schemas, regular
expressions and Lark. It keeps one bit for each token of the vocabulary, in 32-bit words.

Letters: b constrained row, w word of 32 bits, v vocabulary.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.answer_end import EndSearch
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

LONGEST_END = 1024
"""In tokens: the longest answer that is looked for when a grammar is compiled. Under a grammar that has no shorter one,
an answer may be cut off at its limit."""

LEAST_LEEWAY = 8
"""With so few tokens to spare, an answer is led straight to its end."""


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
        self.ends = EndSearch(self.tokens.lengths_v, self.tokens.eos_token_id, self.tokens.longest_first)
        self.compiled: OrderedDict[str, tuple[LLMatcher, list[int] | None]] = OrderedDict()
        """Grammars, and the tokens of a short answer."""
        self.lock = threading.Lock()

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
        matcher, short_answer = found
        return Constraint(self, matcher.deep_copy(), short_answer)

    def compile(self, grammar: str) -> tuple[LLMatcher, list[int] | None]:
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be used: {first_line(matcher.get_error())}")
        short_answer, may_end = self.ends.search(matcher, LONGEST_END)
        if not may_end:
            raise GrammarError("no text in this model's vocabulary satisfies the grammar")
        return matcher, short_answer


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
    """The state of one answer under a grammar. An end that fits into the room is known from its beginning on.

    Args:
        grammars: the model's.
        matcher: the grammar's state.
        end: tokens that complete the answer; None if none are known.
    """

    def __init__(self, grammars: Grammars, matcher: LLMatcher, end: list[int] | None):
        self.grammars, self.matcher, self.end = grammars, matcher, end
        self.forced: deque[int] = deque(matcher.compute_ff_tokens())
        """The next tokens, if only these are possible, or lead to the end in time."""

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
        """Take the next token, and return it, or another one where no end in time is found after it.

        Args:
            token_id: one of the allowed tokens.
            room: the most tokens that may follow.
        """
        if self.forced:
            self.forced.popleft()
        self.matcher.consume_token(token_id)
        if self.end is not None and len(self.end) > room + 1:
            self.end = None  # the answer was to be too short for any end
        if self.end is not None and not self.is_complete:
            token_id = self.with_end(token_id, self.end, room)
        if not self.forced:
            self.forced = deque(self.matcher.compute_ff_tokens())
        return token_id

    def with_end(self, token_id: int, end: list[int], room: int) -> int:
        """Find an end after a token that was taken, and return the token, or the one that was taken in its place.

        Args:
            token_id: the token.
            end: of the answer before the token.
            room: the most tokens that may follow.
        """
        is_next = end[:1] == [token_id]
        self.end = end[1:] if is_next else self.grammars.ends.end(self.matcher, room, end)
        if self.end is not None:
            return token_id
        model_end_id = self.grammars.tokens.end_id
        ending = end if model_end_id is None else [*end, model_end_id]
        if not ending:
            return token_id
        self.matcher.rollback(1)
        self.matcher.consume_token(ending[0])
        self.end = end[1:]
        self.forced = deque(ending[1:] if len(end) > room - LEAST_LEEWAY else ())
        return ending[0]

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
