"""`voicechat models`, `promote` and `rollback`: the registry."""

from typing import Annotated

import typer

from voicechat_ui.commands.options import Json
from voicechat_ui.commands.output import console, emit, versions_table


def models(as_json: Json = False) -> None:
    """What is in the registry: every version, the champion marked.

    Example: voicechat models --json
    """
    from voicechat_platform.registry import Registry

    versions = Registry().versions()
    if not versions and not as_json:
        console.print("No models yet. `voicechat up` or `voicechat sweep tune/sweeps/quickstart.yaml` tunes some.")
    emit([version.facts() for version in versions], as_json, versions_table(versions))


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


def rollback(name: Annotated[str, typer.Argument(help="a model of the registry")]) -> None:
    """Make the champion before the champion again; a running service follows. A second time undoes the first.

    Example: voicechat rollback shakespeare
    """
    from voicechat_platform.registry import Registry

    champion = Registry().roll_back(name)
    print(f"{champion} is the champion of {champion.name} again.")
