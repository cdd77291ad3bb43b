"""`voicechat keys`, and what `up`, `serve` and `page` say about listening beyond this machine."""

import hashlib
import json
import re

import pytest

from voicechat_serve.operations.keys import create_key


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
    assert "the service now refuses all requests" in last.stderr
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


@pytest.mark.parametrize("command", ["up", "serve", "page"])
def test_listening_beyond_this_machine_needs_a_key(voicechat, command):
    told = (
        "0.0.0.0 can be reached from other machines, and there is no key: create one with `voicechat keys create NAME`"
    )
    for result in (voicechat(command, "--host", "0.0.0.0"), voicechat(command, VOICECHAT_HOST="0.0.0.0")):
        assert result.returncode == 2
        assert told in result.stderr


def test_nothing_starts_with_a_corrupt_file(voicechat, tmp_path):
    (tmp_path / "home" / "keys.json").write_text("{")
    result = voicechat("page")
    assert result.returncode == 2
    assert "keys.json: Invalid JSON" in result.stderr


def test_an_address_that_is_not_this_machines(voicechat, tmp_path, free_port):
    create_key(tmp_path / "home" / "keys.json", "anna")
    port = free_port()
    for host in ("192.0.2.1", "no-such-name.invalid"):
        result = voicechat("page", "--host", host, "--port", port)
        assert result.returncode == 2
        assert f"cannot listen on {host}, port {port}" in result.stderr
