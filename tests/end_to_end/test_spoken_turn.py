"""The whole system at once: a person's voice into Chromium's microphone, the real services, two spoken replies."""

import os
import re
import shutil
import socket
import wave
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import pytest
import ray
import soxr
from playwright.sync_api import Page, sync_playwright

from voicechat_platform.assets import locate
from voicechat_serve import application
from voicechat_serve.application_file import APIArguments, Engines
from voicechat_serve.generation.served_model import ServedModel
from voicechat_ui.page import mount_page

CLIP = "sense_and_sensibility_01_austen_64kb-0870"
LIBRIVOX = Path(os.environ.get("VOICECHAT_LIBRIVOX", "/usr/share/pocketsphinx/test/data/librivox"))
MICROPHONE_RATE_HZ = 48_000

# Chromium plays the file again and again, so that the person says it once more when the first reply is long over.
SILENCE_BEFORE_S, SILENCE_AFTER_S = 3, 30

WORDS_PRONOUNCED = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.SubstituteRegexes({r"\bmr\b\.?": "mister", "-": " "}),
        jiwer.RemovePunctuation(),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the page, with everything behind it running."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    model = ServedModel(id="smollm2-135m-instruct", folder=locate("smollm2-135m-instruct-int8"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        application.deploy(
            [(model, Engines())], APIArguments(), port, partial(mount_page, api_base_url=f"{address}/v1")
        )
        application.wait_until_ready(timeout_s=180)
        yield address
    finally:
        application.stop()
        ray.shutdown()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the microphone hears, and the words in it."""
    source = LIBRIVOX / f"{CLIP}.wav"
    assert source.exists(), "the LibriVox clips are not installed: `make test` installs them"
    line = next(line for line in (LIBRIVOX / "transcription").read_text().splitlines() if CLIP in line)
    words = re.sub(r"<.*?>|\(.*?\)", "", line).strip()
    with wave.open(str(source)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    speech = soxr.resample(samples, rate, MICROPHONE_RATE_HZ)
    silence = [np.zeros(int(s * MICROPHONE_RATE_HZ), "<i2") for s in (SILENCE_BEFORE_S, SILENCE_AFTER_S)]
    path = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(MICROPHONE_RATE_HZ)
        file.writeframes(np.concatenate([silence[0], speech, silence[1]]).tobytes())
    return path, words


@pytest.fixture
def page(url: str, clip: tuple[Path, str]) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is not installed: `make test` installs it"
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={clip[0]}",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.goto(url)
        page.wait_for_function("window.voicechat?.status == 'ready'")
        yield page
        browser.close()


def test_a_hands_free_conversation_of_two_turns(page: Page, clip: tuple[Path, str]) -> None:
    page.get_by_role("button", name="Settings").click()
    page.locator("#temperature input").click()
    # The same replies every time, both short enough to end before the person speaks again.
    page.get_by_role("option", name="0", exact=True).click()
    page.get_by_label("What the model is told before you talk").fill(
        "You are a friendly assistant in a spoken conversation. Answer in a few short, plain sentences."
    )
    page.get_by_role("button", name="Start conversation").click()
    page.wait_for_function("window.voicechat.status == 'listening'")
    for turn in (1, 2):
        page.wait_for_function(
            "turn => document.querySelectorAll('.said.assistant .latency').length === turn", arg=turn, timeout=120_000
        )
        page.wait_for_function("window.voicechat.status == 'listening'", timeout=60_000)
        heard = page.locator(".said.user .words").last.inner_text()
        error_rate = jiwer.wer(
            clip[1], heard, reference_transform=WORDS_PRONOUNCED, hypothesis_transform=WORDS_PRONOUNCED
        )
        assert error_rate <= 0.10, heard
        assert re.search(r"\w", page.locator(".said.assistant .words").last.inner_text())
        stages = page.locator(".said.assistant .latency").last
        for stage in ("endpoint", "transcription", "first-word", "first-sound"):
            assert stages.locator(f".numbers .{stage}").count() == 1
    assert page.locator(".said.note").all_inner_texts() == []
    assert page.locator(".said.user").count() == page.locator(".said.assistant").count() == 2
    sound = page.evaluate("({...window.voicechat})")
    assert sound["playedSeconds"] > 1
    assert sound["rms"] > 0.01
    page.get_by_role("button", name="End", exact=True).click()
    page.wait_for_function("window.voicechat.status == 'ready'")
