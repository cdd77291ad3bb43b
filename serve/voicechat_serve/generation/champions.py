"""The deployment that follows the registry, so that the service applies a promotion without a restart.

One replica polls the registry for all models. The replica of each language model waits here for its next champion.
"""

import asyncio
import logging
from collections.abc import Mapping

from voicechat_platform.registry import Registry, Version
from voicechat_serve.generation.introduction import Introduction, Words, introduce_version
from voicechat_serve.operations.serve_private import listen_where_ray_listens

log = logging.getLogger("ray.serve.voicechat.champions")

POLL_S = 2.0
"""The time between two polls of the registry."""

LONGEST_WAIT_S = 30.0
"""The longest wait of a replica here before it calls again."""


class Champions:
    """Args: words: by the names of the served champions, what the application file says of them."""

    def __init__(self, words: Mapping[str, Words]):
        listen_where_ray_listens()
        self.words = words
        self.introductions: dict[str, Introduction] = {}
        self.numbers: dict[str, int] = {}
        self.changed = asyncio.Condition()
        self.following = asyncio.get_running_loop().create_task(self.follow())

    async def follow(self) -> None:
        while True:
            try:
                champions = await asyncio.to_thread(lambda: Registry().champions())
                await asyncio.to_thread(self.introduce, champions)
            except Exception:
                log.exception("the registry does not answer; the service keeps its current versions")
            else:
                async with self.changed:
                    self.numbers = {version.name: version.number for version in champions}
                    self.changed.notify_all()
            await asyncio.sleep(POLL_S)

    def introduce(self, champions: list[Version]) -> None:
        """Introduce the champions that are new. One whose files cannot be read keeps the introduction from before."""
        for version in champions:
            if version.name not in self.words or version.number == self.numbers.get(version.name):
                continue
            try:
                self.introductions[version.name] = introduce_version(version, self.words[version.name])
            except Exception:
                log.exception("%s cannot be introduced", version)

    async def introduced(self) -> dict[str, Introduction]:
        """Return the introduction of each served champion, by name."""
        return self.introductions

    async def next(self, name: str, known: int | None) -> int | None:
        """Return the number of a model's champion as soon as it differs from `known`, or `known` after the wait."""

        def is_new() -> bool:
            return self.numbers.get(name, known) != known

        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait_for(is_new), LONGEST_WAIT_S)
            except TimeoutError:
                return known
            return self.numbers[name]

    def check_health(self) -> None:
        """Check the replica; Serve calls this, and replaces the replica when it raises."""
        if self.following.done():
            raise RuntimeError("the registry is not followed any more")
