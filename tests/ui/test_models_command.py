"""`voicechat models`, and the README's section "Your own model" followed word for word, against a hub on loopback."""

import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from small_gguf import small_gguf
from small_hub import SmallHub, asked_in_this_process, running_hub
from voicechat_platform.assets import locate_gguf
from voicechat_platform.errors import InputError
from voicechat_platform.model_store import add_model
from voicechat_platform.settings import settings
from voicechat_serve.application_file import local_application, read_application
from voicechat_serve.listed_models import listed_models

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = re.split(r"^## ", README.partition("## Your own model\n")[2], flags=re.MULTILINE)[0]
QWEN = "bartowski/Qwen2.5-7B-Instruct-GGUF"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def hub() -> Iterator[SmallHub]:
    with running_hub() as hub:
        files = {f"Qwen2.5-7B-Instruct-{kind}.gguf": small_gguf() for kind in ("Q4_K_M", "Q8_0")}
        hub.repositories[QWEN] = files
        hub.repositories[QWEN.replace("7B", "0.5B")] = {name.replace("7B", "0.5B"): files[name] for name in files}
        with asked_in_this_process(hub):
            yield hub


@pytest.fixture(scope="module")
def person(tmp_path_factory) -> Path:
    """A person's home folder with a model of her own."""
    home = tmp_path_factory.mktemp("person")
    (home / "models").mkdir()
    (home / "models" / "my-model.gguf").write_bytes(small_gguf())
    return home


def test_the_commands_of_the_readme(in_one_home, hub, person, monkeypatch):
    for line in block("sh").splitlines():
        command, *arguments = shlex.split(line.replace("~", str(person)))  # as a shell does
        assert command == "voicechat"
        done = in_one_home(*arguments)
        assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("qwen", "mine", hub.commit(QWEN)[:12], "40"))
    assert "There are no tuned models yet" in done.stderr
    listed = json.loads(in_one_home("models", "--json").stdout)
    assert [(model["name"], model["kind"], model["revision"]) for model in listed] == [
        ("mine", "gguf", None),
        ("qwen", "gguf", hub.commit(QWEN)),
    ]

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused = in_one_home("models", "remove", "qwen")
    assert refused.returncode == 1
    assert "Remove qwen?" in refused.stderr
    found = re.search(r"voicechat (models remove .*?)`", SECTION)
    assert found
    assert "qwen is removed: 0.0 MB are free again" in in_one_home(*found[1].split()).stdout
    missing = in_one_home("models", "remove", "qwen")
    assert missing.returncode == 2
    assert "no model 'qwen' was added; there is mine" in missing.stderr

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = in_one_home("models", "add", f"hf:{QWEN}")
    assert offline.returncode == 2
    assert f"HF_HUB_OFFLINE=0 voicechat models add hf:{QWEN}" in " ".join(offline.stderr.split())


def test_the_application_file_of_the_readme(hub, person, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(person))
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    add_model(f"hf:{QWEN}:Q4_K_M", "qwen")
    path, text = tmp_path / "my.yaml", local_application().read_text()
    theirs = re.search(r"      models:\n(?: {8,}.*\n)+", text)
    assert theirs
    path.write_text(text.replace(theirs[0], block("yaml")))
    added = tmp_path / "home" / "models" / "added"
    assert [model.path for model, _ in listed_models(read_application(path).api)] == [
        added / "qwen" / "Qwen2.5-7B-Instruct-Q4_K_M.gguf",
        person / "models" / "my-model.gguf",
        added / "Qwen2.5-0.5B-Instruct-Q4_K_M" / "Qwen2.5-0.5B-Instruct-Q4_K_M.gguf",
        locate_gguf("smollm2-135m-instruct"),
    ]

    asked = len(hub.requests)
    path.write_text(path.read_text().replace("~/models/my-model.gguf", "~/models/gone.gguf").replace("0.5B", "1B"))
    with pytest.raises(InputError, match=r"no file or folder '~/models/gone\.gguf'"):
        listed_models(read_application(path).api)
    assert len(hub.requests) == asked, "a wrong name is found before a download"
    path.write_text(path.read_text().replace("hf:bartowski/", "hf:"))
    with pytest.raises(InputError, match=r"my\.yaml:\d+: .*'hf:Qwen.*' is not an address of the hub"):
        read_application(path)
    settings.cache_clear()
