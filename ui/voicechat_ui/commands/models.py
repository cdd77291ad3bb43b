"""`voicechat models`, `promote` and `rollback`: the registry."""

from typing import Annotated

import typer

from voicechat_ui.commands.options import Json
from voicechat_ui.commands.output import console, emit, versions_table


def models(as_json: Json = False) -> None:
    """List every version in the registry, with the champions marked.

    Example: voicechat models --json
    """
    from voicechat_platform.registry import Registry

    versions = Registry().versions()
    if not versions and not as_json:
        console.print(
            "There are no models yet. Tune some with `voicechat up` or `voicechat sweep tune/sweeps/quickstart.yaml`."
        )
    emit([version.facts() for version in versions], as_json, versions_table(versions))


def promote(version: Annotated[str, typer.Argument(help="NAME@NUMBER, from `voicechat models`")]) -> None:
    """Make a version the champion of its model: services then serve this version.

    Example: voicechat promote shakespeare@3
    """
    from voicechat_platform.registry import Registry, parse_version

    name, number = parse_version(version)
    registry = Registry()
    promoted = registry.promote(registry.version(name, number))
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
