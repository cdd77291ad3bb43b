"""The valid lines of a journal, and their valid order.

This module checks each line before Optuna reads it. For an invalid line Optuna raises an internal exception, or ignores
the line without a warning.
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
"""Optuna's numbers of trial states. A trial has this state only if one of its runs ended so."""


class Record(BaseModel):
    """The fields of every line. A later version of Optuna may write more of them."""

    model_config = ConfigDict(strict=True)

    worker_id: str


class CreateStudy(Record):
    op_code: Literal[0]
    study_name: str
    directions: Annotated[list[Literal[1, 2]], Field(min_length=1)]


class StudyAttribute(Record):
    """`optuna-dashboard` writes such lines."""

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
    """The first user attributes of a trial of the sweep."""

    model_config = ConfigDict(strict=True)

    number: int
    point: dict[str, Any]
    lineage: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class EvaluationAttribute(Evaluation):
    """An evaluation in the study's format (`trials.Run.evaluations`)."""

    spent: float
    order: int
    clock: float


class EndingAttribute(BaseModel):
    """The end of a run in the study's format."""

    model_config = ConfigDict(strict=True)

    ending: Ending
    message: str
    facts: dict[str, float]


TRIAL, EVALUATION, ENDING = TypeAdapter(TrialAttributes), TypeAdapter(EvaluationAttribute), TypeAdapter(EndingAttribute)


class DamagedLineError(ValueError):
    """A line is invalid, or cannot follow the lines before it; the message gives the reason."""


class Contents:
    """The facts from the lines so far that the next line must agree with."""

    def __init__(self, objectives: Iterable[str]) -> None:
        self.objectives = set(objectives)
        self.begun: tuple[str, list[int]] | None = None
        """The study's name, and the direction of each objective by Optuna's numbers."""
        self.trials: list[int | None] = []
        """The trials' numbers; the index is Optuna's id. None for a trial of the earlier sweep (`warm_start`)."""
        self.numbered = 0
        """The count of this sweep's own trials."""
        self.endings: dict[int, set[str]] = {}
        """The endings of a trial's runs; the key is Optuna's id of the trial."""
        self.over: set[int] = set()
        """Optuna's ids of the trials that have ended."""

    def add(self, line: bytes) -> None:
        """Add the next line.

        Raises:
            DamagedLineError: the line is invalid, or cannot follow the lines before it. The contents do not change.
        """
        try:
            record = RECORD.validate_json(line)
        except ValidationError as error:
            raise DamagedLineError(f"it does not have Optuna's format: {first_fault(error)}") from None
        if isinstance(record, CreateStudy):
            self.begun = self.begun or (record.study_name, list(record.directions))
            return
        if self.begun is None:
            raise DamagedLineError("no earlier line creates the study")
        match record:
            case CreateTrial():
                self.begin(record)
            case TrialRecord() if record.trial_id >= len(self.trials):
                raise DamagedLineError(f"no earlier line creates the trial with Optuna's id {record.trial_id}")
            case EndTrial():
                self.end(record)
            case UserAttribute():
                self.attribute(record)

    def begin(self, record: CreateTrial) -> None:
        if record.params.keys() != record.distributions.keys():
            raise DamagedLineError("its params and its distributions have different names")
        if "warm" in record.user_attrs:
            if record.state != 1 or record.datetime_complete is None:
                raise DamagedLineError("it copies a trial of an earlier sweep that has not ended")
            self.trials.append(None)
            return
        begun = checked(TRIAL, record.user_attrs)
        if record.state != 0 or record.value is not None or record.values is not None:
            raise DamagedLineError("it creates a trial that has already ended")
        if begun.number != self.numbered + 1:
            raise DamagedLineError(f"it creates trial {begun.number} after trial {self.numbered}")
        if begun.lineage and not {"member", "generation"} <= begun.lineage.keys():
            raise DamagedLineError("its lineage has no member or no generation")
        if not 0 <= begun.lineage.get("parent", 0) <= self.numbered:
            raise DamagedLineError(f"no earlier line creates its parent, trial {begun.lineage['parent']}")
        self.trials.append(begun.number)
        self.numbered += 1

    def end(self, record: EndTrial) -> None:
        if ENDING_OF_STATE[record.state] not in self.endings.get(record.trial_id, ()):
            raise DamagedLineError("it ends a trial, but no earlier line ends a run of this trial in the same way")
        if self.begun and record.state == 1 and len(record.values or ()) != len(self.begun[1]):
            raise DamagedLineError("it finishes a trial without a value for each objective")
        self.over.add(record.trial_id)

    def attribute(self, record: UserAttribute) -> None:
        [(name, value)] = record.user_attr.items()
        if not name.startswith("run "):
            return  # such as people's notes, which optuna-dashboard stores there
        if not re.fullmatch(r"run \d{1,9} (step \d{1,18}|ending)", name):
            raise DamagedLineError(f"a trial has no attribute {name!r}")
        if name.endswith("ending"):
            ended = checked(ENDING, value)
            if ended.ending == "finished" and (missing := {"validation_loss", *self.objectives} - ended.facts.keys()):
                raise DamagedLineError(f"it finishes a run without {', '.join(sorted(missing))}")
            self.endings.setdefault(record.trial_id, set()).add(ended.ending)
        elif checked(EVALUATION, value).step != int(name.rpartition(" ")[2]):
            raise DamagedLineError(f"its step is not the step in its name, {name!r}")


def checked(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        # From Python values, strict validation accepts no dict for a dataclass; from JSON it does.
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise DamagedLineError(f"its attributes do not have the format of a sweep: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"].startswith("union_tag"):
        return "a sweep writes no line with this op_code"
    return ": ".join(part for part in (".".join(map(str, fault["loc"])), fault["msg"]) if part)
