"""A client that sends and does not read, until it is told to: a raw socket with a small buffer."""

import json
import socket
import struct
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RECEIVE_BUFFER_BYTES = 4096

TEXT, CLOSE = 1, 8
"""Opcodes of a WebSocket's frames."""


class StalledClient:
    def __init__(self, server: str):
        address = urlsplit(server)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.settimeout(30)
        self.received = b""
        self.socket.connect((address.hostname, address.port))

    def post(self, path: str, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)

    def open_websocket(self, path: str) -> None:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        self.socket.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
        while b"\r\n\r\n" not in self.received:  # what is sent before the opening is answered may be lost
            self.received += self.socket.recv(64)

    def send(self, event: dict[str, Any]) -> None:
        content = json.dumps(event).encode()
        if len(content) < 126:
            length = struct.pack("!B", 0x80 | len(content))
        else:
            length = struct.pack("!BQ", 0x80 | 127, len(content))
        self.socket.sendall(b"\x81" + length + bytes(4) + content)  # masked with zeros

    def is_left(self) -> bool:
        """Whether the server's end of the connection is gone; Linux does not tell this one."""
        port = f":{self.socket.getsockname()[1]:04X}"
        return not any(line.split()[2].endswith(port) for line in Path("/proc/net/tcp").read_text().splitlines())

    def read_all(self, pause: Any = lambda: None) -> bytes:
        """To the end, however that comes; `pause` is called after each read."""
        parts = [self.received]
        try:
            if self.is_left():
                self.socket.send(b"x")  # so that the reset comes, after what was received
            while part := self.socket.recv(1 << 16):
                parts.append(part)
                pause()
        except (ConnectionResetError, BrokenPipeError):
            pass
        self.socket.close()
        return b"".join(parts)


def frames(received: bytes) -> list[tuple[int, bytes]]:
    """(opcode, content) of what a WebSocket's client has received, with the answer to its opening before."""
    _, _, rest = received.partition(b"\r\n\r\n")
    found = []
    while len(rest) >= 2:
        length, start = rest[1], 2
        if length == 126:
            length, start = struct.unpack("!H", rest[2:4])[0], 4
        elif length == 127:
            length, start = struct.unpack("!Q", rest[2:10])[0], 10
        found.append((rest[0] & 0x0F, rest[start : start + length]))
        rest = rest[start + length :]
    return found
