"""The checkpoints of a sweep's runs: in folders that all machines share, or in an object store."""

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

from voicechat_platform.checkpoint_files import remove
from voicechat_platform.errors import InputError
from voicechat_platform.folders import scratch_folder
from voicechat_platform.paths import given_path
from voicechat_platform.settings import settings
from voicechat_tune.running.storage import Storage
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import RunKey

KEPT = ("best", "last")
"""In the order of the uploads. If a run lost its best checkpoint between the two, it could not find it again."""


def sweep_folder(name: str, storage: str | None = None) -> Path:
    """Return the sweep's folder: in its storage if that is a folder, else in the home."""
    if storage is not None and "://" not in storage:
        return given_path(storage) / name
    return settings().home / "sweeps" / name


def object_store(sweep: SweepFile) -> Storage | None:
    """Return the sweep's storage if it is an object store, else None."""
    return Storage(sweep.storage) if sweep.storage and "://" in sweep.storage else None


class RunFiles:
    """The folder of a run during its training (a context manager).

    With an object store, it is a scratch folder, and `put` uploads it at each evaluation.

    Args:
        folder: the sweep's folder.

    Raises:
        InputError: the folder is not on this machine, and there is no object store.
    """

    def __init__(self, sweep: SweepFile, folder: Path, key: RunKey):
        self.key, self.sweep_folder = key, folder
        self.store = object_store(sweep)
        self.prefix = f"{sweep.name}/runs/{key}"
        self.ending = ExitStack()
        self.folder = folder / "runs" / str(key)
        if self.store is None and not (folder / "sweep.json").exists():
            raise InputError(
                f"the sweep's folder {folder} is not on all machines of the cluster: set VOICECHAT_HOME to a shared "
                f"folder, or give the sweep a storage"
            )

    def __enter__(self) -> "RunFiles":
        if self.store is not None:
            scratch = scratch_folder(Path(tempfile.gettempdir()), "voicechat-run-")
            self.folder = self.ending.enter_context(scratch)
            for kept in KEPT:
                if newest := newest_of(self.store.names(self.prefix), kept):
                    self.store.get_folder(f"{self.prefix}/{newest}", self.folder / kept)
            self.store.get_file(f"{self.prefix}/log.txt", self.folder / "log.txt")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        with self.ending:
            self.put_log()

    def put_log(self) -> None:
        if self.store is not None and (self.folder / "log.txt").exists():
            self.store.put_file(self.folder / "log.txt", f"{self.prefix}/log.txt")

    def put(self) -> None:
        """Upload the log and new checkpoints. The upload of a checkpoint is complete before the old one is deleted."""
        if self.store is None:
            return
        self.put_log()
        for kept in KEPT:
            checkpoint = self.folder / kept
            if not checkpoint.exists():
                continue
            there = [name for name in self.store.names(self.prefix) if name.startswith(kept)]
            name = f"{kept}-{(checkpoint / 'run.json').stat().st_mtime_ns}"
            if name not in there:
                self.store.put_folder(checkpoint, f"{self.prefix}/{name}")
            for old in there:
                if old != name:
                    self.store.delete(f"{self.prefix}/{old}")

    def fetch_parent(self, parent: str) -> Path:
        """Return the last checkpoint of another run, from which this one starts.

        Raises:
            InputError: it does not exist.
        """
        if self.store is None:
            checkpoint = self.sweep_folder / "runs" / parent / "last"
        else:
            prefix, checkpoint = self.prefix.rpartition("/")[0] + f"/{parent}", self.folder / "parent"
            newest = newest_of(self.store.names(prefix), "last")
            if newest and not checkpoint.exists():
                self.store.get_folder(f"{prefix}/{newest}", checkpoint)
        if not checkpoint.exists():
            raise InputError(f"the checkpoint of run {parent}, from which run {self.key} starts, does not exist")
        return checkpoint


class SweepFiles:
    """The files of all runs, for the driver."""

    def __init__(self, sweep: SweepFile, folder: Path):
        self.sweep, self.folder, self.store = sweep, folder, object_store(sweep)

    def run_folder(self, key: RunKey) -> Path:
        return self.folder / "runs" / str(key)

    def log(self, key: RunKey) -> str:
        """Return the run's log, with its errors."""
        path = self.run_folder(key) / "log.txt"
        if self.store is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.store.get_file(f"{self.sweep.name}/runs/{key}/log.txt", path)
        return path.read_text() if path.exists() else ""

    def best(self, key: RunKey) -> Path:
        """Return the best checkpoint of a finished run; the last one for an interval, which may have no best one.

        With an object store, it is downloaded first.
        """
        run = self.run_folder(key)
        if self.store is not None:
            prefix = f"{self.sweep.name}/runs/{key}"
            for kept in KEPT:
                newest = newest_of(self.store.names(prefix), kept)
                if newest and not (run / kept).exists():
                    self.store.get_folder(f"{prefix}/{newest}", run / kept)
        return run / "best" if (run / "best").exists() else run / "last"

    def discard(self, key: RunKey) -> None:
        """Delete the checkpoints of a run that did not finish or is not needed any more. Its log stays."""
        self.delete(key, (*KEPT, "previous", "parent"))

    def tidy(self, key: RunKey) -> None:
        """Delete the files that a finished run does not need."""
        self.delete(key, ("previous", "parent"))

    def delete(self, key: RunKey, kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            remove(self.run_folder(key) / kind)
        if self.store is not None:
            prefix = f"{self.sweep.name}/runs/{key}"
            for name in self.store.names(prefix):
                if name.startswith(kinds):
                    self.store.delete(f"{prefix}/{name}")

    def mebibytes(self) -> float:
        """Return the size of the sweep's folder and of its object store."""
        own = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return (own + (self.store.size(self.sweep.name) if self.store else 0)) / 2**20


def newest_of(names: list[str], kept: str) -> str | None:
    """Return the newest of "last-17…", "last-18…"; None if there is none."""
    found = [name for name in names if re.fullmatch(rf"{kept}-\d+", name)]
    return max(found, key=lambda name: int(name.rpartition("-")[2]), default=None)
