"""The numbers of a comparison: each variant's results in each table, and its difference from the baseline."""

from dataclasses import dataclass

import numpy as np

from voicechat_tune.report.findings import Findings, RunSummary, Table, TrialSummary
from voicechat_tune.report.statistics import Difference, Estimate, compare_with, estimate

COMPARED: tuple[Table, ...] = ("equal width", "equal parameters", "equal FLOPs")


@dataclass(frozen=True)
class VariantResult:
    """The finished runs of one variant in one table. Losses are nats per token."""

    variant: str
    losses: dict[int, float]
    """Final validation loss by seed; of several runs with one seed the last counts."""
    final: Estimate
    best_loss: float
    """The mean over seeds of each run's lowest validation loss."""
    nats_per_character: float | None
    """The mean over seeds at the last step; None if a token is a character."""
    facts: dict[str, float]
    """Means over the seeds that have the fact."""
    difference: Difference | None
    """None for the baseline, and for a variant without a common seed."""
    unpaired: list[int]
    """Seeds that only the variant or only the baseline has."""


@dataclass(frozen=True)
class TableResult:
    """One table of a comparison, its variants in the order of the runs and the baseline first."""

    table: Table
    variants: list[VariantResult]
    has_baseline: bool

    @property
    def differences(self) -> dict[str, Difference]:
        return {result.variant: result.difference for result in self.variants if result.difference is not None}


def finished(runs: list[RunSummary]) -> list[RunSummary]:
    """Return the runs that reached their last step. Only their losses may be compared."""
    return [run for run in runs if run.status == "finished" and run.history]


def variants_of(findings: Findings) -> list[str]:
    """Return every variant once, in the order of the runs, the baseline first."""
    variants = dict.fromkeys(run.variant for run in findings.runs)
    return sorted(variants, key=lambda variant: variant != findings.baseline)


def table_results(findings: Findings) -> list[TableResult]:
    """Return the tables of a comparison that have finished runs."""
    results = []
    for table in COMPARED:
        runs = finished([run for run in findings.runs if run.table == table])
        by_variant = {
            variant: [run for run in runs if run.variant == variant]
            for variant in variants_of(findings)
            if any(run.variant == variant for run in runs)
        }
        if by_variant:
            results.append(table_result(table, by_variant, findings.baseline, findings.margin))
    return results


def table_result(
    table: Table, by_variant: dict[str, list[RunSummary]], baseline: str | None, margin: float
) -> TableResult:
    losses = {
        variant: {run.seed: run.history[-1]["validation_loss"] for run in runs} for variant, runs in by_variant.items()
    }
    base = losses.get(baseline, {}) if baseline is not None else {}
    others = {variant: values for variant, values in losses.items() if variant != baseline}
    differences = compare_with(base, others, margin)
    variants = []
    for variant, runs in by_variant.items():
        seeds = losses[variant]
        variants.append(
            VariantResult(
                variant=variant,
                losses=seeds,
                final=estimate([seeds[seed] for seed in sorted(seeds)]),
                best_loss=float(np.mean([run.best_loss() for run in runs])),
                nats_per_character=nats_per_character(runs),
                facts=mean_facts(runs),
                difference=differences.get(variant),
                unpaired=sorted(seeds.keys() ^ base.keys()) if base else [],
            )
        )
    return TableResult(table, variants, has_baseline=bool(base))


def nats_per_character(runs: list[RunSummary]) -> float | None:
    last = [run.history[-1] for run in runs]
    if any(evaluation.get("nats_per_character") in (None, evaluation["validation_loss"]) for evaluation in last):
        return None
    return float(np.mean([evaluation["nats_per_character"] for evaluation in last]))


def mean_facts(runs: list[RunSummary]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run.facts)
    return {name: float(np.mean([run.facts[name] for run in runs if name in run.facts])) for name in names}


@dataclass(frozen=True)
class Point:
    """A cost and the loss that it reaches."""

    label: str
    group: str
    """The name of its table; "" in a sweep."""
    cost: float
    loss: float


def variant_points(table: TableResult, fact: str) -> list[Point]:
    """Return each variant of a table with its mean loss."""
    return [
        Point(result.variant, table.table, result.facts[fact], result.final.mean)
        for result in table.variants
        if fact in result.facts
    ]


def trial_points(trials: list[TrialSummary], fact: str) -> list[Point]:
    """Return each ranked trial of a sweep."""
    return [
        Point(f"trial {trial.number}", "", trial.facts[fact], trial.loss)
        for trial in trials
        if trial.is_ranked and trial.loss is not None and fact in trial.facts
    ]


def pareto_front(points: list[Point], larger_is_better: bool = False) -> list[Point]:
    """Return the points that no other point dominates (as good in both, better in one), in order of their costs.

    Args:
        points: any.
        larger_is_better: for the cost; a smaller loss is always better.
    """
    sign = -1 if larger_is_better else 1
    places = [(sign * point.cost, point.loss) for point in points]
    front = [
        point
        for point, (cost, loss) in zip(points, places, strict=True)
        if not any(other[0] <= cost and other[1] <= loss and other != (cost, loss) for other in places)
    ]
    return sorted(front, key=lambda point: point.cost)
