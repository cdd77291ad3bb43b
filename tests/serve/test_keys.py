"""The keys file: what is kept, who may read it, and what a running service makes of its changes."""

import hashlib
import json
import os
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest

from voicechat_platform.errors import InputError
from voicechat_serve.operations.keys import (
    KeysFollowed,
    KeysUnreadableError,
    create_key,
    find_key,
    make_secret,
    read_keys,
    revoke_key,
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def test_only_a_hash_is_kept_and_for_its_owner_alone(path):
    key, secret = create_key(path, "laptop", requests_per_minute=60, concurrent_requests=2)
    assert re.fullmatch(r"vc-[\w-]{43}", secret)
    (kept,) = json.loads(path.read_text())["keys"]
    assert kept["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert (kept["name"], kept["requests_per_minute"], kept["concurrent_requests"]) == ("laptop", 60, 2)
    assert secret.removeprefix("vc-") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == (key,)


def test_a_key_is_found_by_its_secret_only(path):
    secrets = {name: create_key(path, name)[1] for name in ("anna", "ben", "clara")}
    keys = read_keys(path)
    for name, secret in secrets.items():
        assert find_key(keys, secret).name == name
    for wrong in (
        "",
        "anna",
        keys[0].id,
        keys[0].sha256,
        secrets["anna"][:-1],
        secrets["anna"] + " ",
        "\ud800",
        "ключ",
    ):
        assert find_key(keys, wrong) is None
    assert find_key((), secrets["anna"]) is None
    assert make_secret() != make_secret()


def test_an_expired_key_is_not_found(path):
    now = datetime.now(UTC)
    _, old = create_key(path, "old", expires=now - timedelta(seconds=1))
    _, young = create_key(path, "young", expires=now + timedelta(days=1))
    assert find_key(read_keys(path), old) is None
    assert find_key(read_keys(path), young).name == "young"


def test_revoking_by_id_or_by_name(path):
    first, _ = create_key(path, "first")
    second, _ = create_key(path, "second")
    assert revoke_key(path, first.id) == first
    assert revoke_key(path, "second") == second
    assert read_keys(path) == ()
    with pytest.raises(InputError, match="no key 'second'; there are: none yet"):
        revoke_key(path, "second")


def test_names_are_unique_and_plain(path):
    key, _ = create_key(path, "anna")
    for name in ("anna", key.id):
        with pytest.raises(InputError, match="choose another name"):
            create_key(path, name)
    for name in ("", " anna", "a\nb", "\x1b[31m", "a" * 65, "../a"):
        with pytest.raises(InputError, match="a key's name is"):
            create_key(path, name)
    assert len(read_keys(path)) == 1


def test_nothing_is_lost_when_many_create_at_once(path):
    def create(number: int) -> None:
        for count in range(5):
            create_key(path, f"key {number} {count}")

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = read_keys(path)
    assert len({key.name for key in keys}) == len({key.id for key in keys}) == 20
    assert sorted(file.name for file in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


CORRUPT = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"keys": [{"name": "anna"}]}',
    b'{"keys": [], "allow_all": true}',
    b'{"keys": [{"id": "1", "name": "a", "sha256": "", "created": "2030-01-01T00:00:00Z"}]}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", CORRUPT)
def test_a_corrupt_file_is_refused_and_never_written_over(path, content):
    path.write_bytes(content)
    with pytest.raises(KeysUnreadableError, match=r"keys\.json"):
        read_keys(path)
    for change in (lambda: create_key(path, "anna"), lambda: revoke_key(path, "anna")):
        with pytest.raises(KeysUnreadableError):
            change()
    assert path.read_bytes() == content


def test_a_service_follows_the_file_and_looks_once_a_second_at_most(path):
    clock = Clock()
    followed = KeysFollowed(path, required=False, clock=clock)
    assert followed.keys() is None
    key, _ = create_key(path, "anna")
    assert followed.keys() is None
    clock.now += 1
    assert followed.keys() == (key,)
    revoke_key(path, "anna")
    clock.now += 0.9
    assert followed.keys() == (key,)
    clock.now += 0.1
    assert followed.keys() == ()


@pytest.mark.parametrize("content", CORRUPT)
def test_a_service_knows_nobody_by_a_corrupt_file_until_it_is_mended(path, content, caplog):
    clock = Clock()
    create_key(path, "anna")
    good = path.read_bytes()
    followed = KeysFollowed(path, required=True, clock=clock)
    assert len(followed.keys()) == 1
    path.write_bytes(content)
    for _ in range(3):
        clock.now += 1
        with pytest.raises(KeysUnreadableError):
            followed.keys()
    assert len([record for record in caplog.records if "every request is refused" in record.message]) == 1
    path.write_bytes(good)
    clock.now += 1
    assert len(followed.keys()) == 1


def test_a_file_that_goes_away_closes_the_door(path):
    clock = Clock()
    with pytest.raises(KeysUnreadableError, match="is gone"):
        KeysFollowed(path, required=True, clock=clock).keys()
    followed = KeysFollowed(path, required=False, clock=clock)
    assert followed.keys() is None
    create_key(path, "anna")
    clock.now += 1
    assert len(followed.keys()) == 1
    path.unlink()
    clock.now += 1
    with pytest.raises(KeysUnreadableError, match="is gone"):
        followed.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_closes_the_door(path):
    clock = Clock()
    create_key(path, "anna")
    followed = KeysFollowed(path, required=True, clock=clock)
    path.chmod(0)
    with pytest.raises(KeysUnreadableError):
        followed.keys()
    path.chmod(0o600)
    clock.now += 1
    assert len(followed.keys()) == 1


def test_a_folder_in_the_files_place_closes_the_door(path):
    path.mkdir()
    with pytest.raises(KeysUnreadableError):
        KeysFollowed(path, required=False).keys()


def test_a_folder_in_the_files_place_takes_no_key(path):
    path.mkdir()
    with pytest.raises(InputError, match="is a folder: VOICECHAT_KEYS names a file"):
        create_key(path, "anna")
    assert list(path.parent.iterdir()) == [path]
