"""Servers of tools (MCP): one that works, and one that answers what a test tells it to."""

import asyncio
import threading
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError
from starlette.applications import Starlette

HANG = object()
"""An answer that never comes."""


def working_server() -> tuple[Starlette, list[str], threading.Event]:
    """Return the app of a server of six tools, the names of those that were called, and the event of a `wait` that has
    begun."""
    server = MCPServer("working", log_level="ERROR")
    calls: list[str] = []
    has_begun = threading.Event()

    @server.tool(structured_output=False)
    def multiply(first: int, second: int) -> str:
        """Multiply two whole numbers."""
        calls.append("multiply")
        return f"{first} times {second} is {first * second}."

    @server.tool()
    def facts() -> dict[str, int]:
        """Give a structured result."""
        return {"answer": 42}

    @server.tool(structured_output=False)
    def fail(reason: str) -> str:
        """Fail."""
        calls.append("fail")
        raise ToolError(reason)

    @server.tool(structured_output=False)
    async def wait() -> str:
        """Never answer."""
        calls.append("wait")
        has_begun.set()
        await asyncio.Event().wait()
        return ""

    @server.tool(structured_output=False)
    def picture() -> Image:
        """Give a picture."""
        return Image(data=b"\x89PNG", format="png")

    @server.tool(structured_output=False)
    def long(length: int) -> str:
        """Give a long text."""
        return "x" * length

    return server.streamable_http_app(), calls, has_begun


def raw_tool(name: str = "good", /, **fields: Any) -> dict[str, Any]:
    """A tool in a server's list."""
    return {"name": name, "description": "A tool.", "inputSchema": {"type": "object", "properties": {}}} | fields


INITIALIZED = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "raw", "version": "1"},
}


class RawServer:
    """A server of the handshake era, whose answers to each method a test may change."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.post("/mcp")(self.answer)
        self.reset()

    def reset(self) -> None:
        self.answers: dict[str, Any] = {
            "initialize": INITIALIZED,
            "notifications/initialized": Response(status_code=202),
            "tools/list": {"tools": [raw_tool()]},
            "tools/call": {"content": [{"type": "text", "text": "fine"}]},
        }
        """By method: a result, {"error": …}, a whole response, or HANG."""
        self.methods: list[str] = []
        self.headers: list[dict[str, str]] = []

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.methods.append(body["method"])
        self.headers.append(dict(request.headers))
        if body["method"] not in self.answers:
            return JSONResponse(
                {"jsonrpc": "2.0", "id": body.get("id"), "error": {"code": -32601, "message": "no such method"}}
            )
        answer = self.answers[body["method"]]
        if answer is HANG:
            await asyncio.Event().wait()
        if isinstance(answer, Response):
            return answer
        reply = answer if "error" in answer else {"result": answer}
        return JSONResponse({"jsonrpc": "2.0", "id": body["id"], **reply})
