"""The page's scripts alone, in one blank page of Chromium: functions that need no server and no microphone."""

import base64
import io
import json
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Error, Page

from voicechat_ui.page import FOLDER, SCRIPTS

# Long arrays go to the page and back as JSON: Playwright takes them to pieces.

RATE_HZ = 24000


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    """All scripts but the one that looks for the page's elements."""
    page = browser.new_page()
    page.goto("about:blank")
    page.add_script_tag(content="\n".join((FOLDER / name).read_text() for name in SCRIPTS if name != "main.js"))
    yield page
    page.close()


def resampled(page: Page, samples: np.ndarray, from_hz: int, to_hz: int = RATE_HZ, piece: int = 128) -> np.ndarray:
    """As a worklet gives them to the page's resampler: in pieces."""
    script = """(text) => {
        const [samples, from, to, piece] = JSON.parse(text);
        const resample = resampler(from, to);
        const output = [];
        for (let start = 0; start < samples.length; start += piece) {
            output.push(...resample(Float32Array.from(samples.slice(start, start + piece))));
        }
        return JSON.stringify(output);
    }"""
    return np.array(json.loads(page.evaluate(script, json.dumps([samples.tolist(), from_hz, to_hz, piece]))))


def sine(hz: float, rate_hz: int, seconds: float = 0.25) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


@pytest.mark.parametrize("from_hz", [8000, 16000, 22050, 44100, 48000, 96000])
def test_a_tone_stays_the_same_at_another_rate(blank: Page, from_hz: int) -> None:
    heard = resampled(blank, sine(1000, from_hz), from_hz)
    assert len(heard) == pytest.approx(0.25 * RATE_HZ, abs=2)
    settled = heard[500:-100]
    frequencies = np.fft.rfftfreq(len(settled), 1 / RATE_HZ)
    spectrum = np.abs(np.fft.rfft(settled * np.hanning(len(settled))))
    assert frequencies[np.argmax(spectrum)] == pytest.approx(1000, abs=10)
    assert np.sqrt(np.mean(settled**2)) == pytest.approx(np.sqrt(0.5), rel=0.01)
    away = spectrum[np.abs(frequencies - 1000) > 100]
    assert away.max() < 0.003 * spectrum.max(), "there is another tone"


@pytest.mark.parametrize("hz", [13000, 16000, 20000])
def test_what_the_lower_rate_cannot_hold_is_left_out(blank: Page, hz: int) -> None:
    heard = resampled(blank, sine(hz, 48000), 48000)[500:-100]
    assert np.abs(heard).max() < 0.01, "it comes back as another tone"


def test_resampling_does_not_depend_on_the_pieces(blank: Page) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 4000)
    whole = resampled(blank, noise, 44100, piece=4000)
    for piece in (1, 128, 333):
        assert np.array_equal(resampled(blank, noise, 44100, piece=piece), whole)
    assert np.allclose(resampled(blank, noise, RATE_HZ), noise.astype(np.float32)), "the same rate: as it is"


def captured(page: Page, samples: np.ndarray, rate_hz: int) -> list[list[int]]:
    """The frames that the microphone's worklet posts."""
    script = """(text) => {
        const [samples, rate] = JSON.parse(text);
        const frames = [];
        class AudioWorkletProcessor {
            port = { postMessage: (frame) => frames.push([...frame]) };
        }
        let Capture;
        const register = (name, made) => { Capture = made; };
        new Function("registerProcessor", "AudioWorkletProcessor", "sampleRate", CAPTURE)(
            register, AudioWorkletProcessor, rate);
        const capture = new Capture();
        for (let start = 0; start < samples.length; start += 128) {
            if (!capture.process([[Float32Array.from(samples.slice(start, start + 128))]])) throw Error("it ends");
        }
        if (!capture.process([[]])) throw Error("it ends while nothing is connected");
        return JSON.stringify(frames);
    }"""
    frames: list[list[int]] = json.loads(page.evaluate(script, json.dumps([samples.tolist(), rate_hz])))
    return frames


def test_the_worklet_posts_whole_frames_of_40_ms(blank: Page) -> None:
    ramp = np.linspace(-1.5, 1.5, 2000)  # louder than full scale at both ends
    first, second = captured(blank, ramp, RATE_HZ)
    assert len(first) == len(second) == 960
    expected = np.clip(np.floor(32767 * ramp.astype(np.float32).astype(float) + 0.5), -32768, 32767)
    assert np.array_equal(first + second, expected[:1920])
    assert len(captured(blank, sine(500, 48000, 0.4), 48000)) == 10, "0.4 s at twice the rate"


def test_base64_there_and_back(blank: Page) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32768, 10_000, dtype=np.int16)
    text = blank.evaluate("text => toBase64(Int16Array.from(JSON.parse(text)))", json.dumps(samples.tolist()))
    assert text == base64.b64encode(samples.astype("<i2").tobytes()).decode()
    assert json.loads(blank.evaluate("text => JSON.stringify([...fromBase64(text)])", text)) == samples.tolist()
    part = "toBase64(Int16Array.of(1, 2, 3, 4).subarray(1, 3))"
    assert blank.evaluate(part) == base64.b64encode(np.array([2, 3], "<i2").tobytes()).decode()


def test_the_stages_of_a_turn(blank: Page) -> None:
    turn = {"beganAt": 1000, "stoppedAt": 1300, "transcribedAt": 1700, "firstWordAt": 1650, "firstSoundAt": 2200}
    told = blank.evaluate("turn => stagesOf(turn)", {**turn, "doneAt": 5000})
    assert told["stages"] == {"endpoint": 0.3, "transcription": 0.4, "first word": 0, "first sound": 0.5}
    assert sum(told["stages"].values()) == pytest.approx(told["toFirstSound"])
    assert told["total"] == 4
    typed = blank.evaluate("stagesOf({ beganAt: 0, firstWordAt: 250, doneAt: 600 })")
    assert typed == {"stages": {"first word": 0.25}, "toFirstSound": None, "total": 0.6}


def test_percentiles_are_of_the_nearest_rank(blank: Page) -> None:
    rows = blank.evaluate(
        """() => {
            const percentiles = new Percentiles();
            for (let n = 20; n > 0; n--) percentiles.add({ toFirstSound: n, stages: { endpoint: n / 10 } });
            percentiles.add({ toFirstSound: undefined, stages: {} });
            return percentiles.rows();
        }"""
    )
    assert rows == [
        {"stage": "total", "count": 20, "p50": 10, "p95": 19},
        {"stage": "endpoint", "count": 20, "p50": 1, "p95": 1.9},
    ]


def test_a_recording_has_a_pause_between_turns_and_only_what_was_heard(blank: Page) -> None:
    encoded = blank.evaluate(
        """async () => {
            const recording = new Recording();
            recording.add("question", Int16Array.of(1, 2, 3));
            recording.add("reply", new Int16Array(1200).fill(7));
            recording.add("reply", new Int16Array(1200).fill(8));
            recording.add("reply", new Int16Array(1200).fill(9));
            recording.cut("reply", 75);
            return toBase64(new Int16Array(await recording.wav().arrayBuffer()));
        }"""
    )
    with wave.open(io.BytesIO(base64.b64decode(encoded))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.array_equal(samples, [1, 2, 3, *[0] * 12000, *[7] * 1200, *[8] * 600])


def test_a_recording_keeps_its_last_quarter_of_an_hour(blank: Page) -> None:
    kept = blank.evaluate(
        """() => {
            const recording = new Recording();
            for (let n = 0; n < 20; n++) recording.add(n, new Int16Array(RATE_HZ * 60));
            return recording.pieces.map(({ item }) => item);
        }"""
    )
    assert kept == list(range(5, 20))


def test_a_conversation_as_text_and_as_json(blank: Page) -> None:
    latency = {"stages": {"first word": 0.25}, "toFirstSound": 0.5, "total": 1.5}
    messages = [
        {"role": "user", "text": "Who is <there>?", "time": 0, "language": "en", "id": "a", "growing": False},
        {
            "role": "assistant",
            "who": "Bard",
            "text": "Nay.",
            "time": 60000,
            "interrupted": True,
            "latency": latency,
            "session": 1,
        },
        {"role": "note", "text": "It ended.", "time": 61000},
    ]
    text = blank.evaluate("messages => asText(messages).text()", messages)
    lines = [line.partition("] ")[2] for line in text.split("\n\n")]
    assert lines == ["You: Who is <there>?", "Bard: Nay. [interrupted]", "—: It ended.\n"]
    told = json.loads(
        blank.evaluate("messages => asJson(messages, { voice: 'heart' }, [{ stage: 'total' }]).text()", messages)
    )
    assert told["settings"] == {"voice": "heart"}
    assert told["latency_s"] == [{"stage": "total"}]
    question, reply, note = told["messages"]
    assert question == {"role": "user", "text": "Who is <there>?", "time": "1970-01-01T00:00:00.000Z", "language": "en"}
    assert (reply["who"], reply["interrupted"]) == ("Bard", True)
    assert reply["latency_s"] == {"first word": 0.25, "total": 0.5, "whole reply": 1.5}
    assert note == {"role": "note", "text": "It ended.", "time": "1970-01-01T00:01:01.000Z"}


STATUSES: list[tuple[dict[str, Any], str, str]] = [
    ({"talk": {"opened": False}}, "starting", "Starting"),
    ({}, "ready", "Start the conversation, or type"),
    ({"talk": {"pushToTalk": True}}, "ready", "Hold the button while you speak, or type"),
    ({"talk": {"problem": "No model."}}, "failed", "No model."),
    ({"talk": {"problem": "Gone."}, "microphone": {"problem": "Gone."}}, "no microphone", "Gone."),
    ({"talk": {"active": True}, "realtime": {"state": "connecting"}}, "connecting", "Connecting"),
    ({"talk": {"active": True}, "microphone": {"state": "opening"}}, "connecting", "Waiting for the microphone"),
    ({"talk": {"active": True}, "realtime": {"state": "closed"}}, "connecting", "Connecting"),
    ({"talk": {"active": True}, "microphone": {"problem": "Silent."}}, "no microphone", "Silent."),
    ({"talk": {"active": True}}, "listening", "Listening"),
    ({"talk": {"active": True}, "microphone": {"echoes": True}}, "listening", "Use headphones"),
    ({"talk": {"active": True}, "microphone": {"muted": True}}, "muted", "until you unmute"),
    ({"talk": {"active": True, "pushToTalk": True}}, "ready", "or the space bar"),
    ({"talk": {"holding": True}}, "hearing", "release to send"),
    ({"talk": {"holding": True}, "microphone": {"state": "opening"}}, "connecting", "Opening the microphone"),
    ({"conversation": {"hearing": True}, "playback": {"playing": True}}, "hearing", "Hearing you"),
    ({"playback": {"playing": True}, "conversation": {"busy": True}}, "speaking", "Speaking …"),
    (
        {"playback": {"playing": True}, "talk": {"active": True}, "microphone": {"muted": True}},
        "speaking",
        "Your microphone is muted.",
    ),
    ({"playback": {"playing": True, "heldBack": True}}, "speaking", "click anywhere"),
    ({"talk": {"uploading": True}}, "thinking", "Sending the recording"),
    ({"conversation": {"busy": True}}, "thinking", "Thinking …"),
    ({"conversation": {"busy": True}, "talk": {"eventAt": -60_000}}, "thinking", "unusually long"),
    ({"realtime": {"state": "waiting"}}, "reconnecting", "The server does not answer. Reconnecting"),
    ({"realtime": {"state": "waiting", "problem": {"code": "x", "message": "Why."}}}, "reconnecting", "Why. Reconn"),
    ({"realtime": {"state": "connecting", "attempts": 2}}, "reconnecting", "Reconnecting"),
    ({"realtime": {"state": "waiting", "problem": {"code": "too_many_sessions"}}}, "busy", "no room for another"),
]


@pytest.mark.parametrize(("changed", "status", "words"), STATUSES)
def test_the_status_says_what_is_known(blank: Page, changed: dict[str, Any], status: str, words: str) -> None:
    parts: dict[str, dict[str, Any]] = {
        "talk": {"opened": True, "problem": "", "active": False, "eventAt": 0},
        "realtime": {"state": "open", "problem": None, "attempts": 0},
        "microphone": {"state": "live", "problem": "", "muted": False, "echoes": False},
        "playback": {"playing": False, "heldBack": False},
        "conversation": {"hearing": False, "busy": False},
    }
    for part, values in changed.items():
        parts[part] |= values
    parts["talk"]["eventAt"] += blank.evaluate("performance.now()")
    told = blank.evaluate("parts => statusNow(parts)", parts)
    assert told[0] == status
    assert words in told[1]


def wav(samples: np.ndarray, rate_hz: int) -> str:
    """A WAV file in base64. Samples: of each channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((samples.shape[0], 2, rate_hz, 0, "NONE", ""))
        writer.writeframes(samples.T.astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


READ = """async (encoded) => {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    return JSON.stringify([...await samplesOf(new File([bytes], "noise.wav"))]);
}"""


def test_a_recording_is_read_as_one_channel_at_our_rate(blank: Page) -> None:
    left, right = 8000 * sine(440, 48000), np.full(12000, 1000)
    samples = np.array(json.loads(blank.evaluate(READ, wav(np.stack([left, right]), 48000))))
    assert len(samples) == 6000
    expected = 4000 * sine(440, RATE_HZ) + 500
    assert np.abs(samples - expected)[100:-100].max() < 40


def test_a_recording_that_cannot_be_sent_says_why(blank: Page) -> None:
    with pytest.raises(Error, match=r"finds no sound in noise\.wav"):
        blank.evaluate(READ, base64.b64encode(b"no sound at all").decode())
    with pytest.raises(Error, match="larger than 100 MB"):
        blank.evaluate("samplesOf({ size: 100e6 + 1 })")
    long = """async () => {
        const { decodeAudioData } = OfflineAudioContext.prototype;
        OfflineAudioContext.prototype.decodeAudioData = async () => ({ duration: 601 });
        try {
            await samplesOf(new File([], "long.wav"));
        } finally {
            OfflineAudioContext.prototype.decodeAudioData = decodeAudioData;
        }
    }"""
    with pytest.raises(Error, match="longer than 10 minutes"):
        blank.evaluate(long)


def test_how_much_of_a_reply_was_heard(blank: Page) -> None:
    """Pieces with a gap between them, where the second came late, and a loudspeaker that is 0.1 s behind."""
    heard_ms = blank.evaluate(
        """() => [1, 1.35, 2, 2.6, 9].map((currentTime) => {
            const playback = new Playback({ changed() {}, played() {} });
            playback.context = { currentTime, outputLatency: 0.1 };
            playback.pieces = [{ start: 1, seconds: 0.5 }, { start: 2, seconds: 1 }];
            return playback.playedMs();
        })"""
    )
    assert heard_ms == [0, 250, 500, 1000, 1500]
    assert blank.evaluate("new Playback({ changed() {}, played() {} }).playedMs()") == 0


def test_a_reply_stands_still_while_somebody_speaks_over_it_and_goes_on(blank: Page) -> None:
    """Twice it goes on, and says after what; the third time it is an interruption."""
    told = blank.evaluate(
        """() => {
            const calls = [], sent = [];
            const context = { state: "running", currentTime: 0.5, outputLatency: 0.1 };
            for (const [name, state] of [["suspend", "suspended"], ["resume", "running"]]) {
                context[name] = () => { calls.push(name); context.state = state; };
            }
            const playback = new Playback({ changed() {}, played() {} });
            Object.assign(playback, { context, item: "reply", pieces: [{ start: 0, seconds: 3 }] });
            playback.sources.add({ stop() { calls.push("stop"); } });
            const realtime = { session: 1, send: (event) => sent.push(event) };
            const conversation = new Conversation({
                realtime, playback, recording: { cut() {} }, percentiles: {},
                changed() {}, announce() {}, titleOf: (model) => model,
            });
            const receive = (type, rest) => conversation.receive({ type, item_id: "reply", ...rest });
            receive("response.output_item.added", { item: { id: "reply", type: "message" } });
            receive("response.output_audio_transcript.delta", { delta: "Once upon a time" });
            receive("output_audio_buffer.paused", {});
            playback.wake(); // more sound arrives
            const still = [playback.paused, playback.heldBack, context.state];
            receive("output_audio_buffer.resumed", { reason: "backchannel", transcript: "Mhm." });
            receive("output_audio_buffer.paused", {});
            receive("output_audio_buffer.resumed", { reason: "noise", transcript: null });
            const [message] = conversation.messages;
            receive("output_audio_buffer.paused", {});
            receive("input_audio_buffer.speech_started", { item_id: "mine", audio_start_ms: 0 });
            playback.item = "next";
            playback.pause(); // between two pieces of sound
            conversation.lost();
            return [calls, still, message.overheard, message.interrupted, playback.paused, sent.at(-1).audio_end_ms];
        }"""
    )
    went_on = ["suspend", "resume"]
    assert told[0] == [*went_on, *went_on, "suspend", "stop", "resume", *went_on]
    assert told[1:] == [[True, False, "suspended"], ["Mhm.", "a noise"], True, False, 400]


def test_captions_follow_the_sound(blank: Page) -> None:
    """While sound still comes, at the usual speed; when all of it is there, at its own; always to the end of a word."""
    told = blank.evaluate(
        """() => {
            const message = { id: "reply", text: "One two three four five six", growing: true };
            const playback = { item: "reply", whole: false, soundMs: 500, playedMs: () => 250 };
            const conversation = new Conversation({ realtime: {}, playback, changed() {} });
            conversation.speaking = message;
            const heard = () => message.text.slice(0, conversation.follow()?.heardTo);
            const shown = [heard()];
            playback.playedMs = () => 100; // the clock of the loudspeaker went back
            shown.push(heard());
            Object.assign(message, { growing: false });
            Object.assign(playback, { whole: true, soundMs: 2700, playedMs: () => 900 });
            shown.push(heard());
            playback.playedMs = () => 2700;
            shown.push(heard());
            conversation.heard("reply");
            return [shown, conversation.follow(), conversation.charactersPerMs];
        }"""
    )
    assert told == [["One two", "One two", "One two three", "One two three four five six"], None, 0.01]


def test_models_keep_what_was_chosen_and_written(blank: Page) -> None:
    told = blank.evaluate(
        """() => {
            const model = (id, instructions = `as ${id}`) => ({ id, title: id.toUpperCase(), instructions });
            const models = new Models();
            const states = [];
            const state = () => states.push([models.list.map(({ id }) => id), models.chosen, models.instructions]);
            models.take([model("a"), model("b")]), state();
            models.add(model("b@2")), models.add(model("b@2")), (models.chosen = "b@2"), models.write("mine"), state();
            models.take([model("a"), model("b", "new")]), state(); // the version stays while it is chosen
            (models.chosen = "b"), models.take([model("a"), model("b", "new")]), state();
            models.write("own"), models.take([model("b", "newer")]), state();
            models.write("newer"), models.take([model("b", "newest")]), state(); // as the model's own: nothing is kept
            models.take([model("c")]), state();
            return [states, models.titleOf("c"), models.titleOf("gone")];
        }"""
    )
    assert told == [
        [
            [["a", "b"], "a", "as a"],
            [["a", "b", "b@2"], "b@2", "mine"],
            [["a", "b", "b@2"], "b@2", "mine"],
            [["a", "b"], "b", "new"],
            [["b"], "b", "own"],
            [["b"], "b", "newest"],
            [["c"], "c", "as c"],
        ],
        "C",
        "gone",
    ]


def test_a_reply_is_of_the_model_that_the_session_had_at_its_start(blank: Page) -> None:
    """The person chooses another model while a reply is on its way."""
    said = blank.evaluate(
        """() => {
            const realtime = { session: 1, send: () => true };
            const playback = { stop() {}, finish() {} };
            const conversation = new Conversation({
                realtime, playback, recording: {}, percentiles: {},
                changed() {}, announce() {}, titleOf: (model) => model.toUpperCase(),
            });
            const reply = (id) => ({ type: "response.output_item.added", item: { id, type: "message" } });
            conversation.receive({ type: "session.updated", session: { model: "a" } });
            conversation.receive({ type: "response.created", response: { id: "r1" } });
            conversation.handOver("B");
            conversation.receive({ type: "session.updated", session: { model: "b" } });
            conversation.receive(reply("first"));
            conversation.receive({ type: "response.created", response: { id: "r2" } });
            conversation.receive(reply("second"));
            conversation.handOver("A");
            conversation.handOver("B");
            return conversation.messages.map(({ who, text }) => who ?? text);
        }"""
    )
    assert said == ["A", "B", "From here on B answers."]


def test_languages_have_names(blank: Page) -> None:
    assert blank.evaluate("['de', 'yue', 'x', ''].map(languageName)") == ["German", "Cantonese", "x", "this language"]


def test_when_a_sample_was_spoken(blank: Page) -> None:
    """Two frames of 40 ms by the session's clock, which the page took in at 1000 and at 1050."""
    told = blank.evaluate(
        """() => {
            const realtime = new Realtime({ changed() {} });
            realtime.state = "open";
            realtime.socket = { bufferedAmount: 0, readyState: WebSocket.OPEN, send() {} };
            realtime.sound(new Int16Array(960).fill(1), 1000);
            realtime.sound(new Int16Array(960).fill(2), 1050);
            const frames = (...span) => realtime.samplesBetween(...span).map(([first]) => first);
            return [realtime.spokenAt(30), realtime.spokenAt(40), realtime.spokenAt(60),
                frames(0, 40), frames(39, 41), frames(40, 80)];
        }"""
    )
    assert told == [990, 1000, 1030, [1], [1, 2], [2]]
