"""`voicechat trials`, `trial` and `report`: the results of a sweep."""

from pathlib import Path
from typing import Annotated

import typer

from voicechat_ui.commands.options import Json, SweepName
from voicechat_ui.commands.output import emit


def trials(sweep: SweepName, as_json: Json = False) -> None:
    """List a sweep's trials with their choices, states and losses, also while the sweep runs.

    Example: voicechat trials quickstart
    """
    from voicechat_tune.running.sweep_index import open_study
    from voicechat_tune.search.ranking import winners
    from voicechat_tune.search.trials_table import trials_table

    study = open_study(sweep)
    found = study.trials()
    best = {trial.number for trial in winners(found, study.sweep)}
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            "point": trial.point,
            "loss": trial.loss,
            "runs": len(trial.runs),
            "is_best": trial.number in best,
        }
        for trial in found
    ]
    emit(rows, as_json, trials_table(f"sweep {study.sweep.name}", found, study.sweep))


def trial(
    sweep: SweepName,
    number: Annotated[int, typer.Argument(min=1, help="a number from `voicechat trials`")],
    as_json: Json = False,
) -> None:
    """Show one trial of a sweep: its choices, its evaluations, the reason for its end, and the end of its log.

    Example: voicechat trial quickstart 3
    """
    from voicechat_tune.running.inspect import trial_facts, trial_text

    facts = trial_facts(sweep, number)
    emit(facts, as_json, trial_text(facts))


def report(
    sweep: SweepName,
    out: Annotated[
        Path | None, typer.Option(show_default="report/ in the sweep's folder", help="the report's folder")
    ] = None,
    prompt: Annotated[str, typer.Option(help="the prompt for the sample of the best model")] = "The meaning of life is",
) -> None:
    """Write a report on a sweep as HTML, Markdown and raw numbers: curves, importances, the best heads and a sample.

    Example: voicechat report quickstart --out report
    """
    from voicechat_tune.report.files import report_folder
    from voicechat_tune.running.sweep_index import open_study

    study = open_study(sweep)
    folder = report_folder(out or study.folder / "report")
    from voicechat_tune.report.document import write_report
    from voicechat_tune.report.gather import sweep_findings

    write_report(sweep_findings(study, prompt), folder)
    print(folder / "report.html")
