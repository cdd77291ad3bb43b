"""`voicechat keys`: the keys of the service's users."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from voicechat_ui.commands.options import Json
from voicechat_ui.commands.output import console

keys_app = typer.Typer(
    help="Keys of the API and the page. As soon as there is a key, every request needs one, also from this machine. "
    "Without keys the service listens only to this machine. A running service applies changes within a second.\n\n"
    "Example: voicechat keys create laptop",
    no_args_is_help=True,
)


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="the owner of the key, such as laptop or anna")],
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=1, show_default="the service's: 600", help="the most requests per minute"),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, show_default="the service's: 16", help="the most requests at one time")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36500, show_default="never", help="days until the key expires")
    ] = None,
    operator: Annotated[bool, typer.Option("--operator", help="the key may also promote models, on the page")] = False,
    as_json: Json = False,
) -> None:
    """Create a key and print it only once: the service stores only its hash.

    Clients send it as `Authorization: Bearer KEY`; the openai package has the argument `api_key`. In a browser, enter
    the key as the password, with any user name. A request above a limit gets the status 429 with Retry-After.

    Example: voicechat keys create laptop --requests-per-minute 60
    """
    from voicechat_serve.operations.keys import create_key, keys_path

    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None
    key, secret = create_key(keys_path(), name, requests_per_minute, concurrent, expires, operator)
    if as_json:
        print(json.dumps(facts(key) | {"key": secret}, indent=2))
    else:
        print(secret)
    console.print(f"Store the key of {key.name} ({key.id}) now: it cannot be shown again.")


@keys_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List every key by id and name with its limits. The keys themselves are not stored.

    Example: voicechat keys list
    """
    from voicechat_serve.operations.keys import keys_path, read_keys

    try:
        keys = read_keys(keys_path())
    except FileNotFoundError:
        keys = ()
        console.print(
            "There are no keys: the service listens only to this machine. Create one with `voicechat keys create NAME`."
        )
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
    key: Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="from `voicechat keys list`")],
    as_json: Json = False,
) -> None:
    """Revoke a key. Its running requests continue to their end; the service refuses new ones within a second.

    Example: voicechat keys revoke laptop
    """
    from voicechat_serve.operations.keys import keys_path, read_keys, revoke_key

    path = keys_path()
    revoked = revoke_key(path, key)
    print(json.dumps(facts(revoked), indent=2) if as_json else f"{revoked.name} ({revoked.id}) is revoked.")
    if not read_keys(path):
        console.print(
            f"That was the last key: the service now refuses all requests. Create another key, or delete {path} and "
            f"restart the service to accept this machine without a key.",
            soft_wrap=True,
        )


def facts(key: Any) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"sha256"})
