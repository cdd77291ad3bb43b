"""What the lines of a journal may be, and which of them may follow which.

Each is checked before Optuna reads it: Optuna itself ends in an exception of its own, or leaves out what it does not
understand without a word.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from voicechat_platform.training.history import Evaluation

Ending = Literal["finished", "stopped", "failed"]
ENDING_OF_STATE: dict[int, Ending] = {1: "finished", 2: "stopped", 3: "failed"}
"""By Optuna's number of a trial's state: how one of its runs ended then."""


class Record(BaseModel):
    """What every line of Optuna's has, whatever else a later version writes."""

    model_config = ConfigDict(strict=True)

    worker_id: str


class CreateStudy(Record):
    op_code: Literal[0]
    study_name: str
    directions: Annotated[list[Literal[1, 2]], Field(min_length=1)]


class StudyAttribute(Record):
    """`optuna-dashboard` writes such ones."""

    op_code: Literal[2, 3]
    study_id: Literal[0]


class CreateTrial(Record):
    op_code: Literal[4]
    study_id: Literal[0]
    state: Literal[0, 1]
    datetime_start: str
    datetime_complete: str | None = None
    params: dict[str, float]
    distributions: dict[str, str]
    value: float | None
    values: list[float] | None
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]
    intermediate_values: dict[str, float]


class TrialRecord(Record):
    trial_id: Annotated[int, Field(ge=0)]


class EndTrial(TrialRecord):
    op_code: Literal[6]
    state: Literal[1, 2, 3]
    datetime_complete: str
    values: list[float] | None


class IntermediateValue(TrialRecord):
    op_code: Literal[7]
    step: int
    intermediate_value: float


class UserAttribute(TrialRecord):
    op_code: Literal[8]
    user_attr: Annotated[dict[str, Any], Field(min_length=1, max_length=1)]


class SystemAttribute(TrialRecord):
    op_code: Literal[9]
    system_attr: Annotated[dict[str, Any], Field(min_length=1, max_length=1)]


AnyLine = CreateStudy | StudyAttribute | CreateTrial | EndTrial | IntermediateValue | UserAttribute | SystemAttribute
RECORD: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="op_code")])


class TrialAttributes(BaseModel):
    """The user attributes that a trial of the sweep begins with."""

    model_config = ConfigDict(strict=True)

    number: int
    point: dict[str, Any]
    lineage: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class EvaluationAttribute(Evaluation):
    """An evaluation as the study keeps it (`study.Run.evaluations`)."""

    spent: float
    order: int
    clock: float


class EndingAttribute(BaseModel):
    """How a run ended, as the study keeps it."""

    model_config = ConfigDict(strict=True)

    ending: Ending
    message: str
    facts: dict[str, float]


TRIAL, EVALUATION, ENDING = TypeAdapter(TrialAttributes), TypeAdapter(EvaluationAttribute), TypeAdapter(EndingAttribute)


class DamagedLineError(ValueError):
    """A line that cannot follow those before it; the message says why."""


class Contents:
    """What the lines so far say, as far as the next one must agree with it."""

    def __init__(self, objectives: Iterable[str]) -> None:
        self.objectives = set(objectives)
        self.begun: tuple[str, list[int]] | None = None
        """The study's name, and the direction of each objective by Optuna's numbers."""
        self.trials: list[int | None] = []
        """Under Optuna's id of each: its number, or None for one of an earlier sweep that this one was warmed with."""
        self.numbered = 0
        """How many of them are this sweep's own."""
        self.endings: dict[int, set[str]] = {}
        """By Optuna's id of a trial: how its runs ended."""
        self.over: set[int] = set()

    def add(self, line: bytes) -> None:
        """Take the next line.

        Raises:
            DamagedLineError: it is not one that follows those before it; nothing of it is taken.
        """
        try:
            record = RECORD.validate_json(line)
        except ValidationError as error:
            raise DamagedLineError(f"it is not what Optuna writes: {first_fault(error)}") from None
        if isinstance(record, CreateStudy):
            self.begun = self.begun or (record.study_name, list(record.directions))
            return
        if self.begun is None:
            raise DamagedLineError("no line before it begins the study")
        match record:
            case CreateTrial():
                self.begin(record)
            case TrialRecord() if record.trial_id >= len(self.trials):
                raise DamagedLineError(f"no line before it begins the trial with Optuna's id {record.trial_id}")
            case EndTrial():
                self.end(record)
            case UserAttribute():
                self.attribute(record)

    def begin(self, record: CreateTrial) -> None:
        if record.params.keys() != record.distributions.keys():
            raise DamagedLineError("its params are not those of its distributions")
        if "warm" in record.user_attrs:
            if record.state != 1 or record.datetime_complete is None:
                raise DamagedLineError("it takes a trial of an earlier sweep over that has not ended")
            self.trials.append(None)
            return
        begun = checked(TRIAL, record.user_attrs)
        if record.state != 0 or record.value is not None or record.values is not None:
            raise DamagedLineError("it begins a trial that has ended")
        if begun.number != self.numbered + 1:
            raise DamagedLineError(f"it begins trial {begun.number}, and the one before is trial {self.numbered}")
        if begun.lineage and not {"member", "generation"} <= begun.lineage.keys():
            raise DamagedLineError("its lineage names no member and generation")
        if not 0 <= begun.lineage.get("parent", 0) <= self.numbered:
            raise DamagedLineError(f"no line before it begins its parent, trial {begun.lineage['parent']}")
        self.trials.append(begun.number)
        self.numbered += 1

    def end(self, record: EndTrial) -> None:
        if ENDING_OF_STATE[record.state] not in self.endings.get(record.trial_id, ()):
            raise DamagedLineError("it ends a trial, and no line before it says that a run of that ended so")
        if self.begun and record.state == 1 and len(record.values or ()) != len(self.begun[1]):
            raise DamagedLineError("it finishes a trial without a value for each objective")
        self.over.add(record.trial_id)

    def attribute(self, record: UserAttribute) -> None:
        [(name, value)] = record.user_attr.items()
        if not name.startswith("run "):
            return  # optuna-dashboard keeps people's notes there
        if not re.fullmatch(r"run \d{1,9} (step \d{1,18}|ending)", name):
            raise DamagedLineError(f"a trial has no {name!r}")
        if name.endswith("ending"):
            ended = checked(ENDING, value)
            if ended.ending == "finished" and (missing := {"validation_loss", *self.objectives} - ended.facts.keys()):
                raise DamagedLineError(f"it finishes a run without its {', '.join(sorted(missing))}")
            self.endings.setdefault(record.trial_id, set()).add(ended.ending)
        elif checked(EVALUATION, value).step != int(name.rpartition(" ")[2]):
            raise DamagedLineError(f"its step is another one than that of its name, {name!r}")


def checked(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_json(
            json.dumps(value), strict=True
        )  # of Python's own, strict takes no dict for a dataclass
    except ValidationError as error:
        raise DamagedLineError(f"it is not what a sweep notes: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"].startswith("union_tag"):
        return "it has no op_code that a sweep writes"
    return ": ".join(part for part in (".".join(map(str, fault["loc"])), fault["msg"]) if part)
