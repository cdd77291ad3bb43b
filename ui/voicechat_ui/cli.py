"""The `voicechat` command.

Results go to stdout, progress to stderr; exit 0 done, 1 failed, 2 bad input, 130 interrupted. Heavy libraries are
imported inside the commands, when what they were given has been read and where they write has been looked at: `--help`
and a misspelt file are answered at once.
"""

import json
import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voicechat_platform.errors import InputError, RegistryError
from voicechat_ui.keys_command import keys_app
from voicechat_ui.talk_command import talk

app = typer.Typer(
    help="Tune small language models, serve them, and talk with them. Start with: voicechat up",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys")
app.command()(talk)
console = Console(stderr=True, highlight=False)

Number = TypeVar("Number", int, float)
Reference = Annotated[str, typer.Argument(help="a checkpoint's folder, NAME@NUMBER, or NAME for its champion")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="where to listen  [default: 8000]")]
Application = Annotated[
    Path | None, typer.Option("--application", help="what to serve: a file such as serve/applications/local.yaml")
]
Host = Annotated[
    str | None,
    typer.Option(help="the address to listen on; beyond this machine only with a key  [default: 127.0.0.1]"),
]
Whisper = Annotated[
    Literal["base", "tiny.en"] | None, typer.Option(help="tiny.en is twice as fast, English only  [default: base]")
]
Address = Annotated[
    str | None, typer.Option(help="the Ray to join, auto on a cluster's head  [default: one of its own]")
]
SweepName = Annotated[str, typer.Argument(help="a sweep's name, its folder, or its file")]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="go on with what is sound of a damaged journal; the rest stays beside it")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


@app.command()
def up(
    port: Port = None,
    whisper: Whisper = None,
    host: Host = None,
) -> None:
    """Everything: tune a first model if there is none, start the services, open the page. Ctrl-C ends it.

    Example: voicechat up --port 8080 --whisper tiny.en
    """
    chosen = chosen_settings(port, whisper, host)
    with console.status("loading"):
        from voicechat_ui.services import run_everything

    run_everything(chosen)


@app.command()
def serve(
    port: Port = None,
    whisper: Whisper = None,
    host: Host = None,
    application: Application = None,
) -> None:
    """The OpenAI-compatible API alone, without the page. Ctrl-C ends it.

    Example: voicechat serve --port 8080
    """
    chosen = chosen_settings(port, whisper, host)
    with console.status("loading"):
        from voicechat_serve.application_file import listed_models, local_application, read_application

        wanted = read_application(application or local_application()).api
        listed_models(wanted)
        from voicechat_ui.services import run_services

    run_services(chosen, wanted, with_page=False)


@app.command()
def page(
    api: Annotated[str, typer.Option(help="base URL of a running API")] = "http://127.0.0.1:8000/v1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="where the page listens")] = 8001,
    host: Host = None,
) -> None:
    """The page alone, as a client of an API that is already running; its key, if that wants one: VOICECHAT_API_KEY.

    Example: voicechat page --api http://127.0.0.1:8000/v1 --port 8001
    """
    from voicechat_platform.paths import api_address

    chosen, api = chosen_settings(port, None, host), api_address(api)
    with console.status("loading"):
        from voicechat_ui.services import run_page

    run_page(chosen, api)


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
    from voicechat_platform.paths import writable_folder
    from voicechat_platform.settings import settings
    from voicechat_platform.strict_yaml import read_yaml
    from voicechat_platform.training.recipe import Recipe

    wanted = read_yaml(recipe, Recipe)
    check_sources(wanted)
    folder = writable_folder(out or settings().folder("runs") / wanted.name)
    from voicechat_ui.training import train_recipe

    train_recipe(wanted, recipe, folder, resume, workers)


@app.command()
def evaluate(
    checkpoint: Reference,
    corpus: Annotated[str | None, typer.Option(help="another text: a file, or a corpus by name")] = None,
    as_json: Json = False,
) -> None:
    """The loss of a checkpoint over a whole validation text: its own, or another corpus.

    Example: voicechat evaluate shakespeare --corpus my-play.txt
    """
    from voicechat_platform.corpora.texts import read_text

    folder, text = found_checkpoint(checkpoint), read_text(corpus) if corpus else None
    from voicechat_ui.training import evaluate_checkpoint

    result = evaluate_checkpoint(folder, text)
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
    folder = found_checkpoint(checkpoint)
    from voicechat_ui.training import sample

    print(sample(folder, prompt, tokens, temperature, seed))


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="a sweep file, such as tune/sweeps/quickstart.yaml")],
    dry_run: Annotated[
        bool, typer.Option(help="check everything, draw some trials, estimate memory, time and price; run nothing")
    ] = False,
    resume: Annotated[bool, typer.Option(help="go on; an error where there is nothing to go on with")] = False,
    fresh: Annotated[bool, typer.Option(help="throw away what an earlier sweep of that name left")] = False,
    force: Annotated[bool, typer.Option(help="go on although the file has changed")] = False,
    salvage: Salvage = False,
    extend: Annotated[int, typer.Option(min=0, help="so many trials more than the file asks for")] = 0,
    address: Address = None,
    tensorboard: Annotated[bool, typer.Option(help="write event files into the sweep's folder")] = False,
    promote_best: Annotated[bool, typer.Option("--promote", help="promote the best trial at the end")] = False,
    as_json: Json = False,
) -> None:
    """Search hyperparameters with Ray Tune; every trial that finishes goes to the registry.

    Ctrl-C keeps what is finished; the same command goes on from there, each run from its last evaluation.

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
        from voicechat_tune.running.dry_run import estimate

        try:
            facts, tables = estimate(wanted)
        finally:
            stop_ray()
        emit(facts, as_json, tables)
        return
    if promote_best and len(wanted.objectives) > 1:
        raise InputError("several objectives have no single best trial: choose one, then voicechat promote it")
    if salvage:
        if fresh:
            raise InputError("--fresh throws away what --salvage keeps: give one of them")
        from voicechat_tune.running.salvage import salvage as salvage_sweep

        salvage_sweep(wanted)
    if resume and not is_begun(wanted):
        raise InputError(f"the sweep {wanted.name!r} has not begun: leave --resume away")
    from voicechat_tune.running.run import run_sweep

    with redirect_stdout(sys.stderr):  # Ray tells of a lost process on stdout, which is the result's
        try:
            outcome = run_sweep(wanted, fresh, force, extend, tensorboard)
        finally:
            stop_ray()
    finished = outcome.finished
    if promote_best and outcome.complete and finished:
        finished = [Registry().promote(finished[0]), *finished[1:]]
    emit([version.facts() for version in finished], as_json, versions_table(finished))
    console.print(f"{outcome.mebibytes:,.0f} MiB on disk. Trials: voicechat trials {wanted.name}")
    if outcome.failed:
        console.print(f"{outcome.failed} trials failed.", style="red")
    if not outcome.complete:
        end_early(
            outcome.reason,
            f"what is finished is kept, {outcome.unfinished} trials are left. The same command goes on from there.",
        )
    if outcome.best is None:
        raise typer.Exit(1)
    if len(wanted.objectives) > 1:
        console.print(f"Several objectives: voicechat report {wanted.name} shows which trials no other one beats.")
    elif not promote_best:
        console.print(f"Best: {outcome.best}. Serve it: voicechat promote {outcome.best}")


@app.command()
def schema(
    out: Annotated[Path, typer.Option(help="folder for the files")] = Path("."),
) -> None:
    """Write the JSON schemas of recipes, sweep files and comparison files, which editors check YAML by.

    Example: voicechat schema --out tune/schemas
    """
    from voicechat_tune.schemas import write_schemas

    for path in write_schemas(out):
        print(path)


@app.command()
def trials(sweep: SweepName, as_json: Json = False) -> None:
    """A sweep's trials: what was chosen, how far each is and how good; also while it runs.

    Example: voicechat trials quickstart
    """
    from voicechat_tune.running.sweep_index import open_study
    from voicechat_tune.search.ranking import winners
    from voicechat_tune.search.trials_table import trials_table

    study = open_study(sweep)
    found = study.trials()
    best = {trial.number for trial in winners(found, study.sweep)}
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            "point": trial.point,
            "loss": trial.loss,
            "runs": len(trial.runs),
            "is_best": trial.number in best,
        }
        for trial in found
    ]
    emit(rows, as_json, trials_table(f"sweep {study.sweep.name}", found, study.sweep))


@app.command()
def trial(
    sweep: SweepName,
    number: Annotated[int, typer.Argument(min=1, help="as `voicechat trials` lists them")],
    as_json: Json = False,
) -> None:
    """All about one trial of a sweep: its choices, its evaluations, why it ended, and the end of its log.

    Example: voicechat trial quickstart 3
    """
    from voicechat_tune.running.inspect import trial_facts, trial_text

    facts = trial_facts(sweep, number)
    emit(facts, as_json, trial_text(facts))


@app.command()
def report(
    sweep: SweepName,
    out: Annotated[Path | None, typer.Option(help="the report's folder  [default: report/ in the sweep's]")] = None,
    prompt: Annotated[str, typer.Option(help="what the best model goes on from")] = "The meaning of life is",
) -> None:
    """Write a sweep up: curves, importances, the best model's heads and a sample; HTML, Markdown and raw numbers.

    Example: voicechat report quickstart --out report
    """
    from voicechat_tune.report.files import report_folder
    from voicechat_tune.running.sweep_index import open_study

    study = open_study(sweep)
    folder = report_folder(out or study.folder / "report")
    from voicechat_tune.report.document import write_report
    from voicechat_tune.report.gather import sweep_findings

    write_report(sweep_findings(study, prompt), folder)
    print(folder / "report.html")


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="a comparison file, such as tune/comparisons/small.yaml")],
    out: Annotated[Path | None, typer.Option(help="the report's folder  [default: HOME/reports/NAME]")] = None,
    address: Address = None,
    write: Annotated[bool, typer.Option("--write", help="run nothing: write up what is done so far")] = False,
    salvage: Salvage = False,
) -> None:
    """Compare variants fairly and write it up: the same tuning for each, fresh seeds, intervals and tests.

    Ctrl-C keeps what is finished; the same command goes on from there.

    Example: voicechat compare tune/comparisons/small.yaml --out docs/report
    """
    from voicechat_platform.cluster import stop_ray
    from voicechat_platform.settings import settings
    from voicechat_tune.comparison.comparison_file import read_comparison
    from voicechat_tune.report.files import report_folder

    comparison = read_comparison(file)
    if write and salvage:
        raise InputError("--write runs nothing, and --salvage goes on: give one of them")
    check_sources(comparison.recipe)
    folder = report_folder(out or settings().folder("reports") / comparison.name)
    from voicechat_tune.comparison.compare import findings, run_comparison
    from voicechat_tune.report.document import write_report

    if not write:
        join(address)
        try:
            outcome = run_comparison(comparison, salvaging=salvage)
        finally:
            stop_ray()
        if not outcome.complete:
            end_early(
                outcome.reason,
                f"{outcome.unfinished} runs of this part are left. The same command goes on from there; with --write "
                f"it writes up what there is.",
            )
    write_report(findings(comparison), folder)
    print(folder / "report.html")


@app.command()
def fold(checkpoint: Reference, out: Annotated[Path, typer.Argument(help="a new folder")]) -> None:
    """Write a checkpoint as a stock Llama or GPT-2 with the same logits, which any inference engine runs.

    Example: voicechat fold shakespeare@3 folded
    """
    from voicechat_platform.paths import writable_folder

    new = writable_folder(out)
    if new.exists() and any(new.iterdir()):
        raise InputError(f"{new} is not empty: name a new folder")
    folder = found_checkpoint(checkpoint)
    from voicechat_ui.training import fold_checkpoint

    print(f"{out}: a {fold_checkpoint(folder, new)} with the same logits")


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
    from voicechat_platform.paths import writable_folder
    from voicechat_tune.report.files import HEADS_FILES

    if out is not None:
        writable_folder(out, *HEADS_FILES)
    found = found_checkpoint(checkpoint)
    folder = writable_folder(out or found / "heads", *HEADS_FILES)
    from voicechat_tune.report.heads import show_heads

    rows = show_heads(found, folder)
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

    name, number = parse_version(version)
    registry = Registry()
    promoted = registry.promote(registry.version(name, number))
    print(
        f"{promoted} is the champion of {promoted.name}. A running service serves it within seconds; "
        f"`voicechat rollback {promoted.name}` undoes it."
    )


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="a model of the registry")]) -> None:
    """Make the champion before the champion again; a running service follows. A second time undoes the first.

    Example: voicechat rollback shakespeare
    """
    from voicechat_platform.registry import Registry

    champion = Registry().roll_back(name)
    print(f"{champion} is the champion of {champion.name} again.")


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


@app.command("load-test")
def load_test(
    url: Annotated[str, typer.Option(help="base URL of a running API")] = "http://127.0.0.1:8000/v1",
    endpoint: Annotated[
        Literal["chat", "completions", "speech", "transcriptions"], typer.Option(help="what to ask for")
    ] = "chat",
    model: Annotated[str | None, typer.Option(help="its name; by default the server's first")] = None,
    streams: Annotated[str, typer.Option(help="closed loop: how many at once, level by level")] = "1,8,32",
    rate: Annotated[
        str | None, typer.Option(help="open loop instead: requests a second, at random moments, level by level")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="of each level; by default 4 for each stream")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="of each level, instead; with --rate 30 by default")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="about so many; words, of a text to speak")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 64,
    sound: Annotated[
        Path | None, typer.Option(help="file to transcribe; by default speech that the server makes")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="wait as a refusal's Retry-After says, and ask again")] = False,
    seed: Annotated[int, typer.Option(help="of the texts and of the moments")] = 0,
    key: Annotated[
        str, typer.Option(envvar=["VOICECHAT_API_KEY", "OPENAI_API_KEY"], show_default=False, help="sent to the URL")
    ] = "",
    as_json: Json = False,
) -> None:
    """Load a running server and tell how long its users wait. Ctrl-C shows what has been measured so far.

    A closed loop (--streams) sends the next request of a stream when the last one has ended: it finds what a server
    can do, but a slow server is asked less, so its waiting times look better than they are (coordinated omission).
    An open loop (--rate) sends at its own rate as people do, and counts from the moment a request was due.

    Example: voicechat load-test --rate 2,4,8 --seconds 60
    """
    from voicechat_platform.paths import api_address, given_path

    url, speech = api_address(url), None
    if sound:
        try:
            speech = given_path(sound).read_bytes()
        except OSError as error:
            raise InputError(f"{sound} cannot be read: {error.strerror}") from None
    from voicechat_ui.load_report import run_load_test, table
    from voicechat_ui.load_test import Level

    if rate:
        duration = 30 if requests is None and seconds is None else seconds
        levels = [
            Level(rate=r, requests=requests, seconds=duration, retry=retry, seed=seed)
            for r in parse_levels(rate, float)
        ]
    else:
        levels = [
            Level(streams=n, requests=requests or (None if seconds else 4 * n), seconds=seconds, retry=retry, seed=seed)
            for n in parse_levels(streams, int)
        ]
    summaries, interrupted = run_load_test(
        levels,
        endpoint,
        url,
        key,
        console,
        model=model,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        sound=speech,
        seed=seed,
    )
    emit({"url": url, "endpoint": endpoint, "levels": summaries}, as_json, table(f"{endpoint} at {url}", summaries))
    for level in summaries:
        for problem, times in level["errors"].items():
            console.print(f"{times} times: {escape(problem)}", style="red", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if any(level["failed"] or level["lost"] or not level["done"] for level in summaries):
        raise typer.Exit(1)


@app.command()
def doctor(port: Port = None) -> None:
    """Check Python, packages, packaged models, the port, memory and disk; say what to do about each finding.

    Example: voicechat doctor
    """
    from voicechat_ui.doctor import examine

    if not examine(console, port):
        raise typer.Exit(1)


def chosen_settings(port: int | None, whisper: str | None, host: str | None) -> Any:
    """The environment's settings with the command's options over them."""
    from voicechat_platform.settings import settings

    given = {"port": port, "whisper": whisper, "host": host}
    return settings().model_copy(update={key: value for key, value in given.items() if value is not None})


def parse_levels(text: str, kind: type[Number]) -> list[Number]:
    """The levels of a load test, such as "1,8,32"."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise InputError(f"levels are positive numbers with commas between them, such as 1,8,32; not {text!r}")
    return found


def check_sources(recipe: Any) -> None:
    """
    Raises:
        InputError: the text that a recipe trains on, or the model that it begins with, is not there.
    """
    from voicechat_platform.corpora.texts import check_is_there

    check_is_there(recipe.corpus.source)
    if recipe.init_from is not None:
        found_checkpoint(recipe.init_from)


def found_checkpoint(reference: str) -> Path:
    """The folder of a checkpoint, as `find_checkpoint` finds it, looked at before torch is imported."""
    from voicechat_platform.checkpoint_files import check_is_checkpoint
    from voicechat_platform.registry import find_checkpoint

    folder = find_checkpoint(reference)
    check_is_checkpoint(folder)
    return folder


def join(address: str | None) -> None:
    """Let the settings name the Ray to join, for this process and its children."""
    from voicechat_platform.settings import settings

    if address is not None:
        os.environ["VOICECHAT_RAY_ADDRESS"] = address
        settings.cache_clear()  # they may have been read before


def end_early(reason: str, left: str) -> NoReturn:
    """Say why a sweep ended before its last trial and what is left of it, and exit as its reason demands."""
    console.print(f"Ended early ({reason}): {left}", soft_wrap=True)
    raise typer.Exit(130 if reason == "interrupted" else 1)


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


def emit(result: Any, as_json: bool, for_people: Table | list[Table] | str) -> None:
    """The result on stdout, as JSON for machines or in the form for people."""
    if as_json:
        print(json.dumps(result, indent=2))
    elif isinstance(for_people, str):
        print(for_people)
    else:
        for table in for_people if isinstance(for_people, list) else [for_people]:
            if table.row_count:
                Console().print(table)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for area in ("voicechat_platform", "voicechat_tune", "voicechat_serve", "voicechat_ui"):
        logging.getLogger(area).setLevel(logging.INFO)
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    for stop in (signal.SIGTERM, signal.SIGHUP):  # a service manager's stop and a closed terminal are a Ctrl-C
        signal.signal(stop, signal.default_int_handler)
    try:
        app()
    except InputError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except RegistryError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
