"""The messages from a run to the driver: its evaluations, and its end."""

from dataclasses import dataclass, field

from ray import tune

from voicechat_platform.training.history import Evaluation
from voicechat_tune.search.journal_lines import Ending

REPORT = "report"


@dataclass(frozen=True)
class RunEnded:
    ending: Ending
    message: str = ""
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DiskFull:
    message: str


Report = Evaluation | RunEnded | DiskFull


def send(report: Report) -> None:
    """Send a report to the driver as one object. For plain numbers Ray Tune keeps statistics, about 50 KiB per run."""
    tune.report({REPORT: report})
