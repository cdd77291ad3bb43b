"""The deployment of a model of embeddings: a vector for each text, computed by one thread.

Letters: n input, d dimension of a vector.
"""

import asyncio
import logging
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.choice import open_embedder
from voicechat_serve.generation.engines.interface import MOST_WAITING
from voicechat_serve.generation.engines.llama_cpp.embedder import LlamaCppEmbedder, unit
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.load import Load, OverloadedError
from voicechat_serve.operations.metrics import ModelMetrics
from voicechat_serve.operations.serve_private import listen_where_ray_listens

log = logging.getLogger("ray.serve.voicechat.embedding_model")

MOST_TOKENS = 65_536
"""The most tokens of a request: about what a CPU computes before the deadline of an answer."""


@dataclass(frozen=True)
class Embedded:
    """The answer to a request."""

    vectors_nd: np.ndarray
    """(n, d) float32, each of length 1."""
    num_tokens: int
    """Of all inputs together."""


@dataclass(eq=False)
class Job:
    """A request that waits, or whose inputs are partly computed."""

    inputs: list[list[int]]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    begun: int = 0
    """Inputs that are computed, or that the running call computes."""
    vectors: list[np.ndarray] = field(default_factory=list)


class EmbeddingModel:
    """The deployment of one model of embeddings.

    One thread computes. Requests wait in a queue and take turns: a call has inputs of all that wait, as far as they
    fit, and begins each time with the next one. So a short request need not wait for the end of a long one.

    Raises:
        InputError: llama.cpp cannot run the file.
    """

    def __init__(self, served: ServedModel):
        listen_where_ray_listens()
        # A trial of the file takes seconds, and Serve calls this inside a running event loop.
        with ThreadPoolExecutor(1) as thread:
            engine = thread.submit(load, served).result()
        self.queue = EmbeddingQueue(engine)
        self.metrics = ModelMetrics(served.id, self.queue.load)

    async def embed(self, inputs: list[str | list[int]], dimensions: int | None = None) -> Embedded:
        """Return the vectors of texts, or of lists of tokens, in their order.

        Args:
            dimensions: the length of the vectors, which are cut and scaled to length 1 again; None for the model's own.

        Raises:
            InputError: an input is empty, too long, or has an unknown token; all have too many tokens; or the model has
                not so many dimensions.
            OverloadedError: too many requests wait.
        """
        measured = self.metrics.answer()
        embedded = await self.queue.embed(inputs, dimensions)
        measured.observe(embedded.num_tokens, 0)
        return embedded

    def check_health(self) -> None:
        """Check the replica; Serve calls this, and replaces the replica when it raises."""
        self.queue.check()


def load(served: ServedModel) -> LlamaCppEmbedder:
    assert served.path is not None
    engine = open_embedder(served.path, served.options)
    engine.embed([[0]])  # reserves its memory before the first request
    return engine


class EmbeddingQueue:
    """The requests, and the thread that computes them.

    Args:
        engine: belongs to the thread from now on, except for its `tokens`.
        max_waiting: the most requests that wait or are computed; further ones are refused.
    """

    def __init__(self, engine: LlamaCppEmbedder, max_waiting: int = MOST_WAITING):
        self.engine, self.max_waiting = engine, max_waiting
        self.jobs: deque[Job] = deque()
        self.computing: list[Job] = []
        """Those with inputs in the running call."""
        self.is_closing = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.run, name="embeddings", daemon=True)
        self.thread.start()

    async def embed(self, inputs: list[str | list[int]], dimensions: int | None = None) -> Embedded:
        """Return the vectors; errors as in `EmbeddingModel.embed`."""
        if dimensions is not None and dimensions > self.engine.width:
            raise InputError(f"dimensions is {dimensions:,}, but the model's vectors have {self.engine.width:,}")
        self.require_room()  # before the work of the tokenizer
        tokens = await asyncio.to_thread(self.tokens, inputs)
        loop = asyncio.get_running_loop()
        job = Job(tokens, loop, loop.create_future())
        with self.changed:
            self.require_room()
            self.jobs.append(job)
            self.changed.notify()
        try:
            await job.done
        finally:
            with self.changed:  # the client may have left
                if job in self.jobs:
                    self.jobs.remove(job)
        vectors_nd = np.concatenate(job.vectors)
        if dimensions is not None and dimensions < self.engine.width:
            vectors_nd = unit(vectors_nd[:, :dimensions])
        return Embedded(vectors_nd, sum(map(len, tokens)))

    def tokens(self, inputs: list[str | list[int]]) -> list[list[int]]:
        found, total = [], 0
        for place, given in enumerate(inputs):
            found.append(self.engine.tokens(given, place))
            total += len(found[-1])
            if total > MOST_TOKENS:
                raise InputError(f"the inputs have more than {MOST_TOKENS:,} tokens together: send several requests")
        return found

    def require_room(self) -> None:
        if len(self.jobs) >= self.max_waiting:
            raise OverloadedError(f"{self.max_waiting} requests are already waiting for the model")

    def load(self) -> Load:
        """Return the load; any thread may call this."""
        with self.changed:
            running = len(self.computing)
            waiting = sum(job not in self.computing for job in self.jobs)
        return Load(running=running, waiting=waiting, cache_used=0.0)

    def check(self) -> None:
        if not self.thread.is_alive():
            raise RuntimeError("the thread that computes embeddings has ended")

    def close(self) -> None:
        """End the thread after the running call, and free the model."""
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join()
        self.engine.close()

    # The methods from here on run on the thread.

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.jobs or self.is_closing)
                if self.is_closing:
                    return
                chosen = self.choose()
                self.computing = [job for job, _ in chosen]
            try:
                vectors_nd = self.engine.embed([ids for _, inputs in chosen for ids in inputs])
                problem = None
            except Exception as error:
                log.exception("embeddings failed")
                problem = error
            with self.changed:
                self.computing = []
                for job, inputs in chosen:
                    if problem is None:
                        job.vectors.append(vectors_nd[: len(inputs)])
                        vectors_nd = vectors_nd[len(inputs) :]
                    if problem is not None or job.begun == len(job.inputs):
                        self.finish(job, problem)

    def choose(self) -> list[tuple[Job, list[list[int]]]]:
        """Return the inputs of the next call, at least one, by their requests; the first request goes to the end of the
        queue."""
        chosen: list[tuple[Job, list[list[int]]]] = []
        count = tokens = 0
        for job in self.jobs:
            first = job.begun
            while job.begun < len(job.inputs) and self.engine.fits(count + 1, tokens + len(job.inputs[job.begun])):
                count, tokens = count + 1, tokens + len(job.inputs[job.begun])
                job.begun += 1
            if job.begun > first:
                chosen.append((job, job.inputs[first : job.begun]))
        self.jobs.rotate(-1)
        return chosen

    def finish(self, job: Job, problem: Exception | None) -> None:
        """Wake the request, and take it out of the queue; unless its client has left."""
        if job not in self.jobs:
            return
        self.jobs.remove(job)

        def wake() -> None:
            if job.done.done():
                return
            if problem is None:
                job.done.set_result(None)
            else:
                job.done.set_exception(RuntimeError(f"embeddings failed: {problem}"))

        job.loop.call_soon_threadsafe(wake)
