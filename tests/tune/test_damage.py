"""A sweep whose files a disk or a person has damaged: one InputError that names the file, and a way on."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from changed_json import changed_copies
from voicechat_platform.errors import InputError
from voicechat_platform.registry import Registry
from voicechat_platform.settings import settings
from voicechat_platform.training.history import Evaluation
from voicechat_tune.comparison.compare import run_points
from voicechat_tune.running.driver import Driver
from voicechat_tune.running.inspect import trial_facts
from voicechat_tune.running.messages import RunEnded
from voicechat_tune.running.retention import Retention
from voicechat_tune.running.run import locked
from voicechat_tune.running.run_files import sweep_folder
from voicechat_tune.running.salvage import salvage
from voicechat_tune.running.sweep_index import (
    INDEX,
    POINTER,
    is_running,
    open_study,
    point_to,
    read_index,
    update_index,
    write_index,
)
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.ranking import ranked
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import RunKey, Trial, evaluation_in
from voicechat_tune.search.trials_table import trials_table

SWEEP = {
    "name": "rates",
    "recipe": {"training": {"steps": 16, "warmup_steps": 1, "evaluate_every": 2}},
    "search": {"training.learning_rate": {"loguniform": [0.001, 0.1]}, "model.heads": {"choice": [2, 4]}},
    "scheduler": {"grace_steps": 2, "reduction_factor": 2},
    "trials": 5,
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "an object": lambda whole: b"{}",
    "an object, a line": lambda whole: b"{}\n",
    "a list": lambda whole: b"[]\n",
    "null": lambda whole: b"null\n",
    "a number": lambda whole: b"7\n",
    "another shape": lambda whole: b'{"file": 3, "op_code": "x", "trial_id": {}}\n',
    "garbage": lambda whole: bytes(range(255, 0, -1)) + b"\n",
    "no UTF-8": lambda whole: b'{"name": "\xff\xfe"}\n',
    "NUL bytes": lambda whole: b"\0" * 4096,
    "NUL bytes and a line": lambda whole: b"\0" * 300 + whole,
    "lists in lists": lambda whole: b"[" * 100_000 + b"\n",
    "a long number": lambda whole: b"9" * 10_000 + b"\n",
    "a bad line in the middle": lambda whole: middle(whole, b"\x00\x01 not JSON"),
    "a line of another shape in the middle": lambda whole: middle(whole, b'{"op_code": 8, "worker_id": "x"}'),
    "a list in the middle": lambda whole: middle(whole, b"[1, 2]"),
    "no middle": lambda whole: middle(whole, None),
    "a cut last line": lambda whole: whole[:-20],
    "the first half": lambda whole: whole[: len(whole) // 2],
    "the second half": lambda whole: whole[len(whole) // 2 :],
    "twice": lambda whole: whole + whole,
    "Windows' line ends": lambda whole: whole.replace(b"\n", b"\r\n"),
}


def middle(whole: bytes, line: bytes | None) -> bytes:
    """With another line in the place of the middle one, or without it."""
    lines = whole.splitlines()
    lines[len(lines) // 2 : len(lines) // 2 + 1] = [] if line is None else [line]
    return b"\n".join(lines) + b"\n"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory) -> Iterator[Path]:
    """One for all: each sweep lies in a storage of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("VOICECHAT_HOME", str(folder))
        settings.cache_clear()
        yield folder
    settings.cache_clear()


@pytest.fixture
def sweep(tmp_path) -> SweepFile:
    """A sweep of three trials that lies in a storage of its own: one finished, one stopped, one unfinished."""
    wanted = SweepFile.model_validate({**SWEEP, "storage": str(tmp_path)})
    shutil.rmtree(sweep_folder(wanted.name), ignore_errors=True)
    folder = sweep_folder(wanted.name, wanted.storage)
    folder.mkdir()
    point_to(folder, wanted.name)
    study = drive(wanted)
    driver = Driver(wanted, study, 3, room=lambda: 1)
    for steps, ending in ((16, "finished"), (2, "stopped"), (6, None)):
        _, trial = driver.next_run() or pytest.fail("no run")
        key = RunKey(trial.number)
        for step in range(2, steps + 1, 2):
            loss = trial.number + 1 / step
            study.record(key, told(step, loss), clock=float(step))
        (folder / "runs" / str(key)).mkdir(parents=True)
        if ending:
            study.end_run(key, ending, facts={"validation_loss": loss, "seconds": 1.0})
    return wanted


def told(step: int, loss: float) -> dict[str, Any]:
    evaluation = Evaluation(step, loss, loss, loss, loss, 0.01, 1.0, 0.1, 1.0, 1.0)
    return {**asdict(evaluation), "spent": float(step)}


def drive(sweep: SweepFile) -> Study:
    """Open the sweep as its driver does, up to where Ray would start."""
    folder = sweep_folder(sweep.name, sweep.storage)
    with locked(folder):
        index = update_index(sweep, folder, force=False)
        study = Study(folder, sweep)
        Retention(sweep, study, folder, index["group"])
        Driver(sweep, study, 5 + index["extended"], room=lambda: 1)
    return study


def look(name: str) -> list[Trial]:
    """Read the sweep as all commands do that show one."""
    study = open_study(name)
    trials = study.trials()
    assert read_index(study.folder)["group"]
    trials_table("", trials, study.sweep)
    ranked(trials, study.sweep)
    is_running(study.folder)
    for trial in trials:
        trial_facts(name, trial.number)
        for run in trial.runs:
            [evaluation_in(evaluation) for evaluation in run.evaluations]
    return trials


def is_refused(act: Callable[[], Any], path: Path) -> bool:
    """Whether it ends in an InputError, which must name the file; any other exception is an error."""
    message = None
    try:
        act()
    except InputError as error:
        message = str(error)
    assert message is None or str(path) in message
    return message is not None


@pytest.mark.parametrize("file", [JOURNAL, INDEX, POINTER, "lock", f"{JOURNAL}.lock"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_salvage_goes_on(sweep, file, damage):
    folder = sweep_folder(sweep.name, sweep.storage)
    path = sweep_folder(sweep.name) / file if file == POINTER else folder / file
    whole = path.read_bytes() if path.exists() else b""
    damaged = DAMAGE[damage](whole)
    path.write_bytes(damaged)
    refused = is_refused(lambda: look(sweep.name), path)
    if file == POINTER:
        assert refused == (damaged != whole)
        return
    assert is_refused(lambda: drive(sweep), path) == refused
    if file in (JOURNAL, INDEX):
        salvage(sweep)
        look(sweep.name)
        drive(sweep)
        beside = [other.read_bytes() for other in folder.glob(f"{file}.damaged-*")]
        assert beside == ([damaged] if refused else [])
    else:
        assert not refused


@pytest.mark.parametrize("file", [JOURNAL, INDEX, POINTER, "lock", f"{JOURNAL}.lock"])
def test_a_folder_in_a_files_place_is_named(sweep, file):
    folder = sweep_folder(sweep.name, sweep.storage)
    path = sweep_folder(sweep.name) / file if file == POINTER else folder / file
    path.unlink(missing_ok=True)
    path.mkdir()
    refused = is_refused(lambda: look(sweep.name), path)
    assert refused == (file in (JOURNAL, INDEX, POINTER))
    assert is_refused(lambda: point_to(folder, sweep.name) if file == POINTER else drive(sweep), path)
    if file in (JOURNAL, INDEX):
        salvage(sweep)
        look(sweep.name)


def test_the_message_says_where_why_and_what_is_left(sweep):
    journal = sweep_folder(sweep.name, sweep.storage) / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b"{}\n", *lines[5:]]))
    with pytest.raises(InputError) as refused:
        open_study(sweep.name)
    message = str(refused.value)
    assert message.startswith(f"{journal}:5 is damaged (")
    assert f"{len(lines) - 1} of its {len(lines)} lines are sound, with 3 trials, 2 of them ended" in message
    assert "voicechat sweep FILE --salvage" in message


def test_each_line_may_be_lost_and_what_salvage_leaves_goes_on(sweep):
    """What is left is a part of what was there, under the same numbers; lost evaluations are told again."""
    folder = sweep_folder(sweep.name, sweep.storage)
    before = {trial.number: trial for trial in look(sweep.name)}
    whole = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    begins = [number for number, line in enumerate(whole) if b'"op_code":4' in line]
    for lost, line in enumerate(whole):
        damaged = [*whole[:lost], b"\0" * len(line) + b"\n", *whole[lost + 1 :]]
        (folder / JOURNAL).write_bytes(b"".join(damaged))
        salvage(sweep)
        left = look(sweep.name)
        assert len(left) == sum(1 for number in begins if number < lost or lost not in begins)
        for trial in left:
            assert trial.point == before[trial.number].point
            assert trial.state in (before[trial.number].state, "unfinished")
            for run, was in zip(trial.runs, before[trial.number].runs, strict=False):
                assert all(evaluation in was.evaluations for evaluation in run.evaluations)
        assert len(finish(sweep, drive(sweep))) == 3


def finish(sweep: SweepFile, study: Study) -> list[Trial]:
    """Go on with the sweep as its runs would."""
    driver = Driver(sweep, study, 3, room=lambda: 1)
    while not driver.is_over():
        key, trial = driver.next_run() or pytest.fail("no run")
        driver.start_run("a", key)
        for step in range(2, 17, 2):
            if driver.on_report("a", Evaluation(**evaluation_in(told(step, trial.number + 1 / step)))):
                break
        else:
            driver.on_report("a", RunEnded("finished", facts={"validation_loss": 1.0}))
    return study.trials()


def test_a_journal_of_another_sweep_is_not_salvaged(sweep):
    journal = sweep_folder(sweep.name, sweep.storage) / JOURNAL
    whole = journal.read_bytes()
    for other in ({"name": "others"}, {"objectives": ["tokens_per_second"]}):
        foreign = sweep.model_copy(update=other)
        target = sweep_folder(foreign.name, foreign.storage)
        if not target.exists():
            shutil.copytree(journal.parent, target)
        with pytest.raises(InputError, match=r"study\.journal belongs to a sweep 'rates' with 1 objectives"):
            salvage(foreign)
    assert journal.read_bytes() == whole


def test_a_lost_journal_is_not_begun_anew_unasked(sweep):
    folder = sweep_folder(sweep.name, sweep.storage)
    for damaged in (b"", None):
        (folder / JOURNAL).write_bytes(b"") if damaged == b"" else (folder / JOURNAL).unlink()
        with pytest.raises(InputError, match=r"runs has files of its trials; .*--salvage"):
            drive(sweep)
    salvage(sweep)
    assert drive(sweep).trials() == []


def test_lost_notes_come_back_with_their_group_and_their_extension(sweep, home):
    folder = sweep_folder(sweep.name, sweep.storage)
    fewer = sweep.model_copy(update={"trials": 2})
    client = Registry().client
    for group in ("rates-00000a", "rates-other-00000b", "rates-00000c"):
        client.create_experiment(group)
    (folder / INDEX).unlink()
    with pytest.raises(InputError, match=f"{re.escape(str(folder / INDEX))} is missing"):
        drive(fewer)
    salvage(fewer)
    assert read_index(folder) == {
        "extended": 1,
        "group": "rates-00000c",
        "file": fewer.model_dump(mode="json", by_alias=True),
    }


@pytest.mark.parametrize(
    "change",
    [{"seed": 2**40}, {"search": {"model.heads": {"choice": [2, 2]}}}, {"sampler": "cmaes"}, {"of_old": 1}],
    ids=str,
)
def test_a_file_of_an_older_version_is_refused_in_plain_words(sweep, change):
    folder = sweep_folder(sweep.name, sweep.storage)
    index = read_index(folder)
    changed = {**index, "file": {**index["file"], **change}}
    (folder / INDEX).write_text(json.dumps(changed))
    for act in (lambda: look(sweep.name), lambda: drive(sweep)):
        with pytest.raises(InputError, match=f"file.{next(iter(change))}") as refused:
            act()
        assert "--salvage" in str(refused.value)
    salvage(sweep)
    assert read_index(folder) == index
    assert len(look(sweep.name)) == 3


@pytest.mark.parametrize("kind", ["asha", "hyperband", "pbt"])
def test_the_index_of_an_earlier_version_go_on(kind, tmp_path):
    """It wrote the fields of all schedulers with each."""
    own = {"population": 4, "interval_steps": 4} if kind == "pbt" else {"grace_steps": 2}
    search = {"training.learning_rate": {"loguniform": [0.001, 0.1]}}
    fields = {**SWEEP, "name": "old", "search": search, "trials": 4, "scheduler": {"kind": kind, **own}}
    sweep = SweepFile.model_validate(fields)
    update_index(sweep, tmp_path, force=False)
    study = Study(tmp_path, sweep)
    study.begin_trial(None, {"training.learning_rate": 0.01}, {"member": 1, "generation": 1} if kind == "pbt" else None)
    index = read_index(tmp_path)
    all_fields = {"grace_steps": None, "reduction_factor": 3.0, "population": None, "interval_steps": None}
    index["file"]["scheduler"] = {"kind": kind, **all_fields, **own}
    write_index(tmp_path, index)
    assert open_study(str(tmp_path)).sweep == sweep
    assert update_index(sweep, tmp_path, force=False)["group"] == index["group"]
    assert len(open_study(str(tmp_path)).trials()) == 1


HOSTILE = (None, True, -1, 0, 3, 99, 2**70, 1.5, "", "x", "\ud800", [], [None], {}, {"a": {}}, [1, 2], float("nan"))


def test_a_journal_of_another_shape_is_refused_or_can_be_shown(sweep):
    """Every value of a line of each kind in the place of which each hostile one is put, or which is dropped."""
    folder = sweep_folder(sweep.name, sweep.storage)
    lines = (folder / JOURNAL).read_text().splitlines()
    kinds: dict[str, int] = {}
    for number, line in enumerate(lines):
        kinds.setdefault(re.sub(r"\d+", "", str(sorted(json.loads(line)))) + str("ending" in line), number)
    assert len(kinds) >= 5
    refused = 0
    for number in kinds.values():
        record = json.loads(lines[number])
        for _, _, changed in changed_copies(record, HOSTILE):
            new = [*lines[:number], json.dumps(changed), *lines[number + 1 :]]
            (folder / JOURNAL).write_text("\n".join(new) + "\n")
            try:
                refused += is_refused(lambda: look(sweep.name), folder / JOURNAL)
                shutil.copy(folder / JOURNAL, folder / "kept")
                is_refused(lambda: drive(sweep), folder / JOURNAL)
                shutil.copy(folder / "kept", folder / JOURNAL)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}\nfor {changed}"[:2000]) from error
    assert refused > 100


def test_a_damaged_sweep_of_a_comparison_is_salvaged_by_its_command(tmp_path, monkeypatch):
    points = [{"model.heads": 2}, {"model.heads": 4}]
    sweep = SweepFile.model_validate({"name": "small-tuning", "points": points, "storage": str(tmp_path)})
    folder = sweep_folder(sweep.name, sweep.storage)
    folder.mkdir()
    study = drive(sweep)
    for point in points:
        study.begin_trial(None, point)
    whole = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(middle(whole, b"{}"))
    monkeypatch.setattr("voicechat_tune.comparison.compare.run_sweep", lambda sweep, force: drive(sweep).trials())
    with pytest.raises(InputError, match=r"study\.journal:2 is damaged .*`voicechat compare FILE --salvage`"):
        run_points(sweep, may_grow=False, salvaging=False)
    assert run_points(sweep, may_grow=False, salvaging=True) == []
    (folder / JOURNAL).write_bytes(whole)
    assert [trial.point for trial in run_points(sweep, may_grow=False, salvaging=True)] == points


@pytest.mark.parametrize("local", ["lost", "damaged"])
def test_a_salvage_never_replaces_what_a_storage_still_has(sweep, tmp_path, local):
    """The next backup writes over the storage's journal; and a head's old checkpoints may be of another trial now."""
    store = tmp_path / "store"
    stored = sweep.model_copy(update={"storage": f"file://{store}"})
    folder = sweep_folder(stored.name, stored.storage)
    shutil.copytree(sweep_folder(sweep.name, sweep.storage), folder, dirs_exist_ok=True)
    whole = (folder / JOURNAL).read_bytes()
    (store / stored.name).mkdir(parents=True)
    (store / stored.name / JOURNAL).write_bytes(whole)
    (folder / "runs" / "0001").mkdir(parents=True, exist_ok=True)
    if local == "lost":
        (folder / JOURNAL).unlink()
        salvage(stored)
        assert (folder / JOURNAL).read_bytes() == whole
        return
    lines = whole.splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join([*lines[:3], b"{}\n", *lines[4:]]))
    salvage(stored)
    assert (folder / f"{JOURNAL}.from-storage").read_bytes() == whole
    assert (folder / "runs.damaged-1" / "0001").is_dir()
    assert not (folder / "runs").exists()
