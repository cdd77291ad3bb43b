"""The interface of all schedulers: their fields in a sweep file, and their decisions during the sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError

from voicechat_platform.strict_yaml import Strict
from voicechat_tune.search.trials import Run, Trial

if TYPE_CHECKING:
    from voicechat_tune.search.study import Study
    from voicechat_tune.search.sweep_file import SweepFile


@dataclass(frozen=True)
class NextTrial:
    """The next trial of a sweep."""

    point: dict[str, Any] | None = None
    """The point in the search space; None if the sampler is to draw it."""
    lineage: dict[str, int] = field(default_factory=dict)
    """For trials that start from other trials' checkpoints: "member" and "generation", both from 1; from the second
    generation on also "parent", the number of the trial whose last checkpoint this trial starts from."""


class Scheduler:
    """Makes the decisions during a sweep. This base class stops no run.

    Each start of the sweep creates a new scheduler from the study. After a kill it must make the same decisions as
    without the kill. So it must be able to restore its whole state from the study.
    """

    def next_trial(self, trials: Sequence[Trial]) -> NextTrial | None:
        """Return the next trial; None if a run must end first.

        Args:
            trials: all trials so far, in the order of their numbers.
        """
        return NextTrial()

    def should_stop(self, run: Run, step: int) -> str:
        """Return the reason to stop a run at its evaluation of a step; empty if the run continues.

        The driver calls this for each evaluation of a trial's first seed; at the last step it ignores the answer. It
        may call this again for the same evaluation, because a run that continues after a kill sends its evaluations
        again.

        Args:
            run: the run with all its evaluations, perhaps also later ones.
        """
        return ""


def fault_in(field: str, value: Any, message: str) -> ValidationError:
    """Return the error of one field, so that the message has the line of this field."""
    fault = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data("scheduler", [{"type": fault, "loc": (field,), "input": value}])


class SchedulerConfig(Strict):
    """The fields of a scheduler in a sweep file, and its properties that other parts of the sweep need."""

    kind: str
    stops_runs: ClassVar[bool] = False
    """Whether it stops runs before their last step; then a sampler that cannot learn from such runs is refused."""
    takes_more_trials: ClassVar[bool] = True
    """Whether `--extend` may add trials to a finished sweep."""

    @model_validator(mode="before")
    @classmethod
    def own_fields_alone(cls, values: Any) -> Any:
        """Refuse the fields of other kinds."""
        if not isinstance(values, dict):
            return values
        kind, *own = cls.model_fields
        for name, value in values.items():
            if name not in cls.model_fields:
                own_kind = cls.model_fields[kind].default
                message = f"{name} does not belong to {own_kind}: leave it out; {own_kind} has {', '.join(own)}"
                raise fault_in(name, value, message)
        return values

    def check(self, sweep: "SweepFile") -> None:
        """Refuse fields of the sweep file that this scheduler does not support.

        Raises:
            ValueError: such a field is there; the message states what to change.
        """

    def describe(self, sweep: "SweepFile") -> str:
        """Return one sentence about its rule in this sweep, for the dry run and the report."""
        raise NotImplementedError

    def generations(self, sweep: "SweepFile") -> int:
        """Return the number of consecutive trials that together train all steps."""
        return 1

    def ends_at(self, lineage: dict[str, int]) -> int | None:
        """Return the last step of a trial with this lineage; None for the recipe's last step."""
        return None

    def start(self, study: "Study") -> Scheduler:
        """Return the scheduler, with its state restored from the study."""
        raise NotImplementedError
