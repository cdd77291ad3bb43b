"""`voicechat up` as a person runs it: the API, the page, a spoken conversation, and a Ctrl-C that leaves nothing."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import jiwer
import numpy as np
import openai
import psutil
import pytest
import soxr
from playwright.sync_api import Page, sync_playwright

from small_run import train_small
from voicechat_platform.registry import Registry
from voicechat_platform.settings import settings

LIBRIVOX = Path(os.environ.get("VOICECHAT_LIBRIVOX", "/usr/share/pocketsphinx/test/data/librivox"))
CLIPS = ("sense_and_sensibility_01_austen_64kb-0890", "sense_and_sensibility_01_austen_64kb-0930")
MICROPHONE_RATE_HZ = 48_000

# The second utterance comes while or after the first reply is spoken; Chromium plays the file again after the last.
SILENCES_S = (1, 12, 120)

WORDS_PRONOUNCED = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.SubstituteRegexes({"-": " "}),
        jiwer.RemovePunctuation(),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a champion, sharing the prepared chat model and Whisper with the other tests."""
    folder = tmp_path_factory.mktemp("up")
    home = folder / "home"
    home.mkdir()
    (home / "models").symlink_to(settings().folder("models"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOICECHAT_HOME", str(home))
        settings.cache_clear()
        registry = Registry()
        registry.promote(registry.record("train", "romeo", {}, [], train_small(folder)))
    settings.cache_clear()
    return home


@pytest.fixture(scope="module")
def up(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The process, when it answers: its address, what it has told, and the processes below it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "up.txt"
    with log.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "voicechat_ui.cli", "up", "--port", str(port)],
            env={**os.environ, "VOICECHAT_HOME": str(home), "VOICECHAT_CPUS": "2"},
            stderr=told,
        )
    try:
        deadline = time.monotonic() + 400
        while not is_ready(f"http://127.0.0.1:{port}/ready"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"not ready in 400 s: {log.read_text()}"
            time.sleep(0.5)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        yield SimpleNamespace(process=process, url=f"http://127.0.0.1:{port}", log=log, children=children)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_it_serves_page_and_api_on_this_machine_alone(up: SimpleNamespace) -> None:
    page = httpx.get(up.url)
    assert page.status_code == 200
    assert "llm-voice-chat" in page.text
    client = openai.OpenAI(base_url=f"{up.url}/v1", api_key="none")
    assert {"romeo", "smollm2-135m-instruct"} <= {model.id for model in client.models.list()}
    question = [{"role": "user", "content": "Who is there?"}]
    replies = (  # so small a model may end its reply before the first word
        client.chat.completions.create(model="romeo", messages=question, max_tokens=30, seed=seed) for seed in range(10)
    )
    assert any(reply.choices[0].message.content for reply in replies)
    listening = {
        connection.laddr.ip
        for process in [psutil.Process(up.process.pid), *up.children]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What the microphone hears, and the words of its two utterances."""
    lines = (LIBRIVOX / "transcription").read_text().splitlines()
    words, sound = [], [np.zeros(SILENCES_S[0] * MICROPHONE_RATE_HZ, "<i2")]
    for clip, silence_s in zip(CLIPS, SILENCES_S[1:], strict=True):
        source = LIBRIVOX / f"{clip}.wav"
        assert source.exists(), "the LibriVox clips are not installed: `make test` installs them"
        line = next(line for line in lines if clip in line)
        words.append(re.sub(r"<.*?>|\(.*?\)", "", line).strip())
        with wave.open(str(source)) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        sound += [soxr.resample(samples, rate, MICROPHONE_RATE_HZ), np.zeros(silence_s * MICROPHONE_RATE_HZ, "<i2")]
    path = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, MICROPHONE_RATE_HZ, 0, "NONE", ""))
        file.writeframes(np.concatenate(sound).tobytes())
    return path, words


@pytest.fixture
def page(up: SimpleNamespace, microphone: tuple[Path, list[str]]) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is not installed: `make test` installs it"
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone[0]}",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.goto(up.url)
        page.wait_for_function("window.voicechat?.status == 'ready'")
        yield page
        browser.close()


@pytest.mark.alone  # sound goes on at its own pace, however slow the services are
def test_a_hands_free_conversation_of_two_turns(page: Page, microphone: tuple[Path, list[str]]) -> None:
    page.get_by_role("button", name="Settings").click()
    page.locator("#temperature input").click()
    page.get_by_role("option", name="0", exact=True).click()  # the same replies every time, both short
    page.get_by_role("button", name="Start conversation").click()
    page.wait_for_function("window.voicechat.status == 'listening'")
    page.wait_for_function("document.querySelectorAll('.said.assistant .latency').length === 2", timeout=120_000)
    page.wait_for_function("window.voicechat.status == 'listening'", timeout=60_000)
    assert page.locator(".said.note").all_inner_texts() == []
    heard, replies = (page.locator(f".said.{role}") for role in ("user", "assistant"))
    assert heard.count() == replies.count() == 2
    for turn, words in enumerate(microphone[1]):
        text = heard.nth(turn).locator(".words").inner_text()
        error_rate = jiwer.wer(words, text, reference_transform=WORDS_PRONOUNCED, hypothesis_transform=WORDS_PRONOUNCED)
        assert error_rate <= 0.15, text
        assert re.search(r"\w", replies.nth(turn).locator(".words").inner_text())
        for stage in ("endpoint", "transcription", "first-word", "first-sound"):
            assert replies.nth(turn).locator(f".latency .numbers .{stage}").count() == 1
    sound = page.evaluate("({...window.voicechat})")
    assert sound["playedSeconds"] > 1
    assert sound["rms"] > 0.01
    page.get_by_role("button", name="End", exact=True).click()
    page.wait_for_function("window.voicechat.status == 'ready'")


def test_ctrl_c_leaves_no_process_behind(up: SimpleNamespace) -> None:
    children = [*up.children, *psutil.Process(up.process.pid).children(recursive=True)]
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=60) == 0, up.log.read_text()
    told = up.log.read_text()
    assert f"Talk:  {up.url}" in told
    assert f"curl {up.url}/v1/chat/completions" in told
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
