"""Files of ours that a disk or a person has damaged: each gives one error that names the file, or does no harm."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from changed_json import changed_copies
from voicechat_platform import registry as registry_module
from voicechat_platform.checkpoint_files import check_is_whole, read_run
from voicechat_platform.checkpoints import load_checkpoint, load_training_state
from voicechat_platform.corpora import texts
from voicechat_platform.errors import InputError, RegistryError
from voicechat_platform.registry import Registry
from voicechat_platform.settings import Settings
from voicechat_platform.training.history import read_history
from voicechat_platform.training.recipe import read_recipe
from voicechat_platform.training.run_folder import RunFolder

DAMAGE = {
    "empty": b"",
    "an object": b"{}",
    "a list": b"[]",
    "null": b"null",
    "text": b"not what it was\n" * 50,
    "no UTF-8": bytes(range(255, 0, -1)) * 40,
    "NUL bytes": b"\0" * 8192,
    "lists in lists": b"[" * 100_000,
    "a long number": b"9" * 10_000,
    "another shape": b'{"recipe": 3, "files": [], "history": {}, "metrics": null}',
    "the first half": None,
    "no middle": None,
}


def damaged(whole: bytes, kind: str) -> bytes:
    third = len(whole) // 3
    if kind == "the first half":
        return whole[: len(whole) // 2]
    if kind == "no middle":
        return whole[:third] + b"\0" * third + whole[2 * third :]
    return DAMAGE[kind] or b""


def read_all(checkpoint: Path) -> None:
    read_run(checkpoint)
    read_recipe(checkpoint)
    read_history(checkpoint)


@pytest.fixture
def checkpoint(tmp_path, small_checkpoint) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "run" / "last"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_json_is_named_and_a_sweeps_run_begins_anew(checkpoint, kind):
    recipe, path = read_recipe(checkpoint), checkpoint / "run.json"
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(InputError, match=r"last/run\.json"):
        read_all(checkpoint)
    run = RunFolder(checkpoint.parent)
    assert run.of_recipe(recipe) is None
    assert not checkpoint.exists()
    assert len(list(checkpoint.parent.glob("damaged-*"))) == 1, "nothing is lost"
    assert run.of_recipe(recipe) is None, "a second time"


def test_a_run_of_another_recipe_is_set_aside_in_a_sweep(checkpoint):
    run, recipe = RunFolder(checkpoint.parent), read_recipe(checkpoint)
    assert run.of_recipe(recipe) == checkpoint
    assert run.of_recipe(recipe.model_copy(update={"seed": 9})) is None
    assert not checkpoint.exists()


def test_a_run_json_of_another_shape_is_refused_or_can_be_used(checkpoint):
    path = checkpoint / "run.json"
    whole = json.loads(path.read_text())
    refused = 0
    for place, hostile, changed in changed_copies(whole, (None, "x", -1, 2**40, 1.5, [], {}, [None], {"a": 1})):
        path.write_text(json.dumps(changed))
        try:
            read_all(checkpoint)
            check_is_whole(checkpoint)
        except InputError as error:
            refused += "run.json" in str(error) or "files" in place
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {place} = {hostile}") from error
    assert refused > 100


def test_a_recipe_of_an_older_version_is_refused_in_plain_words(checkpoint):
    path = checkpoint / "run.json"
    run = json.loads(path.read_text())
    run["recipe"]["seed"] = 2**40
    run["recipe"]["of_old"] = 1
    path.write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"run\.json: recipe\.seed: Input should be less than 4294967296") as refused:
        RunFolder(checkpoint.parent).resume_from(read_recipe(checkpoint))
    assert "recipe.of_old: unknown field" in str(refused.value)
    assert load_checkpoint(checkpoint), "the model itself is whole"


@pytest.mark.parametrize("kind", [*DAMAGE, "a tensor", "another dict"])
def test_a_damaged_training_state_is_named(checkpoint, kind):
    path = checkpoint / "training_state.pt"
    (checkpoint / "run.json").unlink()  # its checksums would tell before
    if kind in ("a tensor", "another dict"):
        torch.save(torch.zeros(2) if kind == "a tensor" else {"step": 3}, path)
    else:
        path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(InputError, match=r"training_state\.pt is (missing or )?damaged"):
        load_training_state(checkpoint)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_registry_is_named_and_left_as_it_is(tmp_path, new_database, kind, monkeypatch, caplog):
    monkeypatch.setattr(registry_module, "settings", lambda: Settings(home=tmp_path))
    path = tmp_path / "registry" / "mlflow.db"
    path.parent.mkdir()
    content = damaged(new_database, kind)
    path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"registry.*mlflow\.db is .*move it away"):
        Registry().versions()
    assert path.read_bytes() == content
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", [*DAMAGE, "gone"])
def test_a_damaged_kept_corpus_is_named(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(texts, "settings", lambda: Settings(home=tmp_path))
    folder = tmp_path / "corpora" / texts.TINY_SHAKESPEARE
    folder.mkdir(parents=True)
    if kind != "gone":
        (folder / "input.txt").write_bytes(damaged(b"First Citizen:\n" * 100, kind))
    with pytest.raises(InputError, match=r"input\.txt is missing or damaged: delete .* downloads it again"):
        texts.read_text(texts.TINY_SHAKESPEARE)
