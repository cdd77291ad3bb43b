"""Tools, calls and forms of the text for another server, and the calls in its stream, checked."""

import json
from collections.abc import Sequence
from typing import Any

from voicechat_serve.generation.answer_form import CallPiece, Message, TextForm, ToolUse
from voicechat_serve.generation.engines.interface import UnsupportedError
from voicechat_serve.generation.remote_pieces import RemoteCall
from voicechat_serve.generation.tool_calls import MOST_CALLS


def sent_message(message: Message) -> dict[str, Any]:
    """Return a message as OpenAI's API takes it."""
    if message["role"] == "tool":
        return {name: message[name] for name in ("role", "tool_call_id", "content")}
    if not message.get("tool_calls"):
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"content": message["content"] or None, "tool_calls": calls}


def tool_fields(use: ToolUse) -> dict[str, Any]:
    """Return the fields of a request for tools. A choice of some tools becomes a shorter list, which every server
    knows."""
    if not use.tools:
        return {}
    tools = [
        {"type": "function", "function": tool.described()["function"] | ({"strict": True} if tool.is_strict else {})}
        for tool in use.allowed or use.tools
    ]
    fields: dict[str, Any] = {"tools": tools}
    if not use.allowed:
        return fields | {"tool_choice": "none"}
    if use.is_required:
        fields["tool_choice"] = "required"
    return fields if use.is_parallel else fields | {"parallel_tool_calls": False}


def form_fields(text: TextForm | None) -> dict[str, Any]:
    """Return the field of a chat request for the form of its text.

    Raises:
        UnsupportedError: OpenAI's API has no such form.
    """
    if text is None:
        return {}
    if text.kind != "json_schema":
        raise UnsupportedError(text.field, "openai")
    if text.content == {"type": "object"}:
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": text.content, "strict": text.is_strict}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


class RemoteCalls:
    """The calls of an answer so far.

    Args:
        names: of the tools that may be called.
    """

    def __init__(self, names: frozenset[str]):
        self.names = names
        self.count = 0
        self.last: RemoteCall | None = None
        """The first piece of the last call."""
        self.has_arguments = True

    def take(self, pieces: Sequence[RemoteCall]) -> list[CallPiece]:
        """Return the next pieces, one call after the other.

        Raises:
            ValueError: they continue no call, or call a tool that is not there, or too many.
        """
        taken: list[CallPiece] = []
        for piece in pieces:
            if piece.name and not self.is_of_last(piece):
                if piece.name not in self.names or self.count == MOST_CALLS:
                    raise ValueError("a call of an unknown tool, or too many calls")
                taken += self.end_of_last()
                taken.append(CallPiece(self.count, name=piece.name))
                self.count, self.last, self.has_arguments = self.count + 1, piece, False
            elif self.last is None or piece.index not in (None, self.last.index):
                raise ValueError("a piece of a call that has not begun, or has ended")
            if piece.arguments:
                self.has_arguments = True
                taken.append(CallPiece(self.count - 1, arguments=piece.arguments))
        return taken

    def is_of_last(self, piece: RemoteCall) -> bool:
        """Whether a piece with a name belongs to the last call: some servers repeat the name, and others number every
        call with 0."""
        last = self.last
        if last is None or (piece.index, piece.name) != (last.index, last.name):
            return False
        return not piece.id or piece.id == last.id

    def end_of_last(self) -> list[CallPiece]:
        """Return what completes the last call: some servers write nothing for no arguments."""
        if self.has_arguments:
            return []
        self.has_arguments = True
        return [CallPiece(self.count - 1, arguments="{}")]
