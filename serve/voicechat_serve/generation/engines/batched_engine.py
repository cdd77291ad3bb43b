"""Continuous batching: one thread decodes all requests of a model; they join and leave at every step.

Letters: b row (one request in sequence), t query position, v vocabulary.

A `Decoder` computes the logits: this project's models in PyTorch (the platform's `SlotDecoder`), any causal language
model of transformers (`TransformersDecoder`), or llama.cpp (`LlamaCppDecoder`). Sampling, scores, stop strings and the
reuse of prompts are the same for all of them. Between two decoding steps the engine reads a piece of the waiting
prompts, so that a long prompt delays no answer and can be cancelled. Requests in prefill take turns.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.constraint import Constraint, Grammars
from voicechat_serve.generation.engines.interface import MOST_WAITING, GenerationRequest, Score, Token, room_for
from voicechat_serve.generation.engines.row_sampler import RowSampler, SampledRow, scores_of
from voicechat_serve.generation.engines.slots import Row, Rows, Slots
from voicechat_serve.generation.engines.text_stream import Decode, TextStream
from voicechat_serve.operations.health import Health
from voicechat_serve.operations.load import Load, OverloadedError

log = logging.getLogger("ray.serve.voicechat.batched_engine")

PREFILL_S = 0.25
"""The time for prompts between two decoding steps."""

LEAST_PREFILL, PREFILL_TOKENS = 32, 256
"""The fewest and the most tokens of prompts between two decoding steps."""

HANDOVER_INTERVAL_S = 0.04
"""The least time between two deliveries of one answer's tokens. A small model generates a token in 1 ms, and the reader
runs on the core that generates the next one."""

UNHURRIED_STREAMS = 4
"""With more streams, each delivery holds more tokens, so that the total number of deliveries does not grow."""

LEAST_FORCED, FORCED_SHARE = 2, 4
"""The fewest tokens that are read at once where a grammar allows no others, and the number of decoding requests for
each of them: to read for one request costs nearly as much as a step for all."""


@dataclass(eq=False)
class RunningSequence:
    """One request from its arrival to its last token."""

    request: GenerationRequest
    room: int
    text: TextStream
    generator: random.Random
    loop: asyncio.AbstractEventLoop
    made: deque[Token | Exception] = field(default_factory=deque)
    """Tokens before delivery: one thread appends, the other one takes from the left."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first token."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the last token, or with an error."""
    cancelled: bool = False
    row: Row | None = None
    """The row of the cache during decoding."""
    answer_ids: list[int] = field(default_factory=list)
    prompt_scores: list[Score] = field(default_factory=list)
    constraint: Constraint | None = None

    @property
    def unread_ids(self) -> list[int]:
        """The rest of the prompt that the cache does not hold yet."""
        assert self.row is not None
        return self.request.prompt_ids[len(self.row.token_ids) :]

    def sampled_row(self) -> SampledRow:
        request = self.request
        return SampledRow(
            request.sampling,
            self.generator,
            request.prompt_ids,
            self.answer_ids,
            top_scores=request.top_scores,
            constraint=self.constraint,
            room=self.room,
        )


class Decoder(Rows, Protocol):
    """A model over a cache of `slots` rows, each at its own position; the rows that decode together are the first."""

    context: int
    """Positions of each row."""
    device: torch.device | str
    """Where the logits are."""

    def prefill(self, row: int, ids_t: Tensor, start: int, every: bool = False) -> Tensor:
        """Read a prompt, or a piece of it, into a row from position `start` on; return (t, v) logits, or (1, v) after
        the last token."""
        ...

    def decode(self, ids_b: Tensor, positions_b: Tensor, width: int) -> Tensor:
        """Decode one more token for each of the first b rows, whose longest has `width` positions; return (b, v)
        logits."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class AdaptingDecoder(Decoder, Protocol):
    """A decoder that computes each row with an adapter (LoRA) of its own, or with none."""

    def add_adapter(self, path: Path) -> int:
        """Load an adapter, and return its number, which no other one gets; any thread may call this.

        Raises:
            InputError: it is damaged, or made for another model.
        """
        ...

    def remove_adapter(self, adapter: int) -> None:
        """Free an adapter with which no row is computed any more; any thread may call this."""
        ...

    def adapt(self, row: int, adapter: int) -> None:
        """Compute a row with an adapter from now on; 0 for none."""
        ...


class BatchedEngine:
    """An `Engine` over a decoder.

    Args:
        decoder: the model and its cache.
        decode: token ids -> text.
        end_ids: tokens that end an answer.
        grammars: the grammars of the model's vocabulary, made when one is needed; None if no request has one.
        max_waiting: the most requests that wait for a slot; further ones are refused.
        handover_interval_s: the least time between two deliveries of one answer's tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        decode: Decode,
        end_ids: Sequence[int],
        grammars: Callable[[], Grammars] | None = None,
        *,
        max_waiting: int = MOST_WAITING,
        handover_interval_s: float = HANDOVER_INTERVAL_S,
    ):
        self.decoder, self.decode_text = decoder, decode
        self.end_ids, self.grammars = frozenset(end_ids), grammars
        self.max_waiting, self.handover_interval_s = max_waiting, handover_interval_s
        self.context = decoder.context
        self.prefill_tokens = PREFILL_TOKENS
        """As many as the decoder reads in PREFILL_S."""
        self.slots = Slots(decoder)
        self.health = Health(IndexError)  # the model has no such token id: the request's fault
        self.waiting: deque[RunningSequence] = deque()
        self.filling: list[RunningSequence] = []
        self.running: list[RunningSequence] = []
        """Decoding requests, in the order of their rows."""
        self.changed = threading.Condition()
        self.closing = False
        self.batch_is_stale = True
        self.ids_b: Tensor
        self.positions_b: Tensor
        self.sampler: RowSampler
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.thread.start()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        sequence = RunningSequence(
            request=request,
            room=room_for(request, self.context),
            text=TextStream(self.decode_text, request.sampling.stop),
            # Random itself treats -1 and 1 as the same.
            generator=random.Random(None if request.sampling.seed is None else request.sampling.seed % 2**64),
            loop=asyncio.get_running_loop(),
        )
        if request.grammar is not None:
            self.require_place()  # otherwise the work would be for nothing
            sequence.constraint = await asyncio.to_thread(self.constrain, request.grammar)
        with self.changed:
            self.require_place()
            self.waiting.append(sequence)
            self.changed.notify()
        try:
            await sequence.begun.wait()
            while True:
                tokens: list[Token] = []
                while sequence.made and isinstance(sequence.made[0], Token):
                    tokens.append(cast(Token, sequence.made.popleft()))
                if tokens:
                    yield tokens
                if tokens and tokens[-1].finish_reason:
                    return
                if sequence.made and isinstance(error := sequence.made[0], Exception):
                    raise error
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(sequence.ended.wait(), self.pause_s)
        finally:
            sequence.cancelled = True
            with self.changed, contextlib.suppress(ValueError):  # usually it waits no longer
                self.waiting.remove(sequence)

    def require_place(self) -> None:
        """Require that a request may wait here.

        Raises:
            RuntimeError: the engine has ended.
            OverloadedError: too many requests wait already.
        """
        if self.closing or not self.thread.is_alive():
            raise RuntimeError("the engine has ended")
        if len(self.waiting) >= self.max_waiting:
            raise OverloadedError(f"{self.max_waiting} requests are already waiting for the model")

    def constrain(self, grammar: str) -> Constraint:
        """Return the state of a new answer under a grammar. Errors as in `Grammars.start`."""
        assert self.grammars is not None
        return self.grammars().start(grammar)

    @property
    def pause_s(self) -> float:
        """The time between two deliveries of one answer's tokens."""
        return self.handover_interval_s * max(1, len(self.running) / UNHURRIED_STREAMS)

    def load(self, adapter: int = 0) -> Load:
        """Return the load by requests without an adapter, or by those of one adapter; any thread may call this."""
        sequences, waiting = (
            [sequence for sequence in group if sequence.request.adapter == adapter]
            for group in ([*self.running, *self.filling], list(self.waiting))
        )
        held = sum(len(sequence.row.token_ids) for sequence in sequences if sequence.row)
        used = held / (self.decoder.slots * self.context)
        return Load(running=len(sequences), waiting=len(waiting), cache_used=used)

    def check(self) -> None:
        if not self.thread.is_alive():
            raise RuntimeError("the engine's thread has ended")
        self.health.check()

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()
        self.decoder.close()

    # The methods from here on run on the engine's thread.

    def run(self) -> None:
        try:
            self.serve()
        finally:
            with self.changed:
                self.closing = True
                left = [*self.waiting, *self.filling, *self.running]
            for sequence in left:
                self.deliver(sequence, RuntimeError("the engine has ended"))

    @torch.inference_mode()
    def serve(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.filling or self.running or self.closing)
                if self.closing:
                    return
            try:
                self.drop_cancelled()
                self.admit()
                self.read_prompts()
                if self.running:
                    with self.health.step("decoding"):
                        self.decode_step()
            except Exception as error:
                log.exception("a decode step failed; the requests in sequence are given up")
                for sequence in (*self.running, *self.filling):
                    self.deliver(sequence, error)
                self.running.clear()
                self.filling.clear()
                self.slots.forget()
                self.batch_is_stale = True

    def deliver(self, sequence: RunningSequence, token: Token | Exception) -> None:
        """Store a token until the reader takes it; wake the reader for the first and the last one."""
        sequence.made.append(token)
        is_last = isinstance(token, Exception) or token.finish_reason is not None
        if is_last or not sequence.begun.is_set():
            try:
                sequence.loop.call_soon_threadsafe(wake, sequence, is_last)
            except RuntimeError:  # the loop is closed, and with it the reader
                sequence.cancelled = True

    def drop_cancelled(self) -> None:
        for sequence in [sequence for sequence in (*self.running, *self.filling) if sequence.cancelled]:
            self.release(sequence)

    def release(self, sequence: RunningSequence) -> None:
        if sequence.row is not None:
            self.slots.release(sequence.row)
        if sequence in self.filling:
            self.filling.remove(sequence)
            return
        place = self.running.index(sequence)  # the last one takes its place, as in the cache
        self.running[place] = self.running[-1]
        self.running.pop()
        self.batch_is_stale = True

    def admit(self) -> None:
        """Admit waiting requests while there are free rows."""
        with self.changed:
            while self.waiting and len(self.running) + len(self.filling) < self.decoder.slots:
                self.filling.append(self.waiting.popleft())

    def read_prompts(self) -> None:
        """Read a piece of the waiting prompts; a complete prompt gives its first token."""
        budget = self.prefill_tokens
        while self.filling and budget > 0:
            sequence = self.filling[0]  # it stays in the list during this, so that the engine does not look idle
            try:
                with self.health.step("reading a prompt"):
                    if sequence.row is None:  # not earlier: the prompt before it may begin with the same tokens
                        # Scores of a prompt's tokens need the whole prompt.
                        prompt_ids = [] if sequence.request.score_prompt else sequence.request.prompt_ids
                        sequence.row = self.slots.take(prompt_ids, sequence.request.adapter)
                        assert sequence.row is not None
                        if isinstance(self.decoder, AdaptingDecoder):
                            self.decoder.adapt(self.slots.rows.index(sequence.row), sequence.request.adapter)
                    piece = sequence.unread_ids[:budget]
                    budget -= len(piece)
                    began = time.monotonic()
                    logits_1v = self.read_piece(sequence, piece)
                    self.measure(len(piece), time.monotonic() - began)
                    token = None if sequence.unread_ids else self.first_token(sequence, logits_1v)
            except Exception as error:
                if sequence.row is not None:
                    sequence.row.token_ids.clear()
                self.release(sequence)
                self.deliver(sequence, error)
                continue
            if token is None:
                self.filling.append(self.filling.pop(0))  # the others' turn
                continue
            self.deliver(sequence, token)
            if token.finish_reason:
                self.release(sequence)
                continue
            assert sequence.row is not None
            self.slots.begin_decoding(sequence.row)
            self.running.append(self.filling.pop(0))
            self.batch_is_stale = True

    def measure(self, num_tokens: int, seconds: float) -> None:
        if num_tokens >= min(LEAST_PREFILL, PREFILL_TOKENS):
            fitting = int(num_tokens * PREFILL_S / max(seconds, 1e-6))
            self.prefill_tokens = min(PREFILL_TOKENS, max(LEAST_PREFILL, fitting))

    def read_piece(self, sequence: RunningSequence, piece: list[int]) -> Tensor:
        """Return (1, v) logits after a piece of the prompt."""
        row, request = sequence.row, sequence.request
        assert row is not None
        ids_t = torch.tensor(piece, device=self.decoder.device)
        start = len(row.token_ids)
        logits_tv = self.decoder.prefill(self.slots.rows.index(row), ids_t, start, every=request.score_prompt)
        row.token_ids.extend(piece)
        if request.score_prompt:
            if not start:
                sequence.prompt_scores.append(Score(piece[0], None))
            # Each position's logits are for the next token; the last ones are for the first token of the next piece.
            next_ids = request.prompt_ids[start + 1 : start + len(piece) + 1]
            if next_ids:
                ids_b = torch.tensor(next_ids, device=self.decoder.device)
                sequence.prompt_scores += scores_of(logits_tv[: len(next_ids)], ids_b, request.top_scores or 0)
        return logits_tv[-1:]

    def first_token(self, sequence: RunningSequence, logits_1v: Tensor) -> Token:
        sampler = RowSampler([sequence.sampled_row()], self.decoder.device)
        ids_b = sampler.choose(logits_1v)
        return self.take(sequence, int(ids_b), sampler.scores(logits_1v, ids_b).get(0), tuple(sequence.prompt_scores))

    def decode_step(self) -> None:
        """Decode one more token for every running request."""
        for sequence in [sequence for sequence in self.running if sequence.constraint is not None]:
            self.read_forced(sequence)
        if not self.running:
            return
        if self.batch_is_stale:
            self.lay_out_batch()
        width = 1 + max(len(row.token_ids) for row in self.slots.decoding)
        logits_bv = self.decoder.decode(self.ids_b, self.positions_b, width)
        for sequence, row in zip(self.running, self.slots.decoding, strict=True):
            row.token_ids.append(sequence.answer_ids[-1])
        self.ids_b = self.sampler.choose(logits_bv)
        self.positions_b = self.positions_b + 1
        scores = self.sampler.scores(logits_bv, self.ids_b)

        finished = []
        for place, (sequence, token_id) in enumerate(zip(self.running, self.ids_b.tolist(), strict=True)):
            if self.give(sequence, token_id, scores.get(place)):
                finished.append(sequence)
        for sequence in finished:
            self.release(sequence)

    def read_forced(self, sequence: RunningSequence) -> None:
        """Read the next tokens of an answer at once, if its grammar allows no others and that is faster."""
        assert sequence.constraint is not None
        assert sequence.row is not None
        forced = list(sequence.constraint.forced)[: sequence.room - len(sequence.answer_ids)]
        if len(forced) < max(LEAST_FORCED, len(self.running) / FORCED_SHARE):
            return
        row, top = sequence.row, sequence.request.top_scores
        unread_ids = [sequence.answer_ids[-1], *forced[:-1]]
        place, start = self.slots.rows.index(row), len(row.token_ids)
        ids_t = torch.tensor(unread_ids, device=self.decoder.device)
        logits_tv = self.decoder.prefill(place, ids_t, start, every=top is not None)
        row.token_ids.extend(unread_ids)
        scores: list[Score | None] = [None] * len(forced)
        if top is not None:
            scores = [*scores_of(logits_tv, torch.tensor(forced, device=self.decoder.device), top)]
        self.batch_is_stale = True
        for token_id, score in zip(forced, scores, strict=True):
            sequence.generator.random()  # as if it had been drawn: an answer is the same beside any others
            sequence.constraint.accept(token_id, sequence.room - len(sequence.answer_ids) - 1)
            if self.give(sequence, token_id, score):
                self.release(sequence)
                return

    def give(self, sequence: RunningSequence, token_id: int, score: Score | None) -> bool:
        """Deliver a running request's next token; return whether the answer ends."""
        try:
            token = self.take(sequence, token_id, score)
        except InputError as error:  # the grammar is too complex
            self.deliver(sequence, error)
            return True
        self.deliver(sequence, token)
        return token.finish_reason is not None

    def lay_out_batch(self) -> None:
        """Prepare tensors for the running requests; between changes a step only advances them."""
        device = self.decoder.device
        self.ids_b = torch.tensor([sequence.answer_ids[-1] for sequence in self.running], device=device)
        self.positions_b = torch.tensor([len(row.token_ids) for row in self.slots.decoding], device=device)
        self.sampler = RowSampler([sequence.sampled_row() for sequence in self.running], device)
        self.batch_is_stale = False

    def take(
        self,
        sequence: RunningSequence,
        token_id: int,
        score: Score | None = None,
        prompt_scores: tuple[Score, ...] = (),
    ) -> Token:
        """Return the token for the client: its text, and whether the answer ends here.

        Raises:
            GrammarError: the grammar is too complex.
        """
        constraint = sequence.constraint
        if constraint is not None:
            constraint.require_valid()
        sequence.answer_ids.append(token_id)
        if token_id in self.end_ids:
            return Token(sequence.text.finish(), token_id, "stop", None, prompt_scores)  # it is not part of the text
        text, stopped = sequence.text.push(token_id)
        if stopped:
            return Token(text, token_id, "stop", score, prompt_scores)
        if constraint is not None and constraint.is_complete:
            return Token(text + sequence.text.finish(), token_id, "stop", score, prompt_scores)
        if len(sequence.answer_ids) >= sequence.room:
            return Token(text + sequence.text.finish(), token_id, "length", score, prompt_scores)
        return Token(text, token_id, None, score, prompt_scores)


def wake(sequence: RunningSequence, ended: bool) -> None:
    sequence.begun.set()
    if ended:
        sequence.ended.set()
