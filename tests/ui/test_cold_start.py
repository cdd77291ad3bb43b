"""What a command imports: none that reads a file, or that needs no model, waits for torch and its like."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from begun_sweep import begun_sweep
from voicechat_platform.settings import settings
from voicechat_platform.training.history import Evaluation
from voicechat_tune.search.trials import RunKey

SWEEP = """\
name: rates
search: {training.learning_rate: {loguniform: [0.001, 0.1]}}
trials: 1
"""

FAIR = """\
name: fair
baseline: standard
variants: {standard: {model.attention: standard}, metric: {model.attention: metric}}
tuning: {training.learning_rate: [0.001, 0.01]}
"""

HEAVY = ("torch", "ray", "transformers", "gradio", "mlflow", "matplotlib", "ctranslate2", "openai")

# All in one process: what one command has imported would be told of the next ones, too.
RUN_ALL = """\
import json, sys
from typer.testing import CliRunner
from voicechat_ui.cli import app
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    heavy = [name for name in {heavy} if name in sys.modules]
    print(json.dumps([result.exit_code, str(result.exception), result.stdout, heavy]))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, the working folder beside it."""
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


def imported_by(commands: list[list[str]]) -> list[tuple[int, str, str, list[str]]]:
    """Of each command, run in one process: exit code, error, output and the heavy libraries that are there then."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL.format(heavy=HEAVY)],
        input=json.dumps(commands),
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def rates(home, tmp_path) -> str:
    """A sweep with a trial that is told of."""
    study = begun_sweep(SWEEP, tmp_path)
    study.begin_trial(None, {"training.learning_rate": 0.01})
    evaluation = Evaluation(1, 2.5, 2.5, 2.5, 2.5, 0.01, 9.0, 0.1, 1.0, 1.0)
    study.record(RunKey(1), {**asdict(evaluation), "spent": 1.0}, clock=1)
    return study.sweep.name


def test_commands_that_need_no_model_import_no_torch(rates, tmp_path):
    commands = {
        "trials": ["trials", rates],
        "trial": ["trial", rates, "1"],
        "keys create": ["keys", "create", "anna"],
        "keys list": ["keys", "list"],
        "keys revoke": ["keys", "revoke", "anna"],
        "schema": ["schema", "--out", str(tmp_path / "schemas")],
    }
    for name, (code, error, output, heavy) in zip(commands, imported_by(list(commands.values())), strict=True):
        assert code == 0, (name, error, output)
        assert not heavy, name


def test_the_registry_is_asked_without_torch(home):
    asked = [["models"], ["promote", "tiny@1"], ["rollback", "tiny"], ["generate", "tiny"]]
    for command, (_, error, _, heavy) in zip(asked, imported_by(asked), strict=True):
        assert heavy == ["mlflow"], (command, error)


def test_what_a_person_misspells_is_told_before_anything_heavy_is_imported(rates, tmp_path):
    """Files that are missing, and files that are wrong; names of sweeps; addresses; places to write to."""
    (tmp_path / "play.txt").write_text("ROMEO:\nA line.\n\n" * 99)
    (tmp_path / "file").write_text("")
    (tmp_path / "old.gguf").write_text("")
    wrong = {
        "recipe": "training: {stepps: 2}",
        "text": "corpus: {source: gone.txt}",
        "start": "init_from: ./gone",
        "sweep": SWEEP + "trails: 2",
        "comparison": "name: a\nvariants: 3",
        "right": f"corpus: {{source: {tmp_path / 'play.txt'}}}",
        "fair": FAIR,
        "textless": SWEEP + "recipe: {corpus: {source: gone.txt}}",
        "unwritable": SWEEP + f"storage: {tmp_path / 'file' / 'sweeps'}",
        "yaml": "{",
    }
    for name, text in wrong.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "taken" / "figures").mkdir(parents=True)
    (tmp_path / "taken" / "report.html").mkdir()
    (tmp_path / "taken" / "heads.json").mkdir()
    (tmp_path / "taken" / "recipe.json").mkdir()
    expected = {
        ("sweep", "none.yaml"): "there is no such file",
        ("sweep", "none.yaml", "--dry-run"): "there is no such file",
        ("compare", "none.yaml"): "there is no such file",
        ("train", "none.yaml"): "there is no such file",
        ("serve", "--application", "none.yaml"): "there is no such file",
        ("trials", "none.yaml"): "there is no such file",
        ("report", "none"): "there is no sweep 'none'",
        ("trials", "none"): "there is no sweep 'none'",
        ("trial", "none", "1"): "there is no sweep 'none'",
        ("promote", "tiny"): "NAME@NUMBER",
        ("evaluate", "checkpoint", "--corpus", "none.txt"): "corpus 'none.txt': there is no such file",
        ("evaluate", "."): "is not a checkpoint",
        ("generate", "."): "is not a checkpoint",
        ("heads", "."): "is not a checkpoint",
        ("fold", ".", "new"): "is not a checkpoint",
        ("sweep", "sweep.yaml"): "sweep.yaml:4: trails: unknown field; did you mean trials?",
        ("sweep", "textless.yaml"): "corpus 'gone.txt': there is no such file",
        ("sweep", "unwritable.yaml"): "cannot be written: Not a directory",
        ("sweep", "yaml.yaml"): "not valid YAML",
        ("compare", "comparison.yaml"): "comparison.yaml:2: variants",
        ("train", "recipe.yaml"): "did you mean steps?",
        ("train", "text.yaml"): "corpus 'gone.txt': there is no such file",
        ("train", "start.yaml"): "gone",
        ("serve", "--application", "yaml.yaml"): "not valid YAML",
        ("heads", "checkpoint", "--out", "file"): "is not a folder",
        ("heads", "checkpoint", "--out", "file/heads"): "cannot be written: Not a directory",
        ("heads", "checkpoint", "--out", "taken"): "heads.json is a folder",
        ("report", rates, "--out", "file"): "cannot be written: Not a directory",
        ("report", rates, "--out", "taken"): "report.html is a folder",
        ("compare", "fair.yaml", "--out", "file/report"): "cannot be written: Not a directory",
        ("compare", "fair.yaml", "--write", "--out", "taken"): "report.html is a folder",
        ("schema", "--out", "file"): "is not a folder",
        ("schema", "--out", "taken"): "recipe.json is a folder",
        ("train", "right.yaml", "--out", "file"): "is not a folder",
        ("talk", "file", "--out", "checkpoint"): "checkpoint is a folder",
        ("talk", "file", "--out", "file/reply.wav"): "file is not a folder",
        ("talk", "file", "--out", "./file"): "is the input: give another file",
        ("fold", "checkpoint", "file"): "is not a folder",
        ("fold", "checkpoint", "checkpoint"): "is not empty: give a new folder",
        ("fold", "checkpoint", "new.gguf"): "give --format gguf",
        ("fold", "checkpoint", "new", "--format", "gguf"): "does not end with .gguf",
        ("fold", "checkpoint", "old.gguf", "--format", "gguf"): "old.gguf exists: give a new file",
        ("fold", "checkpoint", "file/new.gguf", "--format", "gguf"): "file is not a folder",
        ("page", "--api", "notaurl"): "'notaurl' is not the base URL of an API",
        ("talk", "--text", "--url", "localhost:8000/v1"): "is not the base URL of an API",
        ("load-test", "--url", "http://127.0.0.1:99999/v1"): "is not the base URL of an API (invalid port",
        ("load-test", "--endpoint", "transcriptions", "--sound", "none.wav"): "none.wav cannot be read: No such file",
    }
    for command, (code, error, _, heavy) in zip(expected, imported_by(list(map(list, expected))), strict=True):
        assert expected[command] in error, command
        assert code == 1, command  # of CliRunner, for an exception; `main` makes 2 of it
        assert not heavy, command
