"""The figures of a report with their captions, as PNG images."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from matplotlib.figure import Figure

from voicechat_tune.report import figures
from voicechat_tune.report.findings import Findings
from voicechat_tune.report.formats import field_words
from voicechat_tune.report.results import TableResult, trial_points, variant_points

COSTS = ("non_embedding_parameters", "cache_bytes_per_token")
"""The costs to draw against the losses of a comparison."""
LARGER_IS_BETTER = ("tokens_per_second", "valid_calls", "right_calls")
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Picture:
    """A figure as an image."""

    name: str
    """The name of its file, without the extension."""
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def draw_figures(findings: Findings, results: list[TableResult]) -> list[Picture]:
    """Return the figures for which there is data.

    Args:
        findings: the facts.
        results: their `table_results`, empty for a sweep.
    """
    return list(draw_sweep(findings) if findings.kind == "sweep" else draw_comparison(findings, results))


def draw_comparison(findings: Findings, results: list[TableResult]) -> Iterator[Picture]:
    if results:
        yield picture(
            "curves",
            "Learning curves: mean over seeds of the validation loss, with its 95% interval. The first quarter of "
            "the steps may run off the top.",
            figures.learning_curves(findings),
        )
    tested = [result for result in results if result.differences]
    if tested:
        yield picture(
            "forest",
            "Paired differences of the final loss from the baseline with their 95% intervals; hollow where undecided. "
            "The band is the margin within which variants are equivalent.",
            figures.forest(tested, findings.baseline or "", findings.margin),
        )
    for fact in COSTS:
        by_table = [variant_points(result, fact) for result in results]
        points = [point for points in by_table if len({point.cost for point in points}) > 1 for point in points]
        if points:
            yield picture(
                f"pareto-{fact.replace('_', '-')}",
                f"Mean final loss against {field_words(fact)}, in the tables in which it differs. Ringed: no other "
                "variant is better in both.",
                figures.pareto(points, fact),
            )


def draw_sweep(findings: Findings) -> Iterator[Picture]:
    trials = findings.trials
    if any(run.history for run in findings.runs):
        yield picture(
            "curves",
            "Learning curves of the trials; the best is thick, stopped ones are faded. The first quarter of the steps "
            "may run off the top.",
            figures.learning_curves(findings),
        )
    if findings.importances:
        yield picture(
            "importances", "How much each searched field mattered.", figures.importances(findings.importances)
        )
    if any(trial.is_ranked for trial in trials) and figures.searched_fields(trials):
        yield picture(
            "parallel-coordinates",
            "The choices of each trial and the loss they led to; dark is good. Trials that did not go to their end "
            "are dashed.",
            figures.parallel_coordinates(trials),
        )
    for number, objective in enumerate(findings.objectives[1:], start=1):
        points = trial_points(trials, objective)
        if points:
            yield picture(
                f"pareto-{number}",
                f"Loss of the ranked trials against {field_words(objective)}. Ringed: no other trial is better "
                "in both.",
                figures.pareto(points, objective, larger_is_better=objective in LARGER_IS_BETTER),
            )


def head_pictures(findings: Findings, variant: str) -> list[Picture]:
    """Return the figures of a variant's heads. Their files have numbers, because names are not safe as file names."""
    index = list(findings.heads).index(variant) + 1
    return [
        Picture(f"heads-{index}-{number}", f"Heads of {variant}: {shows}.", base64.b64decode(image, validate=True))
        for number, (shows, image) in enumerate(findings.heads[variant].figures.items(), start=1)
    ]


def picture(name: str, caption: str, figure: Figure) -> Picture:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Picture(name, caption, file.getvalue())
