"""`voicechat keys`, and what `up`, `serve` and `page` say about listening beyond this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_serve.operations.keys import create_key
from voicechat_ui.cli import app


@pytest.fixture
def voicechat(tmp_path):
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "voicechat_ui.cli", *arguments],
            env={**os.environ, "VOICECHAT_HOME": str(tmp_path / "home"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_help_has_an_example(voicechat, command):
    result = voicechat("keys", command, "--help")
    assert result.returncode == 0
    assert f"Example: voicechat keys {command}" in result.stdout
    assert command in voicechat("keys").stdout


def test_create_list_revoke(voicechat, tmp_path):
    created = voicechat("keys", "create", "laptop", "--requests-per-minute", "60", "--concurrent", "2")
    assert created.returncode == 0, created.stderr
    assert re.fullmatch(r"vc-[\w-]{43}\n", created.stdout)  # and nothing else: KEY=$(voicechat keys create laptop)
    secret = created.stdout.strip()
    assert secret not in created.stderr
    other = json.loads(voicechat("keys", "create", "phone", "--days", "30", "--json").stdout)
    limits = {"requests_per_minute", "concurrent_requests"}
    assert set(other) == {"id", "name", "created", "expires", *limits, "operator", "key"}
    assert not other["operator"]

    kept = json.loads((tmp_path / "home" / "keys.json").read_text())["keys"]
    assert [key["sha256"] for key in kept] == [
        hashlib.sha256(key.encode()).hexdigest() for key in (secret, other["key"])
    ]
    table = voicechat("keys", "list").stdout
    assert all(word in table for word in (kept[0]["id"], "laptop", "60", "never", "phone", "default"))
    listed = voicechat("keys", "list", "--json").stdout
    assert [key["name"] for key in json.loads(listed)] == ["laptop", "phone"]
    assert all(word not in table + listed for word in (secret[3:], kept[0]["sha256"]))

    assert "laptop" in voicechat("keys", "revoke", "laptop").stdout
    last = voicechat("keys", "revoke", other["id"])
    assert "nobody is let in now" in last.stderr
    assert json.loads(voicechat("keys", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "a/b"), "a key's name is"),
        (("create", "a", "--concurrent", "0"), "Invalid value for '--concurrent'"),
        (("revoke", "nobody"), "there is no key 'nobody'; there are: none yet"),
    ],
)
def test_bad_input(voicechat, arguments, message):
    result = voicechat("keys", *arguments)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


def test_a_corrupt_file_is_named(voicechat, tmp_path):
    path = tmp_path / "elsewhere.json"
    path.write_text("{")
    for arguments in (("keys", "list"), ("keys", "create", "a"), ("keys", "revoke", "a")):
        result = voicechat(*arguments, VOICECHAT_KEYS=str(path))
        assert result.returncode == 2
        assert f"{path}: Invalid JSON" in result.stderr
    assert path.read_text() == "{"


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """What a command is refused with; in this process, for each would take seconds to import libraries in its own."""
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))

    def refusal(*arguments: str) -> str:
        settings.cache_clear()
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, InputError)  # `main` prints it and exits with 2
        return str(result.exception)

    yield refusal
    settings.cache_clear()


@pytest.mark.parametrize("command", ["up", "serve", "page"])
def test_listening_beyond_this_machine_needs_a_key(refusal, command, monkeypatch):
    told = (
        "0.0.0.0 can be reached from other machines, and there is no key: create one with `voicechat keys create NAME`"
    )
    assert told in refusal(command, "--host", "0.0.0.0")
    monkeypatch.setenv("VOICECHAT_HOST", "0.0.0.0")
    assert told in refusal(command)


def test_nothing_starts_with_a_corrupt_file(refusal, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "keys.json").write_text("{")
    assert "keys.json: Invalid JSON" in refusal("page")


def test_an_address_that_is_not_this_machines(refusal, tmp_path):
    create_key(tmp_path / "home" / "keys.json", "anna")
    for host in ("192.0.2.1", "no-such-name.invalid"):
        assert f"cannot listen on {host}, port 18766" in refusal("page", "--host", host, "--port", "18766")
