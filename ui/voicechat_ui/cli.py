"""The `voicechat` command: the list of its commands, and their common set-up.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from voicechat_platform.errors import InputError, RegistryError
from voicechat_ui.commands import (
    checkpoints,
    compare,
    doctor,
    keys,
    load_test,
    models,
    schema,
    serve,
    sweep,
    talk,
    tools,
    train,
    trials,
)
from voicechat_ui.commands.output import console

COMMANDS: tuple[Callable[..., None], ...] = (  # in the order of --help
    serve.up,
    serve.serve,
    serve.page,
    talk.talk,
    tools.tools,
    train.train,
    checkpoints.evaluate,
    checkpoints.generate,
    checkpoints.fold,
    checkpoints.heads,
    sweep.sweep,
    trials.trials,
    trials.trial,
    trials.report,
    compare.compare,
    schema.schema,
    models.promote,
    models.rollback,
    load_test.load_test,
    doctor.doctor,
)

app = typer.Typer(
    help="Tune small language models, serve them, and talk with them. Start with: voicechat up",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(models.models_app, name="models")
app.add_typer(keys.keys_app, name="keys")


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("llm-voice-chat"))
        raise typer.Exit


@app.callback()
def voicechat(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="print the version and exit")
    ] = False,
) -> None:
    pass


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for area in ("voicechat_platform", "voicechat_tune", "voicechat_serve", "voicechat_ui"):
        logging.getLogger(area).setLevel(logging.INFO)
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    for stop in (signal.SIGTERM, signal.SIGHUP):  # for a service manager's stop and a closed terminal: like Ctrl-C
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
