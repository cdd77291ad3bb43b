"""Storage on a disk and in S3 (moto's server): whole checkpoints only, names that stay inside, clear refusals."""

import json
import os
import pickle
import time

import pytest

from voicechat_platform.errors import InputError
from voicechat_tune.running.storage import Storage


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path):
    if request.param == "disk":
        return Storage(str(tmp_path / "results"))
    request.getfixturevalue("credentials")
    server = request.getfixturevalue("s3_server")
    return Storage(f"s3://results/{tmp_path.name}?endpoint_override={server}&scheme=http")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(3_000_000))
    (folder / "tokenizer" / "vocabulary.txt").write_text("a b")
    (folder / "run.json").write_text("{}")
    (folder / "zebra.txt").write_text("sorts after run.json")
    return folder


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_goes_there_and_back(storage, checkpoint, tmp_path):
    storage.check_writable()
    storage.put_folder(checkpoint, "trials/1/last")
    assert storage.get_folder("trials/1/last", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(checkpoint)
    assert storage.size("trials") == sum(map(len, contents(checkpoint).values()))
    assert storage.names("trials/1/last") == ["model.safetensors", "run.json", "tokenizer", "zebra.txt"]
    assert storage.names() == ["trials"], "the probe of check_writable is gone"
    storage.delete("trials/1/last")
    assert not storage.get_folder("trials/1/last", tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    assert storage.names("trials/1/last") == []
    assert storage.size("trials") == 0


def test_a_new_checkpoint_leaves_nothing_of_the_old_one(storage, checkpoint, tmp_path):
    storage.put_folder(checkpoint, "last")
    (checkpoint / "zebra.txt").unlink()
    (checkpoint / "run.json").write_text('{"step": 2}')
    storage.put_folder(checkpoint, "last")
    assert storage.get_folder("last", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(checkpoint)


@pytest.mark.parametrize("uploaded", [0, 1, 3])
@pytest.mark.parametrize("replaces", [False, True])
def test_an_upload_that_breaks_off_leaves_no_checkpoint(storage, checkpoint, tmp_path, monkeypatch, uploaded, replaces):
    if replaces:
        storage.put_folder(checkpoint, "last")
    put_file, done = storage.put_file, []

    def put_few(local, name):
        if len(done) == uploaded:
            raise KeyboardInterrupt
        put_file(local, name)
        done.append(name)

    monkeypatch.setattr(storage, "put_file", put_few)
    with pytest.raises(KeyboardInterrupt):
        storage.put_folder(checkpoint, "last")
    assert len(storage.names("last")) == uploaded
    assert not storage.get_folder("last", tmp_path / "back")


def test_a_folder_that_is_no_checkpoint_is_refused(storage, tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(InputError, match=r"no run\.json"):
        storage.put_folder(tmp_path / "half", "last")


def test_files(storage, tmp_path):
    file, back = tmp_path / "state.json", tmp_path / "new" / "state.json"
    for step in (1, 2):
        file.write_text(json.dumps({"step": step}))
        storage.put_file(file, "sweep/state.json")
    assert storage.get_file("sweep/state.json", back)
    assert json.loads(back.read_text()) == {"step": 2}
    assert storage.names("sweep") == ["state.json"]
    assert storage.size("sweep") == len(file.read_text())
    assert not storage.get_file("sweep/nothing", tmp_path / "nothing")
    storage.delete("sweep/state.json")
    storage.delete("sweep/state.json")  # twice is no fault
    assert storage.names("sweep") == []


def test_it_travels_to_a_trial(storage, checkpoint, tmp_path):
    storage.put_folder(checkpoint, "last")
    assert pickle.loads(pickle.dumps(storage)).get_folder("last", tmp_path / "back")


@pytest.mark.parametrize("name", ["..", "../other", "a/../../b", "/etc/passwd", "a//b", "a\\b", "./a"])
def test_names_stay_inside(storage, checkpoint, name, tmp_path):
    for attempt in (
        lambda: storage.put_folder(checkpoint, name),
        lambda: storage.put_file(checkpoint / "run.json", name),
        lambda: storage.get_folder(name, tmp_path / "back"),
        lambda: storage.get_file(name, tmp_path / "back"),
        lambda: storage.names(name),
        lambda: storage.size(name),
        lambda: storage.delete(name),
    ):
        with pytest.raises(InputError, match="not a name below"):
            attempt()


def test_the_whole_place_cannot_be_deleted(storage):
    with pytest.raises(InputError):
        storage.delete("")


def test_a_file_address_is_a_folder(tmp_path, checkpoint):
    Storage(f"file://{tmp_path}/results").put_folder(checkpoint, "last")
    assert Storage(str(tmp_path / "results")).names() == ["last"]


def test_what_is_half_written_on_a_disk_is_not_listed(tmp_path):
    (tmp_path / "state.json.partial").touch()
    assert Storage(str(tmp_path)).names() == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path, s3_server, credentials):
    (tmp_path / "file").touch()
    bucket = f"s3://no-such-bucket/x?endpoint_override={s3_server}&scheme=http"
    nobody = "s3://results/x?endpoint_override=127.0.0.1:9&scheme=http"  # the discard port: nobody listens
    for uri, advice in (
        (str(tmp_path / "file" / "below"), "give a folder that can be written"),
        ("nonsense://somewhere", "can be written, s3://"),
        (bucket, "the bucket must exist"),
        (nobody, "the bucket must exist"),
    ):
        with pytest.raises(InputError, match=advice) as refusal:
            Storage(uri).check_writable()
        assert uri in str(refusal.value)


def test_wrong_credentials_are_refused(start_s3, tmp_path, credentials):
    with start_s3(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="1") as server:  # the bucket is made; then keys are checked
        uri = f"s3://results/x?endpoint_override={server}&scheme=http"
        with pytest.raises(InputError, match=r"AWS Error.* the credentials must allow"):
            Storage(uri).check_writable()


def test_a_place_that_does_not_answer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Storage, "put_file", lambda *_: time.sleep(60))
    with pytest.raises(InputError, match=r"no answer in 0\.2 s; give a folder that can be written"):
        Storage(str(tmp_path)).check_writable(seconds=0.2)
