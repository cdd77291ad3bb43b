"""A conversation is taken up again in another session: a client sends back the items that it has received."""

from typing import Any

from realtime_session import Client, MadeUpStages, connected, written

CLOCK = {"type": "function", "name": "clock"}


def items_of(client: Client) -> list[dict[str, Any]]:
    """The conversation, as the client has received it."""
    return [event["item"] for event in client.all("conversation.item.done")]


async def test_every_kind_of_item_can_be_sent_back(question):
    stages = MadeUpStages()
    async with connected(stages) as client:
        client.send("session.update", session={"tools": [CLOCK]})
        client.play(question)
        await client.until("response.done")
        stages.calls, stages.reply = [("clock", '{"zone": "UTC"}')], "One moment."
        client.send("conversation.item.create", item=written("What time is it?"))
        client.send("response.create")
        done = (await client.until("response.done", 2))["response"]
        call_id = done["output"][-1]["call_id"]
        client.send(
            "conversation.item.create", item={"type": "function_call_output", "call_id": call_id, "output": "noon"}
        )
        stages.reply = "It is noon."
        client.send("response.create", response={"output_modalities": ["text"]})
        await client.until("response.done", 3)
        client.send("conversation.item.create", item=written("Thanks."))
        client.send("response.create")
        await client.until("response.done", 4)
        before = items_of(client)
        messages = stages.asked[-1][1]

    by_id = {item["id"]: item for item in before}  # a spoken item is done before its transcript is here
    for event in client.all("conversation.item.input_audio_transcription.completed"):
        by_id[event["item_id"]]["content"][0]["transcript"] = event["transcript"]
    async with connected(MadeUpStages()) as again:
        for item in by_id.values():
            again.send("conversation.item.create", item=item)
        again.send("conversation.item.create", item=written("And now?"))
        again.send("response.create")
        await again.until("response.done")
        assert not again.all("error")
        assert [item["id"] for item in items_of(again)][: len(by_id)] == list(by_id)
        restored = again.stages.asked[-1][1]
        assert restored[: len(messages)] == messages


async def test_what_this_service_called_can_be_sent_back():
    call = {"type": "mcp_call", "server_label": "desk", "name": "multiply", "arguments": '{"first": 17}'}
    calls = [
        call | {"id": "one", "output": "391", "error": None},
        call | {"id": "two", "output": None, "error": {"type": "tool_execution_error", "message": "it is closed"}},
        call | {"id": "three", "output": None, "error": None},
    ]
    async with connected() as client:
        client.send("conversation.item.create", item=written("Seventeen times twenty-three?"))
        for item in calls:
            client.send("conversation.item.create", item=item)
        client.send("response.create")
        await client.until("response.done")
        assert not client.all("error")
        results = [message["content"] for message in client.stages.asked[-1][1] if message["role"] == "tool"]
        assert results == ["391", "The tool failed: it is closed", "The tool failed: it has no result"]
        told = [item for item in items_of(client) if item["type"] == "mcp_call"]
        assert told[:2] == calls[:2]
        client.send("conversation.item.create", item=call | {"arguments": "17"})
        assert (await client.until("error"))["error"]["param"] == "item.arguments"


async def test_a_reply_that_went_on_can_be_sent_back():
    overheard = [{"reason": "backchannel", "transcript": "Mhm.", "audio_ms": 700}]
    content = [{"type": "output_audio", "transcript": "Once upon a time."}]
    async with connected() as client:
        item = {"type": "message", "role": "assistant", "content": content, "overheard": overheard}
        client.send("conversation.item.create", item=item)
        assert (await client.until("conversation.item.done"))["item"]["content"][0]["text"] == "Once upon a time."
