"""The page in headless Chromium: typing, push-to-talk, uploads, settings, downloads, the keyboard, a reload."""

import io
import json
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

LONG_REPLY = " ".join(f"word{number}" for number in range(60)) + "."

# Chromium records at any rate; other browsers refuse to connect the microphone to a context of another rate.
ONLY_THE_MICROPHONES_RATE = """
    const connect = AudioContext.prototype.createMediaStreamSource;
    AudioContext.prototype.createMediaStreamSource = function (stream) {
        if (this.sampleRate === 24000) throw new DOMException("another rate", "NotSupportedError");
        window.rate = this.sampleRate;
        return connect.call(this, stream);
    };
"""

TYPE_QUICKLY = """messages => messages.forEach(message => {
    document.getElementById("message").value = message;
    document.getElementById("composer").requestSubmit();
})"""


def test_typing_shows_the_reply_as_it_grows_and_speaks_it(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    realtime.replies = [LONG_REPLY, "Second reply."]
    talk = open_page(url)
    message = "if a<b & c>d then <img src=picture> <b>bold</b>"
    talk.type(message)
    talk.wait_until("voicechat.rms > 0.1")
    talk.wait_until("document.querySelector('.said.assistant .words').textContent.includes('word12')")
    (part,) = talk.said("assistant")
    assert part
    assert len(part) < len(LONG_REPLY), "the sound started only when the text was whole"
    assert talk.said("user") == [message]
    assert realtime.session.config["audio"]["input"]["turn_detection"] is None
    # Two quick messages take the place of the reply; together they get one of their own.
    talk.page.evaluate(TYPE_QUICKLY, ["And now?", "And then?"])
    talk.wait_for_said("assistant", 2)
    talk.wait_for("ready")
    assert talk.said("user") == [message, "And now?", "And then?"]
    assert talk.said("assistant")[-1] == "Second reply."
    assert len(talk.said("assistant")[0]) < len(LONG_REPLY)
    assert talk.said("note") == []
    expect(talk.page.get_by_label("Your message")).to_have_value("")
    # A reply can be stopped, and is then over.
    realtime.replies = [LONG_REPLY]
    talk.type("Go on.")
    talk.wait_for("speaking")
    asked = len(realtime.events("conversation.item.retrieve"))
    talk.press("Stop reply")
    talk.wait_for("ready")
    played = talk.meter()["playedSeconds"]
    # The page asks what is left of a reply when it has had all that the server sent of it.
    talk.wait_for_server(lambda: len(realtime.events("conversation.item.retrieve")) > asked)
    assert talk.meter()["playedSeconds"] == played
    # Clear forgets here and there.
    talk.press("Clear conversation")
    expect(talk.page.locator(".said")).to_have_count(0)
    talk.type("Who am I?")
    talk.wait_for_said("assistant", 1)
    created = [event for event in realtime.session.received if event["type"] == "conversation.item.create"]
    assert [event["item"]["content"][0]["text"] for event in created] == ["Who am I?"]


def test_push_to_talk_mute_and_a_press_that_is_too_short(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    talk = open_page(url, script=ONLY_THE_MICROPHONES_RATE)
    talk.press("Start conversation")
    talk.wait_for("listening", "hearing")
    talk.press("Mute")
    talk.wait_for("muted", "thinking", "speaking")
    muted_from = len(realtime.session.sound) + 12000
    expect(talk.page.get_by_role("button", name="Mute")).to_have_attribute("aria-pressed", "true")
    talk.wait_for("muted")
    whole_file = int(3.6 * 24000)
    talk.wait_for_server(lambda: len(realtime.session.sound) > muted_from + whole_file)
    assert not np.any(realtime.session.sound[muted_from:]), "a muted microphone was sent"
    num_said = len(talk.said("user"))

    talk.press("Push to talk")
    talk.wait_for("ready")
    assert "space bar" in talk.status
    assert realtime.session.config["audio"]["input"]["turn_detection"] is None
    before = len(realtime.session.sound)
    talk.page.wait_for_timeout(300)
    assert len(realtime.session.sound) == before, "it is heard though nobody holds the button"
    talk.page.get_by_role("button", name="Hold to talk").hover()
    talk.page.mouse.down()
    talk.page.mouse.up()
    talk.wait_until("document.querySelector('.said.note:last-child')?.textContent.includes('too short')")
    assert realtime.events("input_audio_buffer.commit") == []
    before = len(realtime.session.sound)
    talk.page.locator("#transcript").focus()
    talk.page.keyboard.down(" ")
    talk.wait_for("hearing")
    held_from = time.monotonic()
    talk.wait_for_server(lambda: np.sum(np.abs(realtime.session.sound[before:].astype(int)) > 1000) > 6000)
    talk.page.keyboard.up(" ")
    held_s = time.monotonic() - held_from
    talk.wait_for_said("user", num_said + 1)
    talk.wait_for("speaking")
    talk.wait_for("ready")
    taken = realtime.session.sound[before:]
    assert len(taken) / 24000 == pytest.approx(held_s + 0.1, abs=0.5)
    assert talk.page.evaluate("rate") != 24000
    spectrum = np.abs(np.fft.rfft(taken.astype(np.float32)))
    loudest_hz = np.argmax(spectrum) * 24000 / len(taken)
    assert abs(loudest_hz / 200 - round(loudest_hz / 200)) < 0.03, f"{loudest_hz} Hz is no harmonic of the voice"


def test_a_recording_is_uploaded_and_everything_can_be_downloaded(
    open_page: Callable[..., Any], url: str, realtime: Any, microphone: Path, tmp_path: Path
) -> None:
    realtime.replies = ["Good morrow to thee.", LONG_REPLY]
    talk = open_page(url)
    talk.page.locator("#recording").set_input_files(microphone)
    talk.wait_for_said("user", 1)
    talk.wait_for("speaking")
    talk.wait_for("ready")
    assert len(realtime.session.sound) / 24000 == pytest.approx(3.6, abs=0.01)
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no sound at all")
    talk.page.locator("#recording").set_input_files(noise)
    talk.wait_until("document.querySelector('.said.note')?.textContent.includes('finds no sound in noise.wav')")
    talk.type("Go on.")
    talk.wait_until("voicechat.playedSeconds > 2")
    talk.press("Stop reply")
    talk.wait_until("document.querySelectorAll('.said.assistant .tags').length === 1")

    def download(name: str) -> bytes:
        talk.page.locator("summary", has_text="Download").click()
        with talk.page.expect_download() as download:
            talk.page.get_by_role("button", name=name).click()
        expect(talk.page.locator("#downloads .opened")).to_be_hidden()
        return Path(download.value.path()).read_bytes()

    text = download("as text").decode()
    assert "You: testing the microphone" in text
    assert "bard: Good morrow to thee." in text
    told = json.loads(download("as JSON"))
    assert [message["role"] for message in told["messages"]] == ["user", "assistant", "note", "user", "assistant"]
    latency = told["messages"][1]["latency_s"]
    stages = [latency[stage] for stage in ("endpoint", "transcription", "first word", "first sound")]
    assert min(stages) >= 0
    assert sum(stages) == pytest.approx(latency["total"], abs=0.001)
    assert told["messages"][4]["interrupted"] is True
    with wave.open(io.BytesIO(download("as a WAV file"))) as file:
        assert (file.getframerate(), file.getnchannels()) == (24000, 1)
        length_s = file.getnframes() / 24000
    heard_s = realtime.events("conversation.item.truncate")[-1]["audio_end_ms"] / 1000
    # What was said, what was heard, and half a second between two turns.
    assert length_s == pytest.approx(3.6 + 0.5 + 4 * 0.12 + 0.5 + heard_s, abs=0.01)


def test_settings_apply_to_the_next_turn_and_a_reload_keeps_all(
    open_page: Callable[..., Any], url: str, realtime: Any
) -> None:
    talk = open_page(url)
    talk.type("Hello?")
    talk.wait_for_said("assistant", 1)
    assert realtime.session.model == "bard"
    assert realtime.session.config["audio"]["output"]["voice"] == "heart"
    assert "short sentences" in realtime.session.config["instructions"]
    assert realtime.session.config["temperature"] is None, "the model's own"
    talk.page.get_by_role("button", name="Settings").click()
    talk.wait_for("ready")  # a change of the model would stop the reply
    talk.page.get_by_role("button", name="parrot, yours").click()
    talk.page.get_by_label("Voice", exact=True).click()
    talk.page.get_by_role("option", name="amelie (French)").click()
    talk.page.get_by_label("Temperature", exact=True).click()
    talk.page.get_by_role("option", name="0.4").click()
    talk.page.get_by_label("Instructions for the model").fill("Speak like a pirate.")
    speed = talk.page.get_by_label("number input for Speed of speech")
    speed.fill("1.5")
    speed.press("Tab")
    talk.wait_until("JSON.parse(sessionStorage.getItem('settings')).speed === 1.5")
    talk.type("And now?")
    talk.wait_for_said("assistant", 2)
    config = realtime.session.config
    assert (config["model"], config["instructions"]) == ("parrot", "Speak like a pirate.")
    assert config["audio"]["output"]["voice"] == "amelie"
    assert config["audio"]["output"]["speed"] == 1.5
    assert config["temperature"] == 0.4
    assert len(realtime.sessions) == 1
    talk.wait_for("ready")

    realtime.language = "de"
    talk.page.reload()
    talk.wait_for("ready")
    assert talk.said("user") == ["Hello?", "And now?"]
    talk.type("Still there?")
    talk.wait_for_said("assistant", 3)
    assert realtime.session.config == config
    created = [event for event in realtime.session.received if event["type"] == "conversation.item.create"]
    assert [event["item"]["role"] for event in created] == ["user", "assistant", "user", "assistant", "user"]
    expect(talk.page.locator(".said.assistant .tags")).to_have_text("no voice speaks German: text only")
    # Gradio may take the frame of a tab down and draw it anew.
    talk.page.get_by_role("tab", name="Models").click()
    talk.page.get_by_role("tab", name="Talk").click()
    assert len(talk.said("user")) == 3


def test_everything_is_within_reach_of_the_keyboard(open_page: Callable[..., Any], url: str, realtime: Any) -> None:
    talk = open_page(url)
    wanted = {
        "bard, tuned here",
        "parrot, yours",
        "Start conversation",
        "Push to talk",
        "Your message",
        "Send",
        "Upload a recording",
        "Download",
        "Clear conversation",
        "Settings",
    }
    name = """() => {
        const { activeElement: here } = document;
        const outline = getComputedStyle(here);
        const seen = outline.outlineStyle !== "none" || outline.boxShadow !== "none" || here.id === "message";
        return [here.ariaLabel || here.labels?.[0]?.textContent || here.textContent.trim(), seen];
    }"""
    for _ in range(40):
        talk.page.keyboard.press("Tab")
        reached, seen = talk.page.evaluate(name)
        wanted = {left for left in wanted if left not in reached}
        assert seen, f"nothing shows that the focus is on {reached!r}"
        if reached == "Start conversation":
            break
    talk.page.keyboard.press("Enter")
    talk.wait_for("listening", "hearing")
    for _ in range(20):
        talk.page.keyboard.press("Tab")
        wanted = {left for left in wanted if left not in talk.page.evaluate(name)[0]}
    assert wanted == set()
    # The menu opens, its first entry is the next stop, and Escape closes it and gives the focus back.
    menu = talk.page.locator("#downloads summary")
    menu.focus()
    talk.page.keyboard.press("Enter")
    talk.page.keyboard.press("Tab")
    assert talk.page.evaluate("document.activeElement.id") == "download-text"
    talk.page.keyboard.press("Escape")
    expect(talk.page.locator("#downloads .opened")).to_be_hidden()
    expect(menu).to_be_focused()
    talk.wait_for("speaking")
    talk.page.keyboard.press("Escape")
    talk.wait_for("listening", "hearing")


def test_the_apps_own_routes_stay(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
