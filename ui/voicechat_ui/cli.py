"""The `voicechat` command.

Results go to stdout, progress to stderr; exit 0 done, 1 failed, 2 bad input, 130 interrupted. Heavy libraries are
imported inside the commands, so that `--help` answers at once.
"""

import json
import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Tune small language models, serve them, and talk with them. Start with: voicechat up",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True, highlight=False)

Reference = Annotated[str, typer.Argument(help="a checkpoint's folder, NAME@NUMBER, or NAME for its champion")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="where to listen, on loopback  [default: 8000]")]
Whisper = Annotated[
    Literal["base", "tiny.en"] | None, typer.Option(help="tiny.en is twice as fast, English only  [default: base]")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


@app.command()
def up(
    port: Port = None,
    whisper: Whisper = None,
) -> None:
    """Everything: tune a first model if there is none, start the services, open the page. Ctrl-C ends it.

    Example: voicechat up --port 8080 --whisper tiny.en
    """
    with console.status("loading"):
        from voicechat_ui.services import run_everything

    run_everything(chosen_settings(port, whisper))


@app.command()
def serve(
    port: Port = None,
    whisper: Whisper = None,
) -> None:
    """The OpenAI-compatible API alone, without the page. Ctrl-C ends it.

    Example: voicechat serve --port 8080
    """
    with console.status("loading"):
        from voicechat_ui.services import run_services

    run_services(chosen_settings(port, whisper), with_page=False)


@app.command()
def page(
    api: Annotated[str, typer.Option(help="base URL of a running API")] = "http://127.0.0.1:8000/v1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="where the page listens, on loopback")] = 8001,
) -> None:
    """The page alone, as a client of an API that is already running.

    Example: voicechat page --api http://127.0.0.1:8000/v1 --port 8001
    """
    with console.status("loading"):
        from voicechat_ui.services import run_page

    run_page(api, port)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a recipe file, such as tune/recipes/shakespeare.yaml")],
    out: Annotated[Path | None, typer.Option(help="the run's folder  [default: HOME/runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the run's last checkpoint")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes that share each batch, through Ray Train")] = 1,
) -> None:
    """Train one model from a recipe, fresh or from a pretrained one, and register the best checkpoint.

    Ctrl-C loses nothing: go on with --resume. With several workers it goes on from the last evaluation.

    Example: voicechat train tune/recipes/shakespeare.yaml
    """
    from voicechat_ui.training import train_recipe

    train_recipe(recipe, out, resume, workers)


@app.command()
def evaluate(
    checkpoint: Reference,
    corpus: Annotated[str | None, typer.Option(help="another text: a file, or a corpus by name")] = None,
    as_json: Json = False,
) -> None:
    """The loss of a checkpoint over a whole validation text: its own, or another corpus.

    Example: voicechat evaluate shakespeare --corpus my-play.txt
    """
    from voicechat_ui.training import evaluate_checkpoint

    result = evaluate_checkpoint(checkpoint, corpus)
    emit(result, as_json, "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in result.items()))


@app.command()
def generate(
    checkpoint: Reference,
    prompt: Annotated[str, typer.Option(help="what the text begins with")] = "HAMLET:\n",
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="how many to add at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 takes the likeliest token each time")] = 0.8,
    seed: Annotated[int | None, typer.Option(help="for the same text again")] = None,
) -> None:
    """Let a checkpoint go on from a prompt.

    Example: voicechat generate shakespeare --prompt "The meaning of life is" --tokens 100
    """
    from voicechat_ui.training import sample

    print(sample(checkpoint, prompt, tokens, temperature, seed))


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="a sweep file, such as tune/sweeps/quickstart.yaml")],
    fresh: Annotated[bool, typer.Option(help="throw away what an earlier sweep of that name left")] = False,
    promote_best: Annotated[bool, typer.Option("--promote", help="promote the best trial at the end")] = False,
    as_json: Json = False,
) -> None:
    """Search hyperparameters with Ray Tune; every trial ends in the registry.

    Ctrl-C keeps what is finished; the same command goes on from there.

    Example: voicechat sweep tune/sweeps/quickstart.yaml --promote
    """
    from voicechat_platform.cluster import stop_ray
    from voicechat_platform.registry import Registry
    from voicechat_tune.run import run_sweep
    from voicechat_tune.sweep_file import read_sweep

    with redirect_stdout(sys.stderr):  # Ray tells of a lost process on stdout, which is the result's
        try:
            outcome = run_sweep(read_sweep(file), fresh)
        finally:
            stop_ray()
    finished = outcome.finished
    if promote_best and outcome.complete and finished:
        finished = [Registry().promote(finished[0]), *finished[1:]]
    emit([version.facts() for version in finished], as_json, versions_table(finished))
    if not outcome.complete:
        console.print("Interrupted: what is finished is kept. The same command goes on from there.")
        raise typer.Exit(130)
    if outcome.failed:
        console.print(f"{outcome.failed} trials failed.", style="red")
    if outcome.best is None:
        raise typer.Exit(1)
    if not promote_best:
        console.print(f"Best: {outcome.best}. Serve it: voicechat promote {outcome.best}")


@app.command()
def fold(checkpoint: Reference, out: Annotated[Path, typer.Argument(help="a new folder")]) -> None:
    """Write a checkpoint as a stock Llama or GPT-2 with the same logits, which any inference engine runs.

    Example: voicechat fold shakespeare@3 folded
    """
    from voicechat_ui.training import fold_checkpoint

    print(f"{out}: a {fold_checkpoint(checkpoint, out)} with the same logits")


@app.command()
def heads(
    checkpoint: Reference,
    out: Annotated[
        Path | None, typer.Option(help="folder for the figures  [default: heads/ in the checkpoint]")
    ] = None,
    as_json: Json = False,
) -> None:
    """What each head has learned: spectra, token distances, what it attends to; figures, data and a table.

    Example: voicechat heads shakespeare --out heads
    """
    from voicechat_ui.heads import show_heads

    folder, rows = show_heads(checkpoint, out)
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    emit(rows, as_json, table)
    console.print(f"figures and heads.json are in {folder}")


@app.command()
def promote(version: Annotated[str, typer.Argument(help="NAME@NUMBER, as `voicechat models` lists them")]) -> None:
    """Make a version the champion of its model: the one that is served.

    Example: voicechat promote shakespeare@3
    """
    from voicechat_platform.registry import Registry, parse_version

    registry = Registry()
    promoted = registry.promote(registry.version(*parse_version(version)))
    print(f"{promoted} is the champion of {promoted.name}. A service that starts now serves it.")


@app.command()
def models(as_json: Json = False) -> None:
    """What is in the registry: every version, the champion marked.

    Example: voicechat models --json
    """
    from voicechat_platform.registry import Registry

    versions = Registry().versions()
    if not versions and not as_json:
        console.print("No models yet. `voicechat up` or `voicechat sweep tune/sweeps/quickstart.yaml` tunes some.")
    emit([version.facts() for version in versions], as_json, versions_table(versions))


@app.command()
def doctor(port: Port = None) -> None:
    """Check Python, packages, packaged models, the port, memory and disk; say what to do about each finding.

    Example: voicechat doctor
    """
    from voicechat_ui.doctor import examine

    if not examine(console, port):
        raise typer.Exit(1)


def chosen_settings(port: int | None, whisper: str | None) -> Any:
    """The environment's settings with the command's options over them."""
    from voicechat_platform.settings import settings

    given = {"port": port, "whisper": whisper}
    return settings().model_copy(update={key: value for key, value in given.items() if value is not None})


def versions_table(versions: list[Any]) -> Table:
    table = Table()
    for column in ("version", "variant", "parameters", "nats/char", "from", ""):
        numeric = column in ("parameters", "nats/char")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=column == "version")
    for version in versions:
        table.add_row(
            str(version),
            version.attention,
            f"{version.parameters:,}",
            f"{version.nats_per_character:.4f}",
            version.origin,
            "champion" if version.is_champion else "",
            style="bold green" if version.is_champion else None,
        )
    return table


def emit(result: Any, as_json: bool, for_people: Table | str) -> None:
    """The result on stdout, as JSON for machines or in the form for people."""
    if as_json:
        print(json.dumps(result, indent=2))
    elif isinstance(for_people, str):
        print(for_people)
    elif for_people.row_count:
        Console().print(for_people)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for area in ("voicechat_platform", "voicechat_tune", "voicechat_serve", "voicechat_ui"):
        logging.getLogger(area).setLevel(logging.INFO)
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    for stop in (signal.SIGTERM, signal.SIGHUP):  # a service manager's stop and a closed terminal are a Ctrl-C
        signal.signal(stop, signal.default_int_handler)
    from voicechat_platform.errors import InputError

    try:
        app()
    except InputError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
