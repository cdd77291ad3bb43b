"""A deployment's handle for an object of this process: the API without Ray."""

import asyncio
from types import SimpleNamespace


class Handle:
    """A deployment's handle, whose replica is an object of this process."""

    def __init__(self, replica):
        self.replica = replica

    def options(self, stream):
        return self

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *arguments: Answer(getattr(self.replica, method)(*arguments)))


class Answer:
    """What a method of the replica gives: one result to await, or a stream."""

    def __init__(self, given):
        self.given = given

    def __await__(self):
        return self.given.__await__()

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.given)

    def cancel(self):
        if hasattr(self.given, "aclose"):  # whoever awaits one result has passed the cancellation on already
            self.closing = asyncio.ensure_future(self.given.aclose())
