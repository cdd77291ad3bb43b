"""What the `voicechat` command says of itself: the help of every command teaches, and is there at once."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from voicechat_ui.cli import app

# All in one process, where each adds nothing to what the list of the commands has imported.
HELP_OF_ALL = """\
import json, sys
from typer.testing import CliRunner
from voicechat_ui.cli import app
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
print(json.dumps(sorted(sys.modules)))
"""

LIGHT = {"voicechat_platform", "voicechat_platform.errors", "voicechat_ui", "voicechat_ui.cli"}
HEAVY = {
    *("torch", "ray", "transformers", "gradio", "optuna", "mlflow", "numpy", "scipy", "pandas", "matplotlib"),
    *("ctranslate2", "openai", "httpx", "fastapi", "pydantic_settings", "psutil", "asyncio"),
}


def walk(command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it, groups too."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


EVERY = dict(walk(get_command(app)))
LEAVES = {path: command for path, command in EVERY.items() if not hasattr(command, "commands")}


def help_of(path: tuple[str, ...]) -> str:
    return CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).stdout


def test_help_and_version_import_nothing_but_the_commands():
    asked = [["--version"], *([*path, "--help"] for path in EVERY)]
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    imported = json.loads(done.stdout)
    assert HEAVY.isdisjoint(imported)
    ours = {name for name in imported if name.startswith("voicechat_")}
    assert {name for name in ours if not name.startswith("voicechat_ui.commands")} == LIGHT


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, version("llm-voice-chat") + "\n")


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_ends_with_an_example_that_can_be_typed(path):
    command = LEAVES[path]
    last = command.help.strip().splitlines()[-1]
    start = f"Example: voicechat {' '.join(path)}"
    assert last.startswith(start)
    command.make_context(path[-1], shlex.split(last.removeprefix(start)))
    assert last in help_of(path)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_shows_the_default_of_every_option_that_takes_a_value(path):
    shown = help_of(path)
    for parameter in LEAVES[path].params:
        assert "[" not in (parameter.help or ""), f"{parameter.name}: typer reads [...] as markup, and drops it"
        if parameter.required or getattr(parameter, "is_flag", False) or parameter.name == "key":
            continue  # the key's default is the environment's: a secret
        described = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
        assert described is not None, f"{parameter.name}: give show_default"
        assert str(described) in shown, parameter.name
