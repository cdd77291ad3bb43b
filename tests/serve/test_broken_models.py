"""Model folders that are not whole: whoever loads one says what is missing, in one line, and runs nothing of it."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines import choice
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.served_model import EngineOptions


class Malice:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def pickled(name: str) -> Callable[[Path], None]:
    def only_pickles(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Malice(folder / "ran")))

    return only_pickles


def changed(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.popitem()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def of_another_shape(folder: Path) -> None:
    weights = {name: torch.zeros(3) for name in load_file(folder / "model.safetensors")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[1]"), "config.json"),
    "config is not UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json"),
    "unknown type": (changed(model_type="juliet"), "juliet"),
    "no type": (changed(model_type=None), "config.json"),
    "code of its own": (
        changed(model_type="juliet", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        "config.json",
    ),
    "impossible sizes": (changed(hidden_size="wide"), "damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no weights in \*.safetensors"),
    "only pytorch_model.bin": (pickled("pytorch_model.bin"), r"only pytorch_model\.bin: pickles can run code"),
    "only a .pt": (pickled("model.pt"), r"only model\.pt: pickles can run code"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model cannot be read"),
    "cut weights": (cut, "model cannot be read"),
    "no safetensors": (lambda folder: (folder / "model.safetensors").write_text("Ay me!" * 9), "model cannot be read"),
    "a weight is missing": (without_a_weight, "do not hold"),
    "weights of another shape": (of_another_shape, "model cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "tokenizer is no JSON": (lambda folder: (folder / "tokenizer.json").write_text("Ay me!"), "tokenizer"),
    "tokenizer is another thing": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
    "its settings are no JSON": (lambda folder: (folder / "tokenizer_config.json").write_text("]"), "tokenizer"),
}


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(choice, "settings", lambda: Settings(home=tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(params=BREAKAGES)
def broken(request, tiny_model, tmp_path) -> tuple[Path, str]:
    breakage, told = BREAKAGES[request.param]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    breakage(folder)
    return folder, told


def refuses(load: Callable[[], object], folder: Path, told: str) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        load()
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (folder / "ran").exists()


def test_loading_one_says_what_is_wrong(broken):
    folder, told = broken
    refuses(lambda: load_checkpoint(folder), folder, told)


def test_serving_one_says_what_is_wrong(broken, home):
    folder, told = broken
    refuses(lambda: make_engine(folder, ChatTokenizer(folder), EngineOptions(engine="torch")), folder, told)


def test_a_chat_template_that_does_not_parse(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for %}")
    refuses(lambda: ChatTokenizer(folder), folder, "the chat template is damaged")


def test_what_is_prepared_lies_in_the_home_whatever_the_model_is_called(tiny_model, tmp_path, home, monkeypatch):
    """Two parts of a path, three that are alike, one of 200 characters, and dots that lead out."""
    made = []

    def make(whole: Path) -> None:
        made.append(whole)
        (whole / "model.bin").touch()

    monkeypatch.chdir(tmp_path)
    places = ["/", Path("model"), tmp_path / "a/b/c/model", tmp_path / "z/b/c/model", tmp_path / f"{'m' * 200}"]
    for place in map(Path, places[1:]):
        shutil.copytree(tiny_model, place)
    folders = [choice.prepared("converted", Path(place), make) for place in (*places, "a/../model/.")]
    assert all(folder.parent == home / "converted" and len(folder.name) < 100 for folder in folders)
    assert len(set(folders)) == len(made) == len(places)  # the last is the second


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_whose_files_have_changed_is_prepared_anew(tiny_model, tmp_path, home, name):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    before = choice.prepared("converted", folder, lambda whole: None)
    assert choice.prepared("converted", folder, lambda whole: None) == before
    content, stat = (folder / name).read_bytes(), (folder / name).stat()
    (folder / name).write_bytes(content[:-1] + b"!")
    os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a tool that copies may
    assert choice.prepared("converted", folder, lambda whole: None) != before
