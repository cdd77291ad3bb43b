"""The details of one trial of a sweep: its point, its evaluations, its errors and the end of its log."""

from typing import Any

from voicechat_platform.errors import InputError
from voicechat_tune.running.run_files import SweepFiles
from voicechat_tune.running.sweep_index import open_study

LINES_OF_LOG = 20


def trial_facts(name: str, number: int) -> dict[str, Any]:
    """Return the details of a trial as plain values, for JSON.

    Raises:
        InputError: there is no such sweep, or it has no such trial.
    """
    study = open_study(name)
    trials = study.trials()
    if number > len(trials):
        raise InputError(f"sweep {study.sweep.name} has {len(trials)} trials; there is no trial {number}")
    trial = trials[number - 1]
    files = SweepFiles(study.sweep, study.folder)
    return {
        "trial": number,
        "state": trial.state,
        "point": trial.point,
        "lineage": trial.lineage,
        "shares_machine": study.sweep.runs_share_machine(),
        "runs": [
            {
                "run": str(run.key),
                "seed": study.sweep.seed_of(trial.point, run.key.seed_index),
                "ending": run.ending or "unfinished",
                "message": run.message,
                "facts": run.facts,
                "evaluations": run.evaluations,
                "folder": str(files.run_folder(run.key)),
                "log": files.log(run.key).splitlines()[-LINES_OF_LOG:],
            }
            for run in trial.runs
        ],
    }


def trial_text(facts: dict[str, Any]) -> str:
    lines = [f"trial {facts['trial']}: {facts['state']}"]
    lines += [f"  {field}: {value}" for field, value in (facts["point"] | facts["lineage"]).items()]
    speed = "tokens/s beside other runs" if facts["shares_machine"] else "tokens/s"
    for run in facts["runs"]:
        lines += ["", f"run {run['run']}, seed {run['seed']}: {run['ending']} {run['message']}".rstrip()]
        lines += [
            f"  step {e['step']}: validation {e['validation_loss']:.4f}, training {e['train_loss']:.4f} nats/token, "
            f"{e['tokens_per_second']:,.0f} {speed}"
            for e in run["evaluations"]
        ]
        lines += [f"  {name.replace('_', ' ')}: {value:,.6g}" for name, value in run["facts"].items()]
        lines += [f"  {run['folder']}, the end of its log:", *(f"    {line}" for line in run["log"])]
    return "\n".join(lines)
