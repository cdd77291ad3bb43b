"""The journal of a sweep's study: the file in which Optuna stores it, one JSON object per line.

A disk may lose or damage any line. A damaged line is an error that names the line. A user can salvage the sound lines.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from voicechat_platform.errors import InputError
from voicechat_tune.search.journal_lines import Contents, DamagedLineError
from voicechat_tune.search.optuna_private import check_trial, id_of_trial

JOURNAL = "study.journal"
SALVAGE = (
    "continue from the sound lines with `voicechat sweep FILE --salvage` (for a comparison: `voicechat compare FILE "
    "--salvage`), which keeps the damaged file beside the new one; or restore a backup; or start again with --fresh"
)


class DamagedRecordError(ValueError):
    """Optuna cannot read a line (numbered from 1); the message gives the reason."""

    def __init__(self, line: int, why: str):
        super().__init__(why)
        self.line = line


@dataclass(frozen=True)
class StudyHeader:
    """The facts of a journal's first line, which identify the study."""

    name: str
    objectives: Mapping[Any, Literal["minimize", "maximize"]]
    is_warm: bool
    """Whether trials of an earlier sweep may follow the first line."""

    def line(self) -> bytes:
        record = {"op_code": 0, "worker_id": "salvage", "study_name": self.name, "directions": self.directions()}
        return json.dumps(record).encode()

    def directions(self) -> list[int]:
        """Return Optuna's numbers of the directions."""
        return [1 if direction == "minimize" else 2 for direction in self.objectives.values()]


@dataclass
class SoundLines:
    """The sound lines of a journal."""

    lines: list[bytes]
    contents: Contents
    damage: tuple[int, str] | None = None
    """The number of the first damaged line, from 1, and the reason."""

    def __str__(self) -> str:
        return f"{self.contents.numbered} trials, {len(self.contents.over)} of them ended"


def sound_lines(lines: list[bytes], header: StudyHeader) -> SoundLines:
    """Return the lines that are sound and can follow each other.

    After a lost line, a later line stays if its trial is still there; a new trial stays only if it has the next number.
    Before the first trial nothing shows whether a trial of the earlier sweep was lost. So with a warm start, damage
    before the first trial drops all later lines.
    """
    found = SoundLines([], Contents(header.objectives))
    for number, line in enumerate(lines, 1):
        try:
            found.contents.add(line)
            found.lines.append(line)
        except DamagedLineError as error:
            found.damage = found.damage or (number, str(error))
            if header.is_warm and not found.contents.numbered:
                break
            if number == 1:
                found.contents.add(header.line())
                found.lines.append(header.line())
    return found


class CountingFile(JournalFileBackend):
    """Optuna's file backend, which also counts the lines that Optuna has read."""

    line = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for self.line, record in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            yield record


def replay(path: Path) -> JournalStorage:
    """Read a journal into Optuna's storage.

    Raises:
        DamagedRecordError: a record has an invalid value that only Optuna can check, such as a distribution.
    """
    backend = CountingFile(str(path))
    try:
        storage = JournalStorage(backend)
    except OSError:
        raise
    except Exception as error:
        raise DamagedRecordError(backend.line, f"Optuna cannot read it: {type(error).__name__}: {error}") from None
    for trial in storage.get_all_trials(0, deepcopy=False) if storage.get_all_studies() else []:
        try:
            check_trial(trial)
        except ValueError as error:
            begins = [n for n, line in enumerate(read_lines(path), 1) if json.loads(line)["op_code"] == 4]
            raise DamagedRecordError(begins[id_of_trial(trial)], f"its trial is invalid: {error}") from None
    return storage


def open_journal(path: Path, header: StudyHeader, writable: bool) -> JournalStorage:
    """Check all lines of a journal, and read it into Optuna's storage.

    An incomplete last line is no damage: a full disk or a power failure leaves one, and an active writer may be about
    to complete it. The sweep repeats the step that the line was to record.

    Args:
        path: the file, which may be missing.
        writable: only for the driver: remove an incomplete last line and the lock of a killed writer.

    Raises:
        InputError: a line is damaged, or the file cannot be read. The message states which lines are sound, and how to
            continue.
    """
    if writable:
        mend(path)
    lines = read_lines(path)
    found = sound_lines(lines, header)
    check_belongs(path, found, header)
    if found.damage is None:
        try:
            return replay(path)
        except DamagedRecordError as error:
            found = sound_lines([*lines[: error.line - 1], *lines[error.line :]], header)
            found.damage = (error.line, str(error))
    line, why = found.damage
    raise InputError(
        f"{path}:{line} is damaged ({why}): {len(found.lines)} of its {len(lines)} lines are sound, with {found}; "
        f"{SALVAGE}"
    )


def salvage(path: Path, header: StudyHeader) -> SoundLines | None:
    """Replace a damaged journal by its sound lines. The damaged file is renamed to study.journal.damaged-1, -2 ….

    A missing or empty journal is replaced by a new one.

    Returns:
        The sound lines; None if nothing is damaged.

    Raises:
        InputError: the journal belongs to another study.
    """
    try:
        lines = read_lines(path)
    except InputError:
        lines = []
    found = sound_lines(lines, header)
    check_belongs(path, found, header)
    new = path.with_name(f".{path.name}.new")
    is_damaged = not lines or found.damage is not None
    while True:
        with new.open("wb") as file:
            file.writelines(line + b"\n" for line in found.lines or [header.line()])
            os.fsync(file.fileno())
        try:
            replay(new)
            break
        except DamagedRecordError as error:
            is_damaged = True
            found = sound_lines([*found.lines[: error.line - 1], *found.lines[error.line :]], header)
    if not is_damaged:
        new.unlink()
        return None
    set_aside(path)
    new.replace(path)
    return found


def check_belongs(path: Path, found: SoundLines, header: StudyHeader) -> None:
    """Check that the journal belongs to the study.

    Raises:
        InputError: it belongs to another study.
    """
    begun = found.contents.begun
    if begun and begun != (header.name, header.directions()):
        raise InputError(
            f"{path} belongs to a sweep {begun[0]!r} with {len(begun[1])} objectives, not to {header.name!r} with "
            f"{', '.join(header.objectives)}: give the sweep's original file, or start again with --fresh"
        )


def set_aside(path: Path) -> None:
    """Rename a damaged file, if it exists, to the first free name of NAME.damaged-1, -2 …."""
    if path.exists():
        names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def read_lines(path: Path) -> list[bytes]:
    """Return the complete lines, without an incomplete last line; an empty list if there is no file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {SALVAGE}") from None


def mend(path: Path) -> None:
    """Remove an incomplete last line, and the lock of a killed writer.

    Raises:
        InputError: the file cannot be read, or the lock's path is not a file.
    """
    lock = Path(f"{path}.lock")
    if lock.is_symlink() or lock.is_file():
        lock.unlink()
    elif lock.exists():
        raise InputError(f"{lock} must be a file, the study's lock: move away what is there")
    whole = sum(len(line) + 1 for line in read_lines(path))
    if path.exists() and whole < path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
