"""Clients that leave before their answer ends: their work ends with them, and what they held is free again."""

import asyncio
import json
import random
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from voicechat_serve.operations.load import Load

MESSAGES = [{"role": "user", "content": "To be, or not"}]
PATHS = ("/chat/completions", "/completions")
ASKED = dict(zip(PATHS, ({"messages": MESSAGES}, {"prompt": "To be, or not"}), strict=True))
LONG = {"model": "shakespeare", "max_tokens": 200}
IDLE = Load(running=0, waiting=0, cache_used=0.0)


class Gate:
    """Stands before the engine's decode steps and lets through as many as it is told to."""

    def __init__(self, engine):
        self.engine, self.step = engine, engine.decoder.decode
        self.permits = threading.Semaphore(0)
        self.num_rows: list[int] = []
        """Of each step: how many requests it wrote a token for."""

    def __call__(self, ids_b, *arguments):
        self.permits.acquire()
        self.num_rows.append(len(ids_b))
        return self.step(ids_b, *arguments)

    def let(self, steps: int) -> None:
        """Returns when so many more steps were begun."""
        target = len(self.num_rows) + steps
        self.permits.release(steps)
        wait_until(lambda: len(self.num_rows) >= target)


@pytest.fixture
def gate(replica):
    """The engine goes on by single steps, so that what happens between them does not depend on the machine's speed."""
    engine = replica.engine
    gate = Gate(engine)
    engine.decoder.decode = gate
    yield gate
    del engine.decoder.decode
    gate.permits.release(1_000_000)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def arrived(replica) -> int:
    load = replica.engine.load()
    return load.running + load.waiting


def staying(replica) -> int:
    return sum(not sequence.cancelled for sequence in replica.engine.running)


def connect(api: str, path: str, **fields) -> socket.socket:
    """A client that has sent its request."""
    address = urlsplit(api)
    body = json.dumps(LONG | ASKED[path] | fields).encode()
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def abort(connection: socket.socket) -> None:
    """Resets the connection, as a machine does that is switched off, in place of saying goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, abort], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_the_work_ends_within_a_step(api, replica, gate, path, stream, leave):
    stays, leaves = (connect(api, path, stream=stream) for _ in range(2))
    wait_until(lambda: arrived(replica) == 2)
    gate.let(3)
    assert gate.num_rows[-1] == 2
    leave(leaves)
    wait_until(lambda: staying(replica) == 1)
    gate.let(2)  # the step that waited at the gate was laid out before
    assert gate.num_rows[-1] == 1
    leave(stays)
    wait_until(lambda: staying(replica) == 0)
    gate.permits.release()
    wait_until(lambda: replica.engine.load() == IDLE)


@pytest.mark.parametrize("fields", [{}, {"n": 4}, {"n": 16, "logprobs": None}], ids=["1", "4", "16"])
def test_those_who_leave_before_they_are_read_are_never_read(api, replica, gate, fields):
    stays = connect(api, "/completions", stream=True)
    wait_until(lambda: arrived(replica) == 1)
    gone = [connect(api, path, stream=stream, **fields) for path in PATHS for stream in (True, False)]
    wait_until(lambda: arrived(replica) == 1 + len(gone) * fields.get("n", 1))
    for connection in gone:
        connection.close()
    wait_until(lambda: arrived(replica) == 1)
    gate.let(2)
    assert gate.num_rows == [1] * len(gate.num_rows)
    stays.close()
    wait_until(lambda: staying(replica) == 0)
    gate.permits.release()
    wait_until(lambda: replica.engine.load() == IDLE)


async def test_many_clients_that_leave_at_any_moment(api, replica):
    """Afterwards nothing is held, and the one that stayed has its whole answer."""
    moments = random.Random(0)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=api, timeout=60, limits=limits) as http:

        async def leave_early(number: int) -> int:
            path = PATHS[number % 2]
            body = {"stream": number % 4 > 0, "n": moments.choice((1, 1, 3)), "seed": number}
            try:
                async with asyncio.timeout(moments.random() ** 2):
                    async with http.stream("POST", path, json=LONG | ASKED[path] | body) as response:
                        events = moments.randrange(20)
                        async for _ in response.aiter_lines():
                            events -= 1
                            if events < 0:
                                break
                    return response.status_code
            except TimeoutError:
                return 0

        whole = LONG | ASKED["/completions"] | {"seed": 5}
        expected = (await http.post("/completions", json=whole)).json()["choices"]
        for _ in range(3):
            staying = asyncio.create_task(http.post("/completions", json=whole))
            statuses = await asyncio.gather(*(leave_early(number) for number in range(60)))
            assert set(statuses) <= {0, 200, 503}
            answer = await staying
            assert answer.status_code == 503 or answer.json()["choices"] == expected
        await asyncio.to_thread(wait_until, lambda: replica.engine.load() == IDLE)
        engine = replica.engine
        assert (engine.slots.decoding, engine.slots.filling) == ([], [])
        assert len(engine.slots.free()) == engine.decoder.slots
        assert (await http.post("/completions", json=whole)).json()["choices"] == expected
