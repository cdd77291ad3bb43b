"""What a run sends to the driver: its evaluations, and how it ended."""

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
    """Send it to the driver in one piece: of every bare number Ray Tune would keep statistics, 50 KiB a run in all."""
    tune.report({REPORT: report})
