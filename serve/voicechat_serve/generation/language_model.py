"""The language-model deployment: one model under its name, its champion and, on demand, other versions; and its
adapters, each under its own name and with its own versions."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ray.serve.handle import DeploymentHandle

from voicechat_platform.checkpoint_files import find_adapter
from voicechat_platform.registry import NoSuchVersionError, Registry, Version
from voicechat_serve.generation.answer_form import Message
from voicechat_serve.generation.champions import LONGEST_WAIT_S
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.adapters import add_adapter
from voicechat_serve.generation.engines.choice import open_model
from voicechat_serve.generation.engines.interface import UnavailableError, UnknownVersionError
from voicechat_serve.generation.introduction import Introduction, introduce_version
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, LoadedModel, TokenizedText
from voicechat_serve.generation.remote_model import RemoteModel
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.deadlines import answer_in_time
from voicechat_serve.operations.load import Load, OverloadedError
from voicechat_serve.operations.metrics import ModelMetrics
from voicechat_serve.operations.serve_private import listen_where_ray_listens

log = logging.getLogger("ray.serve.voicechat.language_model")

MOST_VERSIONS = 3
"""The most versions in memory, with those that are loading: the champion, the one before it for a rollback, and one
that a client requests by its number."""

IDLE_POLL_S = 1.0

RETRY_S = 5.0

CHAMPION_S = 2 * LONGEST_WAIT_S
"""The longest wait for an answer of the deployment that follows the registry, with or without a new champion."""


class Runner(Protocol):
    """What runs a model: an `Engine`, or the connection to another server."""

    def load(self) -> Load: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


class Model(Protocol):
    """A model in memory, or elsewhere."""

    fingerprint: str
    users: int

    @property
    def engine(self) -> Runner: ...

    def chat(self, messages: Sequence[Message], options: GenerationOptions) -> AsyncGenerator[Delta, None]: ...

    def complete(self, prompt: str | list[int], options: GenerationOptions) -> AsyncGenerator[Delta, None]: ...

    async def tokenize(
        self, text: str | Sequence[Message], add_special: bool, with_names: bool, options: GenerationOptions
    ) -> TokenizedText: ...

    async def detokenize(self, token_ids: list[int], options: GenerationOptions) -> str: ...

    async def tokenizer_info(self, options: GenerationOptions) -> dict[str, Any]: ...

    async def warm_up(self) -> None: ...


class LanguageModel:
    """The deployment of one model.

    Args:
        served: the first version.
        champions: a `Champions`; after a promotion, this deployment serves the new champion.
        base: the model in memory that `served` is an adapter of; its deployment makes one such object for each adapter.
    """

    def __init__(self, served: ServedModel, champions: DeploymentHandle | None = None, base: LoadedModel | None = None):
        if base is None:
            listen_where_ray_listens()
        self.served, self.base = served, base
        self.champions = None if served.version is None else champions
        # Serve calls this inside a running event loop, which allows no second one: hence the thread.
        with ThreadPoolExecutor(1) as thread:
            self.current = thread.submit(self.load, served.version, served.path).result()
        self.versions = {served.version: self.current}
        """By number, the last used one at the end."""
        self.previous: int | None = None
        """The previous champion, for a rollback."""
        self.loading: dict[int, asyncio.Task[None]] = {}
        self.places = 0
        """Places of versions that are loading."""
        self.asking: Counter[int | None] = Counter()
        """By number, the requests that wait for a version."""
        self.metrics = ModelMetrics(served.id, self.engine_load)
        self.adapters: dict[str, LanguageModel] = {}
        if isinstance(self.current, LoadedModel):
            self.adapters = {adapter.id: LanguageModel(adapter, champions, self.current) for adapter in served.adapters}
        if self.champions is not None:
            self.following = asyncio.get_running_loop().create_task(self.follow())

    async def chat(self, messages: Sequence[Message], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Yield the assistant's next turn.

        Raises (at the first piece): the errors of `LoadedModel.chat`; UnknownVersionError.
        """
        named = self.named(options.model)
        model = await named.version(options.version)
        async with aclosing(named.measured(model, model.chat(messages, options))) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, prompt: str | list[int], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Yield the continuation of the prompt; errors as in `chat`."""
        named = self.named(options.model)
        model = await named.version(options.version)
        async with aclosing(named.measured(model, model.complete(prompt, options))) as deltas:
            async for delta in deltas:
                yield delta

    async def tokenize(
        self, text: str | Sequence[Message], add_special: bool, with_names: bool, options: GenerationOptions
    ) -> TokenizedText:
        """Return the tokens of a text or of a conversation. Raises the errors of `LoadedModel.tokenize`;
        UnknownVersionError."""
        async with self.in_use(options) as model:
            return await model.tokenize(text, add_special, with_names, options)

    async def detokenize(self, token_ids: list[int], options: GenerationOptions) -> str:
        """Return the text of tokens. Raises the errors of `LoadedModel.detokenize`; UnknownVersionError."""
        async with self.in_use(options) as model:
            return await model.detokenize(token_ids, options)

    async def tokenizer_info(self, options: GenerationOptions) -> dict[str, Any]:
        """Describe the tokenizer. Raises UnknownVersionError."""
        async with self.in_use(options) as model:
            return await model.tokenizer_info(options)

    @asynccontextmanager
    async def in_use(self, options: GenerationOptions) -> AsyncIterator[Model]:
        """Yield the model of a request, which stays in memory until the block ends."""
        model = await self.named(options.model).version(options.version)
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1

    async def measured(self, model: Model, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """Pass a response on, and count it as a user of the model until it ends."""
        measured = self.metrics.answer()
        model.users += 1
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    measured.observe(delta.prompt_tokens, delta.completion_tokens)
                    yield delta
        finally:
            model.users -= 1

    def named(self, model: str) -> "LanguageModel":
        """Return the adapter of that name, or the model itself."""
        return self.adapters.get(model, self)

    async def introduce(self, number: int | None, model: str = "") -> Introduction:
        """Introduce a version, of the adapter `model` or of the model itself.

        Raises:
            UnknownVersionError: no version has that number.
            UnavailableError: the registry does not answer, or the version's files cannot be read.
        """
        named = self.named(model)
        version = await asyncio.to_thread(named.find_version, number)
        try:
            return await asyncio.to_thread(introduce_version, version, named.served.words)
        except Exception as error:  # its files are gone or damaged
            log.exception("%s cannot be introduced", version)
            raise UnavailableError(f"{version} cannot be read now; try again later") from error

    def find_version(self, number: int | None) -> Version:
        """Return a version's entry in the registry; blocks. Errors as in `introduce`."""
        if number is None or self.served.version is None:
            raise UnknownVersionError(f"{self.served.id} has no versions: it is not a model of the registry")
        try:
            return Registry().version(self.served.id, number)
        except NoSuchVersionError as error:
            raise UnknownVersionError(str(error)) from None
        except Exception as error:
            log.exception("%s@%d cannot be looked up", self.served.id, number)
            raise UnavailableError(f"versions of {self.served.id} cannot be looked up now; try again later") from error

    async def version(self, number: int | None, urgent: bool = False) -> Model:
        """Return a version of the model, and load it if necessary; None means the champion.

        Args:
            urgent: whether a version with running requests may leave memory for this one, after those requests.

        Raises:
            UnknownVersionError: no version has that number.
            OverloadedError: every version in memory is needed or has running requests, so there is no room.
            UnavailableError: the registry does not answer, or the files cannot be loaded.
        """
        if number is None:
            return self.current
        self.asking[number] += 1
        try:
            while number not in self.versions:
                if number not in self.loading:
                    self.loading[number] = asyncio.create_task(self.fetch(number, urgent))
                    self.loading[number].add_done_callback(lambda _: self.loading.pop(number))
                await asyncio.shield(self.loading[number])  # if one caller leaves, the others still need it
        finally:
            self.asking[number] -= 1
        self.versions[number] = self.versions.pop(number)
        return self.versions[number]

    async def fetch(self, number: int, urgent: bool) -> None:
        version = await asyncio.to_thread(self.find_version, number)  # before another version is removed
        leaving = self.make_room(urgent)
        self.places += 1
        try:
            if leaving is not None:
                await close_when_idle(leaving)
                del leaving  # this frees its memory
            self.versions[number] = await asyncio.to_thread(lambda: self.load(number, version.checkpoint()))
        except Exception as error:  # its files are gone or damaged, no engine runs it, memory is full
            log.exception("%s cannot be loaded", version)
            raise UnavailableError(f"{version} cannot be loaded now; try again later") from error
        finally:
            self.places -= 1

    def make_room(self, urgent: bool) -> Model | None:
        """Return the version that must leave memory before another one is loaded, or None if there is room.

        Raises:
            OverloadedError: none can leave now.
        """
        if len(self.versions) + self.places < MOST_VERSIONS:
            return None
        # The least recently used one first, but the one for a rollback last.
        for number in sorted(self.versions, key=lambda number: number == self.previous):
            model = self.versions[number]
            is_needed = model is self.current or number == self.previous or model.users or self.asking[number]
            if not is_needed or (urgent and model is not self.current):
                return self.versions.pop(number)
        raise OverloadedError(f"{MOST_VERSIONS} versions of {self.served.id} are in memory and needed; try again later")

    def load(self, number: int | None, path: Path | None) -> Model:
        """Load and warm up a version; blocks, on a thread without an event loop."""
        served = self.served
        fingerprint = served.id if number is None else f"{served.id}@{number}"
        model: Model
        if path is None:
            assert served.remote is not None
            model = RemoteModel(served.remote, fingerprint, served.sampling, served.max_tokens)
        else:
            model = self.load_files(path, fingerprint)
        try:
            asyncio.run(model.warm_up())
        except BaseException:
            model.engine.close()
            raise
        return model

    def load_files(self, path: Path, fingerprint: str) -> LoadedModel:
        """Load a version from its files, as an adapter of the base if it is one."""
        served = self.served
        adapter = None if self.base is None else find_adapter(path, served.base)
        if self.base is not None and adapter is not None:
            tokenizer = ChatTokenizer(path) if (path / "config.json").is_file() else self.base.tokenizer
            engine = add_adapter(self.base.engine, adapter)
        else:
            tokenizer, engine = open_model(path, served.options)
        defaults = replace(tokenizer.sampling, **served.sampling)
        return LoadedModel(tokenizer, engine, fingerprint, defaults, served.max_tokens)

    async def follow(self) -> None:
        """Serve each new champion when it is warm; running requests end with the version with which they started."""
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
                log.exception(
                    "cannot follow the champion of %s; %s stays in service", self.served.id, self.current.fingerprint
                )
                await asyncio.sleep(RETRY_S)

    def engine_load(self) -> Load:
        return self.current.engine.load()

    def check_health(self) -> None:
        """Check the replica; Serve calls this, and replaces the replica when it raises."""
        for model in list(self.versions.values()):
            model.engine.check()
        if self.champions is not None and self.following.done():
            raise RuntimeError("the champion is not followed any more")
        for adapter in self.adapters.values():
            adapter.check_health()


async def close_when_idle(model: Model) -> None:
    """Close a model's engine when its last request has ended."""
    while model.users:
        await asyncio.sleep(IDLE_POLL_S)
    await asyncio.to_thread(model.engine.close)
