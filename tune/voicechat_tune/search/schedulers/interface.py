"""What every scheduler is: the fields that a sweep file gives it, and what it decides while the sweep runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from voicechat_platform.strict_yaml import Strict
from voicechat_tune.search.trials import Run, Trial

if TYPE_CHECKING:
    from voicechat_tune.search.study import Study
    from voicechat_tune.search.sweep_file import SweepFile


@dataclass(frozen=True)
class NextTrial:
    """What the next trial of a sweep is."""

    point: dict[str, Any] | None = None
    """Where it stands in the search space; None leaves that to the sampler."""
    lineage: dict[str, int] = field(default_factory=dict)
    """Of trials that go on from each other's checkpoints: "member", "generation", both from 1, and from the second
    generation on "parent", the number of the trial whose last checkpoint it begins with."""


class Scheduler:
    """Decides while a sweep runs. This one lets every run come to its end.

    It is made anew each time the sweep starts, from the study as it stands then, and must decide after a kill as it
    would have done without: whatever it remembers it must find in the study again.
    """

    def next_trial(self, trials: Sequence[Trial]) -> NextTrial | None:
        """The next trial; None where none can begin before a run has ended.

        Args:
            trials: all that have begun, in the order of their numbers.
        """
        return NextTrial()

    def should_stop(self, run: Run, step: int) -> str:
        """Why a run is stopped at its evaluation at a step; empty where it goes on.

        The driver asks at each evaluation of a trial's first seed but that of the last step. It may ask once more for
        evaluations that it has asked for: a run that goes on after a kill reports them again.

        Args:
            run: with all its evaluations; later ones than that of the step perhaps.
        """
        return ""


class SchedulerConfig(Strict):
    """The fields of a scheduler in a sweep file, and what it is to the rest of the sweep."""

    kind: str
    stops_runs: ClassVar[bool] = False
    """Whether runs end before their last step; a sampler that cannot learn from such runs is refused."""
    takes_more_trials: ClassVar[bool] = True
    """Whether `--extend` may add trials to a finished sweep."""

    @model_validator(mode="before")
    @classmethod
    def own_fields_alone(cls, values: Any) -> Any:
        """Refuse the fields of other kinds; one that is null counts as left out."""
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if name in cls.model_fields or value is not None}
        kind, *own = cls.model_fields
        for name in given:
            if name not in cls.model_fields:
                own_kind = cls.model_fields[kind].default
                raise ValueError(f"{name} does not belong to {own_kind}: leave it out; its fields are {', '.join(own)}")
        return given

    def check(self, sweep: "SweepFile") -> None:
        """Refuse what does not go together with this scheduler.

        Raises:
            ValueError: what is wrong in the sweep file, and what to do.
        """

    def describe(self, sweep: "SweepFile") -> str:
        """What it does in this sweep: one sentence, for the dry run and the report."""
        raise NotImplementedError

    def generations(self, sweep: "SweepFile") -> int:
        """Into how many trials, one after the other, a run of all steps is cut."""
        return 1

    def ends_at(self, lineage: dict[str, int]) -> int | None:
        """The step at which a trial of that lineage ends; None for the recipe's last one."""
        return None

    def start(self, study: "Study") -> Scheduler:
        """The scheduler at work, which begins with what the study holds."""
        raise NotImplementedError
