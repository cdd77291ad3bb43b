"""The weaknesses of a comparison: missing runs, verdicts that the test part does not support, settings at the edge."""

from typing import Any

from voicechat_tune.report.findings import Findings, RunSummary
from voicechat_tune.report.formats import listed, quoted, setting, signed_with_interval
from voicechat_tune.report.results import COMPARED, TableResult, finished
from voicechat_tune.report.statistics import estimate


def comparison_caveats(findings: Findings, results: list[TableResult]) -> list[str]:
    """Return the weaknesses that the runs themselves show."""
    compared = [run for run in findings.runs if run.table in COMPARED]
    caveats = [f"Not compared, since it did not finish: {lost}." for lost in lost_runs(compared)]
    reused = {run.seed for run in compared} & {run.seed for run in findings.runs if run.table == "tuning"}
    if reused:
        seeds = listed([str(seed) for seed in sorted(reused)])
        caveats.append(f"Settings were chosen with seeds that are compared too, which flatters the chosen: {seeds}.")
    for table in results:
        if not table.has_baseline:
            caveats.append(f"At {table.table} there is no finished run of a baseline, so no difference was tested.")
            continue
        for result in table.variants:
            if result.unpaired:
                seeds = listed([str(seed) for seed in result.unpaired])
                caveats.append(
                    f"At {table.table}, {quoted(result.variant)} or the baseline lacks {seed_word(result.unpaired)} "
                    f"{seeds}: left out of the difference."
                )
    return caveats + untested(findings, results) + twins(findings) + edges(findings)


def untested(findings: Findings, results: list[TableResult]) -> list[str]:
    """Return the verdicts that the test part alone does not support; nothing was selected by it."""
    caveats = []
    for table in results:
        losses: dict[str, dict[int, float]] = {}
        for run in finished([run for run in findings.runs if run.table == table.table]):
            if "test_loss" in run.facts:
                losses.setdefault(run.variant, {})[run.seed] = run.facts["test_loss"]
        base = losses.get(findings.baseline or "", {})
        for variant, difference in table.differences.items():
            shared = sorted(losses.get(variant, {}).keys() & base.keys())
            if len(shared) < 2 or difference.verdict == "undecided":
                continue
            on_test = estimate([losses[variant][seed] - base[seed] for seed in shared])
            low, high = on_test.low or 0.0, on_test.high or 0.0
            if difference.verdict == "equivalent":
                is_borne_out = -findings.margin < low and high < findings.margin
            else:
                is_borne_out = low > 0 or high < 0
            if not is_borne_out:
                caveats.append(
                    f"At {table.table}, {quoted(variant)} is {difference.verdict} by the validation part; the test "
                    f"part alone ({signed_with_interval(on_test)}) would leave it undecided."
                )
    return caveats


def twins(findings: Findings) -> list[str]:
    """Return the tables in which a variant is the same model: two results of one set of runs."""
    choices: dict[tuple[str, str], dict[str, Any]] = {}
    caveats = []
    for run in findings.runs:
        if run.table not in COMPARED or run.variant == findings.baseline or (run.variant, run.table) in choices:
            continue
        for (variant, table), known in choices.items():
            if variant == run.variant and known == run.choices:
                caveats.append(
                    f"{quoted(variant)} is the same model at {table} and at {run.table}: one result, not two that "
                    f"agree."
                )
        choices[run.variant, run.table] = run.choices
    return caveats


def edges(findings: Findings) -> list[str]:
    """Return variants that did best with the least or the greatest value tried: a better one may be beyond it."""
    caveats = []
    tuning = finished([run for run in findings.runs if run.table == "tuning"])
    for variant in dict.fromkeys(run.variant for run in tuning):
        runs = [run for run in tuning if run.variant == variant]
        best = min(runs, key=lambda run: (run.facts["validation_loss"], run.number))
        for field, value in best.choices.items():
            tried = {each for run in runs if isinstance(each := run.choices.get(field), int | float)}
            if len(tried) > 2 and value in (min(tried), max(tried)):
                which = "low" if value == min(tried) else "high"
                name = field.rpartition(".")[2].replace("_", " ")
                caveats.append(
                    f"{quoted(variant)} did best with the {which}est {name} that was tried, {setting(value)}: a "
                    f"{which}er one may suit it better."
                )
    return caveats


def lost_runs(runs: list[RunSummary]) -> list[str]:
    """Return the runs without a final loss, grouped by table, variant and status."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for run in runs:
        if run not in finished([run]):
            seeds.setdefault((run.table, run.variant, run.status), []).append(run.seed)
    return [
        f"{quoted(variant)} at {table}, {seed_word(lost)} {listed([str(seed) for seed in lost])} ({status})"
        for (table, variant, status), lost in seeds.items()
    ]


def seed_word(seeds: list[int]) -> str:
    return "seed" if len(seeds) == 1 else "seeds"
