"""/tools: the servers of tools that the operator names in the application file, and what they have now."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter

from voicechat_serve.api.services import Services
from voicechat_serve.application_file import ToolServer
from voicechat_serve.tools.connection import ToolConnection, ToolFailedError

KEPT_S = 5.0
"""An answer is given to all clients for this long, so that they cannot flood the servers."""


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    lock = asyncio.Lock()
    cards: list[dict[str, Any]] = []
    read_at = -KEPT_S

    @routes.get("/tools")
    async def list_tools() -> dict[str, Any]:
        """List the servers whose tools a spoken conversation may call, with these tools."""
        nonlocal cards, read_at
        async with lock:
            if time.monotonic() - read_at >= KEPT_S:
                cards = await asyncio.gather(*map(card, services.tool_servers))
                read_at = time.monotonic()
        return {"object": "list", "data": cards}

    return routes


async def card(server: ToolServer) -> dict[str, Any]:
    connection = ToolConnection(server)
    tools: list[dict[str, Any]] = []
    try:
        listed = await connection.listed()
        problems = list(listed.problems)
        tools = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in listed.tools
        ]
    except ToolFailedError as error:
        problems = [str(error)]
    finally:
        await connection.close()
    return {"object": "tool_server", "server_label": server.label, "tools": tools, "problems": problems}
