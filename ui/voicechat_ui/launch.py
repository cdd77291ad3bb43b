"""`voicechat up`, `serve` and `page`: start the services or the page, show progress, and stop everything on Ctrl-C.

The functions that use Gradio, PyTorch and Optuna import them: without them `voicechat serve` starts seconds earlier.
"""

import asyncio
import logging
import os
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.panel import Panel

from voicechat_platform.assets import locate
from voicechat_platform.cluster import start_ray, stop_ray
from voicechat_platform.folders import scratch_folder
from voicechat_platform.registry import Registry, Version
from voicechat_platform.settings import Settings
from voicechat_serve.api.access import access_rules, guard
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.api.proxy import BoundedConnection
from voicechat_serve.application import DeploymentState, deploy, stop, wait_until_ready
from voicechat_serve.application_file import APIArguments, local_application, read_application
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.listed_models import served_models
from voicechat_serve.operations.devices import require_devices
from voicechat_serve.operations.keys import make_secret
from voicechat_serve.operations.ports import require_free
from voicechat_serve.transcription.whisper_files import find_whisper
from voicechat_ui.api_client import ApiClient
from voicechat_ui.relay import LARGEST_FRAME_BYTES

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)

CHAT_MODEL = "smollm2-135m-instruct"

START_S = 300.0
READ_BYTES_PER_S = 30e6
"""A large model is read twice, perhaps from a slow disk."""


def run_everything(settings: Settings) -> None:
    """Tune and promote a first model if there is no champion, then serve until Ctrl-C.

    Raises:
        InputError: before any tuning: the port is in use, an asset is missing, or the service would listen beyond this
            machine without a key.
    """
    access_rules(settings)
    require_address(settings)
    if not Registry().champions():
        prepare_assets(settings.whisper or "base")
        tune_first_model()
    run_services(settings, read_application(local_application()).api, with_page=True)


def prepare_assets(whisper: str) -> None:
    """Join, convert or download all that the services and the first sweep need, unless this was done before."""
    find_whisper(whisper)
    for name in ("hibari", "shakespeare-plays"):
        locate(name)


def tune_first_model() -> None:
    from voicechat_tune.running.run import run_sweep
    from voicechat_tune.search.sweep_file import quickstart, read_sweep

    path = quickstart()
    console.print(f"No model has been promoted yet: tuning a first one with {shown(path)}, within five minutes.")
    try:
        outcome = run_sweep(read_sweep(path))
        if not outcome.complete:
            console.print(f"Interrupted. Finished trials are kept ({len(outcome.finished)}); the next start continues.")
            raise typer.Exit(130)
        if outcome.best is None:
            console.print(f"All {outcome.failed} trials failed; their errors are in the sweeps folder.", style="red")
            raise typer.Exit(1)
    except BaseException:
        stop_ray()
        raise
    print_card(Registry().promote(outcome.best))


def print_card(version: Version) -> None:
    from voicechat_ui.model_tasks import sample

    text = sample(version.checkpoint(), prompt="HAMLET:\n", tokens=220, temperature=0.7, seed=1)
    console.print(
        Panel(
            f"variant     {version.attention} attention\n"
            f"parameters  {version.parameters:,}\n"
            f"validation  {version.nats_per_character:.4f} nats per character\n"
            f"from        {version.origin}\n\n{text}",
            title=f"{version}, promoted to champion",
            width=76,
        )
    )


def run_services(settings: Settings, arguments: APIArguments, with_page: bool) -> None:
    """Serve until Ctrl-C, then stop all processes.

    Args:
        arguments: the models to serve, from an application file.

    Raises:
        InputError: the port is in use, an asset or the transcription model is missing, this machine lacks a device that
            the file asks for, or the service would listen beyond this machine without a key.
    """
    # The page's own key is valid as long as the service runs. The page gets it as an argument, because Ray's dashboard
    # and logs show the environment variables of a replica.
    page_key = make_secret()
    access = access_rules(settings, page_key)
    require_address(settings)
    if settings.whisper:
        arguments = arguments.model_copy(update={"whisper": settings.whisper})
    if settings.ray_address == "local":
        require_devices(arguments)
    find_whisper(arguments.whisper)
    locate("hibari")
    models = served_models(arguments)
    address = f"http://{reachable(settings.host)}:{settings.port}"
    api = f"{address}/v1"
    page = None
    if with_page:
        from voicechat_ui.page import mount_page

        page = partial(mount_page, api_base_url=api, api_key=page_key)
    started = time.monotonic()
    with page_files(settings), console.status("starting Ray") as status, stopped_at_end():
        start_ray()
        status.update("starting the services")
        deploy(models, arguments, settings.port, page, access)
        ready: set[str] = set()

        def show(states: list[DeploymentState]) -> None:
            for state in states:
                if state.state == "ready" and state.name not in ready:
                    ready.add(state.name)
                    console.print(f"{time.monotonic() - started:4.0f} s  {state.name} is ready")
            status.update(f"starting {', '.join(state.name for state in states if state.state == 'starting')}")

        wait_until_ready(show, START_S + sum(size(model) for model, _ in models) / READ_BYTES_PER_S)
        status.stop()
        ids = [model.id for model, _ in models if model.task == "text"]
        model = CHAT_MODEL if CHAT_MODEL in ids else ids[0]
        announce(address if with_page else None, api, model, access.keys_required)
        with suppress(KeyboardInterrupt):  # the normal end of a service
            while True:
                time.sleep(1)


@contextmanager
def stopped_at_end() -> Iterator[None]:
    """Stop the services and Ray when the block ends, also after an error."""
    try:
        yield
    finally:
        console.print("stopping")
        try:
            stop()  # the replicas complete their running requests
        finally:
            stop_ray()


@contextmanager
def page_files(settings: Settings) -> Iterator[None]:
    """Set a separate folder for the temporary files of this page. Gradio reads the variable in the page's process."""
    with scratch_folder(settings.folder("page"), "") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        yield


def size(model: ServedModel) -> int:
    """Return the bytes of a model's files on this machine."""
    if model.path is None:
        return 0
    files = [model.path] if model.path.is_file() else model.path.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())


def require_address(settings: Settings) -> None:
    """Check that the port is free. In an existing Ray cluster its Serve may use the port; `deploy` checks that case.

    Raises:
        InputError: the port is in use.
    """
    if settings.ray_address == "local":
        require_free(settings.port, settings.host)


def reachable(host: str) -> str:
    """Return the address in a URL for calls to a service that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def announce(page: str | None, api: str, model: str, needs_key: bool) -> None:
    if page:
        console.print(f"\nTalk:  {page}")
        if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
            webbrowser.open(page)
    request = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What is love?"}}]}}'
    console.print(f"API:   {api}")
    header = "-H 'Authorization: Bearer KEY' " if needs_key else ""
    console.print(
        f"Try:   curl {api}/chat/completions {header}-H 'Content-Type: application/json' -d '{request}'", soft_wrap=True
    )
    if needs_key:
        console.print("Every request needs a key; enter it in the browser as the password, with any user name.")
    console.print("Ctrl-C stops everything.\n")


def run_page(settings: Settings, api: str) -> None:
    """Serve only the page, until Ctrl-C.

    Raises:
        InputError: the port is in use, or the page would listen beyond this machine without a key.
    """
    import uvicorn
    from fastapi import FastAPI

    from voicechat_ui.page import mount_page

    access = access_rules(settings)
    require_free(settings.port, settings.host)
    key = settings.api_key.get_secret_value() or "none"
    console.print(f"Talk:  http://{reachable(settings.host)}:{settings.port} (the API is {api})")
    if problem := asyncio.run(ApiClient(api, key).problem()):
        console.print(f"{problem} The page tries again each time you open it.", soft_wrap=True)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    guard(app, access, "Basic")
    answer_errors_in_openai_form(app)
    with page_files(settings):
        mount_page(app, api, key)
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            http=BoundedConnection,
            ws_max_size=LARGEST_FRAME_BYTES,
            log_level="warning",
            timeout_graceful_shutdown=1,  # an open page keeps a connection: do not wait for it to close
        )


def shown(path: Path) -> Path:
    """Return the path relative to the working folder, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
