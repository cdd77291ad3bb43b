"""The journal of a sweep's study: the file in which Optuna keeps it, one JSON object a line.

A disk may lose or garble any line: what is damaged is an error that names the line, and what is sound can be salvaged.
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
    "go on from what is sound with `voicechat sweep FILE --salvage` (of a comparison: `voicechat compare FILE "
    "--salvage`), which keeps the damaged file beside it; or bring a copy back; or begin anew with --fresh"
)


class DamagedRecordError(ValueError):
    """A line, from 1, that Optuna cannot read; the message says why."""

    def __init__(self, line: int, why: str):
        super().__init__(why)
        self.line = line


@dataclass(frozen=True)
class StudyHeader:
    """The first line: which study it is."""

    name: str
    objectives: Mapping[Any, Literal["minimize", "maximize"]]
    is_warm: bool
    """Whether trials of an earlier sweep may follow it."""

    def line(self) -> bytes:
        record = {"op_code": 0, "worker_id": "salvage", "study_name": self.name, "directions": self.directions()}
        return json.dumps(record).encode()

    def directions(self) -> list[int]:
        """By Optuna's numbers."""
        return [1 if direction == "minimize" else 2 for direction in self.objectives.values()]


@dataclass
class SoundLines:
    """What of a journal's lines is sound."""

    lines: list[bytes]
    contents: Contents
    damage: tuple[int, str] | None = None
    """The first line, from 1, that is not, and why."""

    def __str__(self) -> str:
        return f"{self.contents.numbered} trials, {len(self.contents.over)} of them ended"


def sound_lines(lines: list[bytes], header: StudyHeader) -> SoundLines:
    """The lines that are sound and follow each other.

    A line may be lost without losing those after it: each of them is kept that still refers to a trial that is there,
    and a trial only where its number is the next one. Before the first trial nothing shows whether one of an
    earlier sweep was lost, so with such ones it ends there.
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
    """Optuna's file, which knows the line that Optuna is at."""

    line = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for self.line, record in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            yield record


def replay(path: Path) -> JournalStorage:
    """Optuna's storage in a journal.

    Raises:
        DamagedRecordError: a record holds what only Optuna can check, such as a distribution, and that is not sound.
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
            raise DamagedRecordError(begins[id_of_trial(trial)], f"its trial is none of Optuna's: {error}") from None
    return storage


def open_journal(path: Path, header: StudyHeader, writable: bool) -> JournalStorage:
    """Optuna's storage in a journal, all lines of which are sound.

    A half-written last line is no damage: a full disk or a machine that lost its power leaves one, and a writer is in
    the midst of one. What it was to say is done again.

    Args:
        path: the file; it need not be there.
        writable: for the driver alone: the half-written line is cut off, and the lock of a killed writer removed.

    Raises:
        InputError: a line is damaged, or the file cannot be read; it says what is left and how to go on.
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
        f"{path}:{line} is damaged ({why}): {len(found.lines)} of its {len(lines)} lines are sound and hold {found}; "
        f"{SALVAGE}"
    )


def salvage(path: Path, header: StudyHeader) -> SoundLines | None:
    """Write the sound lines of a damaged journal in its place; it stays beside it as study.journal.damaged-1, -2 ….

    A journal that is lost or empty begins anew.

    Returns:
        What is left; None where nothing is damaged.

    Raises:
        InputError: it is the journal of another study.
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
    """
    Raises:
        InputError: the journal is that of another study.
    """
    begun = found.contents.begun
    if begun and begun != (header.name, header.directions()):
        raise InputError(
            f"{path} belongs to a sweep {begun[0]!r} with {len(begun[1])} objectives, not to {header.name!r} with "
            f"{', '.join(header.objectives)}: give the file that it began with, or begin anew with --fresh"
        )


def set_aside(path: Path) -> None:
    """Rename a damaged file, where there is one, to the first name of NAME.damaged-1, -2 … that is free."""
    if path.exists():
        names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def read_lines(path: Path) -> list[bytes]:
    """The whole lines, without a half-written last one; none where there is no file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {SALVAGE}") from None


def mend(path: Path) -> None:
    """Cut a half-written last line off, and remove the lock of a writer that was killed.

    Raises:
        InputError: the file cannot be read, or something else lies where the lock is to be.
    """
    lock = Path(f"{path}.lock")
    if lock.is_symlink() or lock.is_file():
        lock.unlink()
    elif lock.exists():
        raise InputError(f"{lock} is in the way of the study's lock: move it away")
    whole = sum(len(line) + 1 for line in read_lines(path))
    if path.exists() and whole < path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
