"""`voicechat up`, `serve` and `page`: the services with their page, the API alone, the page alone."""

from typing import Annotated

import typer

from voicechat_ui.commands.options import LOCAL_API, Application, Host, Port, Url, Whisper, chosen_settings
from voicechat_ui.commands.output import console


def up(
    port: Port = None,
    whisper: Whisper = None,
    host: Host = None,
) -> None:
    """Tune a first model if there is none, start the services, and open the page. Ctrl-C stops everything.

    Example: voicechat up --port 8080 --whisper tiny.en
    """
    chosen = chosen_settings(port, whisper, host)
    with console.status("loading"):
        from voicechat_ui.launch import run_everything

    run_everything(chosen)


def serve(
    port: Port = None,
    whisper: Whisper = None,
    host: Host = None,
    application: Application = None,
) -> None:
    """Serve only the OpenAI-compatible API, without the page. Ctrl-C stops it.

    Example: voicechat serve --port 8080
    """
    chosen = chosen_settings(port, whisper, host)
    with console.status("loading"):
        from voicechat_serve.application_file import local_application, read_application
        from voicechat_serve.listed_models import listed_models

        wanted = read_application(application or local_application()).api
    listed_models(wanted)  # it shows the progress of a download
    with console.status("loading"):
        from voicechat_ui.launch import run_services

    run_services(chosen, wanted, with_page=False)


def page(
    api: Url = LOCAL_API,
    port: Annotated[int, typer.Option(min=1, max=65535, help="the page's port")] = 8001,
    host: Host = None,
) -> None:
    """Serve only the page, as a client of a running API. VOICECHAT_API_KEY gives the API's key, if it requires one.

    Example: voicechat page --api http://127.0.0.1:8000/v1 --port 8001
    """
    from voicechat_platform.paths import api_address

    chosen, api = chosen_settings(port, None, host), api_address(api)
    with console.status("loading"):
        from voicechat_ui.launch import run_page

    run_page(chosen, api)
