"""Models by a path, a name or an address, from a hub on loopback that has every fault."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from small_gguf import KEYS, TENSORS, small_gguf
from small_hub import SmallHub, asked_in_this_process, running_hub
from voicechat_platform import hub as hub_module
from voicechat_platform import model_store
from voicechat_platform.assets import CATALOGUE, locate, packaged_files
from voicechat_platform.errors import InputError
from voicechat_platform.hub import HubError
from voicechat_platform.model_store import (
    add_model,
    added_models,
    find_checkpoint,
    find_model,
    remove_model,
    unfinished_downloads,
)
from voicechat_platform.settings import settings

BIG = small_gguf(tensors={**TENSORS, "big.weight": ([256, 2048], 0, 256 * 2048 * 4)})
"""2 MB, so that a download can be interrupted in its middle."""
SMALL = small_gguf()
REPOSITORY = "people/Small-GGUF"

ADD = """\
import sys
from voicechat_platform.errors import InputError
from voicechat_platform.model_store import add_model
try:
    print(add_model(sys.argv[1]).name)
except InputError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[SmallHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path) -> Iterator[SmallHub]:
    """A sound hub, and a home folder of the test's own."""
    address = server.address
    server.__init__(address)
    server.repositories[REPOSITORY] = {
        "README.md": b"Small models.",
        "Small-Q4_K_M.gguf": SMALL,
        "Small-Q8_0.gguf": small_gguf({**KEYS, "general.name": "Larger"}),
        "mmproj-Small.gguf": b"of another kind",
    }
    server.repositories["people/Big"] = {"Big-Q4_0.gguf": BIG}
    with asked_in_this_process(server) as patch:
        patch.setattr(hub_module, "PAUSE_S", 0)
        patch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        patch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
        settings.cache_clear()
        yield server
    settings.cache_clear()


@pytest.fixture
def gguf(tmp_path) -> Path:
    path = tmp_path / "mine.gguf"
    path.write_bytes(SMALL)
    return path


def rest(name: str) -> list[Path]:
    return sorted((model_store.store() / f".{name}.download").glob("*"))


def test_a_file_and_a_folder_are_found_and_a_damaged_file_is_refused(hub, gguf, tmp_path):
    assert find_model(str(gguf)) == gguf
    assert find_model(str(tmp_path)) == tmp_path
    gguf.write_bytes(SMALL[:-100])
    with pytest.raises(InputError, match=r"mine\.gguf is cut off"):
        find_model(str(gguf))
    with pytest.raises(InputError, match=r"no file or folder 'models/none\.gguf'"):
        find_model("models/none.gguf")


def test_the_packaged_model_is_served_from_its_file_and_trained_from_its_folder(hub, monkeypatch):
    name = "smollm2-135m-instruct"
    assert [find_model(name)] == packaged_files(CATALOGUE[name])
    monkeypatch.setattr(model_store, "locate", lambda name: Path("folder", name))
    assert find_checkpoint(name) == Path("folder", name)


def test_a_model_of_the_hub_is_downloaded_once_and_pinned(hub):
    commit = hub.commit(REPOSITORY)
    path = find_model(f"hf:{REPOSITORY}")
    assert path == settings().home / "models" / "added" / "Small-Q4_K_M" / "Small-Q4_K_M.gguf"
    assert path.read_bytes() == SMALL
    record = json.loads((path.parent / "source.json").read_text())
    expected = {"file": "Small-Q4_K_M.gguf", "sha256": hub_module.hashlib.sha256(SMALL).hexdigest(), "size": len(SMALL)}
    assert record["files"] == [expected]
    assert (record["repository"], record["revision"], record["parameters"]) == (REPOSITORY, commit, 40)
    assert {path.name for path in path.parent.iterdir()} == {"Small-Q4_K_M.gguf", "source.json"}
    asked = len(hub.requests)
    hub.repositories[REPOSITORY]["Small-Q4_K_M.gguf"] = b"a new commit"
    assert find_model(f"hf:{REPOSITORY}") == find_model("Small-Q4_K_M") == path
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("part", "found"),
    [(":Q8_0", "Small-Q8_0"), (":q8_0", "Small-Q8_0"), (":Small-Q8_0.gguf", "Small-Q8_0"), ("@main", "Small-Q4_K_M")],
)
def test_a_quantisation_or_a_file_is_chosen(hub, part, found):
    assert find_model(f"hf:{REPOSITORY}{part}").stem == found


def test_a_commit_that_is_given_must_be_the_one_that_comes(hub):
    commit = hub.commit(REPOSITORY)
    assert add_model(f"hf:{REPOSITORY}@{commit}").revision == commit
    with pytest.raises(HubError, match="has no revision 'v7' of people/Small-GGUF"):
        find_model(f"hf:{REPOSITORY}@v7")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("hf:Small", "not an address of the hub: write hf:OWNER/REPO"),
        (
            f"hf:{REPOSITORY}:Q2_K",
            r"no GGUF model Q2_K; name one of these as .*\n  Small-Q4_K_M.gguf \(0.0 MB\)\n.*Q8_0",
        ),
        (f"hf:{REPOSITORY}:Q4_K", "no GGUF model Q4_K"),
        ("hf:people/Big:Q4", "no GGUF model Q4"),
        ("hf:people/Twice:Q4_0", r"2 GGUF models Q4_0; .*\n  a-Q4_0.gguf .*\n  b-Q4_0.gguf"),
        ("hf:people/Nothing", "people/Nothing holds no model"),
        ("hf:people/Absent", "the hub http://127.0.0.1:.* has no people/Absent"),
        ("people/Absent", "'people/Absent': there is no such folder, and the hub .* has no people/Absent"),
    ],
)
def test_what_cannot_be_chosen_is_said(hub, source, problem):
    hub.repositories["people/Twice"] = {"a-Q4_0.gguf": SMALL, "b-Q4_0.gguf": SMALL}
    hub.repositories["people/Nothing"] = {"README.md": b"", "pytorch_model.bin": b"a pickle"}
    with pytest.raises(InputError, match=problem):
        find_model(source)
    assert hub.downloads() == []


def test_all_parts_of_a_split_model_come(hub):
    parts = {f"Q4_0/m-Q4_0-0000{n}-of-00002.gguf": small_gguf({"split.no": ("u32", 1)}) for n in (1, 2)}
    parts["Q4_0/m-Q4_0-00001-of-00002.gguf"] = small_gguf({**KEYS, "split.count": ("u32", 2)})
    hub.repositories["people/Split"] = {**parts, "b-Q8_0.gguf": SMALL}
    path = find_model("hf:people/Split:Q4_0")
    assert path.name == "m-Q4_0-00001-of-00002.gguf"
    assert [model.name for model in added_models()] == ["m-Q4_0"]
    assert added_models()[0].parameters == 80
    del hub.repositories["people/Split"]["Q4_0/m-Q4_0-00002-of-00002.gguf"]
    remove_model("m-Q4_0")
    with pytest.raises(InputError, match=r"m-Q4_0-00002-of-00002\.gguf is not beside it"):
        find_model("hf:people/Split:Q4_0")
    assert added_models() == []


def test_a_folder_has_its_weights_and_nothing_that_could_run(hub, tmp_path):
    save_file({"w": torch.zeros(3, 5)}, tmp_path / "model.safetensors")
    weights = (tmp_path / "model.safetensors").read_bytes()
    wanted = {"config.json": b"{}", "model.safetensors": weights, "vocab.txt": b"", "chat_template.jinja": b"{}"}
    others = {
        "pytorch_model.bin": b"a pickle",
        "modeling.py": b"import os",
        "consolidated.safetensors": weights,
        "onnx/config.json": b"{}",
        "model-Q4_K_M.gguf": SMALL,
        "source.json": b"not ours",
    }
    hub.repositories["people/Folder"] = wanted | others
    folder = find_model("people/Folder")
    assert find_checkpoint("hf:people/Folder") == find_model("Folder") == folder
    assert {path.name for path in folder.iterdir()} == {*wanted, "source.json"}
    assert (folder / "model.safetensors").read_bytes() == weights
    (record,) = added_models()
    assert (record.kind, record.parameters, record.source) == ("folder", 15, "hf:people/Folder")


def test_training_refuses_gguf_files_before_a_download(hub, gguf):
    for source, problem in [
        (f"hf:{REPOSITORY}", "no folder with config.json and"),
        (f"hf:{REPOSITORY}:Q8_0", "no folder with config.json and"),
        (str(gguf), "is a GGUF file: it can be served"),
    ]:
        with pytest.raises(InputError, match=problem):
            find_checkpoint(source)
    assert hub.downloads() == []


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_connection_that_breaks_off_is_resumed_at_once(hub, knows_ranges):
    hub.break_off_after, hub.knows_ranges = 700_000, knows_ranges
    assert find_model("hf:people/Big").read_bytes() == BIG
    assert hub.downloads() == ["", "bytes=524288-"]


def test_a_hub_that_fails_now_and_then_is_asked_again(hub):
    hub.failures = 2
    assert find_model(f"hf:{REPOSITORY}").exists()


def added_by_another_process(hub: SmallHub, source: str, **variables: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_DOWNLOAD_TIMEOUT": "60"} | variables
    command = [sys.executable, "-c", ADD, source]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_keeps_what_came_and_the_next_attempt_continues(hub):
    hub.silent_after = 1_000_000
    process = added_by_another_process(hub, "hf:people/Big")
    while process.poll() is None and sum(path.stat().st_size for path in rest("Big-Q4_0")) < 500_000:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1]
    hub.silent_after = None
    (part,) = rest("Big-Q4_0")
    kept = part.stat().st_size
    assert 0 < kept <= 1_000_000
    assert unfinished_downloads() == [("Big-Q4_0", kept)]
    assert added_models() == []
    hub.repositories["people/Big"]["README.md"] = b"a new commit with the same weights"
    assert find_model("hf:people/Big").read_bytes() == BIG
    assert hub.downloads()[-1] == f"bytes={kept}-"
    assert rest("Big-Q4_0") == unfinished_downloads() == []


def test_two_processes_download_once(hub):
    hub.silent.set()
    first = added_by_another_process(hub, "hf:people/Big")
    second = added_by_another_process(hub, "hf:people/Big")
    assert hub.waiting.wait(60)
    hub.silent.clear()
    assert first.communicate(timeout=60)[0] == second.communicate(timeout=60)[0] == "Big-Q4_0\n"
    assert len(hub.downloads()) == 1


def test_other_bytes_than_the_hub_lists_are_deleted(hub):
    for other in (bytes(len(BIG)), BIG[:-32], BIG + b"more"):
        hub.served["Big-Q4_0.gguf"] = other
        with pytest.raises(HubError, match=r"gave (other bytes for|more than)"):
            find_model("hf:people/Big")
        assert rest("Big-Q4_0") == []
        assert added_models() == []
    hub.served.clear()
    assert find_model("hf:people/Big").read_bytes() == BIG


def test_a_file_that_is_as_listed_and_no_model_is_removed(hub):
    hub.repositories["people/Bad"] = {"bad.gguf": SMALL[:-100]}
    with pytest.raises(InputError, match=r"bad\.gguf is cut off"):
        find_model("hf:people/Bad")
    assert list(model_store.store().iterdir()) == []


def test_small_files_have_a_checksum_too(hub, tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    files = {"config.json": b'{"a": 1}', "w.safetensors": (tmp_path / "w.safetensors").read_bytes()}
    hub.repositories["people/Folder"] = files
    hub.served["config.json"] = b'{"a": 2}'
    with pytest.raises(HubError, match=r"other bytes for config\.json"):
        find_model("people/Folder")


@pytest.mark.parametrize(
    ("status", "code", "problem"),
    [
        (401, "", "that everybody may read: correct its name or, if it is private, set HF_TOKEN"),
        (403, "", "refuses people/Big: accept its licence at http://.*/people/Big, and set HF_TOKEN"),
        (403, "GatedRepo", "accept its licence at http://.*/people/Big, and set HF_TOKEN"),
        (401, "GatedRepo", "accept its licence at http://.*/people/Big, and set HF_TOKEN"),
        (500, "", "does not give people/Big: it answers with the status 500; try later"),
        (418, "", "does not give people/Big: it answers with the status 418"),
    ],
)
def test_a_hub_that_refuses(hub, monkeypatch, status, code, problem):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.status, hub.error_code = status, code
    with pytest.raises(HubError, match=problem) as raised:
        find_model("hf:people/Big")
    assert "hf_secret" not in str(raised.value)
    assert hub.requests[0][1]["authorization"] == "Bearer hf_secret"


def test_a_token_is_in_no_message(hub, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", "hf_secret\u00e9\x01x")
    with pytest.raises(InputError) as raised:
        find_model("hf:people/Big")
    assert "secret" not in str(raised.value) + caplog.text
    assert raised.value.__suppress_context__


def test_a_hub_that_is_down_or_silent(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.silent.set()
    with pytest.raises(HubError, match="it does not answer in time"):
        find_model("hf:people/Big")
    hub.silent.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127.0.0.1:9 does not give people/Big: it cannot be reached"):
        find_model("hf:people/Big")


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "main"},
        {"siblings": [{"rfilename": "a.gguf", "size": -1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "a.gguf", "size": 1, "blobId": "../../../x"}]},
        {"siblings": [{"rfilename": "a.gguf"}]},
        {"siblings": [{"size": 1}]},
        {"siblings": 3},
    ],
)
def test_what_is_no_hub_is_refused(hub, monkeypatch, change):
    listing = hub.listing("people/Big")
    monkeypatch.setattr(hub, "listing", lambda repository: listing | change, raising=False)
    with pytest.raises(HubError, match="people/Big"):
        find_model("hf:people/Big")


def test_names_of_a_hub_stay_inside_the_folder(hub):
    for name in ("../../../../evil-Q4_0.gguf", "/evil-Q4_0.gguf", "..\\evil-Q4_0.gguf"):
        hub.repositories["people/Evil"] = {name: SMALL}
        with pytest.raises(HubError, match="as no hub does"):
            find_model("hf:people/Evil:Q4_0")


def test_offline_says_what_is_missing_and_finds_what_is_there(hub, monkeypatch):
    path = find_model(f"hf:{REPOSITORY}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model(f"hf:{REPOSITORY}") == path
    with pytest.raises(
        HubError, match=r"hf:people/Big is not on this machine.*HF_HUB_OFFLINE=0 voicechat models add hf:pe"
    ):
        find_model("hf:people/Big")


def test_a_disk_without_room_is_found_before_the_first_byte(hub, monkeypatch):
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    with pytest.raises(InputError, match=r"needs 2\.1 MB, and the disk of .* has 1\.5 MB left"):
        find_model("hf:people/Big")
    assert hub.downloads() == []
    monkeypatch.setattr(hub_module, "LARGEST_FILE_BYTES", 2_000_000)
    with pytest.raises(InputError, match=r"Big-Q4_0\.gguf has 2\.1 MB, and files above 2\.0 MB cannot be fetched"):
        find_model("hf:people/Big")


def test_a_disk_that_becomes_full_keeps_what_came(hub):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written \(File too large\) after .*it continues from there"):
            find_model("hf:people/Big")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert added_models() == []
    assert find_model("hf:people/Big").read_bytes() == BIG


def test_a_model_that_lies_elsewhere_is_added_by_its_path(hub, gguf):
    record = add_model(str(gguf), "own")
    assert (record.kind, record.size, record.parameters) == ("gguf", len(SMALL), 40)
    assert find_model("own") == gguf
    assert add_model(str(gguf), "own") == record
    assert remove_model("own") < 1000
    assert gguf.exists()
    add_model(str(gguf))
    gguf.unlink()
    with pytest.raises(InputError, match=r"mine is not at .*mine\.gguf any more: .*voicechat models remove mine"):
        find_model("mine")


def test_a_name_belongs_to_one_model(hub, gguf):
    add_model(f"hf:{REPOSITORY}:Q8_0", "own")
    assert add_model(f"hf:{REPOSITORY}:Q8_0", "own").name == "own"
    for source in (f"hf:{REPOSITORY}", str(gguf)):
        with pytest.raises(InputError, match=f"the name own is taken by hf:{REPOSITORY}:Q8_0"):
            add_model(source, "own")
    for name, problem in [("../x", "cannot be a model's name"), ("smollm2-135m-instruct", "is the packaged model")]:
        with pytest.raises(InputError, match=problem):
            add_model(str(gguf), name)


def test_only_what_was_added_can_be_removed(hub, gguf):
    add_model(f"hf:{REPOSITORY}")
    for name in ("smollm2-135m-instruct", "..", ".", "", "../added/Small-Q4_K_M", str(gguf), "Small"):
        with pytest.raises(InputError, match="was added; there is Small-Q4_K_M"):
            remove_model(name)
    assert remove_model("Small-Q4_K_M") > len(SMALL)
    assert added_models() == []
    assert list(model_store.store().iterdir()) == []


def test_a_damaged_record_is_named(hub):
    path = find_model(f"hf:{REPOSITORY}")
    (path.parent / "source.json").write_text('{"name": 3')
    with pytest.raises(InputError, match=r"source\.json is damaged: .*voicechat models remove Small-Q4_K_M"):
        find_model("Small-Q4_K_M")
    remove_model("Small-Q4_K_M")
    assert find_model(f"hf:{REPOSITORY}") == path


def test_a_missing_package_comes_from_the_hub(hub, monkeypatch):
    hub.repositories["people/Whisper"] = {"config.json": b"{}", "model.bin": b"weights", "x/config.json": b"no"}
    asset = CATALOGUE["whisper-tiny.en"]
    facts = {**asset.__dict__, "name": "w", "hub": "people/Whisper", "files": {"no_such_module:x": "0" * 64}}
    monkeypatch.setitem(CATALOGUE, "w", type(asset)(**facts))
    assert {path.name for path in locate("w").iterdir()} == {"config.json", "model.bin"}
