"""A limit for the size of another server's responses."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2


def bounded(most_bytes: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """Return the hook for a client's responses: reading more than `most_bytes` of one raises httpx2.ReadError.

    A compressed response would have any size: the client must ask for none.
    """

    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("the response is compressed", request=response.request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = BoundedBody(response.stream, response.request, most_bytes)

    return bound


class BoundedBody(httpx2.AsyncByteStream):
    def __init__(self, body: httpx2.AsyncByteStream, request: httpx2.Request, most_bytes: int):
        self.body, self.request, self.most_bytes = body, request, most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for data in self.body:
            size += len(data)
            if size > self.most_bytes:
                raise httpx2.ReadError(f"the response has more than {self.most_bytes} bytes", request=self.request)
            yield data

    async def aclose(self) -> None:
        await self.body.aclose()
