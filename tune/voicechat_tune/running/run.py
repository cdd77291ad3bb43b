"""Run a sweep: start or continue it, and register its finished runs."""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from voicechat_platform.cluster import start_ray
from voicechat_platform.errors import InputError
from voicechat_platform.registry import Version
from voicechat_platform.settings import settings
from voicechat_platform.training.starting_point import find_start, load_data
from voicechat_tune.running.disk import is_disk_full
from voicechat_tune.running.driver import DrivenScheduler, DrivenSearch, Driver
from voicechat_tune.running.follow import Follower
from voicechat_tune.running.resources import check_resources, room_for
from voicechat_tune.running.retention import Retention, RetentionCallback
from voicechat_tune.running.run_files import object_store, sweep_folder
from voicechat_tune.running.sweep_index import INDEX, open_study, point_to, update_index, write_index
from voicechat_tune.running.trial import run_trial
from voicechat_tune.running.wheel import build_wheel
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.ranking import best_first, ranked
from voicechat_tune.search.samplers import trials_of
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile

log = logging.getLogger(__name__)

LOCK_ATTEMPTS = 3
"""`sweep_index.is_running` also holds the lock, for a moment; so a first attempt may fail."""


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep."""

    finished: list[Version]
    """Versions of the finished runs, the best trial first."""
    failed: int
    """Number of failed trials."""
    unfinished: int
    """Number of trials that the next start continues or creates."""
    reason: str
    """The reason why it ended before its last trial: a limit, a full disk, Ctrl-C; empty if it is complete."""
    mebibytes: float
    """The size of its folder and its storage."""

    @property
    def complete(self) -> bool:
        return not self.reason

    @property
    def best(self) -> Version | None:
        return self.finished[0] if self.finished else None


def run_sweep(
    sweep: SweepFile, fresh: bool = False, force: bool = False, extend: int = 0, tensorboard: bool = False
) -> Outcome:
    """Run a sweep to its end, or continue an interrupted one, and show its progress.

    Ctrl-C ends it early: the finished runs are kept, and the next call continues the sweep.

    Args:
        sweep: the sweep.
        fresh: delete the files of an earlier sweep with this name (its versions stay registered).
        force: continue although the file has changed; earlier runs do not change.
        extend: the number of trials to add to those of the file.
        tensorboard: write event files into the sweep's folder.

    Raises:
        InputError: the sweep with this name is from another file or is running now, its storage cannot be written, or
            the machines can never have the resources for a run.
    """
    folder = sweep_folder(sweep.name, sweep.storage)
    point_to(folder, sweep.name)
    with locked(folder), full_disk_explained(folder):
        store = object_store(sweep)
        if store is not None:
            store.check_writable()
        if fresh:
            throw_away(sweep, folder)
        elif store is not None and not (folder / JOURNAL).exists():  # another head node may have started it
            for name in (INDEX, JOURNAL):
                store.get_file(f"{sweep.name}/{name}", folder / name)
        resumes = (folder / JOURNAL).exists()
        index = update_index(sweep, folder, force)
        study = Study(folder, sweep)
        if sweep.warm_start and not study.trials():
            warm_start(sweep, study)
        wanted = trials_of(sweep) + index["extended"]
        if extend:
            wanted = extended(sweep, study, folder, index, extend)
        retention = Retention(sweep, study, folder, index["group"])
        if study.is_over(wanted):
            return outcome(study, wanted, "", retention)
        log.info("reading the data")
        data = load_data(sweep.recipe)
        log.info("starting Ray")
        with tempfile.TemporaryDirectory() as scratch:
            start_ray(build_wheel(Path(scratch)) if settings().ray_address != "local" else None)
        check_resources(sweep)
        driver = Driver(sweep, study, wanted, room=lambda: room_for(sweep))
        if resumes:
            log.info("continuing the sweep in %s", folder)
        run_tuner(sweep, folder, driver, retention, data, tensorboard)
        return outcome(study, wanted, driver.stopping, retention)


def run_tuner(
    sweep: SweepFile, folder: Path, driver: Driver, retention: Retention, data: Any, tensorboard: bool
) -> None:
    """Run the driver's runs with Ray Tune."""
    quiet_tune(room_for(sweep))
    scratch = folder / ".ray-tune"  # Tune's own files, not needed afterwards
    shutil.rmtree(scratch, ignore_errors=True)
    resources = {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}
    if sweep.workers_per_trial > 1:
        resources = {"CPU": 0, "memory": 2**20}  # its process only waits; the workers request resources
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, sweep=sweep, folder=folder, data=data, start=find_start(sweep.recipe)),
            resources,
        ),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=DrivenSearch(driver),
            scheduler=DrivenScheduler(driver),
            reuse_actors=sweep.workers_per_trial == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(folder),
            callbacks=[
                Follower(sweep, driver, folder / "tensorboard" if tensorboard else None),
                RetentionCallback(retention),
            ],
            verbose=0,
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner.fit()
    except KeyboardInterrupt:  # Tune handles Ctrl-C at most moments, but not at all
        driver.stopping = "interrupted"
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Tune does not restore the handler
        shutil.rmtree(scratch, ignore_errors=True)


def quiet_tune(room: int) -> None:
    """Set Tune's options.

    With its defaults, Tune would print tables, warn about each default, log each trial three times, save its state, and
    start one process after the other.
    """
    for name, value in {
        "TUNE_MAX_PENDING_TRIALS_PG": str(room),
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a sweep for this process. The lock of a killed process is free.

    Raises:
        InputError: another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+", errors="replace")
    except OSError as error:
        raise InputError(f"{folder} cannot store results: {error}; give a folder that can be written") from None
    with file:
        for _ in range(LOCK_ATTEMPTS):
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.1)
        else:
            file.seek(0)
            raise InputError(f"process {file.read().strip() or '?'} runs the sweep in {folder} now: wait for its end")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Replace an error that a full disk caused by a clear one.

    Raises:
        InputError: the disk is full.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_disk_full(error, folder):
            raise
        raise InputError(
            f"the disk is full at {folder}: free some space, and run the same command again to continue the sweep"
        ) from error


def extended(sweep: SweepFile, study: Study, folder: Path, index: dict[str, Any], extend: int) -> int:
    """Add trials to a sweep that has ended, and return the total number of trials.

    If the sweep has not ended, this adds none, so that the same command after a Ctrl-C adds no trials twice.

    Raises:
        InputError: the sweep has a fixed number of trials.
    """
    if sweep.points or sweep.sampler == "grid":
        raise InputError("--extend adds drawn trials; a grid and points have a fixed number of trials")
    if sweep.scheduler and not sweep.scheduler.takes_more_trials:
        raise InputError(f"--extend adds drawn trials; {sweep.scheduler.kind} has a fixed number of trials")
    wanted = trials_of(sweep) + index["extended"]
    if not study.is_over(wanted):
        log.info("the sweep has not ended yet: it continues to its %d trials, and --extend adds none", wanted)
        return wanted
    write_index(folder, {**index, "extended": index["extended"] + extend})
    return wanted + extend


def throw_away(sweep: SweepFile, folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    store = object_store(sweep)
    if store is not None:
        store.delete(sweep.name)


def warm_start(sweep: SweepFile, study: Study) -> None:
    assert sweep.warm_start is not None
    earlier = open_study(sweep.warm_start)
    known = study.warm_start(earlier)
    if not known:
        raise InputError(
            f"warm_start: no finished trial of {earlier.sweep.name} has the fields, values and objectives of this "
            f"search: leave out warm_start, or use the search of that sweep"
        )
    log.info("the sampler starts with %d finished trials of %s", known, earlier.sweep.name)


def outcome(study: Study, wanted: int, stopping: str, retention: Retention) -> Outcome:
    """Finish the retention, and return the sweep's result.

    Args:
        stopping: the reason why the driver ended the sweep early; empty if it did not.
    """
    retention.finish()
    trials = study.trials()
    unfinished = max(0, wanted - sum(trial.state != "unfinished" for trial in trials))
    reason = stopping or ("interrupted" if unfinished else "")
    return Outcome(
        finished=[
            retention.kept[run.key]
            for trial in ranked(trials, study.sweep)
            for run in best_first(trial)
            if run.key in retention.kept
        ],
        failed=sum(trial.state == "failed" for trial in trials),
        unfinished=unfinished,
        reason=reason,
        mebibytes=retention.files.mebibytes(),
    )
