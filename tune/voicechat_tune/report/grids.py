"""The tables of a report as text: rows of cells for a template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from voicechat_tune.report.findings import Findings, Heads, RunSummary
from voicechat_tune.report.formats import (
    NOTHING,
    amount,
    count,
    field_words,
    loss,
    p_value,
    quoted,
    setting,
    signed_with_interval,
    with_interval,
)
from voicechat_tune.report.results import TableResult, VariantResult


@dataclass(frozen=True)
class Grid:
    """A table: a caption, a header, and rows of as many cells."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def grid(caption: str, header: list[str], rows: list[list[str]]) -> Grid:
    """Return a table without columns that are empty in every row."""
    kept = [column for column in range(len(header)) if any(row[column] != NOTHING for row in rows)]
    return Grid(caption, [header[column] for column in kept], [[row[column] for column in kept] for row in rows])


LOSS_COLUMNS: dict[str, Callable[[VariantResult], str]] = {
    "variant": lambda result: result.variant,
    "final loss [95% CI]": lambda result: with_interval(result.final),
    "per character": lambda result: loss(result.nats_per_character),
    "best loss": lambda result: loss(result.best_loss),
    "test loss": lambda result: loss(result.facts.get("test_loss")),
    "difference [95% CI]": lambda result: (
        signed_with_interval(result.difference.estimate) if result.difference else NOTHING
    ),
    "Holm p": lambda result: p_value(result.difference.corrected_p) if result.difference else NOTHING,
    "verdict": lambda result: result.difference.verdict if result.difference else NOTHING,
    "seeds": lambda result: str(len(result.losses)),
}
COST_COLUMNS: dict[str, Callable[[VariantResult], str]] = {
    "variant": lambda result: result.variant,
    "parameters": lambda result: count(result.facts.get("parameters")),
    "non-embedding parameters": lambda result: count(result.facts.get("non_embedding_parameters")),
    "training FLOPs/token": lambda result: count(result.facts.get("flops_per_token")),
    "tokens/s": lambda result: count(result.facts.get("tokens_per_second")),
    "cache bytes/token": lambda result: count(result.facts.get("cache_bytes_per_token")),
    "seconds": lambda result: count(result.facts.get("seconds")),
    "peak memory, MiB": lambda result: count(result.facts.get("peak_memory_mib")),
}


def comparison_grids(result: TableResult, baseline: str | None) -> list[Grid]:
    """Return the results and the costs of the variants of one table."""
    caption = f"Losses at {result.table}, means over seeds, nats per token"
    if result.differences:
        caption += f"; differences and verdicts are against {quoted(baseline or '')}"
    loss_rows = [[cell(variant) for cell in LOSS_COLUMNS.values()] for variant in result.variants]
    cost_rows = [[cell(variant) for cell in COST_COLUMNS.values()] for variant in result.variants]
    grids = [
        grid(f"{caption}.", list(LOSS_COLUMNS), loss_rows),
        grid(
            f"Size at {result.table}, and speed as the runs found their machines, whatever else ran there.",
            list(COST_COLUMNS),
            cost_rows,
        ),
    ]
    return [each for each in grids if len(each.header) > 1]


def runs_grid(caption: str, runs: list[RunSummary]) -> Grid:
    """Return every run with its choices."""
    fields = list(dict.fromkeys(field for run in runs for field in run.choices))
    header = ["trial", "variant", *short_names(fields), "status", "seed", "steps", "final loss", "best loss"]
    rows = [
        [
            str(run.number),
            run.variant or NOTHING,
            *(setting(run.choices[field]) if field in run.choices else NOTHING for field in fields),
            run.status,
            str(run.seed),
            count(run.history[-1]["step"]) if run.history else NOTHING,
            loss(run.final_loss()),
            loss(run.best_loss()),
        ]
        for run in runs
    ]
    return grid(caption, header, rows)


def short_names(fields: list[str]) -> list[str]:
    """Return the fields without their sections if that is unique: six of them must fit on a page."""
    ends = [field.rsplit(".", 1)[-1] for field in fields]
    return [end if ends.count(end) == 1 else field for field, end in zip(fields, ends, strict=True)]


def trials_grid(findings: Findings) -> Grid:
    """Return the trials of a sweep, the best first; those that cannot be compared come last."""
    caption = (
        "Trials, the best first. The loss (nats per token) is the best checkpoint's over the whole validation part, "
        "the mean over seeds"
    )
    if any(trial.losses and not trial.is_ranked for trial in findings.trials):
        caption += "; ≈: the last one seen, mostly over a part of the windows, and not to be compared"
    fields = list(dict.fromkeys(field for trial in findings.trials for field in trial.choices))
    facts = [*(["test_loss"] if "test_loss" not in findings.objectives else []), *findings.objectives[1:]]
    header = ["trial", "variant", *short_names(fields), "status", "seeds", "validation loss", "range over seeds"]
    rows = [
        [
            str(trial.number),
            trial.variant or NOTHING,
            *(setting(trial.choices[field]) if field in trial.choices else NOTHING for field in fields),
            trial.status,
            str(len(trial.losses)),
            loss(trial.loss) if trial.is_ranked or trial.loss is None else f"≈ {loss(trial.loss)}",
            f"{loss(min(trial.losses))} to {loss(max(trial.losses))}" if len(trial.losses) > 1 else NOTHING,
            *(amount(trial.facts[fact]) if fact in trial.facts else NOTHING for fact in facts),
        ]
        for trial in findings.trials
    ]
    return grid(f"{caption}.", [*header, *(field_words(fact) for fact in facts)], rows)


def heads_grid(variant: str, heads: Heads) -> Grid:
    """Return a row for each head."""
    columns = list(dict.fromkeys(name for row in heads.rows for name in row))
    rows = [[read_out(row.get(column)) for column in columns] for row in heads.rows]
    return grid(f"Heads of {variant}.", [column.replace("_", " ") for column in columns], rows)


def read_out(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
