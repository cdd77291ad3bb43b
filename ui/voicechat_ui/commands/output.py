"""Output of several commands: results on stdout, progress and messages on stderr."""

import json
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

console = Console(stderr=True, highlight=False)


def emit(result: Any, as_json: bool, for_people: Table | list[Table] | str) -> None:
    """Print the result on stdout, as JSON or in the form for people."""
    if as_json:
        print(json.dumps(result, indent=2))
    elif isinstance(for_people, str):
        print(for_people)
    else:
        for table in for_people if isinstance(for_people, list) else [for_people]:
            if table.row_count:
                Console().print(table)


def added_table(models: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("name", "kind", "parameters", "size", "from", "commit"):
        numeric = column in ("parameters", "size")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=column == "name")
    for model in models:
        parameters, revision = model.get("parameters"), model.get("revision")
        table.add_row(
            model["name"],
            model["kind"],
            f"{parameters:,}" if parameters else "",
            f"{model['size'] / 1e6:,.1f} MB",
            model.get("source", "`voicechat models add` continues it"),
            revision[:12] if revision else "",
        )
    return table


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


def end_early(reason: str, left: str) -> NoReturn:
    """Print why a sweep ended before its last trial and what is left, and exit with the status for this reason."""
    console.print(f"Ended early ({reason}): {left}", soft_wrap=True)
    raise typer.Exit(130 if reason == "interrupted" else 1)
