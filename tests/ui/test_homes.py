"""Homes that cannot be made or written: one clear error from every command that needs one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings, settings
from voicechat_ui.cli import app

PROJECT = Path(__file__).parents[2]

COMMANDS = [
    *("models", "promote a@1", "rollback a", "generate a", "evaluate a", "heads a", "fold a out"),
    *(f"train {PROJECT}/tune/recipes/sorter.yaml", f"sweep {PROJECT}/tune/sweeps/quickstart.yaml"),
    *("trials quickstart", "report quickstart", f"compare {PROJECT}/tune/comparisons/small.yaml --write"),
    *("keys create me", "keys list", "keys revoke me", "up --port 18999", "serve --port 18999", "page --port 18999"),
]


@pytest.fixture(params=["a place that the system keeps", "a file", "below a file", "a file in its place"])
def home(request, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "home").mkdir()
    for name in ("registry", "runs", "sweeps", "models", "reports", "keys.json", "page"):
        (tmp_path / "home" / name).touch()
    home = {
        "a place that the system keeps": "/proc/home",
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "home",
        "a file in its place": tmp_path / "home",
    }[request.param]
    monkeypatch.setenv("VOICECHAT_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_home_that_cannot_be_written_is_told(home, command):
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, InputError)  # which `main` prints, and exits with 2
    assert "\n" not in str(result.exception)


def test_a_home_is_absolute_and_its_user_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for given, meant in {"": ".voicechat", "here": "here", "~/chat": "me/chat", "a/../b c?%20": "a/../b c?%20"}.items():
        chosen = Settings(home=given) if given else Settings()
        assert chosen.home == tmp_path / meant
    assert Settings(keys="~/keys.json").keys == tmp_path / "me" / "keys.json"


@pytest.mark.parametrize("given", ["~nouser/chat", "x" * 300])
def test_a_home_that_no_file_system_has_is_refused(given, monkeypatch):
    monkeypatch.setenv("VOICECHAT_HOME", given)
    settings.cache_clear()
    with pytest.raises(InputError, match="VOICECHAT_HOME"):
        settings()
    settings.cache_clear()
