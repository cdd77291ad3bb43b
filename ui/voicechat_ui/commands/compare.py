"""`voicechat compare`: variants side by side, each tuned in the same way."""

from pathlib import Path
from typing import Annotated

import typer

from voicechat_platform.errors import InputError
from voicechat_ui.commands.options import Address, Salvage, check_sources, join
from voicechat_ui.commands.output import end_early


def compare(
    file: Annotated[Path, typer.Argument(help="a comparison file, such as tune/comparisons/small.yaml")],
    out: Annotated[Path | None, typer.Option(show_default="HOME/reports/NAME", help="the report's folder")] = None,
    address: Address = None,
    write: Annotated[bool, typer.Option("--write", help="run nothing: write up what is done so far")] = False,
    salvage: Salvage = False,
) -> None:
    """Compare variants fairly and write it up: the same tuning for each, fresh seeds, intervals and tests.

    Ctrl-C keeps what is finished; the same command goes on from there.

    Example: voicechat compare tune/comparisons/small.yaml --out docs/report
    """
    from voicechat_platform.cluster import stop_ray
    from voicechat_platform.settings import settings
    from voicechat_tune.comparison.comparison_file import read_comparison
    from voicechat_tune.report.files import report_folder

    comparison = read_comparison(file)
    if write and salvage:
        raise InputError("--write runs nothing, and --salvage goes on: give one of them")
    check_sources(comparison.recipe)
    folder = report_folder(out or settings().folder("reports") / comparison.name)
    from voicechat_tune.comparison.compare import findings, run_comparison
    from voicechat_tune.report.document import write_report

    if not write:
        join(address)
        try:
            outcome = run_comparison(comparison, salvaging=salvage)
        finally:
            stop_ray()
        if not outcome.complete:
            end_early(
                outcome.reason,
                f"{outcome.unfinished} runs of this part are left. The same command goes on from there; with --write "
                f"it writes up what there is.",
            )
    write_report(findings(comparison), folder)
    print(folder / "report.html")
