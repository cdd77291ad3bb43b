"""The page in headless Chromium with a microphone that plays a file: spoken conversations, and what can go wrong."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from fastapi import FastAPI
from playwright.sync_api import Page, expect

from voicechat_ui.page import mount_page

LONG_REPLY = " ".join(f"word{number}" for number in range(60)) + "."
LOST = ("WebSocket connection", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "Failed to fetch")
"""What Chromium itself notes on the console when a server goes away."""


def test_a_hands_free_conversation_of_two_turns_and_an_interruption(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    realtime.replies = ["Good morrow to thee.", LONG_REPLY, "What now?"]
    talk = open_page(url)
    talk.press("Start conversation")
    talk.wait_for("listening")
    assert realtime.session.config["audio"]["input"]["turn_detection"]["type"] == "semantic_vad"
    talk.wait_for("hearing")
    assert talk.said("user")[0] in ("…", "testing")
    talk.wait_for_said("user", 1)
    talk.wait_for("speaking")
    assert talk.said("user") == ["testing the microphone"]
    talk.wait_for("listening")
    assert talk.said("assistant") == ["Good morrow to thee."]
    assert 0.3 < talk.meter()["peak"] < 0.6
    assert talk.meter()["playedSeconds"] == pytest.approx(4 * 0.12, abs=0.01)
    latency = talk.page.locator(".latency").first
    expect(latency.locator("summary")).to_contain_text("Answered after")
    expect(latency.locator(".numbers")).to_be_hidden()
    latency.locator("summary").click()
    for words in ("noticing that you had finished", "writing your words down", "finding the first word", "speaking it"):
        expect(latency.get_by_text(words)).to_be_visible()
    expect(talk.page.locator("#session-latency summary")).to_contain_text("Usually answers after")
    expect(talk.page.locator(".said.user .tags").first).to_have_text("English")

    # The second reply is so long that the third utterance comes while it is spoken.
    talk.wait_for_said("assistant", 2)
    talk.wait_for("speaking")
    talk.wait_for("hearing")
    assert not talk.meter()["playing"]
    level = talk.page.evaluate("() => new Promise(go => setTimeout(() => go(voicechat.level), 150))")
    assert level < 0.01, "there is still sound"
    talk.wait_until("document.querySelectorAll('.said.assistant .tags').length === 1")
    (truncated,) = realtime.events("conversation.item.truncate")
    heard_ms = truncated["audio_end_ms"]
    assert 500 < heard_ms < 4000, "the microphone speaks again within 3.6 s"
    assert talk.said("assistant")[1].split() == LONG_REPLY.split()[: int(heard_ms / 120)]
    expect(talk.page.locator(".said.assistant .tags")).to_have_text("interrupted")
    talk.wait_for_said("assistant", 3)
    assert talk.said("assistant")[2] == "What now?"
    assert talk.said("note") == []
    talk.page.get_by_role("button", name="Settings").click()
    talk.page.get_by_label("It answers", exact=True).click()
    talk.page.get_by_role("option", name="after half a second of silence").click()
    talk.wait_for_server(lambda: realtime.session.config["audio"]["input"]["turn_detection"]["type"] == "server_vad")
    talk.press("End")
    talk.wait_for("ready")


def test_the_first_words_are_not_lost_while_the_socket_opens(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    slow = """
        const Socket = WebSocket;
        window.WebSocket = class extends Socket {
            set onmessage(handler) {
                super.onmessage = handler && ((event) =>
                    event.data.includes("session.created") ? setTimeout(() => handler(event), 2500) : handler(event));
            }
        };
    """
    talk = open_page(url, script=slow)
    talk.press("Start conversation")
    talk.wait_for("connecting")
    talk.wait_for_said("user", 1)
    sound = realtime.session.sound
    assert len(sound) / 24000 > 2, "nothing from before the session"
    starts = [event for event in realtime.session.received if event["type"] == "input_audio_buffer.append"]
    assert starts


def test_without_leave_the_microphone_is_not_there_and_typing_works(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    talk = open_page(url, wait_for="ready", permissions=[])
    talk.press("Start conversation")
    talk.wait_for("no microphone")
    assert "Allow it in the browser's site settings" in talk.status
    expect(talk.page.get_by_role("button", name="Start conversation")).to_be_enabled()
    talk.type("Hello?")
    talk.wait_for_said("assistant", 1)


def test_plain_http_says_why_there_is_no_microphone(open_page: Callable[..., Any], url: str) -> None:
    talk = open_page(url.replace("127.0.0.1", "voice.test"), permissions=[])
    expect(talk.page.get_by_role("alert").filter(has_text="browsers allow it only over HTTPS")).to_be_visible()
    talk.press("Start conversation")
    talk.wait_for("no microphone")
    assert "ssh -L" in talk.status


def test_a_microphone_that_falls_silent_is_not_said_to_listen(open_page: Callable[..., Any], url: str) -> None:
    keep = """
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wanted) => (window.stream = await ask(wanted));
        const Context = AudioContext;
        window.contexts = [];
        window.AudioContext = class extends Context {
            constructor(options) {
                super(options);
                contexts.push(this);
            }
        };
    """
    talk = open_page(url, script=keep)
    talk.press("Start conversation")
    talk.wait_for("listening")
    assert talk.page.evaluate("stream.getTracks()[0].getSettings().echoCancellation") is True
    talk.page.evaluate("contexts.forEach(context => context.suspend())")  # no frames come any more
    talk.wait_for("no microphone")
    assert "No sound comes from the microphone" in talk.status
    talk.page.evaluate("contexts.forEach(context => context.resume())")
    talk.wait_for("hearing")
    talk.page.evaluate("stream.getTracks()[0].dispatchEvent(new Event('ended'))")
    talk.wait_for("no microphone")
    assert "unplugged" in talk.status
    assert set(talk.said("user")) <= {"testing the microphone"}, "what was not said to the end is gone"
    talk.press("Start conversation")
    talk.wait_for("listening", "hearing")


def test_the_page_comes_back_when_the_server_does(
    open_page: Callable[..., Any], realtime: Any, serve: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    port = free_port()

    def start() -> Any:
        return serve(mount_page(realtime.app(), f"http://127.0.0.1:{port}/v1"), port)

    server = start()
    talk = open_page(server.url, errors=LOST)
    talk.press("Start conversation")
    talk.wait_for_said("assistant", 1)
    realtime.replies = [LONG_REPLY]
    talk.wait_for_said("user", 2)
    talk.wait_until("document.querySelectorAll('.said.assistant .words')[1]?.textContent.includes('word5')")
    server.stop()
    talk.wait_for("reconnecting")
    assert "does not answer" in talk.status
    assert any("connection broke" in note for note in talk.said("note"))
    said = talk.said("user")[:2], talk.said("assistant")[:2]
    shown = """[...document.querySelectorAll('.said.user, .said.assistant')].map(({ classList }) =>
        classList.contains('user') ? ['user', 'input_text'] : ['assistant', 'output_text'])"""
    before = talk.page.evaluate(shown)  # on a slow machine a turn may cut a reply before a word of it was heard
    start()
    talk.wait_for("listening", "hearing")
    talk.wait_for_said("user", 3)
    talk.wait_for_said("assistant", 3)
    assert (talk.said("user")[:2], talk.said("assistant")[:2]) == said
    restored = [
        [event["item"]["role"], event["item"]["content"][0]["type"]]
        for event in realtime.session.received
        if event["type"] == "conversation.item.create"
    ]
    assert restored == before
    assert len(before) >= 3


def test_a_failed_reply_and_the_end_of_an_idle_session_are_told(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    realtime.failure = "the model fell over"
    talk = open_page(url)
    talk.press("Start conversation")
    talk.wait_until("document.querySelector('.said.note')?.textContent === 'The reply failed: the model fell over'")
    talk.wait_for_said("assistant", 2)
    realtime.idle = True
    talk.wait_for("ready")
    assert talk.said("note")[1:] == ["The conversation ended: nothing was said for a while."]
    expect(talk.page.get_by_role("button", name="Start conversation")).to_be_enabled()


CLOSES_LATE = """
    const { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onclose");
    Object.defineProperty(WebSocket.prototype, "onclose", {
        set(handler) { set.call(this, handler && ((event) => setTimeout(handler, 500, event))); },
    });
"""
"""On a busy machine a page learns only a while later that the server has closed a socket."""


def test_who_is_not_wanted_any_more_is_told_and_does_not_come_back(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    talk = open_page(url, script=CLOSES_LATE)
    talk.press("Start conversation")
    talk.wait_for("listening", "hearing")
    opened: list[Any] = []
    talk.page.on("websocket", lambda socket: opened.append(socket))
    talk.page.clock.install()
    realtime.revoked = True
    talk.wait_until("document.querySelector('.said.note')?.textContent.startsWith('Your key was revoked')")
    assert len(talk.said("note")) == 1
    talk.page.clock.fast_forward(60_000)  # it came back after less than one second
    talk.wait_for("failed")
    assert opened == []


def test_a_full_server_and_one_without_models_say_so(
    open_page: Callable[..., Any], url: str, realtime: Any, serve: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    talk = open_page(url)
    realtime.refusal = {"type": "server_error", "code": "too_many_sessions", "message": "all slots are taken"}
    talk.press("Start conversation")
    talk.wait_for("busy")
    assert "no room for another conversation" in talk.status
    realtime.refusal = None
    talk.wait_for("listening", "hearing")
    alone = serve(mount_page(FastAPI(), f"http://127.0.0.1:{free_port()}/v1"), free_port())
    lonely = open_page(alone.url, wait_for="failed")
    assert "does not answer. Start it with `voicechat serve`" in lonely.status
    expect(lonely.page.get_by_role("button", name="Start conversation")).to_be_disabled()


def test_calls_of_tools_are_shown_in_the_conversation(open_page: Callable[..., Any], url: str, realtime: Any) -> None:
    realtime.models[0]["tools"] = ["desk"]
    arguments = {"first": 17, "operation": "times", "second": 23}
    realtime.calls = [
        {"name": "calculate", "arguments": json.dumps(arguments), "output": "17 times 23 is 391.\n"},
        {"name": "look", "arguments": "{", "error": {"type": "tool_execution_error", "message": "<b>too</b> late"}},
    ]
    realtime.calls_allowed.clear()
    talk = open_page(url)
    talk.type("What is seventeen times twenty-three?")
    talk.wait_until("document.querySelector('.said.call.growing')?.textContent === 'calculate'")
    assert realtime.session.config["tools"] == [{"type": "mcp", "server_label": "desk", "require_approval": "never"}]
    realtime.calls_allowed.set()
    talk.wait_for_said("assistant", 1)
    talk.wait_for("ready")
    assert talk.said("call") == [
        "calculate(first: 17, operation: times, second: 23) → 17 times 23 is 391.",
        "look({) → failed: <b>too</b> late",
    ]
    assert talk.said("note") == []
    order = "[...document.querySelectorAll('.said')].map(each => each.className)"
    assert talk.page.evaluate(order) == ["said user", "said call", "said call", "said assistant"]
    # A new session is told what was said, and not what was called.
    talk.page.reload()
    talk.wait_for("ready")
    talk.type("And now?")
    talk.wait_for_said("assistant", 2)
    created = [event["item"] for event in realtime.session.received if event["type"] == "conversation.item.create"]
    assert [item["role"] for item in created] == ["user", "assistant", "user"]
    talk.page.locator("button.model[data-model=parrot]").click()
    talk.wait_for_server(lambda: realtime.session.config["model"] == "parrot")
    assert realtime.session.config["tools"] == []


def tones(page: Page, name: str) -> tuple[str, str]:
    """The colours of a button's ground and of its glow, with the mouse on it as after a click."""
    button = page.get_by_role("button", name=name, exact=True)
    button.hover()
    style = button.evaluate(
        "element => [getComputedStyle(element).backgroundColor, getComputedStyle(element).boxShadow]"
    )
    return style[0], style[1].partition(")")[0] + ")"


def test_a_button_glows_in_its_own_colour(open_page: Callable[..., Any], url: str) -> None:
    talk = open_page(url)
    begin = tones(talk.page, "Start conversation")
    talk.press("Start conversation")
    talk.wait_for("listening", "hearing")
    end = tones(talk.page, "End")
    talk.press("Push to talk")
    hold = tones(talk.page, "Hold to talk")
    talk.page.mouse.down()
    held = tones(talk.page, "Release to send")
    talk.page.mouse.up()
    for ground, glow in (begin, end, hold, held):
        assert ground == glow
    assert begin == hold != end == held


INSIDERS_WORDS = r"(?i)\bp(50|95|99)\b|endpoint|percentile|latency|first word|first sound|token|VAD|\bitem\b|session"


def test_every_text_is_whole_and_a_persons(open_page: Callable[..., Any], url: str, realtime: Any) -> None:
    realtime.replies = [LONG_REPLY] * 2
    talk = open_page(url)

    def check(state: str) -> None:
        for width in (1280, 768, 360, 320):
            talk.page.set_viewport_size({"width": width, "height": 800})
            check_width(f"{state}, {width} px wide", width)

    def check_width(state: str, width: int) -> None:
        assert not re.search(INSIDERS_WORDS, talk.page.locator("body").inner_text()), state
        assert talk.page.evaluate("document.documentElement.scrollWidth") <= width, f"{state}: it scrolls sideways"
        cut = talk.page.evaluate(
            """() => [...document.querySelectorAll("#talk :is(button, summary)")]
                .filter(element => element.checkVisibility() && element.scrollWidth > element.clientWidth + 1)
                .map(element => element.textContent)"""
        )
        assert cut == [], state
        room, placeholder = talk.page.evaluate(
            """() => {
                const box = document.getElementById("message");
                const pen = document.createElement("canvas").getContext("2d");
                pen.font = getComputedStyle(box).font;
                return [box.clientWidth, pen.measureText(box.placeholder).width];
            }"""
        )
        assert placeholder <= room, f"{state}: the placeholder is cut"

    check("at first")
    talk.type("Who art thou?")
    talk.wait_for("speaking")
    check("while it speaks")
    talk.press("Stop reply")
    expect(talk.page.locator("#session-latency")).to_be_visible()
    check("when it has answered")
    talk.press("Start conversation")
    talk.wait_for("listening", "hearing", "thinking", "speaking")
    check("in a conversation")
    talk.press("Push to talk")
    check("push to talk")
    talk.press("End")
    talk.page.get_by_role("button", name="Settings").click()
    expect(talk.page.get_by_label("Instructions for the model")).to_be_visible()
    check("settings")


def test_one_click_changes_who_answers_and_each_model_has_its_own_instructions(
    open_page: Callable[..., Any], url: str, realtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicechat_ui.page.MODELS_KEPT_S", 0)
    now = time.time()
    chat = {"title": "SmolLM2", "about": "Made for conversation.", "system_prompt": "Be brief."}
    bard = {"title": "Bard", "about": "Cannot answer.", "system_prompt": "", "tuned_at": now - 330}
    cards = realtime.models
    realtime.models = [{**cards[0], "id": "smol", "origin": "packaged"} | chat, cards[0] | bard]
    realtime.replies = [LONG_REPLY]
    talk = open_page(url)
    group, about = talk.page.get_by_role("group", name="Who answers"), talk.page.locator("#about")
    expect(group.get_by_role("button", pressed=True)).to_have_text("SmolLM2packaged")
    expect(about).to_have_text("Made for conversation.")
    talk.type("Who art thou?")
    talk.wait_until("voicechat.playedSeconds > 2")
    assert realtime.session.model == "smol"
    assert realtime.session.config["instructions"] == "Be brief."
    group.get_by_role("button", name="Bard, tuned here 5 minutes ago").press("Enter")
    expect(about).to_have_text("Cannot answer.")
    talk.wait_for("ready")  # the reply that was spoken has stopped
    expect(talk.page.locator(".said.assistant .tags")).to_have_text("interrupted")
    group.get_by_role("button", name="SmolLM2").click()
    group.get_by_role("button", name="Bard").click()
    # Of several changes only the last is told.
    expect(talk.page.locator(".said.note .words")).to_have_text(["From here on Bard answers."])
    talk.type("And thou?")
    talk.wait_for_said("assistant", 2)
    assert talk.page.locator(".said .speaker").all_inner_texts() == ["SmolLM2", "Bard"]
    assert (realtime.session.config["model"], realtime.session.config["instructions"]) == ("bard", "")
    assert len(realtime.sessions) == 1
    talk.page.get_by_role("button", name="Settings").click()
    instructions = talk.page.get_by_label("Instructions for the model")
    instructions.fill("Rhyme.")
    group.get_by_role("button", name="SmolLM2").click()
    expect(instructions).to_have_value("Be brief.")
    group.get_by_role("button", name="Bard").click()
    expect(instructions).to_have_value("Rhyme.")

    realtime.models[1] = realtime.models[1] | {"tuned_at": time.time(), "about": "Promoted."}
    talk.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(group.get_by_role("button", name="Bard, tuned here just now")).to_be_visible()
    expect(about).to_have_text("Promoted.")
    talk.page.reload()
    talk.wait_for("ready")
    talk.type("And now?")
    talk.wait_for_said("assistant", 3)
    assert realtime.session.model == "bard", "what was picked stays picked"
    assert realtime.session.config["instructions"] == "Rhyme."
    talk.page.get_by_role("button", name="Settings").click()
    talk.press("Back to the model's own")
    expect(instructions).to_have_value("")


def serious_faults(page: Page) -> list[str]:
    page.evaluate(AXE_FILE_PATH.read_text())
    violations = page.evaluate("axe.run().then(({ violations }) => violations)")
    return [
        f"{violation['id']}: {node['html'][:200]} ({node['failureSummary'][:200]})"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_the_page_is_accessible_and_fits(
    look: str, open_page: Callable[..., Any], url: str, tmp_path: Path, realtime: Any
) -> None:
    size = {"width": 375, "height": 740} if look == "phone" else {"width": 1200, "height": 850}
    talk = open_page(url, viewport=size, color_scheme="dark" if look == "dark" else "light", has_touch=look == "phone")
    assert serious_faults(talk.page) == [], "before the conversation"
    if look == "phone":
        for name in ("Start conversation", "Send"):
            expect(talk.page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
        expect(talk.page.get_by_label("Your message")).to_be_in_viewport()
    talk.type("Who art thou?")
    talk.wait_for_said("assistant", 1)
    talk.press("Start conversation")
    talk.wait_for("listening", "hearing")
    talk.page.get_by_role("button", name="Settings").click()
    expect(talk.page.get_by_label("Instructions for the model")).to_be_visible()
    talk.page.wait_for_timeout(300)  # the accordion fades in
    assert serious_faults(talk.page) == []
    assert talk.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    talk.page.screenshot(path=tmp_path / f"{look}.png", full_page=True)
    assert (tmp_path / f"{look}.png").stat().st_size > 10_000
