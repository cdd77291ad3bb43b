"""`voicechat models`, `promote` and `rollback`: the models that were added, and the registry."""

from typing import Annotated, Any

import typer

from voicechat_platform.errors import InputError
from voicechat_ui.commands.checkpoints import evaluated
from voicechat_ui.commands.options import Constrained, Json, ToolsFile, Turns
from voicechat_ui.commands.output import added_table, console, emit, versions_table
from voicechat_ui.commands.requirement import Requirement

models_app = typer.Typer(
    help="Models of your own: a GGUF file, a folder, or a model of the Hugging Face hub. Without a command: list them, "
    "and every version in the registry.\n\nExample: voicechat models --json",
)

Name = Annotated[str, typer.Argument(help="from `voicechat models list`")]


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json)


@models_app.command()
def add(
    source: Annotated[
        str, typer.Argument(help="hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M, hf:OWNER/REPO@REVISION:FILE.gguf, or a path")
    ],
    name: Annotated[
        str | None, typer.Option(show_default="that of its file or repository", help="the model's name here")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a model: download it from the hub, or remember where it lies on this machine.

    After Ctrl-C, the same command continues the download. HF_TOKEN is the token for models that need one, HF_ENDPOINT
    the address of another hub. The model stays at its commit until you remove it.

    Example: voicechat models add hf:bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M --name qwen
    """
    from voicechat_platform.model_store import add_model

    added = add_model(source, name)
    facts = added.model_dump(mode="json")
    emit(facts, as_json, f"{added.name} is added. In an application file: {{id: {added.name}, source: {added.name}}}")


@models_app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that were added, and every version in the registry with the champions marked.

    Example: voicechat models list
    """
    from voicechat_platform.model_store import added_models, unfinished_downloads
    from voicechat_platform.registry import Registry

    added = [model.model_dump(mode="json") for model in added_models()]
    added += [{"name": name, "kind": "unfinished download", "size": size} for name, size in unfinished_downloads()]
    if not as_json:
        emit(None, False, added_table(added))  # at once: the registry may not answer
    versions = Registry().versions()
    if not versions and not as_json:
        console.print(
            "There are no tuned models yet. Tune some with `voicechat up` or "
            "`voicechat sweep tune/sweeps/quickstart.yaml`.",
            soft_wrap=True,
        )
    rows: list[dict[str, Any]] = [{"kind": "version", **version.facts()} for version in versions]
    emit(rows + added, as_json, versions_table(versions))


@models_app.command()
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Remove a model that was added, or the rest of an interrupted download. A file of your own is only forgotten.

    Example: voicechat models remove qwen --yes
    """
    from voicechat_platform.hub import readable
    from voicechat_platform.model_store import remove_model, require_there

    require_there(name)
    if not yes:
        typer.confirm(f"Remove {name}?", abort=True, err=True)
    freed = remove_model(name)
    emit({"name": name, "freed": freed}, as_json, f"{name} is removed: {readable(freed)} are free again.")


def promote(
    version: Annotated[str, typer.Argument(help="NAME@NUMBER, from `voicechat models`")],
    require: Annotated[
        list[str] | None,
        typer.Option(
            show_default="nothing", help="MEASURE>=NUMBER or MEASURE<=NUMBER, of a measure of `voicechat evaluate`"
        ),
    ] = None,
    tools: ToolsFile = None,
    turns: Turns = None,
    constrained: Constrained = False,
) -> None:
    """Make a version the champion of its model: services then serve this version.

    With --require, evaluate it first, and promote it only if it reaches the numbers.

    Example: voicechat promote shakespeare@3

    Example: voicechat promote smollm2-tools@1 --tools held-out.jsonl --require "right_calls>=0.8"
    """
    from voicechat_platform.registry import Registry, parse_version

    name, number = parse_version(version)
    requirements = [Requirement(text) for text in require or ()]
    if tools is not None and not requirements:
        raise InputError("--tools is for --require: say what the version must reach")
    registry = Registry()
    found = registry.version(name, number)
    if requirements:
        measures = evaluated(version, None, tools, turns, constrained)
        missed = [requirement.missed_by(measures) for requirement in requirements]
        if any(missed):
            console.print(f"{found} is not promoted: {', '.join(filter(None, missed))}", soft_wrap=True)
            raise typer.Exit(1)
    promoted = registry.promote(found)
    print(
        f"{promoted} is the champion of {promoted.name}. A running service serves it within seconds; "
        f"`voicechat rollback {promoted.name}` restores the previous champion."
    )


def rollback(name: Annotated[str, typer.Argument(help="a model of the registry")]) -> None:
    """Make the previous champion the champion again, also in a running service. A second rollback undoes the first.

    Example: voicechat rollback shakespeare
    """
    from voicechat_platform.registry import Registry

    champion = Registry().roll_back(name)
    print(f"{champion} is the champion of {champion.name} again.")
