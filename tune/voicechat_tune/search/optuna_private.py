"""All uses of Optuna's private names, checked with Optuna 5.0; pyproject.toml bounds the version.

We rely on two more undocumented facts: the records of Optuna's journal (`journal_lines.py`), and that in an in-memory
storage a trial's number equals its id (`samplers.py`).
"""

import optuna
from optuna.trial import FrozenTrial


def id_of_trial(trial: FrozenTrial | optuna.Trial) -> int:
    """Return the trial's id in the storage, which counts the trials of all its studies."""
    return trial._trial_id


def id_of_study(study: optuna.Study) -> int:
    return study._study_id


def check_trial(trial: FrozenTrial) -> None:
    """Check a trial as Optuna does when it copies one.

    Raises:
        ValueError: the trial's fields contradict each other.
    """
    trial._validate()
