"""The registry, on a real MLflow with SQLite."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from voicechat_platform import registry as registry_module
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.errors import InputError
from voicechat_platform.model_store import find_checkpoint
from voicechat_platform.registry import Registry, parse_version
from voicechat_platform.settings import Settings


@pytest.fixture
def registry(tmp_path, monkeypatch, new_database) -> Registry:
    monkeypatch.setattr(registry_module, "settings", lambda: Settings(home=tmp_path))
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "mlflow.db").write_bytes(new_database)
    return Registry()


def record(registry, small_checkpoint, run_name="a"):
    history = [{"step": 2, "validation_loss": 2.0}, {"step": 4, "validation_loss": 1.5}]
    return registry.record("my-sweep", run_name, {"training.learning_rate": 0.1}, history, small_checkpoint)


def test_a_recorded_trial_is_a_run_and_a_version(registry, small_checkpoint):
    version = record(registry, small_checkpoint)
    assert str(version) == "romeo@1"
    assert (version.attention, version.origin, version.is_champion) == ("metric", "my-sweep/a", False)
    source = registry.client.get_model_version("romeo", "1")
    run = registry.client.get_run(source.run_id)
    assert run.data.params == {"training.learning_rate": "0.1"}
    curve = registry.client.get_metric_history(source.run_id, "validation_loss")
    assert [(point.step, point.value) for point in curve] == [(2, 2.0), (4, 1.5)]
    model, _ = load_checkpoint(version.checkpoint())
    expected, _ = load_checkpoint(small_checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


KILLED_IN_A_MIGRATION = """
import os, signal
from alembic.runtime.migration import HeadMaintainer
from voicechat_platform.registry import Registry

done, note_step = [], HeadMaintainer.update_to_step
def note_step_or_die(self, step):
    done.append(step)
    if len(done) == 46:
        os.kill(os.getpid(), signal.SIGKILL)  # a column is there, of which the database has no note yet
    note_step(self, step)
HeadMaintainer.update_to_step = note_step_or_die
Registry()
"""


def test_a_process_killed_while_it_makes_the_database_does_no_harm(tmp_path, small_checkpoint):
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_A_MIGRATION], env=environment)
    assert killed.returncode == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "settings", lambda: Settings(home=tmp_path))
        assert str(record(Registry(), small_checkpoint)) == "romeo@1"


def test_processes_that_open_a_new_registry_at_once_share_one(tmp_path):
    code = (
        "import sys\nfrom voicechat_platform.registry import Registry\nRegistry().client.create_experiment(sys.argv[1])"
    )
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path)}
    begun = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in "ab"]
    assert [process.wait() for process in begun] == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "settings", lambda: Settings(home=tmp_path))
        assert {"a", "b"} <= {found.name for found in Registry().client.search_experiments()}


def test_recording_a_trial_again_changes_nothing(registry, small_checkpoint):
    assert record(registry, small_checkpoint) == record(registry, small_checkpoint)
    assert len(registry.versions()) == 1


def test_a_recording_that_was_broken_off_is_done_again(registry, small_checkpoint, monkeypatch):
    def break_off(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "log_artifacts", break_off)
        with pytest.raises(KeyboardInterrupt):
            record(registry, small_checkpoint)
    assert registry.versions() == []
    assert str(record(registry, small_checkpoint)) == "romeo@1"


def test_a_moved_home_is_explained(registry, small_checkpoint, tmp_path):
    version = record(registry, small_checkpoint)
    (tmp_path / "registry" / "artifacts").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="put the home folder back where it was"):
        version.checkpoint()


def test_one_version_is_the_champion(registry, small_checkpoint):
    first, second = record(registry, small_checkpoint, "a"), record(registry, small_checkpoint, "b")
    assert registry.champions() == []
    registry.promote(first)
    registry.promote(second)
    assert [str(version) for version in registry.champions()] == ["romeo@2"]
    assert find_checkpoint("romeo") == second.checkpoint()
    assert find_checkpoint("romeo@1") == first.checkpoint()


def test_what_is_not_there_is_said(registry, small_checkpoint):
    record(registry, small_checkpoint)
    with pytest.raises(InputError, match=r"no model version romeo@7; there are: romeo@1"):
        registry.version("romeo", 7)
    with pytest.raises(InputError, match="neither a folder, an added model nor one with a champion"):
        find_checkpoint("juliet")


@pytest.mark.parametrize("text", ["romeo", "romeo@", "@3", "romeo@x"])
def test_a_version_is_written_name_at_number(text):
    assert parse_version("romeo@3") == ("romeo", 3)
    with pytest.raises(InputError, match="NAME@NUMBER"):
        parse_version(text)


def test_a_home_may_be_called_anything(tmp_path, monkeypatch, small_checkpoint):
    name = "a?b#c a%20b% a b:c&uri=true [a];'\"\\ \N{SNOWMAN}"
    home = tmp_path / name / "home"
    monkeypatch.setattr(registry_module, "settings", lambda: Settings(home=home))
    monkeypatch.chdir(tmp_path)
    version = Registry().record(name, "a", {}, [], small_checkpoint)
    assert (home / "registry" / "mlflow.db").exists()
    assert version.checkpoint().is_relative_to(home)
    assert (version.checkpoint() / "run.json").read_bytes() == (small_checkpoint / "run.json").read_bytes()
    Registry().promote(version)
    assert find_checkpoint("romeo") == version.checkpoint()
    assert [path.name for path in tmp_path.iterdir()] == [name]  # and nothing beside it
