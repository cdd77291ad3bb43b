"""Tools of MCP servers that this service calls: real servers on loopback, which work, hang, die and lie."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from realtime_session import Client, MadeUpStages, written
from realtime_session import connected as speaking
from tool_servers import HANG, RawServer, raw_tool, working_server
from voicechat_platform.errors import InputError
from voicechat_serve.api.ingress import build
from voicechat_serve.application_file import APIArguments, ToolServer, read_application
from voicechat_serve.tools.connection import MOST_BYTES, MOST_RESULT, MOST_TOOLS, ToolConnection, ToolFailedError

WRONG = {"code": -32602, "message": "the arguments are wrong"}


@pytest.fixture(scope="module")
def working(listening) -> Iterator[tuple[str, list[str], object]]:
    app, calls, has_begun = working_server()
    with listening(app) as address:
        yield f"{address}/mcp", calls, has_begun


@pytest.fixture(scope="module")
def raw_address(listening) -> Iterator[tuple[RawServer, str]]:
    server = RawServer()
    with listening(server.app) as address:
        yield server, f"{address}/mcp"


@pytest.fixture
def raw(raw_address) -> tuple[RawServer, str]:
    raw_address[0].reset()
    return raw_address


@asynccontextmanager
async def connected(url: str, allow="*", **fields) -> AsyncIterator[ToolConnection]:
    before = asyncio.all_tasks()
    connection = ToolConnection(ToolServer(label="desk", url=url, allow=allow, **{"timeout_s": 30} | fields))
    try:
        yield connection
    finally:
        await connection.close()
    assert asyncio.all_tasks() <= before, "a task was left behind"


async def failure(url: str, name: str = "good", **fields) -> str:
    """What a conversation is told of a call."""
    async with connected(url, **fields) as connection:
        with pytest.raises(ToolFailedError) as caught:
            await connection.call(name, "{}")
        return str(caught.value)


class TestAServerThatWorks:
    async def test_its_tools_are_listed_and_called(self, working):
        async with connected(working[0]) as connection:
            listed = await connection.listed()
            assert [tool.name for tool in listed.tools][:2] == ["multiply", "facts"]
            assert listed.problems == ()
            assert listed.tools[0].description == "Multiply two whole numbers."
            assert listed.tools[0].parameters["required"] == ["first", "second"]
            assert await connection.call("multiply", '{"first": 17, "second": 23}') == "17 times 23 is 391."
            assert '"answer": 42' in await connection.call("facts", "{}")

    async def test_only_what_the_operator_allows_is_listed_and_called(self, working):
        url, calls, _ = working
        before = list(calls)
        async with connected(url, allow=("facts", "absent")) as connection:
            listed = await connection.listed()
            assert [tool.name for tool in listed.tools] == ["facts"]
            assert listed.problems == ("the server has no tool absent",)
            for name in ("multiply", "absent"):
                with pytest.raises(ToolFailedError, match=f"desk has no tool {name} now"):
                    await connection.call(name, '{"first": 1, "second": 2}')
        assert calls == before

    async def test_a_failure_of_a_tool_is_told_in_its_words(self, working):
        async with connected(working[0]) as connection:
            with pytest.raises(ToolFailedError, match="the shop is closed"):
                await connection.call("fail", '{"reason": "the shop is closed"}')
            with pytest.raises(ToolFailedError, match="first"):
                await connection.call("multiply", '{"first": "many", "second": 2}')
            with pytest.raises(ToolFailedError, match="the arguments are not complete"):
                await connection.call("multiply", '{"first": 17, "sec')
            assert await connection.call("multiply", '{"first": 2, "second": 3}') == "2 times 3 is 6."

    async def test_results_without_text_and_long_ones(self, working):
        async with connected(working[0]) as connection:
            with pytest.raises(ToolFailedError, match="the result has no text, but image"):
                await connection.call("picture", "{}")
            long = await connection.call("long", f'{{"length": {MOST_RESULT + 1}}}')
            assert long == "x" * MOST_RESULT + f" … (cut off after {MOST_RESULT} characters)"
            with pytest.raises(ToolFailedError, match="desk cannot be reached, or broke off"):
                await connection.call("long", f'{{"length": {MOST_BYTES}}}')
            assert await connection.call("multiply", '{"first": 2, "second": 3}') == "2 times 3 is 6."

    async def test_a_call_that_hangs_ends_at_its_deadline_and_others_go_on(self, working):
        async with connected(working[0], timeout_s=5.0) as connection:
            waiting = asyncio.create_task(connection.call("wait", "{}"))
            assert await connection.call("multiply", '{"first": 2, "second": 3}') == "2 times 3 is 6."
            with pytest.raises(ToolFailedError, match="desk gave no answer within 5 s"):
                await waiting
            assert await connection.call("multiply", '{"first": 3, "second": 3}') == "3 times 3 is 9."

    async def test_a_call_can_be_cancelled(self, working):
        url, _, has_begun = working
        has_begun.clear()
        async with connected(url, timeout_s=60) as connection:
            waiting = asyncio.create_task(connection.call("wait", "{}"))
            await asyncio.to_thread(has_begun.wait, 60)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await connection.call("multiply", '{"first": 2, "second": 3}') == "2 times 3 is 6."


class TestAServerThatDies:
    async def test_a_server_that_is_not_there(self, free_port):
        assert await failure(f"http://127.0.0.1:{free_port}/mcp") == "desk cannot be reached, or broke off"

    async def test_the_connection_opens_again_with_a_new_list(self, listening):
        server = RawServer()
        with listening(server.app) as address:
            port = address.rpartition(":")[2]
            connection = ToolConnection(ToolServer(label="desk", url=f"{address}/mcp", allow="*"))
            assert await connection.call("good", "{}") == "fine"
        with pytest.raises(ToolFailedError, match="desk cannot be reached, or broke off"):
            await connection.call("good", "{}")
        server.answers["tools/list"] = {"tools": [raw_tool("better")]}
        with listening(server.app, int(port)):
            assert await connection.call("better", "{}") == "fine"
            assert [tool.name for tool in (await connection.listed()).tools] == ["better"]
            await connection.close()

    async def test_a_session_that_the_server_has_forgotten_begins_again(self, raw):
        server, url = raw
        async with connected(url) as connection:
            assert await connection.call("good", "{}") == "fine"
            good, server.answers["tools/call"] = server.answers["tools/call"], Response(status_code=404)
            with pytest.raises(ToolFailedError, match="desk says"):
                await connection.call("good", "{}")
            server.answers["tools/call"] = good
            assert await connection.call("good", "{}") == "fine"
            assert server.methods.count("initialize") == 2


class TestAServerThatLies:
    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"name": "two words"}, "a name has up to 64 letters"),
            (
                {"inputSchema": {"type": "object", "items": {"$ref": "https://a.com/b"}}},
                "only references within the schema",
            ),
            ({"inputSchema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}}, "is not in the schema"),
            ({"inputSchema": {"type": "object", "description": "x" * 70_000}}, "may have 65,536"),
            ({"inputSchema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}}, "schema"),
            ({"inputSchema": {"type": "object", "properties": {"a": {"type": "thing"}}}}, "schema cannot be kept"),
        ],
    )
    async def test_a_tool_that_cannot_be_used_is_left_out_with_the_reason(self, raw, fields, why):
        server, url = raw
        server.answers["tools/list"] = {"tools": [raw_tool("bad", **fields), raw_tool()]}
        async with connected(url) as connection:
            listed = await connection.listed()
            assert [tool.name for tool in listed.tools] == ["good"]
            assert len(listed.problems) == 1
            assert why in listed.problems[0]
            assert await connection.call("good", "{}") == "fine"

    async def test_a_list_without_an_end_is_read_up_to_the_limit(self, raw):
        server, url = raw
        server.answers["tools/list"] = {"tools": [raw_tool(f"t{n}") for n in range(40)], "nextCursor": "more"}
        async with connected(url, timeout_s=2) as connection:
            with pytest.raises(ToolFailedError, match="gave no answer within 2 s"):  # always the same page
                await connection.listed()
        server.answers["tools/list"] = {"tools": [raw_tool(f"t{n}") for n in range(MOST_TOOLS + 1)], "nextCursor": "m"}
        async with connected(url) as connection:
            listed = await connection.listed()
            assert len(listed.tools) == MOST_TOOLS
            assert "more than 64 tools" in listed.problems[0]

    @pytest.mark.parametrize(
        ("method", "answer", "told"),
        [
            ("initialize", HANG, "desk gave no answer within 2 s"),
            ("initialize", {"protocolVersion": 7}, "desk sent an answer that cannot be read"),
            ("initialize", RedirectResponse("http://localhost:1/elsewhere", 307), "desk says"),
            ("tools/list", {"tools": "many"}, "desk sent an answer that cannot be read"),
            ("tools/list", {"tools": [{"name": "good", "inputSchema": []}]}, "desk sent an answer that cannot be read"),
            ("tools/call", HANG, "desk gave no answer within 2 s"),
            ("tools/call", {"content": "fine"}, "desk sent an answer that cannot be read"),
            ("tools/call", {"content": [{"type": "song"}]}, "desk sent an answer that cannot be read"),
            ("tools/call", {"error": WRONG}, "desk says: the arguments are wrong"),
            ("tools/call", JSONResponse({"jsonrpc": "2.0", "id": "mine", "error": WRONG}), "gave no answer within 2 s"),
            ("tools/call", Response("{", media_type="application/json"), "desk says: Failed to parse"),
            ("tools/call", Response("[" * 100_000, media_type="application/json"), "desk says: Failed to parse"),
            ("tools/call", Response("data: {", media_type="text/event-stream"), "desk cannot be reached|desk says"),
            ("tools/call", HTMLResponse("<p>fine</p>"), "desk says: Unexpected content type"),
            ("tools/call", Response(status_code=500), "desk says: Server returned an error response"),
            ("tools/call", Response(status_code=202), "desk says"),
            ("tools/call", Response(b"x" * (MOST_BYTES + 1), media_type="application/json"), "desk cannot be reached"),
            ("tools/call", Response(b"", headers={"content-encoding": "gzip"}), "desk cannot be reached"),
        ],
    )
    async def test_the_conversation_is_told_and_a_later_call_succeeds(self, raw, method, answer, told):
        server, url = raw
        good = server.answers[method]
        server.answers[method] = answer
        is_late = answer is HANG or "no answer" in told
        async with connected(url, timeout_s=2.0 if is_late else 60.0) as connection:
            with pytest.raises(ToolFailedError) as caught:
                await connection.call("good", "{}")
            connection.server = connection.server.model_copy(update={"timeout_s": 60.0})
            assert re.search(told, str(caught.value)), caught.value
            server.answers[method] = good
            assert await connection.call("good", "{}") == "fine"

    async def test_schemas_of_results_are_not_run(self, raw):
        """A pattern may run for ever, in the process that all conversations share."""
        server, url = raw
        catastrophe = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
        server.answers["tools/list"] = {"tools": [raw_tool(outputSchema=catastrophe)]}
        server.answers["tools/call"] = {"content": [], "structuredContent": {"a": "a" * 60 + "!"}}
        async with connected(url) as connection:
            assert "aaa" in await connection.call("good", "{}")


class TestTheKey:
    async def test_it_is_sent_to_the_server_and_is_in_no_log(self, raw, monkeypatch, caplog):
        server, url = raw
        caplog.set_level(logging.DEBUG, logger="ray.serve.voicechat.tools")
        monkeypatch.setenv("DESK_KEY", "open sesame")
        server.answers["tools/call"] = Response(status_code=401)
        assert "desk" in await failure(url, key_env="DESK_KEY")
        assert {each["authorization"] for each in server.headers} == {"Bearer open sesame"}
        assert "sesame" not in caplog.text

    def test_it_must_be_in_the_environment(self, monkeypatch):
        monkeypatch.delenv("DESK_KEY", raising=False)
        with pytest.raises(InputError, match="DESK_KEY is not set"):
            ToolConnection(ToolServer(label="desk", url="http://127.0.0.1:1/mcp", allow="*", key_env="DESK_KEY"))


class TestTheApplicationFile:
    ENTRY = "applications:\n  - name: api\n    import_path: voicechat_serve.application:api\n    args:\n      tools:\n"

    def read(self, tmp_path, *entries: str) -> APIArguments:
        path = tmp_path / "a.yaml"
        path.write_text(self.ENTRY + "".join(f"        - {entry}\n" for entry in entries))
        return read_application(path).api

    def test_servers_of_tools(self, tmp_path):
        desk, shop = self.read(
            tmp_path,
            "{label: desk, url: http://127.0.0.1:8765/mcp, allow: [time, multiply]}",
            '{label: shop, url: https://example.com/mcp, allow: "*", key_env: SHOP_KEY, timeout_s: 2}',
        ).tools
        assert (desk.allows("time"), desk.allows("divide"), desk.timeout_s) == (True, False, 5)
        assert (shop.allows("anything"), shop.key_env, shop.tool_choice) == (True, "SHOP_KEY", "auto")

    @pytest.mark.parametrize(
        ("entry", "why"),
        [
            ("{label: desk, url: http://127.0.0.1:8765/mcp}", "allow"),
            ("{label: desk, url: http://127.0.0.1:8765/mcp, allow: []}", "allow"),
            ("{label: desk, url: http://127.0.0.1:8765/mcp, allow: time}", "allow"),
            ("{label: a desk, url: http://127.0.0.1:8765/mcp, allow: [time]}", "label"),
            ("{label: desk, url: 127.0.0.1, allow: [time]}", "url"),
            ("{label: desk, url: http://me:secret@host/mcp, allow: [time]}", "a URL with an @ would show a password"),
            ("{label: desk, url: http://host/mcp, allow: [time], key_env: sk-secret}", "NAME of an environment"),
            ("{label: desk, url: http://host/mcp, allow: [time], timeout_s: 0}", "timeout_s"),
            ("{label: desk, url: http://host/mcp, allow: [time], headers: {}}", "headers"),
        ],
    )
    def test_a_wrong_entry_is_refused_by_name(self, tmp_path, entry, why):
        with pytest.raises(InputError, match=why) as caught:
            self.read(tmp_path, entry)
        assert "secret" not in str(caught.value).replace(entry, "")

    def test_two_servers_of_one_label(self, tmp_path):
        entry = "{label: desk, url: http://host/mcp, allow: [time]}"
        with pytest.raises(InputError, match="two servers of tools have the label 'desk'"):
            self.read(tmp_path, entry, entry)


def test_the_list_of_tools_tells_what_each_server_has(services, working, raw, free_port, listening):
    server, url = raw
    server.answers["tools/list"] = {"tools": [raw_tool("two words")]}
    tool_servers = (
        ToolServer(label="desk", url=working[0], allow=("multiply",), timeout_s=30),
        ToolServer(label="raw", url=url, allow="*", timeout_s=30),
        ToolServer(label="gone", url=f"http://127.0.0.1:{free_port}/mcp", allow="*"),
    )
    with listening(build(replace(services, tool_servers=tool_servers))) as address:
        listed = httpx.get(f"{address}/tools", timeout=60).json()
        assert httpx.get(f"{address}/tools", timeout=60).json() == listed
    desk, other, gone = listed["data"]
    assert (desk["object"], desk["server_label"], desk["problems"]) == ("tool_server", "desk", [])
    assert [tool["name"] for tool in desk["tools"]] == ["multiply"]
    assert desk["tools"][0]["input_schema"]["required"] == ["first", "second"]
    assert (other["tools"], len(other["problems"])) == ([], 1)
    assert (gone["tools"], gone["problems"]) == ([], ["gone cannot be reached, or broke off"])
    assert server.methods.count("tools/list") == 1, "the second answer is the first one"


DESK = {"type": "mcp", "server_label": "desk"}
MULTIPLY = ("multiply", '{"first": 17, "second": 23}')


def stages_with(url: str, **fields: Any) -> MadeUpStages:
    stages = MadeUpStages()
    stages.tool_servers = {"desk": ToolServer(label="desk", url=url, **{"allow": "*", "timeout_s": 30} | fields)}
    return stages


async def ask(client: Client, *calls: tuple[str, str], before: str = "") -> None:
    """A typed turn, in which the model calls, after these words."""
    client.stages.calls = list(calls)
    client.stages.reply = before
    client.send("conversation.item.create", item=written("What is seventeen times twenty-three?"))
    client.send("response.create")


class TestAConversation:
    async def test_a_call_is_made_and_its_result_answered(self, working):
        async with speaking(stages_with(working[0]), output_modalities=["text"]) as client:
            client.send("session.update", session={"type": "realtime", "tools": [DESK]})
            listed = await client.until("conversation.item.done")
            assert "multiply" in [tool["name"] for tool in listed["item"]["tools"]]
            await ask(client, MULTIPLY)
            await client.until("response.mcp_call.in_progress")
            client.stages.reply = "It is 391."
            done = await client.until("response.done", 2)
        assert client.kinds()[1:] == [
            *("session.updated", "conversation.item.added", "mcp_list_tools.in_progress", "mcp_list_tools.completed"),
            *("conversation.item.done", "conversation.item.added", "conversation.item.done"),
            *("response.created", "response.output_item.added", "conversation.item.added"),
            *("response.mcp_call_arguments.delta", "response.mcp_call_arguments.done"),
            *("response.mcp_call.in_progress", "response.mcp_call.completed"),
            *("response.output_item.done", "conversation.item.done", "response.done"),
            *("response.created", "response.output_item.added", "conversation.item.added"),
            *("response.content_part.added", "response.output_text.delta", "response.output_text.done"),
            *("response.content_part.done", "response.output_item.done", "conversation.item.done", "response.done"),
        ]
        (call,) = client.all("response.done")[0]["response"]["output"]
        assert call | {"id": ""} == {
            "id": "",
            "type": "mcp_call",
            "server_label": "desk",
            "name": "multiply",
            "arguments": MULTIPLY[1],
            "output": "17 times 23 is 391.",
            "error": None,
        }
        assert done["response"]["output"][0]["content"][0]["text"] == "It is 391. "
        _, messages, _ = client.stages.asked[-1]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
        assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"first": 17, "second": 23}
        assert messages[2]["content"] == "17 times 23 is 391."
        assert {tool.name for tool in client.stages.offered[-1].tools} >= {"multiply", "fail"}

    async def test_the_model_is_told_of_a_failure_and_the_turn_goes_on(self, working):
        async with speaking(stages_with(working[0], timeout_s=2.0), output_modalities=["text"]) as client:
            client.send("session.update", session={"type": "realtime", "tools": [DESK]})
            await ask(client, ("fail", '{"reason": "the shop is closed"}'), ("wait", "{}"), MULTIPLY)
            await client.until("response.done", 2)
        calls = client.all("response.done")[0]["response"]["output"]
        told = [call["output"] or call["error"]["message"] for call in calls]
        assert told == [
            "Error executing tool fail: the shop is closed",
            "desk gave no answer within 2 s",
            "17 times 23 is 391.",
        ]
        assert len(client.all("response.mcp_call.failed")) == 2
        results = [message["content"] for message in client.stages.asked[-1][1] if message["role"] == "tool"]
        assert results == [f"The tool failed: {told[0]}", f"The tool failed: {told[1]}", told[2]]

    async def test_a_turn_has_four_rounds_of_calls_at_most(self, working):
        stages = stages_with(working[0])
        write = stages.write

        def calling_on(model, messages, sampling, tools):
            stages.calls = [MULTIPLY] if tools.allowed else []
            return write(model, messages, sampling, tools)

        stages.write = calling_on
        async with speaking(stages, output_modalities=["text"]) as client:
            client.send("session.update", session={"type": "realtime", "tools": [DESK]})
            await ask(client, before="Well.")
            await client.until("response.done", 5)
            await client.settled()
        kinds = [[item["type"] for item in done["response"]["output"]] for done in client.all("response.done")]
        assert kinds == [["message", "mcp_call"]] * 4 + [["message"]]
        roles = [message["role"] for message in client.stages.asked[-1][1]]
        assert roles == ["user", *("assistant", "tool") * 4]

    async def test_speech_ends_a_call(self, working, question):
        url, _, has_begun = working
        has_begun.clear()
        async with speaking(stages_with(url, timeout_s=60)) as client:
            client.send("session.update", session={"type": "realtime", "tools": [DESK]})
            await ask(client, ("wait", "{}"))
            await asyncio.to_thread(has_begun.wait, 60)
            client.stages.reply = "Yes?"
            client.play(question)
            done = await client.until("response.done", 2)
        cancelled = client.all("response.done")[0]["response"]
        assert cancelled["status"] == "cancelled"
        assert cancelled["output"][0]["error"]["message"] == "the call was interrupted"
        assert done["response"]["status"] == "completed"
        tool = next(message for message in client.stages.asked[-1][1] if message["role"] == "tool")
        assert tool["content"] == "The tool failed: the call was interrupted"

    async def test_calls_of_hosted_tools_and_of_functions_together(self, working):
        """The client's result is missing: the client requests the next response."""
        function = {"type": "function", "name": "look"}
        async with speaking(stages_with(working[0]), output_modalities=["text"]) as client:
            client.send("session.update", session={"type": "realtime", "tools": [function, DESK]})
            await ask(client, MULTIPLY, ("look", "{}"))
            call = (await client.until("response.done"))["response"]["output"][1]
            await client.settled()
            assert len(client.all("response.created")) == 1
            item = {"type": "function_call_output", "call_id": call["call_id"], "output": "A tree."}
            client.send("conversation.item.create", item=item)
            client.send("response.create")
            await client.until("response.done", 2)
        messages = client.stages.asked[-1][1]
        assert [message["content"] for message in messages[2:]] == ["17 times 23 is 391.", "A tree."]

    async def test_which_tools_the_model_gets(self, working, free_port):
        stages = stages_with(working[0], allow=("multiply", "facts", "fail"), tool_choice="required")
        gone = ToolServer(label="gone", url=f"http://127.0.0.1:{free_port}/mcp", allow="*")
        stages.tool_servers["gone"] = gone
        own = {"type": "function", "name": "facts"}
        only = DESK | {"allowed_tools": ["multiply", "facts", "wait"], "require_approval": "never"}
        async with speaking(stages, output_modalities=["text"]) as client:
            tools = [own, only, {"type": "mcp", "server_label": "gone"}]
            client.send("session.update", session={"type": "realtime", "tools": tools})
            error = (await client.until("error"))["error"]
            assert error["message"] == ("the tools of gone cannot be used now: gone cannot be reached, or broke off")
            assert len(client.all("mcp_list_tools.failed")) == 1
            await ask(client, MULTIPLY)
            await client.until("response.done", 2)
            first, second = client.stages.offered
            assert [tool.name for tool in first.tools] == ["facts", "multiply"]
            assert (first.is_required, first.callable) == (True, {"multiply"})
            assert (second.is_required, second.callable) == (False, None)
            client.send("response.create", response={"tools": [own]})
            await client.until("response.done", 3)
            assert [tool.name for tool in client.stages.offered[-1].tools] == ["facts"]
            client.send("response.create", response={"conversation": "none"})
            await client.until("response.done", 4)
            assert [tool.name for tool in client.stages.offered[-1].tools] == ["facts"]
            client.send("session.update", session={"type": "realtime", "tools": []})
            client.send("response.create")
            await client.until("response.done", 5)
            assert client.stages.offered[-1].tools == ()

    @pytest.mark.parametrize(
        ("tool", "param", "why"),
        [
            ({"server_label": "shop"}, "server_label", "there is no server 'shop'; there are desk"),
            ({"server_url": "http://evil.example/mcp"}, "server_url", "only the operator names servers"),
            ({"headers": {"Authorization": "x"}}, "headers", "only the operator names servers"),
            ({"authorization": "x"}, "authorization", "only the operator names servers"),
            ({"connector_id": "connector_gmail"}, "connector_id", "only the operator names servers"),
            ({"require_approval": "always"}, "require_approval", "not supported"),
            ({"allowed_tools": {"tool_names": ["a"], "read_only": True}}, "allowed_tools", "not supported"),
        ],
    )
    async def test_what_a_client_may_not_ask_for_is_refused_by_name(self, working, tool, param, why):
        async with speaking(stages_with(working[0])) as client:
            session = {"type": "realtime", "instructions": "Be brief.", "tools": [DESK | tool]}
            client.send("session.update", session=session)
            error = (await client.until("error"))["error"]
            assert why in error["message"]
            assert error["param"].startswith(f"session.tools.0.{param}")
            updated = client.all("session.updated")[0]["session"]
            assert (updated["instructions"], updated["tools"]) == ("Be brief.", [])
            assert not client.all("mcp_list_tools.in_progress")
