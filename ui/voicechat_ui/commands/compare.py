"""`voicechat compare`: a comparison of variants with the same tuning for each."""

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
    write: Annotated[bool, typer.Option("--write", help="run nothing: write the report on the runs so far")] = False,
    salvage: Salvage = False,
) -> None:
    """Compare variants with the same tuning for each, new seeds, intervals and tests, and write a report.

    Ctrl-C keeps finished runs; the same command continues from there.

    Example: voicechat compare tune/comparisons/small.yaml --out docs/report
    """
    from voicechat_platform.cluster import stop_ray
    from voicechat_platform.settings import settings
    from voicechat_tune.comparison.comparison_file import read_comparison
    from voicechat_tune.report.files import report_folder

    comparison = read_comparison(file)
    if write and salvage:
        raise InputError("--write runs nothing, and --salvage continues the runs: give only one of them")
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
                f"{outcome.unfinished} runs of this part are left. The same command continues from there; with --write "
                f"it writes the report on the runs so far.",
            )
    write_report(findings(comparison), folder)
    print(folder / "report.html")
