"""Flow control across queues without bounds, as Serve has between an application and its proxy."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn

from stalled_client import StalledClient
from voicechat_serve.api import proxy
from voicechat_serve.operations import flow_control
from voicechat_serve.operations.flow_control import MOST_UNSENT_BYTES, Acknowledgements, FlowControl

PIECE = b"x" * 10_000


class ServeBetween:
    """Both ends with Serve in between: what the application sends is kept, however much it is."""

    def __init__(self, app, kind: str, with_proxy: bool = True):
        self.kind = kind
        self.kept: asyncio.Queue = asyncio.Queue()
        self.received: asyncio.Queue = asyncio.Queue()
        """From the client."""
        self.taken: list[dict] = []
        self.reads = asyncio.Event()
        """Set: the client reads what comes."""
        self.cancelled = False
        proxied = Acknowledgements(self.proxy) if with_proxy else self.proxy
        self.app = FlowControl(app)
        self.running = asyncio.create_task(proxied({"type": kind}, self.received.get, self.send))

    async def send(self, message):
        await self.reads.wait()
        self.taken.append(message)

    async def proxy(self, scope, receive, send):
        fetched: asyncio.Queue = asyncio.Queue()

        async def fetch():
            while True:
                fetched.put_nowait(await receive())

        async def answer():
            try:
                await self.app(scope, fetched.get, self.kept.put)
            finally:
                self.kept.put_nowait(None)

        tasks = [asyncio.create_task(fetch()), asyncio.create_task(answer())]
        try:
            while (message := await self.kept.get()) is not None:
                await send(message)
            await tasks[1]
        except asyncio.CancelledError:
            tasks[1].cancel()
            raise
        finally:
            tasks[0].cancel()


class Endless:
    """Sends for ever, without ever looking at what comes."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = asyncio.Event()

    async def __call__(self, scope, receive, send):
        try:
            if scope["type"] == "websocket":
                await send({"type": "websocket.accept"})
            else:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.send", "text": PIECE.decode()})
                else:
                    await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                self.sent += len(PIECE)
                await asyncio.sleep(0)
        finally:
            self.ended.set()


async def settled(app: Endless) -> int:
    """How much was sent, once nothing more is."""
    before = -1
    while app.sent != before:
        before = app.sent
        await asyncio.sleep(0.05)
    return before


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_what_a_client_does_not_read_is_not_made(kind):
    app = Endless()
    between = ServeBetween(app, kind)
    for _ in range(3):
        assert await settled(app) <= sum(map(size, between.taken)) + MOST_UNSENT_BYTES + 2 * len(PIECE)
        target = len(between.taken) + 100
        between.reads.set()
        while len(between.taken) < target:
            await asyncio.sleep(0)
        between.reads.clear()
    assert all(set(message) <= {"type", "status", "headers", "body", "text", "more_body"} for message in between.taken)
    between.running.cancel()
    await asyncio.wait_for(app.ended.wait(), 10)


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_client_that_reads_nothing_for_long_is_left(kind, monkeypatch):
    monkeypatch.setattr(flow_control, "UNSENT_S", 0.2)
    app = Endless()
    between = ServeBetween(app, kind)
    await asyncio.wait_for(app.ended.wait(), 10)
    assert app.sent <= MOST_UNSENT_BYTES + 2 * len(PIECE)
    between.reads.set()
    await asyncio.wait_for(between.running, 10)
    if kind == "websocket":
        assert between.taken[-1] == {"type": "websocket.close", "code": 1008, "reason": "too_slow"}
    else:
        assert between.taken[-1]["more_body"], "the answer just breaks off"


async def test_a_slow_client_is_not_left(monkeypatch):
    monkeypatch.setattr(flow_control, "UNSENT_S", 0.3)
    app = Endless()
    between = ServeBetween(app, "http")
    for _ in range(12):  # more than UNSENT_S in all
        await asyncio.sleep(0.05)
        between.reads.set()
        taken = len(between.taken)
        while len(between.taken) < taken + 10:
            await asyncio.sleep(0)
        between.reads.clear()
    assert not app.ended.is_set()
    between.running.cancel()
    await asyncio.wait_for(app.ended.wait(), 10)


async def test_the_clients_messages_and_its_leaving_are_passed_on():
    heard = []

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        for _ in range(3):
            heard.append(await receive())
        for _ in range(100):  # after the client has left it must not wait for it
            await send({"type": "websocket.send", "text": PIECE.decode()})
        heard.append(await receive())

    between = ServeBetween(app, "websocket")
    between.reads.set()
    given = [{"type": "websocket.receive", "text": text} for text in ("one", "two")]
    given.append({"type": "websocket.disconnect", "code": 1001})
    for message in given:
        between.received.put_nowait(message)
    await asyncio.wait_for(between.running, 10)
    assert heard == [*given, given[-1]]


async def test_a_proxy_that_acknowledges_nothing_is_not_waited_for():
    app = Endless()
    between = ServeBetween(app, "http", with_proxy=False)
    async with asyncio.timeout(10):
        while app.sent < 4 * MOST_UNSENT_BYTES:
            await asyncio.sleep(0)
    between.running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await between.running


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux breaks such connections off")
async def test_a_connection_whose_client_takes_nothing_is_broken_off(monkeypatch):
    """Also one that the server has closed already: its last bytes would wait for the client for ever."""
    monkeypatch.setattr(proxy, "UNTAKEN_MS", 500)
    app = Endless()
    config = uvicorn.Config(app, http=proxy.BoundedConnection, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = await asyncio.to_thread(StalledClient, f"http://127.0.0.1:{port}")
        client.post("/", {})
        await settled(app)
        while not client.is_left():
            await asyncio.sleep(0.05)
    client.socket.close()
    server.force_exit = server.should_exit = True
    await serving


def size(message: dict) -> int:
    return len(message.get("body") or message.get("text") or "")
