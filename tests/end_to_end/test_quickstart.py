"""The first `voicechat up` on an empty home: the packaged sweep, whole, and what it promotes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest


@pytest.mark.nightly
def test_the_first_start_tunes_promotes_and_serves_a_good_model(tmp_path: Path):
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path), "VOICECHAT_CPUS": "2"}
    command = [sys.executable, "-m", "voicechat_ui.cli"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        up = subprocess.Popen([*command, "up", "--port", str(port)], env=environment, stderr=log)
        try:
            deadline = time.monotonic() + 900
            while True:
                assert up.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(1)
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    continue
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(timeout=60)
    listed = subprocess.run([*command, "models", "--json"], env=environment, capture_output=True, check=True)
    versions = json.loads(listed.stdout)
    command += ["trials", "quickstart", "--json"]  # the registry has those that were not stopped early
    trials = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(trials) >= 4
    assert {trial["point"]["model.attention"] for trial in trials} == {"standard", "metric"}
    (champion,) = (version for version in versions if version["is_champion"])
    assert champion["nats_per_character"] == min(version["nats_per_character"] for version in versions)
    # A character bigram has 2.48; below 1.75 samples are words and lines.
    assert champion["nats_per_character"] < 1.75
    assert "promoted to champion" in (tmp_path / "log").read_text()
