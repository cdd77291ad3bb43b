"""`voicechat up` as a person runs it: a champion and the chat model served with the page, and Ctrl-C leaves nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from voicechat_platform.settings import settings

SWEEP = """\
name: small
recipe:
  name: shakespeare
  corpus: {validation_fraction: 0.005}
  model: {layers: 1, heads: 2, width: 32, context: 128}
  training: {steps: 40, batch_size: 4, evaluate_every: 20, warmup_steps: 5}
search:
  model.attention: {choice: [metric]}
trials: 1
"""


def run(home: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "voicechat_ui.cli", *arguments],
        env={**os.environ, "VOICECHAT_HOME": str(home), "VOICECHAT_CPUS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a promoted model, sharing the prepared chat model and Whisper with the other tests."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(settings().folder("models"))
    (tmp_path / "small.yaml").write_text(SWEEP)
    sweep = run(home, "sweep", str(tmp_path / "small.yaml"), "--promote")
    _, stderr = sweep.communicate(timeout=180)
    assert sweep.returncode == 0, stderr
    return home


def test_up_serves_page_and_api_and_leaves_no_process_behind(home: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    up = run(home, "up", "--port", str(port), "--whisper", "tiny.en")
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 180
        while True:
            assert up.poll() is None, up.communicate()[1]
            assert time.monotonic() < deadline, "not ready in 180 s"
            try:
                ready = httpx.get(f"{url}/ready", timeout=5)
            except httpx.TransportError:
                ready = None
            if ready is not None and ready.status_code == 200:
                break
            time.sleep(0.5)
        children = psutil.Process(up.pid).children(recursive=True)
        assert children
        page = httpx.get(url)
        assert page.status_code == 200
        assert "llm-voice-chat" in page.text
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        assert {"shakespeare", "smollm2-135m-instruct"} <= {model.id for model in client.models.list()}
        question = [{"role": "user", "content": "Who is there?"}]
        replies = (  # so small a model may end its reply before the first word
            client.chat.completions.create(model="shakespeare", messages=question, max_tokens=30, seed=seed)
            for seed in range(10)
        )
        assert any(reply.choices[0].message.content for reply in replies)
        listening = {
            connection.laddr.ip
            for process in [psutil.Process(up.pid), *children]
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    finally:
        up.send_signal(signal.SIGINT)
        _, stderr = up.communicate(timeout=60)
    assert up.returncode == 0, stderr
    assert f"Talk:  {url}" in stderr
    assert f"curl {url}/v1/chat/completions" in stderr
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
