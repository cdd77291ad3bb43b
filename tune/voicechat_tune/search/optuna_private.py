"""Names that Optuna keeps to itself, all in one place: read in Optuna 5.0, which pyproject.toml bounds.

What else we rely on beyond its documentation: the records of its journal (`journal_lines.py`), and that a storage in
memory numbers its trials as it numbers their ids (`samplers.py`).
"""

import optuna
from optuna.trial import FrozenTrial


def id_of_trial(trial: FrozenTrial | optuna.Trial) -> int:
    """Its id in the storage, which counts the trials of all studies there."""
    return trial._trial_id


def id_of_study(study: optuna.Study) -> int:
    return study._study_id


def check_trial(trial: FrozenTrial) -> None:
    """
    Raises:
        ValueError: the trial's fields contradict each other. Optuna itself looks when the trial is copied.
    """
    trial._validate()
