"""`voicechat evaluate`, `generate`, `fold` and `heads`: the commands on one checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from voicechat_platform.errors import InputError
from voicechat_ui.commands.options import Constrained, Json, Reference, ToolsFile, Turns, found_checkpoint
from voicechat_ui.commands.output import console, emit


def evaluate(
    checkpoint: Reference,
    corpus: Annotated[
        str | None, typer.Option(show_default="its own", help="another text: a file, or a corpus by name")
    ] = None,
    tools: ToolsFile = None,
    turns: Turns = None,
    constrained: Constrained = False,
    as_json: Json = False,
) -> None:
    """Print the loss of a checkpoint over its own validation text, or over a whole other corpus.

    With --tools, print the shares of valid and of right calls over conversations that it has not learned, with 95%
    intervals.

    Example: voicechat evaluate shakespeare --corpus my-play.txt

    Example: voicechat evaluate smollm2-tools --tools held-out.jsonl
    """
    result = evaluated(checkpoint, corpus, tools, turns, constrained)
    emit(result, as_json, "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in result.items()))


def evaluated(
    checkpoint: str, corpus: str | None, tools: str | None, turns: int | None, constrained: bool
) -> dict[str, Any]:
    """Return the measures of a checkpoint.

    Raises:
        InputError: there is no such checkpoint or file, or the options do not go together.
    """
    from voicechat_platform.corpora.conversations import read_conversations
    from voicechat_platform.corpora.texts import read_text

    if corpus is not None and tools is not None:
        raise InputError("--corpus measures a loss, --tools calls: give one of them")
    if (turns is not None or constrained) and tools is None:
        raise InputError("--turns and --constrained belong to --tools")
    folder, given = found_checkpoint(checkpoint), corpus or tools
    text = read_text(given) if given else None
    conversations = read_conversations(text) if text and tools else None
    from voicechat_ui.model_tasks import evaluate_checkpoint, evaluate_tools

    if conversations is not None:
        return evaluate_tools(folder, conversations, str(tools), turns, constrained)
    return evaluate_checkpoint(folder, text)


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


def fold(
    checkpoint: Reference,
    out: Annotated[Path, typer.Argument(help="a new folder, or a new file NAME.gguf")],
    form: Annotated[
        Literal["folder", "gguf"],
        typer.Option("--format", help="a folder for transformers and most engines, or a file for llama.cpp"),
    ] = "folder",
    precision: Annotated[
        Literal["float32", "float16", "q8_0"] | None,
        typer.Option(show_default="float32", help="of the weights in a GGUF; only float32 keeps the logits"),
    ] = None,
) -> None:
    """Write a checkpoint as a stock model with the same logits, for other inference engines.

    A folder has a Llama or a GPT-2, a GGUF a Llama, with tokenizer and chat template.

    --format gguf also writes a Llama as it is, such as a fine-tuned SmolLM2.

    Example: voicechat fold shakespeare@3 folded
    Example: voicechat fold shakespeare shakespeare.gguf --format gguf
    """
    if form == "folder" and (out.suffix == ".gguf" or precision is not None):
        raise InputError("a folder keeps the checkpoint's precision; for a GGUF file give --format gguf")
    if form == "gguf":
        print(f"{out}: {folded_to_gguf(checkpoint, out, precision or 'float32')}")
    else:
        print(f"{out}: {folded_to_folder(checkpoint, out)}")


def folded_to_folder(checkpoint: str, out: Path) -> str:
    from voicechat_platform.paths import writable_folder

    new = writable_folder(out)
    if new.exists() and any(new.iterdir()):
        raise InputError(f"{new} is not empty: give a new folder")
    folder = found_checkpoint(checkpoint)
    from voicechat_ui.model_tasks import fold_checkpoint

    return fold_checkpoint(folder, new)


def folded_to_gguf(checkpoint: str, out: Path, precision: Literal["float32", "float16", "q8_0"]) -> str:
    from voicechat_platform.paths import writable_file

    if out.suffix != ".gguf":
        raise InputError(f"{out} does not end with .gguf, by which engines know the format: give a new name")
    new = writable_file(out)
    if new.exists():
        raise InputError(f"{new} exists: give a new file")
    folder = found_checkpoint(checkpoint)
    from voicechat_ui.model_tasks import export_gguf

    new.parent.mkdir(parents=True, exist_ok=True)
    return export_gguf(folder, new, precision)


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
