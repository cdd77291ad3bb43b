"""Tools in a session alone: calls as events and items, their results, and what ends them early. Made-up models."""

import json
from typing import Any

import pytest

from realtime_session import Client, MadeUpStages, connected, silence, up_to_the_pause, written
from voicechat_serve.generation.answer_form import Tool, ToolUse
from voicechat_serve.realtime.conversation import NO_RESULT

ZONE = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
CLOCK = {"type": "function", "name": "clock", "description": "Tells the time.", "parameters": ZONE}
TIMER = {"type": "function", "name": "timer"}

CALL_EVENTS = [
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "conversation.item.done",
]


def calling(*calls: tuple[str, str], reply: str = "") -> MadeUpStages:
    stages = MadeUpStages()
    stages.reply, stages.calls = reply, list(calls)
    return stages


async def asked(client: Client, **response: Any) -> None:
    client.send("session.update", session={"tools": [CLOCK, TIMER]})
    client.send("conversation.item.create", item=written("What time is it?"))
    client.send("response.create", response=response)
    await client.until("response.created")


def result(call_id: str, output: str = "noon") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


async def test_a_call_its_result_and_the_answer_in_openais_order():
    async with connected(calling(("clock", '{"zone": "UTC"}'))) as client:
        await asked(client)
        done = (await client.until("response.done"))["response"]
        kinds = client.kinds()
        assert kinds[kinds.index("response.created") + 1 :] == [*CALL_EVENTS, "response.done"]
        assert client.stages.offered[-1] == ToolUse(
            tools=(Tool(name="clock", description="Tells the time.", parameters=ZONE), Tool(name="timer"))
        )
        (item,) = done["output"]
        assert done["status"] == "completed"
        assert (item["type"], item["status"]) == ("function_call", "completed")
        assert (item["name"], item["arguments"]) == ("clock", '{"zone": "UTC"}')
        added = client.all("response.output_item.added")[0]["item"]
        assert added == item | {"status": "in_progress", "arguments": ""}
        deltas, (whole,) = (client.all(f"response.function_call_arguments.{end}") for end in ("delta", "done"))
        assert "".join(delta["delta"] for delta in deltas) == whole["arguments"] == item["arguments"]
        for event in (*deltas, whole):
            assert (event["item_id"], event["call_id"]) == (item["id"], item["call_id"])
            assert (event["response_id"], event["output_index"]) == (done["id"], 0)

        client.send("conversation.item.create", item=result(item["call_id"]))
        told = await client.until("conversation.item.done", 3)
        assert told["previous_item_id"] == item["id"]
        assert told["item"]["output"] == "noon"
        client.stages.reply = "It is noon."
        client.send("response.create")
        done = (await client.until("response.done", 2))["response"]
        assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "It is noon. "}]
        assert client.all("response.output_audio.delta")
        function = {"name": "clock", "arguments": {"zone": "UTC"}}
        assert client.stages.asked[-1][1] == [
            {"role": "user", "content": "What time is it?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": item["call_id"], "type": "function", "function": function}],
            },
            {"role": "tool", "name": "clock", "tool_call_id": item["call_id"], "content": "noon"},
        ]


@pytest.mark.parametrize("modality", ["audio", "text"])
async def test_a_response_that_speaks_and_then_calls_twice(modality):
    stages = calling(("clock", '{"zone": "UTC"}'), ("timer", "{}"), reply="Let me see. One moment.")
    async with connected(stages) as client:
        await asked(client, output_modalities=[modality])
        done = (await client.until("response.done"))["response"]
        assert [item["type"] for item in done["output"]] == ["message", "function_call", "function_call"]
        assert {item["status"] for item in done["output"]} == {"completed"}
        ids = [item["id"] for item in done["output"]]
        places = [
            (event["output_index"], event.get("item_id") or event["item"]["id"])
            for event in client.events
            if "output_index" in event
        ]
        assert places == sorted(places), "an item begins when the one before is complete"
        assert list(dict.fromkeys(places)) == list(enumerate(ids))
        items = client.session.conversation.items
        assert [item.id for item in items[1:]] == ids
        added = client.all("conversation.item.added")
        assert [event["previous_item_id"] for event in added[1:]] == [items[0].id, *ids[:-1]]


async def test_a_spoken_question_is_answered_by_the_draft_with_the_tools(question):
    stages = calling(("clock", '{"zone": "UTC"}'))
    async with connected(stages) as client:
        client.send("session.update", session={"tools": [CLOCK]})
        client.play(question)
        done = await client.until("response.done")
        assert done["response"]["output"][0]["name"] == "clock"
        assert len(stages.asked) == 1, "the draft is what is sent"
        assert stages.offered[0].tools[0].name == "clock"


async def test_a_draft_without_a_tool_that_came_meanwhile_is_thrown_away(question):
    async with connected() as client:
        client.play(up_to_the_pause(question))
        await client.until_asked()
        client.send("session.update", session={"tools": [CLOCK]})
        client.play(silence(0.5))
        await client.until("response.done")
        assert [len(use.tools) for use in client.stages.offered] == [0, 1]


async def test_a_client_may_send_the_result_and_ask_on_before_the_response_has_ended():
    stages = calling(("clock", '{"zone": "UTC"}'), ("timer", '{"s": 1}'))
    async with connected(stages) as client:
        await asked(client)
        whole = await client.until("response.function_call_arguments.done")
        stages.waits.clear()  # the second call is not complete
        client.send("conversation.item.create", item=result(whole["call_id"]))
        client.send("response.create")
        client.send("response.create", event_id="one too many")
        error = (await client.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "one too many")
        stages.reply = "It is noon."
        stages.waits.set()
        done = await client.until("response.done", 2)
        assert done["response"]["output"][0]["type"] == "message"
        results = [message["content"] for message in stages.asked[-1][1] if message["role"] == "tool"]
        assert results == ["noon", NO_RESULT]


@pytest.mark.parametrize("by", ["speech", "response.cancel", "a failure"])
async def test_a_call_that_is_broken_off_was_never_made(question, by):
    stages = calling(("clock", '{"zone": "' + 400 * "U" + '"}'), reply="Let me see.")
    async with connected(stages) as client:
        await asked(client)
        delta = await client.until("response.function_call_arguments.delta")
        stages.waits.clear()
        if by == "speech":
            client.play(question[: len(question) // 2])
        elif by == "response.cancel":
            client.send("response.cancel")
        else:
            stages.failing = "generation"
            stages.waits.set()
        done = (await client.until("response.done"))["response"]
        stages.failing = ""
        stages.waits.set()
        assert done["status"] == ("failed" if by == "a failure" else "cancelled")
        call = done["output"][1]
        assert (call["status"], call["call_id"]) == ("incomplete", delta["call_id"])
        assert client.all("response.output_item.done")[1]["item"] == call
        assert not client.all("response.function_call_arguments.done")
        if by == "speech":
            return
        client.send("conversation.item.create", item=result(call["call_id"]))
        assert (await client.until("error"))["error"]["param"] == "item.call_id"
        stages.reply = "Well."
        client.send("response.create")
        await client.until("response.done", 2)
        assert not any("tool_calls" in message or message["role"] == "tool" for message in stages.asked[-1][1])


async def test_an_answer_that_ends_within_a_call_has_not_called():
    stages = calling(("clock", '{"zone": "U'))
    async with connected(stages) as client:
        await asked(client)
        done = (await client.until("response.done"))["response"]
        assert done["output"][0]["status"] == "incomplete"
        assert not client.all("response.function_call_arguments.done")


async def test_results_and_calls_of_the_client_are_checked():
    call = {"type": "function_call", "name": "clock", "call_id": "mine", "arguments": '{"zone": "UTC"}'}
    wrong = [
        (result("nobody's"), "item.call_id"),
        (call | {"arguments": "noon"}, "item.arguments"),
        (call | {"arguments": "[]"}, "item.arguments"),
        (call | {"name": "no name"}, "item.name"),
        (call | {"call": 1}, "item.call"),
        ({"type": "function_call_output", "output": "noon"}, "item.call_id"),
        ({"type": "mcp_call", "id": "x"}, "item.server_label"),
        ({"type": "mcp_list_tools", "id": "x"}, "item"),
        ({"role": "user"}, "item"),
    ]
    async with connected() as client:
        for number, (item, param) in enumerate(wrong, 1):
            client.send("conversation.item.create", item=item)
            assert (await client.until("error", number))["error"]["param"] == param
        client.send("conversation.item.create", item=call | {"id": "item"})
        told = (await client.until("conversation.item.done"))["item"]
        assert told == call | {"id": "item", "object": "realtime.item", "status": "completed"}
        client.send("conversation.item.create", item=call)
        assert "already" in (await client.until("error", len(wrong) + 1))["error"]["message"]
        client.send("conversation.item.create", item=result("mine"))
        client.send("conversation.item.create", item=result("mine", "midnight"))
        assert "already" in (await client.until("error", len(wrong) + 2))["error"]["message"]
        client.send("response.create", response={"input": [written("Hi"), result("mine")]})
        assert (await client.until("error", len(wrong) + 3))["error"]["param"] == "item.call_id"
        client.send("response.create", response={"input": [call, result("mine")], "conversation": "none"})
        await client.until("response.done")
        assert [message["role"] for message in client.stages.asked[-1][1]] == ["assistant", "tool"]


async def test_a_restored_conversation_and_what_can_be_done_with_its_items():
    call = {"type": "function_call", "name": "clock", "call_id": "c1", "arguments": "{}", "id": "call"}
    async with connected() as client:
        client.send("conversation.item.create", item=written("What time is it?"))
        client.send("conversation.item.create", item=call)
        client.send("conversation.item.create", item=result("c1") | {"id": "result"})
        await client.until("conversation.item.done", 3)
        for kind in ("retrieve", "truncate"):
            for id in ("call", "result"):
                more = {"content_index": 0, "audio_end_ms": 0} if kind == "truncate" else {}
                client.send(f"conversation.item.{kind}", item_id=id, **more)
        assert (await client.until("conversation.item.retrieved"))["item"]["arguments"] == "{}"
        assert (await client.until("conversation.item.retrieved", 2))["item"]["output"] == "noon"
        await client.until("error", 2)
        assert {event["error"]["code"] for event in client.all("error")} == {"item_truncate_invalid_item_id"}

        client.send("conversation.item.delete", item_id="result")
        client.send("response.create")
        await client.until("response.done")
        assert client.stages.asked[-1][1][-1]["content"] == NO_RESULT
        client.send("conversation.item.create", item=result("c1", "midnight"), previous_item_id="call")
        client.send("conversation.item.delete", item_id="call")
        client.send("response.create")
        await client.until("response.done", 2)
        assert [message["role"] for message in client.stages.asked[-1][1]] == ["user", "assistant"]


async def test_required_waits_for_the_tools():
    """LiveKit's first update has the choice, its second one the tools."""
    async with connected() as client:
        client.send("session.update", session={"tool_choice": "required"})
        assert (await client.until("session.updated"))["session"]["tool_choice"] == "required"
        client.send("session.update", session={"tools": [TIMER]})
        await client.until("session.updated", 2)
        client.send("conversation.item.create", item=written("Go."))
        client.send("response.create")
        await client.until("response.done")
        assert client.stages.offered == [ToolUse(tools=(Tool(name="timer"),), is_required=True)]
        assert not client.all("error")


NAMED = {"type": "function", "name": "timer"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, {"is_parallel": False}),
        ({"tool_choice": "required"}, {"is_required": True}),
        ({"tool_choice": NAMED}, {"is_required": True, "callable": frozenset({"timer"}), "is_parallel": False}),
        ({"tool_choice": "none"}, {"callable": frozenset()}),
    ],
)
async def test_the_choice_of_tools_of_a_session_and_of_one_response(settings, expected):
    async with connected() as client:
        client.send("session.update", session={"tools": [TIMER], **settings})
        told = (await client.until("session.updated"))["session"]
        assert (told["tools"][0]["name"], told["tool_choice"]) == ("timer", settings.get("tool_choice", "auto"))
        use = ToolUse(tools=(Tool(name="timer"),), **expected)
        client.send("conversation.item.create", item=written("Go."))
        client.send("response.create")
        await client.until("response.done")
        client.send("session.update", session={"tools": [CLOCK], "tool_choice": "auto", "parallel_tool_calls": True})
        client.send("response.create", response={"tools": [TIMER], **settings})
        await client.until("response.done", 2)
        assert client.stages.offered == [use, use]
        client.send("response.create")
        await client.until("response.done", 3)
        assert client.stages.offered[-1].tools[0].name == "clock", "the session's own again"


async def test_tools_that_cannot_be_used_are_left_out_by_name_and_the_others_kept():
    remote = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/schema"}}}
    tools = [
        {"type": "mcp", "server_label": "time", "server_url": "http://127.0.0.1"},
        CLOCK,
        {"type": "function", "name": "far", "parameters": remote},
        TIMER,
        CLOCK,
        {"type": "web_search"},
    ]
    async with connected() as client:
        client.send("session.update", session={"tools": tools, "tool_choice": {"type": "function", "name": "far"}})
        await client.until("error", 5)
        params = [event["error"]["param"] for event in client.all("error")]
        assert params[:2] == ["session.tools.0.server_url", "session.tools.5"]
        assert "session.tool_choice" in params
        told = client.all("session.updated")[0]["session"]
        assert [tool["name"] for tool in told["tools"]] == ["clock", "timer"]
        assert told["tool_choice"] == "auto"
        client.send("session.update", session={"tools": told["tools"]})
        assert (await client.until("session.updated", 2))["session"]["tools"] == told["tools"]


async def test_a_choice_goes_with_the_tool_that_it_names():
    async with connected() as client:
        client.send("session.update", session={"tools": [CLOCK, TIMER], "tool_choice": NAMED})
        client.send("session.update", session={"tools": [CLOCK]})
        assert (await client.until("session.updated", 2))["session"]["tool_choice"] == "auto"
        assert not client.all("error")


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "response.tools.0"),
        ({"tools": [TIMER, TIMER]}, "response.tools.1"),
        ({"tools": [CLOCK | {"parameters": {"$ref": "elsewhere"}}]}, "response.tools.0.parameters.$ref"),
        ({"tools": [CLOCK | {"parameters": {"type": "array"}}]}, "response.tools.0.parameters.type"),
        ({"tools": [], "tool_choice": "required"}, "response.tool_choice"),
        ({"tool_choice": NAMED}, "response.tool_choice"),
    ],
)
async def test_a_response_with_tools_that_cannot_be_used_is_refused_whole(response, param):
    async with connected() as client:
        client.send("conversation.item.create", item=written("Go."))
        client.send("response.create", response=response, event_id="mine")
        error = (await client.until("error"))["error"]
        assert (error["param"], error["event_id"]) == (param, "mine")
        assert not client.stages.asked


async def test_a_call_beside_the_conversation_is_not_in_it():
    async with connected(calling(("clock", '{"zone": "UTC"}'))) as client:
        await asked(client, conversation="none")
        done = (await client.until("response.done"))["response"]
        assert json.loads(done["output"][0]["arguments"]) == {"zone": "UTC"}
        assert len(client.session.conversation.items) == 1
        client.send("conversation.item.create", item=result(done["output"][0]["call_id"]))
        assert (await client.until("error"))["error"]["param"] == "item.call_id"
