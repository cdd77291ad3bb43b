"""The language-model deployment: one model under its name, its champion and, on demand, other versions of it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ray.serve.handle import DeploymentHandle

from voicechat_platform.errors import InputError
from voicechat_serve.champions import PATIENCE_S, version_folder
from voicechat_serve.chat_tokenizer import ChatTokenizer, Message
from voicechat_serve.engines.choice import EngineName, Precision, make_engine
from voicechat_serve.engines.interface import Load, OverloadedError, UnknownVersionError
from voicechat_serve.loaded_model import Delta, LoadedModel, Wishes
from voicechat_serve.loopback import listen_where_ray_listens
from voicechat_serve.metrics import ModelMetrics

log = logging.getLogger("ray.serve.voicechat.language_model")

MOST_VERSIONS = 3
"""In memory at once: the champion, the one before it for a rollback, and one that a client asks for by its number."""

IDLE_POLL_S = 1.0

RETRY_S = 5.0

CHAMPION_S = 2 * PATIENCE_S
"""How long the deployment that follows the registry may take to answer, new champion or not."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    id: str
    """The name that clients ask for."""
    folder: Path
    """A Hugging Face model directory, or one that CTranslate2's converter wrote (with model.bin)."""
    version: int | None = None
    """Which version of the registry's model `id` the folder holds; None where it is no model of the registry."""
    engine: EngineName = "auto"
    precision: Precision = "auto"
    threads: int = 1
    """CPU threads of one decode step; a small model's step is too short to share."""


class LanguageModel:
    """
    Args:
        served: what it begins with.
        champions: a `Champions`, whose champion of the model's name is served from when it is promoted.
    """

    def __init__(self, served: ServedModel, champions: DeploymentHandle | None = None):
        listen_where_ray_listens()
        self.served, self.champions = served, champions
        # Serve calls this inside a running event loop, where no second one can be run: hence the thread.
        with ThreadPoolExecutor(1) as thread:
            self.current = thread.submit(self.load, served.version, Path(served.folder)).result()
        self.versions = {served.version: self.current}
        """By number, the one used last at the end."""
        self.previous: int | None = None
        """The champion before the champion: kept for a rollback."""
        self.loading: dict[int, asyncio.Task[None]] = {}
        self.closing: set[asyncio.Task] = set()
        self.metrics = ModelMetrics(served.id, self.engine_load)
        if champions is not None:
            self.following = asyncio.get_running_loop().create_task(self.follow())

    async def chat(self, messages: Sequence[Message], wishes: Wishes) -> AsyncGenerator[Delta, None]:
        """The assistant's next turn.

        Raises (at the first piece): what `LoadedModel.chat` raises; UnknownVersionError.
        """
        model = await self.version(wishes.version)
        async with aclosing(self.measured(model, model.chat(messages, wishes))) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, prompt: str | list[int], wishes: Wishes) -> AsyncGenerator[Delta, None]:
        """What follows the prompt; errors as in `chat`."""
        model = await self.version(wishes.version)
        async with aclosing(self.measured(model, model.complete(prompt, wishes))) as deltas:
            async for delta in deltas:
                yield delta

    async def measured(self, model: LoadedModel, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """Passes an answer on, counted as one of the model's users until it ends."""
        measured = self.metrics.answer()
        model.users += 1
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    measured.observe(delta.prompt_tokens, delta.completion_tokens)
                    yield delta
        finally:
            model.users -= 1

    async def require_version(self, number: int | None) -> None:
        """
        Raises:
            UnknownVersionError: there is none of that number.
        """
        if number not in self.versions:
            await asyncio.to_thread(self.find_version, number)

    def find_version(self, number: int | None) -> Path:
        """Where the files of a version are; blocks."""
        if number is None or self.served.version is None:
            raise UnknownVersionError(f"{self.served.id} has no versions: it is not a model of the registry")
        try:
            return version_folder(self.served.id, number)
        except InputError as error:
            raise UnknownVersionError(str(error)) from None

    async def version(self, number: int | None) -> LoadedModel:
        """A version of the model, loaded if it is not yet; the champion for None.

        Raises:
            UnknownVersionError: there is none of that number.
            OverloadedError: versions that were replaced still answer, and there is no room for another.
        """
        if number is None:
            return self.current
        while number not in self.versions:
            if number not in self.loading:
                if len(self.closing) >= MOST_VERSIONS:
                    raise OverloadedError(f"{len(self.closing)} earlier versions still answer; try again later")
                self.loading[number] = asyncio.create_task(self.fetch(number))
                self.loading[number].add_done_callback(lambda _: self.loading.pop(number))
            await asyncio.shield(self.loading[number])  # whoever leaves meanwhile, the others still want it
        self.versions[number] = self.versions.pop(number)
        return self.versions[number]

    async def fetch(self, number: int) -> None:
        folder = await asyncio.to_thread(self.find_version, number)
        self.keep(number, await asyncio.to_thread(self.load, number, folder))

    def load(self, number: int | None, folder: Path) -> LoadedModel:
        """Loads and warms up; blocks, on a thread without an event loop."""
        tokenizer = ChatTokenizer(folder)
        engine = make_engine(folder, tokenizer, self.served.engine, self.served.precision, self.served.threads)
        fingerprint = self.served.id if number is None else f"{self.served.id}@{number}"
        model = LoadedModel(tokenizer, engine, fingerprint)
        try:
            asyncio.run(model.warm_up())
        except BaseException:
            engine.close()
            raise
        return model

    def keep(self, number: int, model: LoadedModel) -> None:
        self.versions[number] = model
        for other, loaded in list(self.versions.items()):
            is_needed = loaded is self.current or other in (number, self.previous)
            if len(self.versions) > MOST_VERSIONS and not is_needed:
                del self.versions[other]
                task = asyncio.create_task(close_when_idle(loaded))
                self.closing.add(task)
                task.add_done_callback(self.closing.discard)

    async def follow(self) -> None:
        """Serves each new champion from when it is warm; requests under way end with the model they began with."""
        number = self.served.version
        while True:
            try:
                assert self.champions is not None
                question = self.champions.next.remote(self.served.id, number)
                try:
                    async with asyncio.timeout(CHAMPION_S):
                        promoted = await question
                except TimeoutError:
                    question.cancel()
                    raise
                if promoted != number:
                    self.current = await self.version(promoted)
                    number, self.previous = promoted, number
                    log.info("%s is served from now on", self.current.fingerprint)
            except Exception:
                log.exception("cannot follow the champion of %s; %s goes on", self.served.id, self.current.fingerprint)
                await asyncio.sleep(RETRY_S)

    def engine_load(self) -> Load:
        return self.current.engine.load()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        for model in list(self.versions.values()):
            model.engine.check()
        if self.champions is not None and self.following.done():
            raise RuntimeError("the champion is not followed any more")


async def close_when_idle(model: LoadedModel) -> None:
    """Ends a model's engine once nobody is answered by it any more."""
    while model.users:
        await asyncio.sleep(IDLE_POLL_S)
    await asyncio.to_thread(model.engine.close)
