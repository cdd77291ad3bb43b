"""The figures of a report. Each function returns its own figure; nothing is shared through pyplot."""

import math
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from voicechat_tune.report.findings import Findings, RunSummary, TrialSummary
from voicechat_tune.report.formats import field_words, setting
from voicechat_tune.report.results import COMPARED, Point, TableResult, finished, pareto_front, variants_of
from voicechat_tune.report.statistics import Verdict, mean_interval

# Okabe and Ito's colours, which colour-blind readers can distinguish, without the yellow, which is invisible on paper.
# The numbers of colours, dashes and markers have no common factor, so 7 x 4 variants look different in print, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GREY = "#777777"
VERDICT_COLOURS: dict[Verdict, str] = {
    "better": "#0072B2",
    "worse": "#D55E00",
    "equivalent": "#009E73",
    "undecided": GREY,
}
LOSS = "validation loss (nats per token)"
COST_LABELS = {
    "cache_bytes_per_token": "cache (bytes per token)",
    "parameters": "parameters",
    "non_embedding_parameters": "non-embedding parameters",
    "flops_per_token": "training FLOPs per token",
    "tokens_per_second": "tokens per second",
    "valid_calls": "share of valid calls",
    "right_calls": "share of right calls",
    "seconds": "training time (seconds)",
    "peak_memory_mib": "peak memory (MiB)",
}


def learning_curves(findings: Findings) -> Figure:
    """Draw the validation loss over steps.

    For a comparison: each variant's mean and 95% interval, in a panel for each table. For a sweep: a line for each
    trial, with the best seven coloured and the stopped ones faded.
    """
    if findings.kind == "sweep":
        figure, (axis,) = panels(1, width=7, height=4.2)
        sweep_curves(axis, findings)
        finish_curves([axis], findings.runs)
        return figure
    runs = finished(findings.runs)
    tables = [table for table in COMPARED if any(run.table == table for run in runs)]
    figure, axes = panels(len(tables), width=3.6, height=3.6)
    variants = variants_of(findings)
    for axis, table in zip(axes, tables, strict=True):
        for index, variant in enumerate(variants):
            variant_curve(axis, [run for run in runs if (run.table, run.variant) == (table, variant)], index)
        axis.set_title(table, fontsize=10)
    finish_curves(axes, [run for run in runs if run.table in tables])
    drawn = {run.variant for run in runs if run.table in tables}
    add_legend(figure, [style_line(index, variant) for index, variant in enumerate(variants) if variant in drawn])
    return figure


def variant_curve(axis: Axes, runs: list[RunSummary], index: int) -> None:
    """Draw the mean over seeds and its interval, at the steps of all runs' evaluations."""
    losses = [{entry["step"]: entry["validation_loss"] for entry in run.history} for run in runs]
    if not losses:
        return
    steps = sorted(set.intersection(*(set(curve) for curve in losses)))
    values = np.array([[curve[step] for step in steps] for curve in losses])
    axis.plot(steps, values.mean(0), color=colour(index), linestyle=dashes(index), linewidth=1.6)
    if len(values) > 1 and steps:
        axis.fill_between(steps, *mean_interval(values), color=colour(index), alpha=0.18, linewidth=0)


def sweep_curves(axis: Axes, findings: Findings) -> None:
    """Draw a line for each run; those of one trial look alike."""
    lines = []
    ranks = {trial.number: rank for rank, trial in enumerate(findings.trials) if trial.is_ranked}
    runs = [run for run in findings.runs if run.history]
    others = [run for run in runs if run.status in ("stopped", "failed")]
    unfinished = [run for run in runs if run.status == "unfinished"]
    done = [run for run in runs if run.status == "finished"]
    for run in unfinished:
        axis.plot(*curve_of(run), color="black", linewidth=1.2, linestyle=":", marker="o", markersize=3)
    for run in others:
        steps, losses = curve_of(run)
        axis.plot(steps, losses, color=GREY, linewidth=1.2, alpha=0.35)
        axis.plot(steps[-1], losses[-1], color=GREY, marker="x", markersize=5, alpha=0.7)
    for run in sorted(done, key=lambda run: -ranks.get(run.number, len(ranks))):  # the best comes last, on top
        rank = ranks.get(run.number, len(ranks))
        if rank < len(COLOURS) and run.number in ranks:
            axis.plot(*curve_of(run), color=colour(rank), linestyle=dashes(rank), linewidth=2.6 if rank == 0 else 1.5)
        else:
            axis.plot(*curve_of(run), color=GREY, linewidth=1.2)
    for number, rank in list(ranks.items())[: len(COLOURS)]:
        lines.append(style_line(rank, f"trial {number}"))
    if len({run.number for run in done}) > len(lines):
        lines.append(Line2D([], [], color=GREY, linewidth=1.2, label="other finished runs"))
    if others:
        lines.append(Line2D([], [], color=GREY, alpha=0.6, marker="x", label="stopped or failed"))
    if unfinished:
        lines.append(Line2D([], [], color="black", linestyle=":", marker="o", markersize=3, label="not finished yet"))
    axis.legend(handles=lines, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))


def curve_of(run: RunSummary) -> tuple[list[int], list[float]]:
    """Return steps and losses."""
    return [entry["step"] for entry in run.history], [entry["validation_loss"] for entry in run.history]


def finish_curves(axes: list[Axes], runs: list[RunSummary]) -> None:
    """Set one range for all panels. The first quarter of the steps and a diverged trial may exceed it: they would
    compress the rest."""
    losses = [curve_of(run) for run in runs if run.history]
    last = max(steps[-1] for steps, _ in losses)
    late = [[loss for step, loss in zip(*curve, strict=True) if step >= last / 4] for curve in losses]
    low = min(min(values) for _, values in losses)
    high = low + 1.25 * float(np.median([max(values) for values in late if values]) - low)
    room = 0.05 * (high - low) or 0.01
    for axis in axes:
        axis.set_ylim(low - room, high + room)
        axis.set_xlabel("step")
    axes[0].set_ylabel(LOSS)


def forest(results: list[TableResult], baseline: str, margin: float) -> Figure:
    """Draw each variant's difference from the baseline with its 95% interval, in a panel for each table.

    Args:
        results: tables of a comparison, each with at least one difference.
        baseline: the name of the baseline.
        margin: drawn as a band around 0.
    """
    heights = [len(table.differences) for table in results]
    figure = Figure(figsize=(7.5, 1.1 + sum(0.34 * rows + 0.4 for rows in heights)), layout="constrained")
    axes = figure.subplots(len(results), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, table in zip(axes, results, strict=True):
        tidy(axis)
        axis.axvspan(-margin, margin, color="#009E73", alpha=0.13, linewidth=0)
        axis.axvline(0, color="black", linewidth=0.8)
        for row, difference in enumerate(table.differences.values()):
            mean, paint = difference.estimate, VERDICT_COLOURS[difference.verdict]
            if mean.low is not None and mean.high is not None:
                axis.plot([mean.low, mean.high], [row, row], color=paint, linewidth=1.8)
            filled = "white" if difference.verdict == "undecided" else paint
            axis.plot(mean.mean, row, marker="o", markersize=6, color=paint, markerfacecolor=filled)
            axis.annotate(
                f"{difference.verdict} (n = {len(difference.seeds)})",
                (1.01, row),
                xycoords=axis.get_yaxis_transform(),
                va="center",
                fontsize=8,
                color=paint,
            )
        axis.set_yticks(range(len(table.differences)), list(table.differences), fontsize=9)
        axis.set_ylim(len(table.differences) - 0.5, -0.5)
        axis.set_title(table.table, fontsize=10, loc="left")
        axis.grid(axis="y", visible=False)
    axes[-1].set_xlabel(
        f"final loss less that of “{baseline}” (nats per token; left is better; band: ±{margin:g})", fontsize=9
    )
    return figure


def pareto(points: list[Point], cost: str, larger_is_better: bool = False) -> Figure:
    """Draw cost against loss with the Pareto front marked, in a panel for each group of points.

    Args:
        points: one or more. Variants of a comparison get a legend. Trials of a sweep, which may be many, look alike,
            and those of the front have their names.
        cost: the name of the fact on the cost axis.
        larger_is_better: for the cost.
    """
    groups = list(dict.fromkeys(point.group for point in points))
    labels = list(dict.fromkeys(point.label for point in points))
    figure, axes = panels(len(groups), width=7 if len(groups) == 1 else 3.6, height=3.8)
    for axis, group in zip(axes, groups, strict=True):
        shown = [point for point in points if point.group == group]
        front = pareto_front(shown, larger_is_better)
        edge = [point.cost for point in front], [point.loss for point in front]
        axis.plot(*edge, color=GREY, linewidth=1, linestyle="--", zorder=1)
        axis.plot(*edge, marker="o", markersize=13, markerfacecolor="none", markeredgecolor="black", linestyle="")
        for point in shown:
            index = labels.index(point.label) if group else 0
            axis.plot(point.cost, point.loss, marker=marker(index), color=colour(index), markersize=7, alpha=0.9)
        if not group:
            # Beside the line from point to point.
            place = (9, -12) if larger_is_better else (9, 6)
            for point in front:
                axis.annotate(point.label, (point.cost, point.loss), place, textcoords="offset points", fontsize=8)
        if spans_decades([point.cost for point in points]):
            axis.set_xscale("log")
        axis.set_title(group, fontsize=10)
        axis.set_xlabel(COST_LABELS.get(cost, field_words(cost)) + (" (right is better)" if larger_is_better else ""))
        axis.margins(0.1)
    axes[0].set_ylabel(LOSS)
    if groups != [""]:
        add_legend(
            figure,
            [
                Line2D([], [], color=colour(index), marker=marker(index), linestyle="", label=label)
                for index, label in enumerate(labels)
            ],
        )
    return figure


def importances(shares: dict[str, float]) -> Figure:
    """Draw the importance of each searched field, the most important on top."""
    fields = sorted(shares, key=lambda field: shares[field])
    figure, (axis,) = panels(1, width=7, height=1 + 0.35 * len(fields))
    axis.barh(fields, [shares[field] for field in fields], color=COLOURS[0], height=0.6)
    for row, field in enumerate(fields):
        axis.annotate(f" {shares[field]:.0%}", (shares[field], row), va="center", fontsize=9)
    axis.set_xlim(0, 1.1 * max(shares.values()) or 1)
    axis.set_xlabel("importance for the loss (shares of 1)")
    axis.grid(axis="y", visible=False)
    return figure


def searched_fields(trials: list[TrialSummary]) -> list[str]:
    """Return the fields whose choices differ between trials."""
    fields = dict.fromkeys(field for trial in trials for field in trial.choices)
    return [field for field in fields if len({repr(trial.choices.get(field)) for trial in trials}) > 1]


def parallel_coordinates(trials: list[TrialSummary]) -> Figure:
    """Draw each ranked trial as a line through its choices and its loss, coloured by the loss; other trials are grey.

    Args:
        trials: at least one ranked, with at least one of `searched_fields`; the best first.
    """
    fields = searched_fields(trials)
    ended = [trial for trial in reversed(trials) if trial.is_ranked]  # the best comes last, on top
    others = [trial for trial in trials if not trial.is_ranked]
    losses = [trial.loss for trial in ended if trial.loss is not None]
    # A diverged trial must not compress all others.
    top = min(max(losses), 3 * float(np.median(losses)) - 2 * min(losses))
    names = [field.replace(".", ".\n") for field in fields]
    names.append("validation loss" + (f"\n(at most {top:.3f} shown)" if top < max(losses) else ""))
    figure, (host,) = panels(1, width=max(7, 1.9 * len(names)), height=4.2)
    columns: list[list[Any]] = [[trial.choices.get(field) for trial in [*ended, *others]] for field in fields]
    columns.append([*np.minimum(losses, top).tolist(), *(None for _ in others)])
    heights = np.array([scale(host, index / len(fields), column) for index, column in enumerate(columns)])
    # The palest of the colours would be invisible on paper.
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.85, 256)))
    shade = ScalarMappable(Normalize(min(losses), top), colours)
    for line in heights.T[len(ended) :]:
        host.plot(line, color=GREY, alpha=0.4, linewidth=1, linestyle="--", zorder=1)
    for line, value in zip(heights.T, losses, strict=False):
        host.plot(line, color=shade.to_rgba(np.array(value)), linewidth=1.8)
    host.set_xlim(0, len(fields))
    host.set_ylim(0, 1)
    host.set_xticks(range(len(names)), names, fontsize=9)
    host.set_yticks([])
    host.grid(visible=False)
    host.spines[:].set_visible(False)
    figure.colorbar(shade, ax=host, label=LOSS, extend="max" if top < max(losses) else "neither", pad=0.02)
    return figure


def scale(host: Axes, place: float, values: list[Any]) -> list[float]:
    """Draw the vertical axis of one column of values.

    Args:
        host: the axes of the figure.
        place: of the new axis, 0 at the left to 1 at the right.
        values: numbers, or choices that become labelled positions; None for a missing value.

    Returns:
        The values' heights on it, 0 to 1, NaN for None.
    """
    axis = host.twinx()
    tidy(axis)
    axis.grid(visible=False)
    axis.spines[["left", "top", "bottom"]].set_visible(False)
    axis.spines["right"].set_visible(True)
    axis.spines["right"].set_position(("axes", place))
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        logarithmic = spans_decades(known)
        axis.set_yscale("log" if logarithmic else "linear")
        low, high = min(known), max(known)
        room = (high / low) ** 0.05 if logarithmic else 0.05 * (high - low) or 0.5
        axis.set_ylim(*((low / room, high * room) if logarithmic else (low - room, high + room)))
        if len(set(known)) <= 6:
            axis.set_yticks(sorted(set(known)))
        elif logarithmic:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        numbers = [math.nan if value is None else float(value) for value in values]
    else:
        kinds = list(dict.fromkeys(setting(value) for value in known))
        axis.set_ylim(-0.5, len(kinds) - 0.5)
        axis.set_yticks(range(len(kinds)), kinds)
        numbers = [math.nan if value is None else float(kinds.index(setting(value))) for value in values]
    for label in axis.get_yticklabels():
        label.set(fontsize=8, path_effects=[withStroke(linewidth=3, foreground="white")])
    points = axis.transData.transform(np.column_stack([np.zeros(len(numbers)), numbers]))
    return list(host.transAxes.inverted().transform(points)[:, 1])


def spans_decades(values: list[float]) -> bool:
    return min(values) > 0 and max(values) >= 10 * min(values)


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a row of panels with one vertical axis, each width x height inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, sharey=True)[0])
    for axis in axes:
        tidy(axis)
    return figure, axes


def tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)


def add_legend(figure: Figure, lines: list[Line2D]) -> None:
    """Add the legend below the panels."""
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(lines)), fontsize=9, frameon=False)


def style_line(index: int, label: str) -> Line2D:
    return Line2D([], [], color=colour(index), linestyle=dashes(index), linewidth=1.8, label=label)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> Literal["-", "--", "-.", ":"]:
    return DASHES[index % len(DASHES)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]
