"""`voicechat keys`: who may use the service."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from voicechat_ui.commands.options import Json
from voicechat_ui.commands.output import console

keys_app = typer.Typer(
    help="Keys of the API and the page. Once there is a first one, every request needs a key, from this machine too; "
    "without one the service listens to this machine only. A running service follows within a second.\n\n"
    "Example: voicechat keys create laptop",
    no_args_is_help=True,
)


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="whose key it is, such as laptop or anna")],
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=1, show_default="the service's: 600", help="how many it may make"),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, show_default="the service's: 16", help="how many at one time")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36500, show_default="never", help="after how many days it expires")
    ] = None,
    operator: Annotated[bool, typer.Option("--operator", help="it may also promote models, on the page")] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only a hash of it is kept.

    Clients send it as `Authorization: Bearer KEY`, the openai package as `api_key`; a browser asks for it as a
    password, with any name for the user. More than a limit allows is answered with 429 and when to try again.

    Example: voicechat keys create laptop --requests-per-minute 60
    """
    from voicechat_serve.operations.keys import create_key, keys_path

    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None
    key, secret = create_key(keys_path(), name, requests_per_minute, concurrent, expires, operator)
    if as_json:
        print(json.dumps(facts(key) | {"key": secret}, indent=2))
    else:
        print(secret)
    console.print(f"This is the only time that the key of {key.name} ({key.id}) is shown.")


@keys_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """Every key by id and name with its limits; not the keys themselves, which are kept nowhere.

    Example: voicechat keys list
    """
    from voicechat_serve.operations.keys import keys_path, read_keys

    try:
        keys = read_keys(keys_path())
    except FileNotFoundError:
        keys = ()
        console.print("No keys: the service needs none, and listens to this machine only. `voicechat keys create NAME`")
    if as_json:
        print(json.dumps([facts(key) for key in keys], indent=2))
    elif keys:
        table = Table("id", "name", "created", "expires", "requests/minute", "concurrent", "operator")
        for key in keys:
            expires = "expired" if key.is_expired() else f"{key.expires:%Y-%m-%d}" if key.expires else "never"
            limits = (str(limit or "default") for limit in (key.requests_per_minute, key.concurrent_requests))
            table.add_row(key.id, key.name, f"{key.created:%Y-%m-%d}", expires, *limits, "yes" if key.operator else "")
        Console().print(table)


@keys_app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="as `voicechat keys list` shows it")],
    as_json: Json = False,
) -> None:
    """Take a key back. Requests that are running with it end as they would; new ones are refused within a second.

    Example: voicechat keys revoke laptop
    """
    from voicechat_serve.operations.keys import keys_path, read_keys, revoke_key

    path = keys_path()
    revoked = revoke_key(path, key)
    print(json.dumps(facts(revoked), indent=2) if as_json else f"{revoked.name} ({revoked.id}) is revoked.")
    if not read_keys(path):
        console.print(
            f"That was the last key: nobody is let in now. Create another, or delete {path} and start the service anew "
            f"to let this machine in without one.",
            soft_wrap=True,
        )


def facts(key: Any) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"sha256"})
