"""Where a person wants something written, and whom they want asked: looked at before any work, and left as it is."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicechat_platform.errors import InputError
from voicechat_platform.paths import api_address, writable_file, writable_folder


def test_a_folder_that_can_be_made_is_not_made(tmp_path):
    assert writable_folder(tmp_path / "new" / "deeper") == tmp_path / "new" / "deeper"
    assert writable_file(tmp_path / "new" / "file") == tmp_path / "new" / "file"
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "file").write_text("old")
    assert writable_folder(tmp_path, "file", "other") == tmp_path
    assert writable_file(tmp_path / "file") == tmp_path / "file"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_home_and_the_working_folder_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert writable_folder("~/a") == writable_folder("a") == tmp_path / "a"


@pytest.mark.parametrize("place", ["file", "file/a", "file/a/b", "/dev/null", "/proc/a", "dangling", "a" * 300, "a\0"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("old")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "link")
    with pytest.raises(InputError, match=r"cannot|is not a folder"):
        writable_folder(tmp_path / place)
    with pytest.raises(InputError, match=r"cannot|is not a folder"):
        writable_file(tmp_path / place / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]
    assert (tmp_path / "file").read_text() == "old"


def test_things_of_the_wrong_kind_are_named(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html is a folder"):
        writable_folder(tmp_path, "other", "report.html")
    with pytest.raises(InputError, match=r"report\.html is a folder"):
        writable_file(tmp_path / "report.html")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_looked_at(tmp_path):
    (tmp_path / "mine").write_text("old")
    (tmp_path / "mine").chmod(0o444)
    with pytest.raises(InputError, match="cannot be overwritten"):
        writable_folder(tmp_path, "mine")
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        writable_folder(tmp_path / "new")


def test_a_whole_address_is_taken_as_it_is_meant():
    assert api_address("http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/v1"
    assert api_address(" https://Example.com/v1/ ") == "https://example.com/v1"
    assert api_address("http://[::1]:8000/v1") == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    "address",
    [
        *("notaurl", "", " ", "localhost:8000/v1", "127.0.0.1:8000", "/v1", "http:/localhost/v1", "http://", "://a"),
        *("ws://localhost/v1", "file:///v1", "http://:80/v1", "http://a:b/v1", "http://a:99999/v1", "http://[::1/v1"),
        *("http://a b/v1", "http://300.1.1.1/v1", "http://a/v1?key=1", "http://a/v1#top"),
    ],
)
def test_what_is_no_address_of_an_api_is_refused_by_name(address):
    with pytest.raises(InputError, match="is not the base URL of an API") as refusal:
        api_address(address)
    assert repr(address) in str(refusal.value)
    assert "http://127.0.0.1:8000/v1" in str(refusal.value)


@given(st.text())
def test_any_text_is_an_address_or_is_refused(text):
    with contextlib.suppress(InputError):
        assert api_address(text).startswith(("http://", "https://"))
