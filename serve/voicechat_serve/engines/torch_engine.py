"""Continuous batching in PyTorch: one thread decodes for everybody; requests join and leave at every step.

Letters: b row (one request in flight), t query position, s key position, v vocabulary.

Works for this project's models and for any causal language model of transformers that takes a cache, position ids
and a ready attention mask. Requests in flight hold the rows 0..b-1 of a `SlotCache`; when one leaves, the last takes
its row.
"""

import asyncio
import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voicechat_serve.engines.interface import GenerationRequest, Load, OverloadedError, Token, room_for
from voicechat_serve.engines.row_sampler import RowSampler
from voicechat_serve.engines.slot_cache import SlotCache
from voicechat_serve.engines.text_stream import Decode, TextStream

log = logging.getLogger(__name__)

LONGEST_CONTEXT = 4096
"""The cache is allotted for every slot's whole context, and some models claim a hundred thousand positions."""


@dataclass(eq=False)
class Flight:
    """One request from its arrival to its last token."""

    request: GenerationRequest
    room: int
    text: TextStream
    generator: random.Random
    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    length: int = 0
    """Positions of the cache that are filled."""
    generated: int = 0
    last_id: int = -1


class TorchEngine:
    """An `Engine` over a transformers model.

    Args:
        model: a causal language model, ready to run.
        decode: token ids -> text.
        end_ids: tokens that end an answer.
        slots: most requests in flight at once.
        max_waiting: most requests that wait for a slot; more are refused.
    """

    def __init__(self, model, decode: Decode, end_ids: Sequence[int], *, slots: int = 32, max_waiting: int = 64):
        self.model = model.eval()
        self.decode_text = decode
        self.end_ids = frozenset(end_ids)
        self.slots, self.max_waiting = slots, max_waiting
        self.context: int = min(model.config.max_position_embeddings, LONGEST_CONTEXT)
        self.cache = SlotCache(model.config.num_hidden_layers, slots, self.context)
        self.flights: list[Flight] = []
        self.waiting: deque[Flight] = deque()
        self.changed = threading.Condition()
        self.closing = False
        self.batch_is_stale = True
        self.ids_b: Tensor
        self.positions_b: Tensor
        self.sampler: RowSampler
        self.key_positions_s = torch.arange(self.context, device=model.device)
        self.thread = threading.Thread(target=self.run, name="torch-engine", daemon=True)
        self.thread.start()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Token, None]:
        flight = Flight(
            request=request,
            room=room_for(request, self.context),
            text=TextStream(self.decode_text, request.sampling.stop),
            generator=random.Random(request.sampling.seed),
            loop=asyncio.get_running_loop(),
        )
        with self.changed:
            if len(self.waiting) >= self.max_waiting:
                raise OverloadedError(f"{self.max_waiting} requests are already waiting for the model")
            self.waiting.append(flight)
            self.changed.notify()
        try:
            while True:
                token = await flight.tokens.get()
                if isinstance(token, Exception):
                    raise token
                yield token
                if token.finish_reason:
                    return
        finally:
            flight.cancelled = True
            with self.changed, contextlib.suppress(ValueError):  # most often it waits no longer
                self.waiting.remove(flight)

    def load(self) -> Load:
        running = len(self.flights)
        return Load(running=running, waiting=len(self.waiting), cache_used=running / self.slots)

    def check(self) -> None:
        if not self.thread.is_alive():
            raise RuntimeError("the engine's thread has ended")

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    # From here on everything runs on the engine's thread.

    @torch.inference_mode()
    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.flights or self.closing)
                if self.closing:
                    return
            try:
                self.drop_cancelled()
                self.deliver(self.admit())
                if self.flights:
                    self.deliver(self.decode_step())
            except Exception as error:
                log.exception("a decode step failed; the requests in flight are given up")
                self.deliver([(flight, error) for flight in self.flights])
                self.flights.clear()
                self.batch_is_stale = True

    def deliver(self, given: Sequence[tuple[Flight, Token | Exception]]) -> None:
        """Hands tokens to the waiting coroutines: one wake-up per event loop and step, not one per token."""
        by_loop: dict[asyncio.AbstractEventLoop, list] = {}
        for flight, token in given:
            by_loop.setdefault(flight.loop, []).append((flight.tokens, token))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(put_all, batch)
            except RuntimeError:  # the loop is closed, and with it everybody who waited
                for flight, _ in given:
                    flight.cancelled |= flight.loop is loop

    def drop_cancelled(self) -> None:
        for row in reversed(range(len(self.flights))):
            if self.flights[row].cancelled:
                self.release(row)

    def release(self, row: int) -> None:
        last = self.flights.pop()
        if row < len(self.flights):
            self.cache.move(len(self.flights), row, last.length)
            self.flights[row] = last
        self.batch_is_stale = True

    def admit(self) -> list[tuple[Flight, Token | Exception]]:
        """Takes waiting requests into free rows; each gets its first token from its prompt."""
        given: list[tuple[Flight, Token | Exception]] = []
        while len(self.flights) < self.slots:
            with self.changed:
                if not self.waiting:
                    break
                flight = self.waiting.popleft()
            try:
                token = self.take(flight, self.first_token(len(self.flights), flight))
            except Exception as error:
                given.append((flight, error))
                continue
            given.append((flight, token))
            if not token.finish_reason:
                self.flights.append(flight)
                self.batch_is_stale = True
        return given

    def first_token(self, row: int, flight: Flight) -> int:
        sampler = RowSampler([(flight.request.sampling, flight.generator)])
        return int(sampler.choose(self.prefill(row, flight)))

    def prefill(self, row: int, flight: Flight) -> Tensor:
        """(1, v) logits after the prompt, which fills the row."""
        ids_1t = torch.tensor([flight.request.prompt_ids], device=self.model.device)
        length = ids_1t.shape[1]
        self.cache.prefill(row, length)
        positions_t = torch.arange(length, device=self.model.device)
        logits_1v = self.forward(ids_1t, positions_t[None], blocked(positions_t[:, None] < positions_t)[None, None])
        flight.length = length
        return logits_1v

    def decode_step(self) -> list[tuple[Flight, Token]]:
        """One more token for every request in flight."""
        if self.batch_is_stale:
            self.lay_out_batch()
        width = max(flight.length for flight in self.flights) + 1
        self.cache.decode(self.rows_b, self.positions_b, width)
        mask_b11s = blocked(self.positions_b[:, None] < self.key_positions_s[:width])[:, None, None]
        logits_bv = self.forward(self.ids_b[:, None], self.positions_b[:, None], mask_b11s)
        self.ids_b = self.sampler.choose(logits_bv).to(self.model.device)
        self.positions_b = self.positions_b + 1

        given: list[tuple[Flight, Token]] = []
        for flight, token_id in zip(self.flights, self.ids_b.tolist(), strict=True):
            flight.length += 1
            given.append((flight, self.take(flight, token_id)))
        for row in reversed(range(len(given))):
            if given[row][1].finish_reason:
                self.release(row)
        return given

    def lay_out_batch(self) -> None:
        """Tensors that describe who is in flight; between changes a step only advances them."""
        device = self.model.device
        self.rows_b = torch.arange(len(self.flights), device=device)
        self.ids_b = torch.tensor([flight.last_id for flight in self.flights], device=device)
        self.positions_b = torch.tensor([flight.length for flight in self.flights], device=device)
        self.sampler = RowSampler([(flight.request.sampling, flight.generator) for flight in self.flights])
        self.batch_is_stale = False

    def forward(self, ids_bt: Tensor, positions_bt: Tensor, mask_b1ts: Tensor) -> Tensor:
        """(b, v) logits after the last position, on the CPU, where tokens are chosen."""
        output = self.model(
            input_ids=ids_bt,
            attention_mask=mask_b1ts,
            position_ids=positions_bt,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].cpu()

    def take(self, flight: Flight, token_id: int) -> Token:
        """The token as the client sees it: its text, and whether the answer ends here."""
        flight.last_id = token_id
        flight.generated += 1
        if token_id in self.end_ids:
            return Token(flight.text.finish(), token_id, "stop")
        text, stopped = flight.text.push(token_id)
        if stopped:
            return Token(text, token_id, "stop")
        if flight.generated >= flight.room:
            return Token(text + flight.text.finish(), token_id, "length")
        return Token(text, token_id)


def blocked(hidden: Tensor) -> Tensor:
    """A mask that is added to the scores: minus infinity where a key is hidden from a query."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


def put_all(batch: list[tuple[asyncio.Queue, Token | Exception]]) -> None:
    for queue, token in batch:
        queue.put_nowait(token)
