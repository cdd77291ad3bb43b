"""A response as it is written: OpenAI's events in their order, each with its number."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from voicechat_serve.api.answers import Call, Tally, new_call_id
from voicechat_serve.api.errors import APIError, api_error
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.response_items import OutputCall, OutputMessage, Status, logprobs, output_items
from voicechat_serve.api.streaming import event
from voicechat_serve.generation.engines.interface import FinishReason
from voicechat_serve.generation.loaded_model import Delta, ScoredToken

Event = dict[str, Any]
Item = OutputMessage | OutputCall


def finished(
    head: dict[str, Any], items: list[Item], finish_reason: FinishReason | None, tally: Tally
) -> dict[str, Any]:
    """Return the object of a response that is written.

    Args:
        head: its fields that the request gives.
        items: its output.
        finish_reason: why it ended.
        tally: counted its tokens.
    """
    is_cut_off = finish_reason == "length"
    ended = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}} if is_cut_off else {}
    completed = {"status": "completed", "completed_at": int(time.time())}
    return head | (ended or completed) | {"output": output_items(items, is_cut_off), "usage": usage(tally)}


def usage(tally: Tally) -> dict[str, Any]:
    counted = tally.usage()
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},  # those of a price, which is none
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }


def failure(error: APIError) -> dict[str, str]:
    """Return the error in a response's object, which has its own few codes."""
    code = "server_error" if error.status_code >= 500 else "invalid_prompt"
    return {
        "code": "rate_limit_exceeded" if error.status_code == 429 else code,
        "message": error.body()["error"]["message"],
    }


class ResponseEvents:
    """Writes the stream of one response.

    Args:
        head: the fields of its object that the request gives.
        tally: counts its tokens.
    """

    def __init__(self, head: dict[str, Any], tally: Tally):
        self.head, self.tally = head, tally
        self.items: list[Item] = []
        self.late_text = ""
        """Text beside a call, from a server elsewhere; its item follows the calls."""
        self.finish_reason: FinishReason | None = None
        self.number = 0

    def piece(self, index: int, delta: Delta) -> str:
        """Return the events of a piece of the answer."""
        begin = [] if self.number else ["response.created", "response.in_progress"]
        events = [*({"type": kind, "response": self.head} for kind in begin), *self.events_of(delta)]
        return self.sent(events)

    def end(self) -> str:
        """Return the events of the end."""
        events: list[Event] = []
        if self.late_text or not self.items:
            events += self.open(OutputMessage())
        if self.late_text:
            events.append(self.spoken(self.late_text, ()))
        response = finished(self.head, self.items, self.finish_reason, self.tally)
        events += self.close("incomplete" if response["status"] == "incomplete" else "completed")
        return self.sent([*events, {"type": f"response.{response['status']}", "response": response}])

    def error(self, error: Exception) -> str:
        """Return the events of an error in the middle."""
        reported = api_error(error)
        current_request().error = reported.code or reported.kind
        told = {"type": "error"} | {name: reported.body()["error"][name] for name in ("code", "message", "param")}
        output = output_items(self.items, is_cut_off=True)
        response = self.head | {"status": "failed", "error": failure(reported), "output": output}
        return self.sent([told, {"type": "response.failed", "response": response}])

    def sent(self, events: list[Event]) -> str:
        """Return events as they are sent, numbered."""
        text = ""
        for content in events:
            text += event(content | {"sequence_number": self.number}, content["type"])
            self.number += 1
        return text

    def events_of(self, delta: Delta) -> Iterator[Event]:
        self.finish_reason = delta.finish_reason
        if self.items and isinstance(self.items[-1], OutputCall):
            self.late_text += delta.text
        elif delta.text or delta.scores:
            if not self.items:
                yield from self.open(OutputMessage())
            yield self.spoken(delta.text, delta.scores)
        for piece in delta.calls:
            if piece.name:
                yield from self.open(OutputCall(Call(new_call_id(), piece.name)))
            item = self.items[-1]
            assert isinstance(item, OutputCall)
            item.call.arguments += piece.arguments
            if piece.arguments:
                yield {"type": "response.function_call_arguments.delta"} | self.place | {"delta": piece.arguments}

    def spoken(self, text: str, scores: Sequence[ScoredToken]) -> Event:
        """Add a text to the last item, and return its event."""
        message = self.items[-1]
        assert isinstance(message, OutputMessage)
        message.text += text
        message.scores += scores
        told = {"content_index": 0, "delta": text, "logprobs": logprobs(scores)}
        return {"type": "response.output_text.delta"} | self.place | told

    @property
    def place(self) -> dict[str, Any]:
        """The last item's fields in its events."""
        return {"item_id": self.items[-1].id, "output_index": len(self.items) - 1}

    def open(self, item: Item) -> Iterator[Event]:
        """Begin an item, after the end of the one before."""
        yield from self.close("completed")
        self.items.append(item)
        index = {"output_index": len(self.items) - 1}
        yield {"type": "response.output_item.added"} | index | {"item": item.item("in_progress")}
        if isinstance(item, OutputMessage):
            yield {"type": "response.content_part.added"} | self.place | {"content_index": 0, "part": item.part()}

    def close(self, status: Status) -> Iterator[Event]:
        """End the last item, if there is one."""
        if not self.items:
            return
        item = self.items[-1]
        if isinstance(item, OutputMessage):
            place = self.place | {"content_index": 0}
            text = {"text": item.text, "logprobs": logprobs(item.scores)}
            yield {"type": "response.output_text.done"} | place | text
            yield {"type": "response.content_part.done"} | place | {"part": item.part()}
        else:
            arguments = {"name": item.call.name, "arguments": item.call.arguments}
            yield {"type": "response.function_call_arguments.done"} | self.place | arguments
        index = {"output_index": len(self.items) - 1}
        yield {"type": "response.output_item.done"} | index | {"item": item.item(status)}
