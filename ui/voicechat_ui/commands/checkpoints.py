"""`voicechat evaluate`, `generate`, `fold` and `heads`: the commands on one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from voicechat_platform.errors import InputError
from voicechat_ui.commands.options import Json, Reference, found_checkpoint
from voicechat_ui.commands.output import console, emit


def evaluate(
    checkpoint: Reference,
    corpus: Annotated[
        str | None, typer.Option(show_default="its own", help="another text: a file, or a corpus by name")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the loss of a checkpoint over its own validation text, or over a whole other corpus.

    Example: voicechat evaluate shakespeare --corpus my-play.txt
    """
    from voicechat_platform.corpora.texts import read_text

    folder, text = found_checkpoint(checkpoint), read_text(corpus) if corpus else None
    from voicechat_ui.model_tasks import evaluate_checkpoint

    result = evaluate_checkpoint(folder, text)
    emit(result, as_json, "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in result.items()))


def generate(
    checkpoint: Reference,
    prompt: Annotated[str, typer.Option(show_default=r"HAMLET:\n", help="the start of the text")] = "HAMLET:\n",
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="the most tokens to add")] = 200,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 always takes the most likely token")] = 0.8,
    seed: Annotated[
        int | None, typer.Option(show_default="a random one", help="the same seed gives the same text")
    ] = None,
) -> None:
    """Generate text from a prompt with a checkpoint.

    Example: voicechat generate shakespeare --prompt "The meaning of life is" --tokens 100
    """
    folder = found_checkpoint(checkpoint)
    from voicechat_ui.model_tasks import sample

    print(sample(folder, prompt, tokens, temperature, seed))


def fold(checkpoint: Reference, out: Annotated[Path, typer.Argument(help="a new folder")]) -> None:
    """Write a checkpoint as a stock Llama or GPT-2 with the same logits, for other inference engines.

    Example: voicechat fold shakespeare@3 folded
    """
    from voicechat_platform.paths import writable_folder

    new = writable_folder(out)
    if new.exists() and any(new.iterdir()):
        raise InputError(f"{new} is not empty: give a new folder")
    folder = found_checkpoint(checkpoint)
    from voicechat_ui.model_tasks import fold_checkpoint

    print(f"{out}: a {fold_checkpoint(folder, new)} with the same logits")


def heads(
    checkpoint: Reference,
    out: Annotated[
        Path | None, typer.Option(show_default="heads/ in the checkpoint", help="folder for the figures")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what each head has learned: figures, data and a table of spectra, token distances and attention.

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
