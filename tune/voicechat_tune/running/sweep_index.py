"""What a sweep's folder belongs to, and how a sweep is found again: its file, its name in the registry, its folder."""

import fcntl
import json
import uuid
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from voicechat_platform.errors import InputError
from voicechat_platform.json_file import read_object
from voicechat_platform.paths import given_path
from voicechat_platform.settings import settings
from voicechat_platform.strict_yaml import Strict, validate
from voicechat_tune.running.run_files import object_store, sweep_folder
from voicechat_tune.search.journal import JOURNAL, SALVAGE, read_lines
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile, read_sweep

NOTES = "sweep.json"
POINTER = "lies-in"


class Notes(Strict):
    """What a sweep's folder notes; `note` says what each is."""

    file: SweepFile
    extended: Annotated[int, Field(ge=0)]
    group: Annotated[str, Field(min_length=1)]


def note(sweep: SweepFile, folder: Path, force: bool) -> dict[str, Any]:
    """Note what the folder belongs to: the "file", its "group" in the registry, by how many trials it is "extended".

    Raises:
        InputError: it belongs to another file, and `force` was not given; or what it holds is damaged.
    """
    check_not_lost(folder)
    notes: dict[str, Any] = {"extended": 0, "group": group_of(sweep)}
    if (folder / NOTES).exists():
        notes = read_notes(folder)
    new, old = sweep.model_dump(mode="json", by_alias=True), notes.get("file")
    if old is not None and old != new and not has_trials(folder, old):
        (folder / JOURNAL).unlink(missing_ok=True)  # of a start that was refused; its study may have other objectives
        old = None
    if old is not None and not force and (changes := differences(old, new)):
        raise InputError(
            f"{folder} holds a sweep {sweep.name!r} from a different file:\n{changes}\n"
            f"go on with the new one with --force (what has run stays as it is), give this one another name, or throw "
            f"the old one away with --fresh"
        )
    if old is not None:
        check_can_change(folder, old, new)
    notes["file"] = new
    write_notes(folder, notes)
    return notes


def check_not_lost(folder: Path) -> None:
    """
    Raises:
        InputError: the journal was lost while its runs or notes are there, or the notes while the journal is there.
    """
    has_journal, runs = bool(read_lines(folder / JOURNAL)), folder / "runs"
    if not has_journal and runs.is_dir() and any(runs.iterdir()):
        raise InputError(f"{folder / JOURNAL} is empty or gone, while {runs} holds what its trials left; {SALVAGE}")
    if has_journal and not (folder / NOTES).exists():
        raise InputError(f"{folder / NOTES} is gone, while {folder / JOURNAL} holds a sweep's trials; {SALVAGE}")


def has_trials(folder: Path, file: dict[str, Any]) -> bool:
    if not read_lines(folder / JOURNAL):  # killed before its first line
        return False
    return bool(Study(folder, SweepFile.model_validate(file), writable=False).trials())


def check_can_change(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """
    Raises:
        InputError: what changes, even with --force, would not fit what has run.
    """
    if old["objectives"] != new["objectives"]:
        raise InputError(f"the objectives of the sweep in {folder} cannot change: give this one another name")
    if old["recipe"] != new["recipe"]:
        study = Study(folder, SweepFile.model_validate(old), writable=False)
        if half := [str(trial.number) for trial in study.trials() if trial.state == "unfinished"]:
            raise InputError(
                f"the recipe changes while trials are half done ({', '.join(half)}): finish them with the old file, "
                f"give this one another name, or throw the old one away with --fresh"
            )


def read_notes(folder: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: they are missing or damaged, or an older version noted a file that this one refuses.
    """
    path = folder / NOTES
    try:
        notes = read_object(path)
        validate(notes, Notes, str(path))
    except InputError as error:
        raise InputError(f"{error}\n{SALVAGE}") from None
    return notes


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    whole = folder / f".{NOTES}"
    whole.write_text(json.dumps(notes, indent=2) + "\n")
    whole.replace(folder / NOTES)


def differences(old: Any, new: Any, where: str = "") -> str:
    """Each field that differs, as "  recipe.training.steps: 800 -> 900"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [differences(old.get(k), new.get(k), f"{where}.{k}".lstrip(".")) for k in sorted({*old, *new})]
        return "\n".join(line for line in found if line)
    return "" if old == new else f"  {where}: {old} -> {new}"


def group_of(sweep: SweepFile) -> str:
    """A new experiment in the registry: a sweep that begins anew under an old name has one of its own."""
    return f"{sweep.name}-{uuid.uuid4().hex[:6]}"


def is_begun(sweep: SweepFile) -> bool:
    """Whether there is something of the sweep to go on with."""
    store = object_store(sweep)
    begun = (sweep_folder(sweep.name, sweep.storage) / JOURNAL).exists()
    return begun or (store is not None and JOURNAL in store.names(sweep.name))


def point_to(folder: Path, name: str) -> None:
    """Let a sweep that lies elsewhere be found by its name, too.

    Raises:
        InputError: that cannot be noted.
    """
    own = sweep_folder(name)
    if own != folder:
        try:
            own.mkdir(parents=True, exist_ok=True)
            (own / POINTER).write_text(str(folder))
        except OSError as error:
            raise InputError(f"{own / POINTER} cannot be written: {error.strerror}; move away what is there") from None


def read_pointer(own: Path) -> Path:
    """Where `point_to` said that the sweep lies.

    Raises:
        InputError: what it wrote is damaged.
    """
    path = own / POINTER
    try:
        text = path.read_text()
        folder = given_path(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it; `voicechat sweep FILE` writes it anew") from None
    if not text.startswith("/"):
        raise InputError(f"{path} is damaged (it names no folder): delete it; `voicechat sweep FILE` writes it anew")
    return folder


def known_sweeps() -> list[str]:
    """The names of all that have begun, those that lie elsewhere included; the one written to last comes first."""
    folders = [path for path in settings().home.absolute().glob("sweeps/*") if holds_a_sweep(path)]
    return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def holds_a_sweep(folder: Path) -> bool:
    return (folder / NOTES).exists() or (folder / POINTER).exists()


def is_running(folder: Path) -> bool:
    """Whether a process drives the sweep now (`run.locked`)."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def open_study(name: str) -> Study:
    """The memory of a sweep, to read: by its name, by its folder, or by its file.

    Raises:
        InputError: there is none.
    """
    path, said = Path(name), ""
    if path.suffix in (".yaml", ".yml"):
        sweep = read_sweep(path)
        folder = sweep_folder(sweep.name, sweep.storage)
    else:
        folder = path if (path / NOTES).exists() else sweep_folder(name)
        if (folder / POINTER).exists():
            said = f" in the folder that {folder / POINTER} names"
            folder = read_pointer(folder)
    check_not_lost(folder)
    if not (folder / NOTES).exists() or not (folder / JOURNAL).exists():
        others = ", ".join(sorted(known_sweeps())) or "none yet"
        raise InputError(f"there is no sweep {name!r}{said}; there are: {others}")
    notes = read_notes(folder)
    return Study(folder, SweepFile.model_validate(notes["file"]), writable=False)
