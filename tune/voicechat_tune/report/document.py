"""A report as files: self-contained HTML, Markdown with its figures beside it, and the raw numbers.

The text of models and the names of people are not trusted: both documents escape all values.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from voicechat_tune.report.conclusion import conclude, method
from voicechat_tune.report.findings import Findings
from voicechat_tune.report.grids import Grid, comparison_grids, heads_grid, runs_grid, trials_grid
from voicechat_tune.report.markdown import fenced, plain
from voicechat_tune.report.pictures import draw_figures, head_pictures
from voicechat_tune.report.results import table_results

TEMPLATES = FileSystemLoader(Path(__file__).parent)
SETTINGS: dict[str, Any] = {
    "loader": TEMPLATES,
    "autoescape": True,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "undefined": StrictUndefined,
}
HTML = Environment(**SETTINGS)
MARKDOWN = Environment(**SETTINGS, finalize=plain)
MARKDOWN.filters["fenced"] = fenced


def write_report(findings: Findings, folder: Path) -> None:
    """Write report.html, report.md with figures/, and findings.json.

    Args:
        findings: the facts.
        folder: created if it does not exist; files of an earlier report are overwritten.

    Raises:
        ValueError: a figure of the heads is not base64.
    """
    results = table_results(findings) if findings.kind == "comparison" else []
    pictures = draw_figures(findings, results)
    heads = {variant: head_pictures(findings, variant) for variant in findings.heads}
    values = {
        "findings": findings,
        "conclusion": conclude(findings, results),
        "method": method(findings),
        "tables": [(result.table, comparison_grids(result, findings.baseline)) for result in results],
        "runs": run_grids(findings),
        "pictures": {picture.name: picture for picture in pictures},
        "pareto": [picture for picture in pictures if picture.name.startswith("pareto")],
        "heads": [(variant, heads_grid(variant, findings.heads[variant]), shown) for variant, shown in heads.items()],
    }
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for picture in [*pictures, *(picture for shown in heads.values() for picture in shown)]:
        (figures / f"{picture.name}.png").write_bytes(picture.png)
    html = HTML.get_template("template.html.j2").render(values)
    markdown = MARKDOWN.get_template("template.md.j2").render(values)
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    (folder / "findings.json").write_text(json.dumps(findings.as_dict(), indent=1), encoding="utf-8")


def run_grids(findings: Findings) -> list[Grid]:
    """Return a sweep's trials; for a comparison, the runs that selected its settings."""
    if findings.kind == "sweep":
        return [trials_grid(findings)] if findings.trials else []
    tuning = [run for run in findings.runs if run.table == "tuning"]
    caption = "Runs that chose the learning rate, never compared; losses in nats per token."
    return [runs_grid(caption, tuning)] if tuning else []
