"""The operator's tools in one session: which servers it uses, what they have, and the calls of their tools."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence

from openai.types.realtime import (
    ConversationItemAdded,
    ConversationItemDone,
    McpListToolsCompleted,
    McpListToolsFailed,
    McpListToolsInProgress,
    RealtimeMcpListTools,
)
from openai.types.realtime.realtime_mcp_list_tools import Tool as ListedTool

from voicechat_serve.application_file import ToolServer
from voicechat_serve.generation.answer_form import Tool
from voicechat_serve.realtime.conversation import stop
from voicechat_serve.realtime.items import new_id
from voicechat_serve.realtime.tool_settings import HostedTools
from voicechat_serve.realtime.wire import Wire
from voicechat_serve.tools.connection import ToolConnection, ToolFailedError

AGAIN_S = 10.0
"""The least time between two attempts to list the tools of a server."""


class Used:
    """A server that the session uses."""

    def __init__(self, connection: ToolConnection, wanted: HostedTools):
        self.connection, self.wanted = connection, wanted
        self.tools: tuple[Tool, ...] | None = None
        """Those of the last list; None until there is one."""
        self.listing: asyncio.Task[None] | None = None
        self.listed_at = 0.0
        """The time of the last attempt; monotonic."""


class SessionTools:
    """The operator's tools that a session uses.

    Args:
        servers: those of the application file, by label.
        wire: sends the events.
    """

    def __init__(self, servers: Mapping[str, ToolServer], wire: Wire):
        self.servers, self.wire = servers, wire
        self.used: dict[str, Used] = {}

    async def use(self, wanted: Sequence[HostedTools]) -> None:
        """Use these servers and no others. Return when each new one has listed its tools, or has failed to."""
        labels = {each.server_label: each for each in wanted}
        dropped = [self.used.pop(label) for label in list(self.used) if label not in labels]
        for used in dropped:
            await stop(used.listing)
            await used.connection.close()
        for label, each in labels.items():
            if label in self.used:
                self.used[label].wanted = each
            else:
                self.used[label] = Used(ToolConnection(self.servers[label]), each)
        self.list_missing()
        if listings := [used.listing for used in self.used.values() if used.listing]:
            await asyncio.wait(listings)

    def list_missing(self) -> None:
        """Begin to list the tools of the servers that could not list them before, or whose connection broke."""
        now = time.monotonic()
        for used in self.used.values():
            is_listing = used.listing is not None and not used.listing.done()
            is_missing = used.tools is None or not used.connection.is_open
            if is_missing and not is_listing and now >= used.listed_at + AGAIN_S:
                used.listed_at = now
                used.listing = asyncio.create_task(self._list(used))

    async def _list(self, used: Used) -> None:
        label = used.wanted.server_label
        id, emit = new_id("item"), self.wire.emit
        item = RealtimeMcpListTools(type="mcp_list_tools", id=id, server_label=label, tools=[])
        emit(ConversationItemAdded(type="conversation.item.added", event_id=new_id("event"), item=item))
        emit(McpListToolsInProgress(type="mcp_list_tools.in_progress", event_id=new_id("event"), item_id=id))
        try:
            used.tools = (await used.connection.listed()).tools
        except ToolFailedError as error:
            used.tools = None
            emit(McpListToolsFailed(type="mcp_list_tools.failed", event_id=new_id("event"), item_id=id))
            message = f"the tools of {label} cannot be used now: {error}"
            return self.wire.emit_error({"type": "server_error", "code": "tools_unavailable", "message": message})
        item.tools = [
            ListedTool(name=tool.name, description=tool.description, input_schema=tool.parameters)
            for tool in used.tools
            if used.wanted.allows(tool.name)
        ]
        emit(McpListToolsCompleted(type="mcp_list_tools.completed", event_id=new_id("event"), item_id=id))
        emit(ConversationItemDone(type="conversation.item.done", event_id=new_id("event"), item=item))

    def tools(self) -> Iterator[tuple[ToolServer, Tool]]:
        """Yield the tools that the model may call now, with the server of each."""
        for label, used in self.used.items():
            for tool in used.tools or ():
                if used.wanted.allows(tool.name):
                    yield self.servers[label], tool

    async def call(self, label: str, name: str, arguments: str) -> str:
        """Return the result of a call. A cancellation ends the call.

        Raises:
            ToolFailedError: the call fails, or the session does not use the server any more.
        """
        if (used := self.used.get(label)) is None:
            raise ToolFailedError(f"this conversation does not use {label} any more")
        return await used.connection.call(name, arguments)

    async def close(self) -> None:
        """End all connections."""
        await self.use([])
