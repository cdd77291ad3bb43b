"""The index of a sweep (sweep.json): its file and its group in the registry; and the search for sweeps by name."""

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

INDEX = "sweep.json"
POINTER = "lies-in"


class SweepIndex(Strict):
    """The fields of sweep.json."""

    file: SweepFile
    extended: Annotated[int, Field(ge=0)]
    """The number of trials that `--extend` added."""
    group: Annotated[str, Field(min_length=1)]
    """The sweep's experiment in the registry."""


def update_index(sweep: SweepFile, folder: Path, force: bool) -> dict[str, Any]:
    """Write the index of the sweep's folder, or update its "file"; return its fields.

    Raises:
        InputError: the folder belongs to another file and `force` is False, or one of its files is damaged.
    """
    check_not_lost(folder)
    index: dict[str, Any] = {"extended": 0, "group": group_of(sweep)}
    if (folder / INDEX).exists():
        index = read_index(folder)
    new, old = sweep.model_dump(mode="json", by_alias=True), index.get("file")
    if old is not None and old != new and not has_trials(folder, old):
        (folder / JOURNAL).unlink(missing_ok=True)  # from a refused start; its study may have other objectives
        old = None
    if old is not None and not force and (changes := differences(old, new)):
        raise InputError(
            f"{folder} has a sweep {sweep.name!r} from a different file:\n{changes}\n"
            f"continue with the new file with --force (earlier runs do not change), give this sweep another name, or "
            f"delete the old sweep with --fresh"
        )
    if old is not None:
        check_can_change(folder, old, new)
    index["file"] = new
    write_index(folder, index)
    return index


def check_not_lost(folder: Path) -> None:
    """Check that neither the journal nor the index is missing.

    Raises:
        InputError: there are runs without a journal, or a journal without an index.
    """
    has_journal, runs = bool(read_lines(folder / JOURNAL)), folder / "runs"
    if not has_journal and runs.is_dir() and any(runs.iterdir()):
        raise InputError(f"{folder / JOURNAL} is empty or missing, but {runs} has files of its trials; {SALVAGE}")
    if has_journal and not (folder / INDEX).exists():
        raise InputError(f"{folder / INDEX} is missing, but {folder / JOURNAL} has a sweep's trials; {SALVAGE}")


def has_trials(folder: Path, file: dict[str, Any]) -> bool:
    if not read_lines(folder / JOURNAL):  # killed before its first line
        return False
    return bool(Study(folder, SweepFile.model_validate(file), writable=False).trials())


def check_can_change(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Check that the earlier runs fit the new file; this applies even with --force.

    Raises:
        InputError: they do not fit.
    """
    if old["objectives"] != new["objectives"]:
        raise InputError(f"the objectives of the sweep in {folder} cannot change: give this sweep another name")
    if old["recipe"] != new["recipe"]:
        study = Study(folder, SweepFile.model_validate(old), writable=False)
        if half := [str(trial.number) for trial in study.trials() if trial.state == "unfinished"]:
            raise InputError(
                f"the recipe cannot change while trials are unfinished ({', '.join(half)}): finish them with the old "
                f"file, give this sweep another name, or delete the old sweep with --fresh"
            )


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check the index of a sweep's folder.

    Raises:
        InputError: it is missing or damaged, or it has the file of an older version, which this version refuses.
    """
    path = folder / INDEX
    try:
        index = read_object(path)
        drop_foreign_field(index)
        validate(index, SweepIndex, str(path))
    except InputError as error:
        raise InputError(f"{error}\n{SALVAGE}") from None
    return index


def drop_foreign_field(index: dict[str, Any]) -> None:
    """Remove a field that earlier versions wrote for pbt: reduction_factor, which only asha and hyperband read."""
    match index:
        case {"file": {"scheduler": {"kind": "pbt"} as scheduler}}:
            scheduler.pop("reduction_factor", None)


def write_index(folder: Path, index: dict[str, Any]) -> None:
    whole = folder / f".{INDEX}"
    whole.write_text(json.dumps(index, indent=2) + "\n")
    whole.replace(folder / INDEX)


def differences(old: Any, new: Any, where: str = "") -> str:
    """Return the fields that differ, one line each: "  recipe.training.steps: 800 -> 900"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [differences(old.get(k), new.get(k), f"{where}.{k}".lstrip(".")) for k in sorted({*old, *new})]
        return "\n".join(line for line in found if line)
    return "" if old == new else f"  {where}: {old} -> {new}"


def group_of(sweep: SweepFile) -> str:
    """Return a new name for the experiment in the registry; a sweep with `--fresh` also gets a new one."""
    return f"{sweep.name}-{uuid.uuid4().hex[:6]}"


def is_begun(sweep: SweepFile) -> bool:
    """Return whether the sweep has a journal, so that it can continue."""
    store = object_store(sweep)
    begun = (sweep_folder(sweep.name, sweep.storage) / JOURNAL).exists()
    return begun or (store is not None and JOURNAL in store.names(sweep.name))


def point_to(folder: Path, name: str) -> None:
    """If a sweep's folder is outside the home, write its path into the home, so that commands find it by its name.

    Raises:
        InputError: the path cannot be written.
    """
    own = sweep_folder(name)
    if own != folder:
        try:
            own.mkdir(parents=True, exist_ok=True)
            (own / POINTER).write_text(str(folder))
        except OSError as error:
            raise InputError(f"{own / POINTER} cannot be written: {error.strerror}; move away what is there") from None


def read_pointer(own: Path) -> Path:
    """Return the folder that `point_to` wrote.

    Raises:
        InputError: the file is damaged.
    """
    path = own / POINTER
    try:
        text = path.read_text()
        folder = given_path(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it; `voicechat sweep FILE` writes a new one") from None
    if not text.startswith("/"):
        raise InputError(f"{path} is damaged (it names no folder): delete it; `voicechat sweep FILE` writes a new one")
    return folder


def known_sweeps() -> list[str]:
    """Return the names of all sweeps that have started, also of those outside the home; the latest one first."""
    folders = [path for path in settings().home.absolute().glob("sweeps/*") if holds_a_sweep(path)]
    return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def holds_a_sweep(folder: Path) -> bool:
    return (folder / INDEX).exists() or (folder / POINTER).exists()


def is_running(folder: Path) -> bool:
    """Return whether a process runs the sweep now (`run.locked`)."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def open_study(name: str) -> Study:
    """Open the study of a sweep for reading; `name` is its name, its folder or its file.

    Raises:
        InputError: there is no such sweep.
    """
    path, where = Path(name), ""
    if path.suffix in (".yaml", ".yml"):
        sweep = read_sweep(path)
        folder = sweep_folder(sweep.name, sweep.storage)
    else:
        folder = path if (path / INDEX).exists() else sweep_folder(name)
        if (folder / POINTER).exists():
            where = f" in the folder that {folder / POINTER} names"
            folder = read_pointer(folder)
    check_not_lost(folder)
    if not (folder / INDEX).exists() or not (folder / JOURNAL).exists():
        others = ", ".join(sorted(known_sweeps())) or "none yet"
        raise InputError(f"there is no sweep {name!r}{where}; there are: {others}")
    index = read_index(folder)
    return Study(folder, SweepFile.model_validate(index["file"]), writable=False)
