"""`voicechat sweep`: a search over hyperparameters."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from voicechat_platform.errors import InputError
from voicechat_ui.commands.options import Address, Json, Salvage, check_sources, join
from voicechat_ui.commands.output import console, emit, end_early, versions_table


def sweep(
    file: Annotated[Path, typer.Argument(help="a sweep file, such as tune/sweeps/quickstart.yaml")],
    dry_run: Annotated[
        bool, typer.Option(help="check everything, draw some trials, estimate memory, time and price; run nothing")
    ] = False,
    resume: Annotated[bool, typer.Option(help="continue; an error if the sweep has not started")] = False,
    fresh: Annotated[bool, typer.Option(help="delete an earlier sweep of this name, and start again")] = False,
    force: Annotated[bool, typer.Option(help="continue although the file has changed")] = False,
    salvage: Salvage = False,
    extend: Annotated[int, typer.Option(min=0, help="the number of trials to add to those of the file")] = 0,
    address: Address = None,
    tensorboard: Annotated[bool, typer.Option(help="write event files into the sweep's folder")] = False,
    promote_best: Annotated[bool, typer.Option("--promote", help="promote the best trial at the end")] = False,
    as_json: Json = False,
) -> None:
    """Search hyperparameters with Ray Tune. The registry gets every trial that finishes.

    Ctrl-C keeps finished trials; the same command continues, each run from its last evaluation.

    Example: voicechat sweep tune/sweeps/quickstart.yaml --promote
    """
    from voicechat_platform.cluster import stop_ray
    from voicechat_platform.paths import writable_folder
    from voicechat_platform.registry import Registry
    from voicechat_tune.running.run_files import sweep_folder
    from voicechat_tune.running.sweep_index import is_begun
    from voicechat_tune.search.sweep_file import read_sweep

    wanted = read_sweep(file)
    check_sources(wanted.recipe)
    writable_folder(sweep_folder(wanted.name, wanted.storage))
    join(address)
    if dry_run:
        print_estimate(wanted, as_json)
        return
    if promote_best and len(wanted.objectives) > 1:
        raise InputError("several objectives have no single best trial: choose one, then voicechat promote it")
    if salvage:
        if fresh:
            raise InputError("--fresh deletes what --salvage keeps: give only one of them")
        from voicechat_tune.running.salvage import salvage as salvage_sweep

        salvage_sweep(wanted)
    if resume and not is_begun(wanted):
        raise InputError(f"the sweep {wanted.name!r} has not started: omit --resume")
    from voicechat_tune.running.run import run_sweep

    with redirect_stdout(sys.stderr):  # Ray reports a lost process on stdout, which is for the result only
        try:
            outcome = run_sweep(wanted, fresh, force, extend, tensorboard)
        finally:
            stop_ray()
    finished = outcome.finished
    if promote_best and outcome.complete and finished:
        finished = [Registry().promote(finished[0]), *finished[1:]]
    emit([version.facts() for version in finished], as_json, versions_table(finished))
    print_ending(wanted, outcome, promote_best)


def print_estimate(wanted: Any, as_json: bool) -> None:
    """Print what a sweep would run and cost."""
    from voicechat_platform.cluster import stop_ray
    from voicechat_tune.running.dry_run import estimate

    try:
        facts, tables = estimate(wanted)
    finally:
        stop_ray()
    emit(facts, as_json, tables)


def print_ending(wanted: Any, outcome: Any, is_promoted: bool) -> None:
    """Print failures and the next steps. Exit with an error status if the sweep is not complete or has no best
    trial."""
    console.print(f"{outcome.mebibytes:,.0f} MiB on disk. Trials: voicechat trials {wanted.name}")
    if outcome.failed:
        console.print(f"{outcome.failed} trials failed.", style="red")
    if not outcome.complete:
        end_early(
            outcome.reason,
            f"finished trials are kept, {outcome.unfinished} trials are left. The same command continues from there.",
        )
    if outcome.best is None:
        raise typer.Exit(1)
    if len(wanted.objectives) > 1:
        console.print(f"Several objectives: voicechat report {wanted.name} shows the trials that no other trial beats.")
    elif not is_promoted:
        console.print(f"Best: {outcome.best}. Serve it: voicechat promote {outcome.best}")
