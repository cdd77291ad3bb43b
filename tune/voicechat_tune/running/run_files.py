"""Where the runs of a sweep keep their checkpoints: folders that every machine sees, or an object store."""

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
"""In the order in which they are uploaded: were the best lost between the two, nothing would find it out again."""


def sweep_folder(name: str, storage: str | None = None) -> Path:
    """The sweep's folder: in its storage where that is a folder, else in the home."""
    if storage is not None and "://" not in storage:
        return given_path(storage) / name
    return settings().home / "sweeps" / name


def object_store(sweep: SweepFile) -> Storage | None:
    """The sweep's storage where it is not a folder."""
    return Storage(sweep.storage) if sweep.storage and "://" in sweep.storage else None


class RunFiles:
    """A run's folder while it trains (a context); with an object store a scratch one, uploaded at each evaluation.

    Args:
        folder: the sweep's.

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
                f"the sweep's folder {folder} is not on every machine of the cluster: put VOICECHAT_HOME on a shared "
                f"one, or give the sweep a storage"
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
        """Bring the store up to date; a new checkpoint is there whole before the old one goes."""
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
        """The last checkpoint of another run, which this one goes on from.

        Raises:
            InputError: it is gone.
        """
        if self.store is None:
            checkpoint = self.sweep_folder / "runs" / parent / "last"
        else:
            prefix, checkpoint = self.prefix.rpartition("/")[0] + f"/{parent}", self.folder / "parent"
            newest = newest_of(self.store.names(prefix), "last")
            if newest and not checkpoint.exists():
                self.store.get_folder(f"{prefix}/{newest}", checkpoint)
        if not checkpoint.exists():
            raise InputError(f"the checkpoint of run {parent}, which run {self.key} goes on from, is gone")
        return checkpoint


class SweepFiles:
    """The driver's view of all runs' files."""

    def __init__(self, sweep: SweepFile, folder: Path):
        self.sweep, self.folder, self.store = sweep, folder, object_store(sweep)

    def run_folder(self, key: RunKey) -> Path:
        return self.folder / "runs" / str(key)

    def log(self, key: RunKey) -> str:
        """What the run said, and why it broke off."""
        path = self.run_folder(key) / "log.txt"
        if self.store is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.store.get_file(f"{self.sweep.name}/runs/{key}/log.txt", path)
        return path.read_text() if path.exists() else ""

    def best(self, key: RunKey) -> Path:
        """The best checkpoint of a finished run, on this machine; of an interval, which may have none, the last."""
        run = self.run_folder(key)
        if self.store is not None:
            prefix = f"{self.sweep.name}/runs/{key}"
            for kept in KEPT:
                newest = newest_of(self.store.names(prefix), kept)
                if newest and not (run / kept).exists():
                    self.store.get_folder(f"{prefix}/{newest}", run / kept)
        return run / "best" if (run / "best").exists() else run / "last"

    def discard(self, key: RunKey) -> None:
        """Delete a run's checkpoints: it was stopped, or others go on from later ones. Its log stays."""
        self.delete(key, (*KEPT, "previous", "parent"))

    def tidy(self, key: RunKey) -> None:
        """Delete what only a run that is not finished needs."""
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
        """What the sweep takes in all."""
        own = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return (own + (self.store.size(self.sweep.name) if self.store else 0)) / 2**20


def newest_of(names: list[str], kept: str) -> str | None:
    """The newest of "last-17…", "last-18…"."""
    found = [name for name in names if re.fullmatch(rf"{kept}-\d+", name)]
    return max(found, key=lambda name: int(name.rpartition("-")[2]), default=None)
