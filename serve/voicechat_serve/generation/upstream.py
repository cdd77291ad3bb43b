"""The connection to another server with OpenAI's API: bounded in time, size and number, and never redirected."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.interface import (
    MOST_RUNNING,
    MOST_WAITING,
    PromptTooLongError,
    UpstreamError,
)
from voicechat_serve.generation.served_model import Remote
from voicechat_serve.operations.bounded_body import bounded
from voicechat_serve.operations.deadlines import pieces_in_time
from voicechat_serve.operations.load import Load, OverloadedError

log = logging.getLogger("ray.serve.voicechat.upstream")

CONNECT_S = 10.0
FIRST_S, NEXT_S, WHOLE_S = 120.0, 60.0, 600.0
"""The longest waits: for the first object of an answer, for each further one, and for the whole answer. The API waits
longer, so that the error names the other server."""

MOST_BYTES = 32 * 2**20
"""The most bytes of one answer, because the reader of events keeps a line until it ends."""

MOST_MESSAGE = 500
"""The most characters of another server's message that we repeat."""

LONGEST_RETRY_S = 3600

CONTEXT = re.compile(
    r"context.{0,20}(length|size|window|exceed)|(maximum|exceed).{0,40}context|prompt is too long", re.I
)
"""Servers have different words for a conversation that is longer than the context."""

OPERATORS = (401, 402, 403, 404, 429)
"""Statuses that tell the operator of this service what is wrong."""

WHO = "the server that runs this model"


@dataclass(frozen=True)
class Dialect:
    """The fields in which servers differ; each server tells us by a refusal."""

    limit: str = "max_tokens"
    """OpenAI's newest models know only the name max_completion_tokens, and many other servers only the older one."""
    tells_usage: bool = True
    """Whether a stream may be asked for its usage."""

    def fields(self, max_tokens: int) -> dict[str, Any]:
        return {self.limit: max_tokens} | ({"stream_options": {"include_usage": True}} if self.tells_usage else {})

    def without(self, refusal: openai.APIStatusError) -> "Dialect":
        """Return the dialect without what the server has refused; the same one if the refusal is about other things."""
        said = str(refusal.body)
        if refusal.status_code not in (400, 422):
            return self
        if "max_completion_tokens" in said:
            return replace(self, limit="max_completion_tokens")
        if "stream_options" in said or "include_usage" in said:
            return replace(self, tells_usage=False)
        return self


class Upstream:
    """Another server. A failure of it is no failure of this replica.

    Args:
        remote: its address and its key.

    Raises:
        InputError: the key is not in the environment.
    """

    def __init__(self, remote: Remote):
        self.remote, self.key = remote, remote.key()
        self.client = self.connection()
        self.dialect = Dialect()
        self.waiting = self.running = 0
        """Answers before and after their first object."""

    def connection(self) -> openai.AsyncOpenAI:
        timeout = httpx2.Timeout(FIRST_S, connect=CONNECT_S)
        http = httpx2.AsyncClient(
            follow_redirects=False,  # the key is for this address only
            timeout=timeout,
            limits=httpx2.Limits(max_connections=MOST_RUNNING + MOST_WAITING, max_keepalive_connections=MOST_RUNNING),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [bounded(MOST_BYTES)]},
        )
        client = openai.AsyncOpenAI(
            base_url=self.remote.url, api_key=self.key, max_retries=0, timeout=timeout, http_client=http
        )
        client.organization = client.project = (
            None  # of OPENAI_ORG_ID and OPENAI_PROJECT_ID, for another server perhaps
        )
        return client

    async def objects(self, path: str, fields: dict[str, Any], max_tokens: int) -> AsyncGenerator[object, None]:
        """Yield the JSON objects of a streamed answer. The end of the iteration closes the connection.

        Args:
            path: such as /chat/completions.
            fields: of the request, without the model's name, the limit and the options of the stream.
            max_tokens: the limit.

        Raises (at the first object, or later):
            OverloadedError: too many answers are under way.
            InputError: the server refuses the request.
            PromptTooLongError: the prompt is longer than the model's context.
            UpstreamError: the server refuses the key, does not know the model, fails, or is late.
        """
        if self.waiting + self.running >= MOST_RUNNING + MOST_WAITING:
            raise OverloadedError(f"{self.remote.url} already has {MOST_RUNNING + MOST_WAITING} requests")
        has_begun = False
        self.waiting += 1
        try:
            async with (
                aclosing(self.untimed(path, fields, max_tokens)) as stream,
                aclosing(pieces_in_time(stream, FIRST_S, NEXT_S, WHOLE_S, self.late)) as found,
            ):
                async for each in found:
                    if not has_begun:
                        has_begun = True
                        self.waiting, self.running = self.waiting - 1, self.running + 1
                    yield each
        finally:
            if has_begun:
                self.running -= 1
            else:
                self.waiting -= 1

    async def untimed(self, path: str, fields: dict[str, Any], max_tokens: int) -> AsyncGenerator[object, None]:
        try:
            async with await self.opened(path, fields, max_tokens) as stream:
                async for found in stream:
                    yield found
        except openai.APITimeoutError:
            log.warning("%s does not answer in time", self.remote.url)
            raise UpstreamError(f"{WHO} does not answer in time: try again later", 504, "timeout") from None
        except openai.APIStatusError as error:
            raise self.explained(error, error.status_code) from None
        except openai.APIConnectionError as error:
            log.warning("%s cannot be reached, or broke off: %r", self.remote.url, error.__cause__)
            raise UpstreamError(f"{WHO} does not answer now: try again later") from None
        except openai.APIError as error:  # an error in the middle of the stream
            raise self.explained(error, None) from None
        except (httpx2.HTTPError, ValueError, RecursionError) as error:
            # Without its message, which may quote the answer.
            log.warning("%s sends what is no stream of JSON: %s", self.remote.url, type(error).__name__)
            raise UpstreamError(f"{WHO} sent an answer that cannot be read") from None

    async def opened(self, path: str, fields: dict[str, Any], max_tokens: int) -> openai.AsyncStream[object]:
        """Return the stream of an answer; ask again in other words if the server does not know ours."""
        dialect = self.dialect
        while True:
            body = fields | dialect.fields(max_tokens) | {"model": self.remote.model, "stream": True}
            try:
                stream = await self.client.post(
                    path, cast_to=object, body=body, stream=True, stream_cls=openai.AsyncStream[object]
                )
            except openai.APIStatusError as error:
                if (other := dialect.without(error)) == dialect:
                    raise
                dialect = other
            else:
                self.dialect = dialect  # only now: a refusal may quote the client's words
                return stream

    def late(self, seconds: float) -> UpstreamError:
        log.warning("%s gives no answer within %g s", self.remote.url, seconds)
        return UpstreamError(f"{WHO} gave no answer within {seconds:g} s: try again later", 504, "timeout")

    def explained(self, error: openai.APIError, status: int | None) -> Exception:
        """Return the error for the client. Messages of the server are repeated only if they are about the request.

        Args:
            error: the server's.
            status: its HTTP status; None in the middle of a stream.
        """
        message = self.message(error)
        # No log of ours has words of a client, which every other message may quote.
        reason = message if status in OPERATORS else error.type or type(error).__name__
        log.warning("%s answers %s: %s", self.remote.url, status or "with an error in its stream", reason)
        is_about_request = status in (400, 413, 422)
        if (is_about_request or status is None) and (CONTEXT.search(message) or "context_length" in (error.code or "")):
            return PromptTooLongError(f"{WHO} refuses the request: {message}")
        if is_about_request:
            return InputError(f"{WHO} refuses the request: {message}")
        if status in (401, 403):
            wrong = f"{WHO} refuses this service's key: its operator must correct it"
            return UpstreamError(wrong, 502, "upstream_key_refused")
        if status == 404:
            wrong = f"{WHO} does not know the model or the address: the operator of this service must correct them"
            return UpstreamError(wrong, 502, "upstream_model_not_found")
        if status == 429:
            return UpstreamError(f"{WHO} is busy; try again later", 503, "overloaded", retry_after(error))
        if status in (408, 504):
            return UpstreamError(f"{WHO} does not answer in time: try again later", 504, "timeout")
        if status is not None and status < 500:  # redirects too
            wrong = f"{WHO} answers with the status {status}: the operator of this service must find out why"
            return UpstreamError(wrong, 502, "upstream_misconfigured")
        return UpstreamError(f"{WHO} failed: try again later", retry_after_s=retry_after(error))

    def message(self, error: openai.APIError) -> str:
        """Return what the server says, shortened and without the key."""
        said = error.body
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
        text = str(said or error.message).encode(errors="replace").decode()
        return text.replace(self.key, "(the key)")[:MOST_MESSAGE] if self.remote.key_env else text[:MOST_MESSAGE]

    async def look(self) -> None:
        """Ask for the list of models, on a connection of its own, and log why if there is no answer."""
        async with self.connection() as client:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await client.models.list()
            except Exception as error:  # whatever it is, it may be over when the first request comes
                # Without its message, which may quote the key.
                status = f" (status {error.status_code})" if isinstance(error, openai.APIStatusError) else ""
                log.warning("%s does not list its models now: %s%s", self.remote.url, type(error).__name__, status)

    def load(self) -> Load:
        return Load(running=self.running, waiting=self.waiting, cache_used=0.0)

    def check(self) -> None:
        """A new replica would reach the other server no better."""

    def close(self) -> None:
        """A model elsewhere has no versions: its connections stay until the process ends."""


def retry_after(error: openai.APIError) -> int:
    """Return the seconds of the header Retry-After, 1 without it."""
    given = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    return min(max(int(given), 1), LONGEST_RETRY_S) if re.fullmatch("[0-9]{1,9}", given) else 1
