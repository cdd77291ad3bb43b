"""The language-model deployment: one model under its name, its champion and, on demand, other versions of it."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

from ray.serve.handle import DeploymentHandle

from voicechat_platform.registry import NoSuchVersionError, Registry, Version
from voicechat_serve.generation.champions import PATIENCE_S
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer, Message
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import Load, OverloadedError, UnavailableError, UnknownVersionError
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, LoadedModel
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.deadlines import answer_in_time
from voicechat_serve.operations.loopback import listen_where_ray_listens
from voicechat_serve.operations.metrics import ModelMetrics

log = logging.getLogger("ray.serve.voicechat.language_model")

MOST_VERSIONS = 3
"""In memory at once, those included that are being loaded: the champion, the one before it for a rollback, and one that
a client asks for by its number."""

IDLE_POLL_S = 1.0

RETRY_S = 5.0

CHAMPION_S = 2 * PATIENCE_S
"""How long the deployment that follows the registry may take to answer, new champion or not."""


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
        self.places = 0
        """Taken by versions that are being loaded."""
        self.asking: Counter[int | None] = Counter()
        """By number, the requests that wait for a version to be loaded."""
        self.metrics = ModelMetrics(served.id, self.engine_load)
        if champions is not None:
            self.following = asyncio.get_running_loop().create_task(self.follow())

    async def chat(self, messages: Sequence[Message], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """The assistant's next turn.

        Raises (at the first piece): what `LoadedModel.chat` raises; UnknownVersionError.
        """
        model = await self.version(options.version)
        async with aclosing(self.measured(model, model.chat(messages, options))) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, prompt: str | list[int], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """What follows the prompt; errors as in `chat`."""
        model = await self.version(options.version)
        async with aclosing(self.measured(model, model.complete(prompt, options))) as deltas:
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
            UnavailableError: the registry does not answer.
        """
        if number not in self.versions:
            await asyncio.to_thread(self.find_version, number)

    def find_version(self, number: int | None) -> Version:
        """What the registry knows of a version; blocks. Errors as in `require_version`."""
        if number is None or self.served.version is None:
            raise UnknownVersionError(f"{self.served.id} has no versions: it is not a model of the registry")
        try:
            return Registry().version(self.served.id, number)
        except NoSuchVersionError as error:
            raise UnknownVersionError(str(error)) from None
        except Exception as error:
            log.exception("%s@%d cannot be looked up", self.served.id, number)
            raise UnavailableError(f"versions of {self.served.id} cannot be looked up now; try again later") from error

    async def version(self, number: int | None, urgent: bool = False) -> LoadedModel:
        """A version of the model, loaded if it is not yet; the champion for None.

        Args:
            urgent: a version that answers may go for it, once it has ended what it has begun.

        Raises:
            UnknownVersionError: there is none of that number.
            OverloadedError: every version in memory is needed or answers, so there is no room for another.
            UnavailableError: the registry does not answer, or its files cannot be loaded.
        """
        if number is None:
            return self.current
        self.asking[number] += 1
        try:
            while number not in self.versions:
                if number not in self.loading:
                    self.loading[number] = asyncio.create_task(self.fetch(number, urgent))
                    self.loading[number].add_done_callback(lambda _: self.loading.pop(number))
                await asyncio.shield(self.loading[number])  # whoever leaves meanwhile, the others still want it
        finally:
            self.asking[number] -= 1
        self.versions[number] = self.versions.pop(number)
        return self.versions[number]

    async def fetch(self, number: int, urgent: bool) -> None:
        version = await asyncio.to_thread(self.find_version, number)  # before another one leaves for nothing
        leaving = self.make_room(urgent)
        self.places += 1
        try:
            if leaving is not None:
                await close_when_idle(leaving)
                del leaving  # with it goes its memory
            self.versions[number] = await asyncio.to_thread(lambda: self.load(number, version.checkpoint()))
        except Exception as error:  # its files are gone or damaged, no engine runs it, memory is full
            log.exception("%s cannot be loaded", version)
            raise UnavailableError(f"{version} cannot be loaded now; try again later") from error
        finally:
            self.places -= 1

    def make_room(self, urgent: bool) -> LoadedModel | None:
        """The version that is to leave memory before another one comes; None while there is a place.

        Raises:
            OverloadedError: none can leave now.
        """
        if len(self.versions) + self.places < MOST_VERSIONS:
            return None
        # The one used longest ago first, but the one for a rollback last.
        for number in sorted(self.versions, key=lambda number: number == self.previous):
            model = self.versions[number]
            is_needed = model is self.current or number == self.previous or model.users or self.asking[number]
            if not is_needed or (urgent and model is not self.current):
                return self.versions.pop(number)
        raise OverloadedError(f"{MOST_VERSIONS} versions of {self.served.id} are in memory and needed; try again later")

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

    async def follow(self) -> None:
        """Serves each new champion from when it is warm; requests under way end with the model they began with."""
        number = self.served.version
        while True:
            try:
                assert self.champions is not None
                promoted = await answer_in_time(self.champions.next.remote(self.served.id, number), CHAMPION_S)
                if promoted != number:
                    self.current = await self.version(promoted, urgent=True)
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
