"""Running a sweep: launch it or go on with it, keep its trials in the registry, promote the best."""

import hashlib
import logging
import os
import shutil
import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ray
from ray import tune

from voicechat_platform.cluster import start_ray
from voicechat_platform.errors import InputError
from voicechat_platform.registry import Registry, Version
from voicechat_platform.settings import settings
from voicechat_platform.training.loop import Evaluation
from voicechat_platform.training.starting_point import find_start, load_data
from voicechat_tune.follow import Follower
from voicechat_tune.search import METRIC, MODE, make_scheduler, make_searcher
from voicechat_tune.sweep_file import SweepFile
from voicechat_tune.trial import run_trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep."""

    finished: list[Version]
    """Versions of the trials that ended, the best first."""
    failed: int
    complete: bool
    """False when it was interrupted: run it again to go on."""

    @property
    def best(self) -> Version | None:
        return self.finished[0] if self.finished else None


def run_sweep(sweep: SweepFile, fresh: bool = False) -> Outcome:
    """Run a sweep to its end, or go on with one that was interrupted, following it meanwhile.

    Ctrl-C ends it early: what is finished is kept, and the next call goes on.

    Args:
        sweep: the sweep.
        fresh: throw away what an earlier sweep of that name left in its folder (its versions stay registered).

    Raises:
        InputError: a sweep of that name exists that came from another file.
    """
    # Tune would print its own tables, warn of every default, and keep 20 s between states saved for a restore.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_SYNCER", "1")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    folder = settings().folder("sweeps") / sweep.name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    resumes = check_same_file(sweep, folder)
    log.info("reading the data")
    data = load_data(sweep.recipe)
    log.info("starting Ray")
    start_ray()
    check_resources(sweep)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, sweep=sweep, data=data, start=find_start(sweep.recipe)),
        {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial},
    )
    if resumes:
        log.info("going on with the sweep in %s", folder)
        tuner = tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode=MODE,
                num_samples=sweep.trials,
                search_alg=make_searcher(sweep),
                scheduler=make_scheduler(sweep),
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=str(folder.parent),
                callbacks=[Follower(sweep)],
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order=MODE
                ),
                failure_config=tune.FailureConfig(max_failures=2),
                verbose=0,
            ),
        )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        results = tuner.fit()
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Tune leaves a handler behind that only sets a flag of its own
    return keep(sweep, results)


def check_resources(sweep: SweepFile) -> None:
    """
    Raises:
        InputError: a Ray of our own can never give a trial what it asks for; Tune would wait for ever. A cluster may
            grow, and says itself what it waits for.
    """
    if settings().ray_address != "local":
        return
    has = ray.cluster_resources()
    for kind, wanted in (("CPU", sweep.cpus_per_trial), ("GPU", sweep.gpus_per_trial)):
        if wanted > has.get(kind, 0):
            raise InputError(
                f"{kind.lower()}s_per_trial is {wanted:g}, but this machine has {has.get(kind, 0):g} {kind}s: "
                f"lower it, or join a cluster with VOICECHAT_RAY_ADDRESS"
            )


def check_same_file(sweep: SweepFile, folder: Path) -> bool:
    """Whether there is a sweep to go on with; notes what the folder belongs to when there is none."""
    mark = folder / "sweep.json"
    if tune.Tuner.can_restore(str(folder)):
        if mark.read_text() != sweep.model_dump_json(indent=2):
            raise InputError(
                f"{folder} holds a sweep {sweep.name!r} from a different file; give this one another name, "
                f"or throw the old one away with --fresh"
            )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(sweep.model_dump_json(indent=2))
    return False


def keep(sweep: SweepFile, results: tune.ResultGrid) -> Outcome:
    """Register every trial that ended; what is registered already stays as it is."""
    registry = Registry()
    versions: list[tuple[float, Version]] = []
    failed = ended = 0
    for result in results:
        if result.error is not None:
            failed, ended = failed + 1, ended + 1
        elif result.metrics and result.metrics.get("done"):
            ended += 1
            versions.append((result.metrics[METRIC], register_trial(registry, sweep, result)))
    versions.sort(key=lambda pair: pair[0])
    return Outcome([version for _, version in versions], failed, complete=ended >= sweep.trials)


def register_trial(registry: Registry, sweep: SweepFile, result: Any) -> Version:
    columns = [field.name for field in fields(Evaluation) if field.name in result.metrics_dataframe]
    history = result.metrics_dataframe[columns].drop_duplicates("step", keep="last").to_dict("records")
    step = result.metrics["step"]
    return registry.record(
        group=f"{sweep.name}-{fingerprint(sweep)}",
        run_name=result.metrics["trial_id"],
        parameters=result.config,
        history=history,
        checkpoint=Path(result.checkpoint.path),
        status="FINISHED" if step >= sweep.recipe.training.steps else "KILLED",
    )


def fingerprint(sweep: SweepFile) -> str:
    """Tells sweeps of one name but different files apart, so that each has an experiment of its own."""
    return hashlib.sha256(sweep.model_dump_json().encode()).hexdigest()[:6]
