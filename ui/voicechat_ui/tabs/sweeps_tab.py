"""The page's tab on sweeps: the sweeps of this machine's home folder, the sweeps that only the registry has, and the
trials of the chosen sweep, also while it runs.

The tab reads nothing before the user opens it, and nothing on the event loop.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from voicechat_platform.errors import InputError
from voicechat_ui.tabs import html_parts as parts
from voicechat_ui.tabs.line_chart import Line, Style, line_chart

log = logging.getLogger(__name__)

READING = "Reading the sweeps …"
EMPTY = (
    "There is no sweep yet. `voicechat sweep tune/sweeps/quickstart.yaml --promote` tunes a first model in a few "
    "minutes. Press Refresh while it runs to see its trials."
)


@dataclass(frozen=True)
class SweepRow:
    """A sweep in the list."""

    name: str
    state: str
    trials: str = ""
    best: str = ""
    versions: int = 0
    """The number of its versions in the registry."""


def add_sweeps_tab(tab: gr.Tab) -> gr.HTML:
    """Add the components, inside `with gr.Tab(...) as tab`.

    Returns:
        The trials. A click on a trial's model triggers their click event, with "version" in the event's data.
    """
    sweeps = gr.HTML(parts.block(parts.notice(READING)))
    with gr.Row():
        sweep = gr.Dropdown([], label="Sweep", filterable=False, scale=1, min_width=280, elem_classes="facts-picker")
        refresh = gr.Button("Refresh", scale=0, min_width=110, size="md")
    trials = gr.HTML(js_on_load=parts.VERSION_CLICKS)

    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": [trials]}
    gr.on([tab.select, refresh.click], open_tab, [sweep], [sweeps, sweep, trials], **event)
    sweep.input(show_sweep, [sweep], [trials], **event)
    return trials


def open_tab(chosen: str | None) -> tuple[str, Any, str]:
    """Return the current sweeps, and the trials of the chosen sweep, or of the newest one."""
    rows, problem = find_sweeps()
    fault = parts.fault(problem) if problem else ""
    if not rows:
        return parts.block(fault, parts.notice(EMPTY)), gr.Dropdown(choices=[], value=None), ""
    table = parts.table(
        "Sweeps, the newest first",
        ("sweep", "state", "trials done", "best validation loss", "versions in the registry"),
        [[row.name, row.state, row.trials, row.best, str(row.versions)] for row in rows],
    )
    names = [row.name for row in rows]
    shown = chosen if chosen in names else names[0]
    return parts.block(fault, table), gr.Dropdown(choices=names, value=shown), show_sweep(shown)


def find_sweeps() -> tuple[list[SweepRow], str]:
    """Return the sweeps of the home folder, then those that only the registry has, and a problem of the registry."""
    from voicechat_tune.running.sweep_index import known_sweeps

    try:
        groups, problem = registered_groups(), ""
    except Exception as error:  # of MLflow, SQLAlchemy or the network
        log.exception("the registry cannot be read")
        groups, problem = {}, f"The registry cannot be read: {parts.why(error)}"
    rows = []
    for name in known_sweeps():
        try:
            row, group = sweep_row(name, groups)
        except Exception as error:  # one broken sweep must not hide the others
            log.exception("the sweep %s cannot be read", name)
            row, group = SweepRow(name, f"cannot be read: {parts.why(error)}"), ""
        rows.append(row)
        groups.pop(group, None)
    for group, versions in groups.items():
        trial, loss, _ = ranked_versions(versions)[0]
        best = f"{loss:.4f} nats/character (trial {trial})"
        rows.append(SweepRow(group, "only in the registry", "", best, len(versions)))
    return rows, problem


def registered_groups() -> dict[str, list[Any]]:
    """Return the registry's versions by their sweep, without those of `voicechat train`."""
    from voicechat_platform.registry import Registry

    groups: dict[str, list[Any]] = {}
    for version in Registry().versions():
        group = version.origin.partition("/")[0]
        if group not in ("", "train"):
            groups.setdefault(group, []).append(version)
    return groups


def sweep_row(name: str, groups: dict[str, list[Any]]) -> tuple[SweepRow, str]:
    """Return a sweep of the home folder, and its group in the registry."""
    from voicechat_tune.running.sweep_index import is_running, open_study, read_index
    from voicechat_tune.search.ranking import winners
    from voicechat_tune.search.samplers import trials_of

    study = open_study(name)
    index, trials = read_index(study.folder), study.trials()
    wanted = trials_of(study.sweep) + index["extended"]
    done = sum(trial.state != "unfinished" for trial in trials)
    state = (
        "running"
        if is_running(study.folder)
        else "finished"
        if study.is_over(wanted)
        else "interrupted; it can continue"
    )
    best = winners(trials, study.sweep)
    loss = f"{best[0].loss:.4f} (trial {best[0].number})" if best else ""
    versions = len(groups.get(index["group"], []))
    return SweepRow(name, state, f"{done} of {wanted}", loss, versions), index["group"]


def show_sweep(chosen: str | None) -> str:
    """Return the trials of a sweep and their learning curves."""
    from voicechat_tune.running.sweep_index import known_sweeps

    if not chosen:
        return ""
    try:
        return parts.block(*(trials_of_study(chosen) if chosen in known_sweeps() else trials_of_group(chosen)))
    except Exception as error:  # any damage in its folder: the page must stay usable
        log.exception("the sweep %s cannot be shown", chosen)
        return parts.block(parts.fault(f"The sweep {chosen} cannot be shown: {parts.why(error)}"))


def trials_of_study(name: str) -> list[str]:
    """Return the same table as `voicechat trials`, and the same curves as in the report."""
    from voicechat_tune.running.sweep_index import is_running, open_study
    from voicechat_tune.search.trials_table import trials_table

    study = open_study(name)
    trials = study.trials()
    if not trials:
        return [parts.notice(f"The sweep {name} has no trials yet; press Refresh in a moment.")]
    running = {run.key for trial in trials for run in trial.runs if run.ending is None}
    table = trials_table("", trials, study.sweep, running if is_running(study.folder) else frozenset())
    models = models_by_trial(study.folder)
    columns = [(str(column.header), [str(cell) for cell in column.cells]) for column in table.columns]
    columns.append(("model", [models.get(trial.number, "") for trial in trials]))
    shown = parts.table(
        f"Trials of {name}",
        [header for header, _ in columns],
        list(zip(*(cells for _, cells in columns), strict=True)),
        next((number for number, row in enumerate(table.rows) if row.style), None),
    )
    failures = [
        parts.fault(f"Trial {trial.number} failed: {reason(run.message)}. More: voicechat trial {name} {trial.number}")
        for trial in trials
        for run in trial.runs
        if run.ending == "failed"
    ]
    more = f"More about a trial: voicechat trial {name} NUMBER. A report on the sweep: voicechat report {name}."
    return [shown, *failures, curves(trials, study.sweep), parts.notice(more)]


def reason(message: str) -> str:
    """Return the reason of a run's failure from the study's message: our text, or only the type of other exceptions."""
    line = message.partition("\n")[0].removeprefix(f"{InputError.__name__}: ")
    kind = line.partition(": ")[0]
    is_foreign = kind.isidentifier() and kind[0].isupper() and ": " in line
    return kind if is_foreign else line


def models_by_trial(folder: Path) -> dict[int, Markup]:
    """Return buttons for the registry's versions by trial number; empty if the registry cannot be read."""
    from voicechat_tune.running.sweep_index import read_index

    try:
        versions = registered_groups().get(read_index(folder)["group"], [])
    except Exception:  # of MLflow, SQLAlchemy or the network: find_sweeps reports it
        log.exception("the registry cannot be read")
        return {}
    return {trial: buttons_of(found) for trial, found in by_trial(versions).items()}


def by_trial(versions: list[Any]) -> dict[int, list[Any]]:
    """Return versions by trial number, in the order of the trial's seeds."""
    found: dict[int, list[Any]] = {}
    for version in sorted(versions, key=lambda version: version.origin):
        # The name of a run is its trial's number, and from the second seed on also the seed's: 0004, 0004-2.
        found.setdefault(int(version.origin.partition("/")[2].partition("-")[0]), []).append(version)
    return found


def buttons_of(versions: list[Any]) -> Markup:
    return Markup(" ").join(parts.version_button(str(version)) for version in versions)


def ranked_versions(versions: list[Any]) -> list[tuple[int, float, list[Any]]]:
    """Return each trial with its loss (nats/character, the mean over its seeds) and its versions, the best first."""
    found = [
        (trial, sum(version.nats_per_character for version in seeds) / len(seeds), seeds)
        for trial, seeds in by_trial(versions).items()
    ]
    return sorted(found, key=lambda each: (not math.isfinite(each[1]), each[1], each[0]))


def curves(trials: list[Any], sweep: Any) -> str:
    """Return the learning curves: ranked trials first, the best at the top, then running trials, then stopped ones."""
    from voicechat_tune.search.ranking import ranked

    ranking = ranked(trials, sweep)
    others = sorted((t for t in trials if t not in ranking), key=lambda trial: trial.state != "unfinished")
    lines = [
        Line(
            f"trial {trial.number}" + (f", seed {run.key.seed_index + 1}" if run.key.seed_index else ""),
            [(evaluation["step"], evaluation["validation_loss"]) for evaluation in run.evaluations],
            style_of(trial, run, ranking),
        )
        for trial in [*ranking, *others]
        for run in trial.runs
        if run.evaluations
    ]
    caption = "Learning curves: the best trial is thick, running trials are dotted. Point at a curve to see its values."
    ends = "; ".join(f"{line.label} {line.points[-1][1]:.3f} at step {line.points[-1][0]}" for line in lines)
    description = f"Validation loss over steps. {ends}."
    return line_chart(lines, "step", "validation loss (nats per token)", caption, description)


def style_of(trial: Any, run: Any, ranking: list[Any]) -> Style:
    if trial in ranking[:1]:
        return "best"
    if trial in ranking or run.ending == "finished":
        return "plain"
    return "faded" if run.ending else "open"


def trials_of_group(group: str) -> list[str]:
    """Return the trials of a sweep that only the registry has."""
    versions = registered_groups().get(group, [])
    if not versions:
        return [parts.fault(f"The sweep {group} no longer exists; press Refresh.")]
    rows = [
        [str(trial), buttons_of(seeds), seeds[0].attention, f"{seeds[0].parameters:,}", f"{loss:.4f}"]
        for trial, loss, seeds in ranked_versions(versions)
    ]
    columns = ("trial", "model", "variant", "parameters", "nats per character")
    text = "The folder of this sweep is not on this machine: the table shows only the trials in the registry."
    return [parts.table(f"Trials of {group}", columns, rows, best=0), parts.notice(text)]
