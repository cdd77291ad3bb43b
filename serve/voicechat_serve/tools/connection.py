"""The connection of one conversation to one MCP server (https://modelcontextprotocol.io): its tools, and their calls.

Whatever the server does, it costs a conversation no more than this call, and its deadline.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2
from llguidance import LLMatcher

from voicechat_platform.tool_text import HERMES
from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.tool_fields import require_parameters
from voicechat_serve.application_file import ToolServer
from voicechat_serve.generation.answer_form import TOOL_NAME, Tool, ToolUse
from voicechat_serve.generation.tool_calls import answer_grammar
from voicechat_serve.operations.bounded_body import bounded
from voicechat_serve.operations.upstream_key import upstream_key

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as ServerTool

log = logging.getLogger("ray.serve.voicechat.tools")
logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it logs what a server has answered

MOST_BYTES = 1024 * 1024
"""Of one response of a server: a list of tools, or a result."""

MOST_TOOLS = 64
"""Of one server, beyond which its list is not read."""

MOST_RESULT = 4000
"""The most characters of a result that a model reads: half of a context of 2,048 tokens."""

MOST_DESCRIPTION = 1000
"""The most characters of a tool's description that a model reads."""

MOST_MESSAGE = 300
"""The most characters of a server's error message."""

FAREWELL_S = 1.0
"""For the end of a session at the server."""


class ToolFailedError(Exception):
    """A list of tools, or a call, has failed. The message is for the model and for the person."""


@dataclass(frozen=True)
class Listed:
    """What a server has."""

    client: "Client"
    tools: tuple[Tool, ...]
    """Those that the operator allows and that can be used."""
    problems: tuple[str, ...]
    """Why others of the allowed ones cannot."""


class ToolConnection:
    """A connection, which opens when it is needed, and again after a failure.

    Args:
        server: an entry of the application file.

    Raises:
        InputError: the server's key is not in the environment.
    """

    def __init__(self, server: ToolServer):
        self.server = server
        self.headers = {"Accept-Encoding": "identity"}
        if server.key_env:
            self.headers["Authorization"] = f"Bearer {upstream_key(server.key_env, server.url)}"
        self._lock = asyncio.Lock()
        self._holding: asyncio.Task[None] | None = None
        self._found: Listed | ToolFailedError | None = None
        """What the present connection has found; None until it has."""
        self._settled, self._end = asyncio.Event(), asyncio.Event()
        self._is_broken = False
        """Whether the next use must open another connection."""

    @property
    def is_open(self) -> bool:
        """Whether the next use needs no new connection; also while one is opening."""
        has_failed = self._is_broken or isinstance(self._found, ToolFailedError)
        return self._holding is not None and not self._holding.done() and not has_failed

    async def listed(self) -> Listed:
        """Return the server's tools.

        Raises:
            ToolFailedError: the server does not answer in time, or not as an MCP server does.
        """
        async with self._in_time():
            return await self._opened()

    async def call(self, name: str, arguments: str) -> str:
        """Return the result of a call. A cancellation ends the call.

        Args:
            name: the tool's.
            arguments: a JSON object.

        Raises:
            ToolFailedError: the tool fails, the server does not answer in time, or what it answers cannot be read.
        """
        from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult

        try:
            values = json.loads(arguments)
        except ValueError:
            raise ToolFailedError("the arguments are not complete") from None
        async with self._in_time():
            found = await self._opened()
            if name not in [tool.name for tool in found.tools]:
                raise ToolFailedError(f"{self.server.label} has no tool {name} now")
            request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=values))
            try:
                # Not the client's own method, which checks results by the server's schemas: a pattern in one may run
                # for ever.
                result = await found.client.session.send_request(request, CallToolResult)
            except Exception as error:
                self._is_broken = True
                raise ToolFailedError(self._explained(error)) from None
        return text_of(result)

    async def close(self) -> None:
        """End the connection."""
        if self._holding:
            self._end.set()
            if self._settled.is_set():
                await asyncio.wait([self._holding], timeout=FAREWELL_S)
            self._holding.cancel()
            await asyncio.wait([self._holding])

    async def _opened(self) -> Listed:
        async with self._lock:
            if not self.is_open:
                await self.close()
                self._settled, self._end = asyncio.Event(), asyncio.Event()
                self._found, self._is_broken = None, False
                self._holding = asyncio.create_task(self._hold())
        await self._settled.wait()
        if isinstance(self._found, Listed):
            return self._found
        raise self._found or ToolFailedError("the connection was closed")

    async def _hold(self) -> None:
        """Open a connection, list the tools, and keep it until it breaks or is closed. The task that opens it must
        close it, too."""
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self.server.timeout_s):
                    http = await stack.enter_async_context(self._http())
                    transport = streamable_http_client(self.server.url, http_client=http)
                    client = await stack.enter_async_context(Client(transport, cache=None))
                    self._found = await self._list(client)
                self._settled.set()
                await self._end.wait()
        except (Exception, BaseExceptionGroup) as error:
            if not self._settled.is_set():
                self._found = ToolFailedError(self._explained(error))
        finally:
            self._settled.set()

    def _http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(self.server.timeout_s, read=None),  # each call has its own deadline
            headers=self.headers,
            event_hooks={"response": [bounded(MOST_BYTES)]},
        )

    async def _list(self, client: "Client") -> Listed:
        found: dict[str, ServerTool] = {}
        cursor = None
        while True:
            page = await client.list_tools(cursor=cursor)
            found |= {tool.name: tool for tool in page.tools if self.server.allows(tool.name)}
            cursor = page.next_cursor
            if cursor is None or len(found) > MOST_TOOLS:
                break
        problems = [f"the server has no tool {name}" for name in self.server.names if name not in found]
        if len(found) > MOST_TOOLS:
            problems.append(f"the server has more than {MOST_TOOLS} tools: allow those that are needed by their names")
        tools = []
        for given in list(found.values())[:MOST_TOOLS]:
            try:
                tools.append(await asyncio.to_thread(usable, given))
            except ToolFailedError as error:
                problems.append(f"the tool {shortened(given.name, 64)} cannot be used: {error}")
        for problem in problems:
            log.warning("%s: %s", self.server.label, problem)
        return Listed(client, tuple(tools), tuple(problems))

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout(self.server.timeout_s):
                yield
        except TimeoutError as error:
            self._is_broken = self._is_broken or not self._settled.is_set()
            raise ToolFailedError(self._explained(error)) from None

    def _explained(self, error: BaseException) -> str:
        """Return what went wrong, for a person, and log it without the server's words."""
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        log.warning("%s (%s): %s", self.server.label, self.server.url, type(error).__name__)
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return f"{self.server.label} gave no answer within {self.server.timeout_s:g} s"
        if isinstance(error, MCPError) and error.code != CONNECTION_CLOSED:
            return f"{self.server.label} says: {readable(error.message)[:MOST_MESSAGE]}"
        if isinstance(error, MCPError | httpx2.TransportError):
            return f"{self.server.label} cannot be reached, or broke off"
        return f"{self.server.label} sent an answer that cannot be read"


def usable(given: "ServerTool") -> Tool:
    """Return a server's tool in the form for a model.

    Raises:
        ToolFailedError: its name or its schema cannot be used.
    """
    if not re.fullmatch(TOOL_NAME, given.name):
        raise ToolFailedError("a name has up to 64 letters, digits, _ and -")
    try:
        require_parameters(given.input_schema, "parameters", is_strict=False)
    except APIError as error:
        raise ToolFailedError(str(error)) from None
    description = readable(given.description or "")[:MOST_DESCRIPTION]
    tool = Tool(name=given.name, description=description, parameters=given.input_schema)
    grammar = answer_grammar(ToolUse(tools=(tool,)), None, HERMES, has_end=True)
    if problem := LLMatcher.validate_grammar(grammar or ""):
        raise ToolFailedError(f"its schema cannot be kept: {shortened(problem.strip().partition(chr(10))[0], 200)}")
    return tool


def text_of(result: "CallToolResult") -> str:
    """Return the text of a result, cut at the limit.

    Raises:
        ToolFailedError: the tool says that it failed, or its result has no text.
    """
    texts, others = [], []
    for block in result.content:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "resource" and (text := getattr(block.resource, "text", None)) is not None:
            texts.append(text)
        else:
            others.append(block.type)
    text = readable("\n".join(texts)).strip()
    if not text and result.structured_content is not None:
        text = readable(json.dumps(result.structured_content, ensure_ascii=False))
    if len(text) > MOST_RESULT:
        text = f"{text[:MOST_RESULT]} … (cut off after {MOST_RESULT} characters)"
    if result.is_error:
        raise ToolFailedError(text or "the tool does not say why")
    if not text and others:
        raise ToolFailedError(f"the result has no text, but {others[0]}")
    return text or "(no result)"


def readable(text: str) -> str:
    """Return a server's text without half characters, which JSON may hold and no tokenizer reads."""
    return text.encode(errors="replace").decode()
