"""`voicechat up`, `serve` and `page`: from nothing to a page that answers, with progress, and down again cleanly."""

import logging
import os
import shutil
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
from voicechat_platform.registry import Registry, Version
from voicechat_platform.settings import Settings
from voicechat_serve.api.origins import LoopbackOnly
from voicechat_serve.application import DeploymentState, deploy, require_free, stop, wait_until_ready
from voicechat_serve.language_model import ServedModel
from voicechat_tune.run import run_sweep
from voicechat_tune.sweep_file import quickstart, read_sweep
from voicechat_ui.page import mount_page
from voicechat_ui.training import sample

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)

CHAT_MODEL = "smollm2-135m-instruct"


def run_everything(settings: Settings) -> None:
    """Tune and promote a first model if there is no champion, then serve until Ctrl-C.

    Raises:
        InputError: the port is in use or an asset is missing; found before anything is tuned.
    """
    require_free(settings.port)
    if not Registry().champions():
        prepare_assets(settings)
        tune_first_model()
    run_services(settings, with_page=True)


def prepare_assets(settings: Settings) -> None:
    """Whatever is served or trained on, joined or converted where that has not been done yet."""
    for name in (f"whisper-{settings.whisper}", f"{CHAT_MODEL}-int8", "hibari", "shakespeare-plays"):
        locate(name)


def tune_first_model() -> None:
    path = quickstart()
    console.print(f"No model has been promoted yet: tuning a first one with {shown(path)}, within five minutes.")
    try:
        outcome = run_sweep(read_sweep(path))
        if not outcome.complete:
            console.print(f"Interrupted. Finished trials are kept ({len(outcome.finished)}); the next start goes on.")
            raise typer.Exit(130)
        if outcome.best is None:
            console.print(f"All {outcome.failed} trials failed; their errors are below the sweeps folder.", style="red")
            raise typer.Exit(1)
    except BaseException:
        stop_ray()
        raise
    print_card(Registry().promote(outcome.best))


def print_card(version: Version) -> None:
    text = sample(str(version.checkpoint()), prompt="HAMLET:\n", tokens=220, temperature=0.7, seed=1)
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


def run_services(settings: Settings, with_page: bool) -> None:
    """Serve the champions and the packaged chat model until Ctrl-C, then leave no process behind."""
    require_free(settings.port)
    prepare_assets(settings)
    models = [ServedModel(id=version.name, folder=version.checkpoint()) for version in Registry().champions()]
    models.append(ServedModel(id=CHAT_MODEL, folder=locate(f"{CHAT_MODEL}-int8")))
    address = f"http://127.0.0.1:{settings.port}"
    api = f"{address}/v1"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.folder("recordings")))  # read in the page's replica
    started = time.monotonic()
    with console.status("starting Ray") as status, torn_down(settings):
        start_ray()
        status.update("starting the services")
        deploy(models, settings.whisper, settings.port, partial(mount_page, api_base_url=api) if with_page else None)
        ready: set[str] = set()

        def show(states: list[DeploymentState]) -> None:
            for state in states:
                if state.state == "ready" and state.name not in ready:
                    ready.add(state.name)
                    console.print(f"{time.monotonic() - started:4.0f} s  {state.name} is ready")
            status.update(f"starting {', '.join(state.name for state in states if state.state == 'starting')}")

        wait_until_ready(show)
        status.stop()
        announce(address if with_page else None, api, models[0].id)
        with suppress(KeyboardInterrupt):  # how a service is meant to end
            while True:
                time.sleep(1)


@contextmanager
def torn_down(settings: Settings) -> Iterator[None]:
    """Stops what was started however the block ends."""
    try:
        yield
    finally:
        console.print("stopping")
        if settings.ray_address != "local":
            stop()  # a Ray of our own takes Serve down with it, and sooner
        stop_ray()
        shutil.rmtree(settings.folder("recordings"), ignore_errors=True)


def announce(page: str | None, api: str, model: str) -> None:
    if page:
        console.print(f"\nTalk:  {page}")
        if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
            webbrowser.open(page)
    request = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What is love?"}}]}}'
    console.print(f"API:   {api}")
    console.print(
        f"Try:   curl {api}/chat/completions -H 'Content-Type: application/json' -d '{request}'", soft_wrap=True
    )
    console.print("Ctrl-C stops everything.\n")


def run_page(api: str, port: int) -> None:
    """The page alone, until Ctrl-C."""
    import uvicorn
    from fastapi import FastAPI

    require_free(port)
    console.print(f"Talk:  http://127.0.0.1:{port} (the API is {api})")
    app = FastAPI()
    app.add_middleware(LoopbackOnly)
    mount_page(app, api_base_url=api)
    # An open page holds a connection for good: do not wait for it to close.
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)


def shown(path: Path) -> Path:
    """Relative to the working folder where that is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
