"""Another server with OpenAI's API, which answers as a test tells it to: well, badly, or not at all."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

HANG, DROP = "hang", "drop"
"""Events: nothing more comes; the connection breaks."""
DONE = "data: [DONE]\n\n"


def said(text: str | None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason, **more}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def written(text: str, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a completion."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, **more}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}


def usage(prompt_tokens: Any, completion_tokens: Any) -> dict[str, Any]:
    """The last chunk."""
    return {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}


def refusal(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    return JSONResponse({"error": {"message": message, **more}}, status, headers)


GOOD = [said(""), said("Love "), said("is "), said("patient."), said(None, "stop"), usage(11, 4), DONE]


class StubUpstream:
    def __init__(self) -> None:
        self.app = FastAPI()
        for path in ("/chat/completions", "/completions"):
            self.app.post(f"/v1{path}")(self.answer)
        self.app.get("/v1/models")(self.models)
        self.app.post("/elsewhere")(self.answer)
        self.reset()

    def reset(self) -> None:
        self.answers: list[Response | Sequence[dict[str, Any] | str | bytes]] = [GOOD]
        """One for each request; the last one for all further requests. A sequence is a stream of events."""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.left = threading.Event()
        """Set when a stream has ended, or its client has left."""
        self.is_hanging = threading.Event()

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    async def answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.paths.append(request.url.path)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(self.events(answer), media_type="text/event-stream")

    async def events(self, answer: Sequence[dict[str, Any] | str | bytes]) -> AsyncIterator[bytes]:
        try:
            for event in answer:
                if event is HANG:
                    self.is_hanging.set()
                    await asyncio.Event().wait()
                if event is DROP:
                    raise ConnectionResetError
                if isinstance(event, dict):
                    event = f"data: {json.dumps(event)}\n\n"
                yield event.encode() if isinstance(event, str) else event
        finally:
            self.left.set()
