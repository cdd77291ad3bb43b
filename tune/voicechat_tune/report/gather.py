"""Gather the facts of a report: a sweep's study, its checkpoints, and the machine.

Letters: b batch, t position.
"""

import base64
import logging
import platform
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import torch

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.provenance import machine, provenance
from voicechat_tune.report import findings as report
from voicechat_tune.report.findings import Findings, Heads, RunSummary, Table
from voicechat_tune.report.heads import show_heads
from voicechat_tune.report.results import mean_facts
from voicechat_tune.running.driver import cost_of, hours_of
from voicechat_tune.running.run_files import SweepFiles
from voicechat_tune.search.ranking import best_first, ranked, winners
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Trial, evaluation_in

log = logging.getLogger(__name__)
SAMPLE_TOKENS = 256
FIGURES = ("spectra", "scores", "attention")


def sweep_findings(study: Study, prompt: str) -> Findings:
    """Return the facts of a sweep in its current state; the heads and the sample are those of its best trial."""
    sweep, trials = study.sweep, study.trials()
    runs = [run for trial in trials for run in runs_of(study, trial, "equal width", variant_of(trial, sweep))]
    best = next(iter(winners(trials, sweep)), None)
    chosen = {variant_of(best, sweep): SweepFiles(sweep, study.folder).best(best_first(best)[0].key)} if best else {}
    searched = f"searched {', '.join(sweep.search)} with {sweep.sampler}" if sweep.search else "ran the points given"
    scheduled = f" The scheduler: {sweep.scheduler.describe(sweep)}" if sweep.scheduler else ""
    return Findings(
        title=f"Sweep {sweep.name}",
        kind="sweep",
        description=f"The sweep {searched}, over a recipe of {sweep.recipe.training.steps} steps; "
        f"{len(trials)} trials of {sweep.seeds} seeds.{scheduled}",
        runs=runs,
        prompt=prompt,
        samples={variant: sample(checkpoint, prompt) for variant, checkpoint in chosen.items()},
        heads=heads_of(chosen),
        environment=environment([study], trials),
        importances=importances(study),
        trials=trials_of(study, trials),
        objectives=list(sweep.objectives),
    )


def trials_of(study: Study, trials: list[Trial]) -> list[report.TrialSummary]:
    """Return the report's facts about each trial, in the report's order."""
    ranking = ranked(trials, study.sweep)
    compared, best = ({trial.number for trial in found} for found in (ranking, winners(trials, study.sweep)))
    described = []
    for trial in [*ranking, *(trial for trial in trials if trial.number not in compared)]:
        is_interval = trial.state == "finished" and trial.number not in compared
        variant = variant_of(trial, study.sweep)
        runs = runs_of(study, trial, "equal width", variant)
        described.append(
            report.TrialSummary(
                number=trial.number,
                variant=variant,
                choices={field: value for field, value in trial.point.items() if field != "seed"},
                status="interval" if is_interval else trial.state,
                losses=[run.loss for run in trial.runs if run.loss is not None],
                facts=mean_facts(runs),
                is_ranked=trial.number in compared,
                is_best=trial.number in best,
            )
        )
    return described


def comparison_findings(
    placed: Sequence[tuple[Study, Trial, Table, str]],
    title: str,
    baseline: str,
    margin: float,
    prompt: str,
    repeated: list[Table],
) -> Findings:
    """Return the facts of a comparison's runs.

    Args:
        placed: each trial with its study, table and variant.
        repeated: tables that also contain the baseline's runs of "equal width".
    """
    runs: list[RunSummary] = []
    chosen: dict[str, Path] = {}
    for study, trial, table, variant in placed:
        of_trial = runs_of(study, trial, table, variant)
        runs += of_trial
        if variant == baseline and table == "equal width":
            runs += [replace(run, table=other) for other in repeated for run in of_trial]
        if table == "equal width" and trial.state == "finished" and variant not in chosen:
            chosen[variant] = SweepFiles(study.sweep, study.folder).best(trial.runs[0].key)
    recipe = placed[0][0].sweep.recipe
    corpus, training = recipe.corpus, recipe.training
    studies = list({study.sweep.name: study for study, *_ in placed}.values())
    return Findings(
        title=title,
        kind="comparison",
        description=f"Every variant tried the same combinations of training choices on one seed and kept its best, "
        f"then was trained on fresh seeds: {training.steps} steps of {training.batch_size} windows of "
        f"{recipe.model.context} tokens ({corpus.tokenizer}). The seeds, the order of the data and the steps are the "
        f"same for all, and so is whatever was not tuned. The last step's losses are over the whole validation part "
        f"({corpus.validation_fraction:.0%} of the text) in fixed windows of one context, those before it over "
        f"{training.evaluation_windows or 'all'} of the windows; the test part ({corpus.test_fraction:.0%}) was looked "
        f"at once a run, at its end, and nothing was chosen by it. For equal parameters and equal FLOPs a variant's "
        f"MLP was widened or narrowed to the baseline's, with the choices it had been tuned to at equal width. One "
        f"seed chose them, so that a choice may be a matter of luck.",
        runs=runs,
        baseline=baseline,
        margin=margin,
        prompt=prompt,
        samples={variant: sample(checkpoint, prompt) for variant, checkpoint in chosen.items()},
        heads=heads_of(chosen),
        environment=environment(studies, [trial for _, trial, *_ in placed]),
    )


def runs_of(study: Study, trial: Trial, table: Table, variant: str) -> list[RunSummary]:
    """Return a trial's runs that have ended."""
    return [
        RunSummary(
            number=trial.number,
            variant=variant,
            table=table,
            seed=study.sweep.seed_of(trial.point, run.key.seed_index),
            choices={field: value for field, value in trial.point.items() if field != "seed"},
            status=run.ending,
            history=[evaluation_in(evaluation) for evaluation in run.evaluations],
            facts=run.facts,
        )
        for run in trial.runs
        if run.ending is not None
    ]


def variant_of(trial: Trial, sweep: SweepFile) -> str:
    """Return the attention of a trial's model in words."""
    try:
        model = sweep.recipe_for(trial.point).model
    except InputError:  # this is why the trial failed
        return "impossible"
    if sweep.recipe.init_from is not None:
        return sweep.recipe.init_from
    return model.attention if model.metric is None else f"{model.attention}, {model.metric}"


def heads_of(chosen: dict[str, Path]) -> dict[str, Heads]:
    """Return for each variant the readouts of a checkpoint's heads, only for this project's own models."""
    found = {}
    for variant, checkpoint in chosen.items():
        if not isinstance(load_checkpoint(checkpoint)[0], GPTForCausalLM):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows = show_heads(checkpoint, Path(scratch))
            pictures = {name: (Path(scratch) / f"{name}.png").read_bytes() for name in FIGURES}
        figures = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
        found[variant] = Heads(rows, figures)
    return found


def sample(checkpoint: Path, prompt: str) -> str:
    """Return the prompt and the checkpoint's continuation, always the same; the model sees at most half a context."""
    model, tokenizer = load_checkpoint(checkpoint)
    written_t = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids[0]
    if not len(written_t):
        return ""
    torch.manual_seed(1)
    half = model.config.max_position_embeddings // 2
    for _ in range(0, SAMPLE_TOKENS, half):
        seen_bt = written_t[None, -half:]
        longer_bt = model.generate(seen_bt, max_new_tokens=half, do_sample=True, temperature=0.8, top_k=0, top_p=1.0)
        written_t = torch.cat([written_t, longer_bt[0, seen_bt.shape[1] :]])
        if longer_bt.shape[1] < seen_bt.shape[1] + half:
            break  # the model ended by itself
    return tokenizer.decode(written_t)


def importances(study: Study) -> dict[str, float]:
    """Return the importance of each searched field (PED-ANOVA, arXiv 2304.10255); empty for too few finished trials."""
    if not study.sweep.search or len(study.sweep.objectives) > 1:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of few trials; the report gives their number
            return optuna.importance.get_param_importances(
                study.optuna, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
    except (ValueError, RuntimeError) as error:
        log.info("no importances: %s", error)
        return {}


def environment(studies: list[Study], trials: list[Trial]) -> dict[str, str]:
    """Return the conditions of the runs from their checkpoints, possibly several machines and commits."""
    checkpoints = [
        files.run_folder(run.key) / "best"
        for study in studies
        for files in [SweepFiles(study.sweep, study.folder)]
        for trial in study.trials()
        for run in trial.runs
    ]
    notes = [read_run(checkpoint) for checkpoint in checkpoints if (checkpoint / "run.json").exists()]
    notes = notes or [provenance()]
    cost = sum(cost_of(study.sweep, study.trials()) for study in studies)
    shown = {
        "machine": each(note.get("machine", "not noted") for note in notes),
        "written by": f"{machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": each(", ".join(f"{name} {number}" for name, number in note["versions"].items()) for note in notes),
        "commit": each(note["commit"] or "unknown" for note in notes),
        "corpus": studies[0].sweep.recipe.corpus.source.rpartition("/")[2],
        "runs": f"{sum(len(trial.runs) for trial in trials)}",
        "training": f"{hours_of(trials):.1f} hours in all, evaluations included",
    }
    return shown | ({"cost": f"{cost:.2f}"} if cost else {})


def each(found: Iterable[str]) -> str:
    """Return every different value in order; if there are several, each with its number of runs."""
    counts = Counter(found)
    return "; ".join(counts) if len(counts) == 1 else "; ".join(f"{one} ({runs} runs)" for one, runs in counts.items())
