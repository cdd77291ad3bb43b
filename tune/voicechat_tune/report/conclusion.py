"""The conclusion of a report, in sentences that follow from the tests and claim no more than they show."""

from collections import Counter
from dataclasses import dataclass

from voicechat_tune.report.caveats import comparison_caveats
from voicechat_tune.report.findings import Findings, TrialSummary
from voicechat_tune.report.formats import (
    equals_p,
    field_words,
    listed,
    loss,
    plural,
    quoted,
    setting,
    signed,
    signed_with_interval,
)
from voicechat_tune.report.results import TableResult
from voicechat_tune.report.statistics import (
    ALPHA,
    FEWEST_SEEDS,
    Difference,
    is_measurable,
    least_p,
)

TRIAL_STATES = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "unfinished": "unfinished",
    "interval": "intervals of earlier generations",
}


@dataclass(frozen=True)
class Conclusion:
    """The summary of a sweep or a comparison."""

    summary: str
    sentences: dict[str, list[str]]
    """For each table, one sentence per compared variant."""
    caveats: list[str]


def conclude(findings: Findings, results: list[TableResult]) -> Conclusion:
    """Return the conclusion.

    Args:
        findings: the facts.
        results: their `table_results`.
    """
    if findings.kind == "sweep":
        return Conclusion(sweep_summary(findings), {}, sweep_caveats(findings))
    sentences = {
        table.table: [
            sentence(result.variant, result.difference, findings.baseline or "", findings.margin)
            for result in table.variants
            if result.difference is not None
        ]
        for table in results
    }
    return Conclusion(
        comparison_summary(findings, results),
        {table: said for table, said in sentences.items() if said},
        comparison_caveats(findings, results),
    )


def method(findings: Findings) -> str:
    """Return how the variants were compared, or the goal of the sweep."""
    if findings.kind == "sweep":
        others = [objective.replace("_", " ") for objective in findings.objectives[1:]]
        sought = "a low validation loss" + (f" and good {listed(others)}" if others else "")
        return (
            f"The sweep sought {sought}. A trial is ranked by its best checkpoint's loss over the whole validation "
            "part, the mean over its seeds; in the curves every step but the last shows the loss over a part of the "
            "windows, unless the recipe evaluates on all. Loss is in nats per token, and lower is better."
        )
    return (
        "Loss is in nats per token, and lower is better; the final loss is the validation loss of the last step. "
        "Variants are compared within a seed, where both saw the same data in the same order: a difference is the mean "
        "over seeds of the variant's final loss less the baseline's. Its interval is a 95% bootstrap interval over "
        "seeds (percentile, expanded for small samples), its p that of the two-sided sign-flip test, corrected by "
        "Holm's method over the variants of a table. A variant is called better or worse if the corrected p is below "
        f"{ALPHA} and the interval excludes 0; equivalent if the interval lies wholly within ±{findings.margin:g}, "
        f"whatever p is; and undecided otherwise, always so with fewer than {FEWEST_SEEDS} paired seeds."
    )


def sentence(variant: str, difference: Difference, baseline: str, margin: float) -> str:
    """Return one variant's effect, interval, p, n and verdict."""
    mean, seeds = difference.estimate, len(difference.seeds)
    interval = "no interval" if mean.low is None else f"95% interval {interval_words(difference)}"
    tests = f"{equals_p(difference.p)}, {equals_p(difference.corrected_p)} after Holm's correction"
    return (
        f"{quoted(variant)} differs from {quoted(baseline)} by {signed(mean.mean)} nats per token "
        f"({interval}; {tests}; {plural(seeds, 'paired seed')}): {reading(difference, margin)}."
    )


def interval_words(difference: Difference) -> str:
    """Return the interval without its mean."""
    return signed_with_interval(difference.estimate).split(" ", 1)[1]


def reading(difference: Difference, margin: float) -> str:
    """Return the verdict with its reason."""
    seeds, mean = len(difference.seeds), difference.estimate
    if difference.verdict == "equivalent":
        measurable = is_measurable(mean, difference.corrected_p)
        direction = "lower" if mean.mean < 0 else "higher"
        return f"equivalent within ±{margin:g}" + (f", measurably but negligibly {direction}" if measurable else "")
    if seeds < FEWEST_SEEDS:
        return (
            f"undecided, since with fewer than {FEWEST_SEEDS} paired seeds the sign-flip test cannot reach "
            f"p below {ALPHA} (its least p is {least_p(seeds):.3g})"
        )
    if difference.verdict == "undecided" and difference.p < ALPHA <= difference.corrected_p:
        return f"undecided, since p does not stay below {ALPHA} after the correction"
    if difference.verdict == "undecided":
        return "undecided, since neither a difference nor equivalence is shown"
    return difference.verdict


def comparison_summary(findings: Findings, results: list[TableResult]) -> str:
    if not results:
        return "No run that could be compared finished, so nothing can be concluded."
    parts = []
    for table in results:
        if table.differences:
            parts.append(f"At {table.table}, compared with {quoted(findings.baseline or '')}: {groups(table)}.")
    if not parts:
        return "No variant shares a seed with a baseline, so no difference was tested."
    verdicts = {difference.verdict for table in results for difference in table.differences.values()}
    if verdicts == {"undecided"}:
        parts.append("The data decide nothing: this neither shows a difference nor that there is none.")
    return " ".join([*parts, *powerless(results)])


def groups(table: TableResult) -> str:
    """Return the variants of a table, grouped by verdict."""
    said = []
    for verdict in ("better", "equivalent", "worse", "undecided"):
        names = [
            f"{quoted(variant)} ({signed(difference.estimate.mean)})"
            for variant, difference in table.differences.items()
            if difference.verdict == verdict
        ]
        if names:
            said.append(f"{listed(names)} {'is' if len(names) == 1 else 'are'} {verdict}")
    return "; ".join(said)


def powerless(results: list[TableResult]) -> list[str]:
    """Name the tables whose tests could not have shown a difference, with the reason."""
    tables: dict[str, list[str]] = {}
    for table in results:
        seeds = [len(difference.seeds) for difference in table.differences.values()]
        # Holm's smallest corrected p is the smallest p times the number of tests.
        least = len(seeds) * least_p(max(seeds)) if seeds else 0
        if seeds and max(seeds) < FEWEST_SEEDS:
            why = (
                f"with fewer than {FEWEST_SEEDS} paired seeds the sign-flip test cannot reach p below {ALPHA}, and the "
                "intervals hold less than the 95% that they are named for"
            )
            tables.setdefault(why, []).append(table.table)
        elif least >= ALPHA:
            why = (
                f"{max(seeds)} seeds and {len(seeds)} comparisons leave the least corrected p at {least:.3g}, so that "
                "no difference could have been shown, however large; more seeds could"
            )
            tables.setdefault(why, []).append(table.table)
    return [f"At {listed(names)}, {why}." for why, names in tables.items()]


def sweep_summary(findings: Findings) -> str:
    trials = findings.trials
    states = Counter(TRIAL_STATES[trial.status] for trial in trials)
    if not trials:
        return "No trial was run."
    said = f"Of {plural(len(trials), 'trial')}, {listed([f'{number} {state}' for state, number in states.items()])}."
    best = next((trial for trial in trials if trial.is_best), None)
    if best is None or best.loss is None:
        return f"{said} No trial went to its end, so there is no best one."
    if len(findings.objectives) > 1:
        numbers = listed([str(trial.number) for trial in trials if trial.is_best])
        words = listed([field_words(objective) for objective in findings.objectives])
        return f"{said} By {words} no other trial beats the trials {numbers} (the Pareto front)."
    said += f" The best is trial {best.number} with a validation loss of {loss(best.loss)} nats per token"
    said += f", the mean over {len(best.losses)} seeds" if len(best.losses) > 1 else ""
    said += f" ({choices(best)})." if best.choices else "."
    behind = [trial.loss - best.loss for trial in trials if trial.is_ranked and trial.loss is not None][1:]
    if behind:
        said += f" The next is {loss(behind[0])} behind."
    if "test_loss" in best.facts:
        said += f" On the held-out slice its loss is {loss(best.facts['test_loss'])}."
    if findings.importances:
        field, share = max(findings.importances.items(), key=lambda item: item[1])
        said += f" The field that mattered most is {field} ({share:.0%})."
    return said


def choices(trial: TrialSummary) -> str:
    return ", ".join(f"{field} = {setting(value)}" for field, value in trial.choices.items())


def sweep_caveats(findings: Findings) -> list[str]:
    caveats = []
    seeds = [len(trial.losses) for trial in findings.trials if trial.is_ranked]
    if len(seeds) > 1:
        what = "one run with one seed" if max(seeds) == 1 else f"a mean over {max(seeds)} seeds"
        caveats.append(
            f"Each trial is {what}, and the best of them is chosen by the very loss that is shown: it looks better "
            "than it is, and a small lead may be chance. A sweep chooses; only a comparison over several fresh seeds "
            "shows that one variant is better than another."
        )
    if any(trial.status == "stopped" for trial in findings.trials):
        caveats.append("A stopped trial's loss is that of an earlier step and is not comparable with a finished one's.")
    if any(trial.status == "failed" for trial in findings.trials):
        numbers = listed([str(trial.number) for trial in findings.trials if trial.status == "failed"])
        caveats.append(f"Failed, and counted as nothing: trial {numbers}.")
    return caveats
