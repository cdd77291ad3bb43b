"""The page: talk with a model, by voice or by typing. It is a client of the API.

Gradio draws the tabs and the pickers. The browser keeps the conversation: the script (the folder page/) has the
WebSocket to /v1/realtime, the microphone, the loudspeaker, the messages and the choice of the model. Python only
provides the lists of models and voices.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
import openai
from fastapi import FastAPI
from starlette.routing import Mount

from voicechat_serve.api.errors import answer_unknown_paths_in_openai_form
from voicechat_ui.api_client import ApiClient
from voicechat_ui.relay import add_relay
from voicechat_ui.tabs import html_parts as parts
from voicechat_ui.tabs.model_tab import ModelTab, add_model_tab, champion_or_version, open_tab
from voicechat_ui.tabs.sweeps_tab import add_sweeps_tab

log = logging.getLogger(__name__)

TITLE = "llm-voice-chat"

# System fonts only: the page loads nothing from any server but its own.
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
THEME = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace"))

FOLDER = Path(__file__).parent / "page"

# They share one scope: each script may use the definitions of the scripts before it.
SCRIPTS = (
    "microphone.js",
    "playback.js",
    "realtime.js",
    "latency.js",
    "recording.js",
    "upload.js",
    "models.js",
    "conversation.js",
    "status.js",
    "view.js",
    "main.js",
)

# Each model has its own default: at a temperature at which a small chat model rambles, a model of plays starts each
# reply with the same words.
TEMPERATURES = [("the model's default", ""), *((f"{tenths / 10:g}", f"{tenths / 10:g}") for tenths in range(0, 16, 2))]

TURN_ENDS = [("when your sentence is over", "semantic_vad"), ("after half a second of silence", "server_vad")]

LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese"}
"""The names of the voices' languages; the page shows the codes of all others."""

MODELS_KEPT_S = 5.0
"""An answer of the API to the list of models is given to the pages for this long."""

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Arguments of every event here: no progress is shown, and the function is no endpoint of Gradio's API."""


def build_page(api: ApiClient) -> gr.Blocks:
    """Return the page as Gradio blocks."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_height=True) as page:
        gr.HTML(f"<h1>{TITLE}</h1>", elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Talk", id="talk", elem_id="talk-tab"):
                gr.HTML((FOLDER / "talk.html").read_text(), elem_id="talk-frame", padding=False)
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    pickers = add_pickers()
            with gr.Tab("Models", id="models") as tab:
                models = add_model_tab(tab)
            with gr.Tab("Sweeps", id="sweeps") as tab:
                trials = add_sweeps_tab(tab)
        connect_pickers(page, api, pickers)
        connect_tabs(api, tabs, models, trials)
    return page


def add_pickers() -> list[gr.Component]:
    """Add the settings of a conversation. Return them in the order of the arguments of the script's `set`."""
    with gr.Row():
        voice = gr.Dropdown([], label="Voice", filterable=False, interactive=True, elem_id="voice", min_width=200)
        speed = gr.Slider(0.5, 2, value=1, step=0.05, label="Speed of speech", interactive=True, min_width=200)
    with gr.Row():
        temperature = gr.Dropdown(
            TEMPERATURES,
            value="",
            label="Temperature",
            info="0: always the most likely word; higher: more variety",
            filterable=False,
            interactive=True,
            elem_id="temperature",
            min_width=200,
        )
        turn_end = gr.Dropdown(
            TURN_ENDS,
            value=TURN_ENDS[0][1],
            label="It answers",
            filterable=False,
            interactive=True,
            elem_id="turn-end",
            min_width=200,
        )
    gr.HTML((FOLDER / "instructions.html").read_text(), elem_id="instructions-frame", padding=False)
    return [voice, speed, temperature, turn_end]


def connect_pickers(page: gr.Blocks, api: ApiClient, pickers: list[gr.Component]) -> None:
    """Fill the pickers when the page opens, and pass each change to the script."""

    async def open_page(before: dict[str, Any] | None) -> tuple[Any, ...]:
        """Fill the pickers: with the browser's stored settings `before`, if the server still has them."""
        before = before or {}
        models: list[dict[str, Any]] = []
        voices: list[tuple[str, str]] = []
        problem = ""
        try:
            models, voices = await models_with(api, before.get("model", "")), await api.voices()
        except openai.OpenAIError as error:
            problem = f"{api.explain(error)} Reload the page to try again."
        else:
            problem = "" if models else "The server has no language model."
        ids = [voice for voice, _ in voices]
        return (
            problem,
            models,
            gr.Dropdown(
                [(f"{voice} ({LANGUAGES.get(language, language)})", voice) for voice, language in voices],
                value=picked(before.get("voice"), ids),
            ),
            before.get("speed", 1),
            picked(before.get("temperature"), [value for _, value in TEMPERATURES]),
            picked(before.get("turnEnd"), [value for _, value in TURN_ENDS]),
        )

    before, problem, models = gr.JSON(visible=False), gr.Textbox(visible=False), gr.JSON(visible=False)
    opened = [problem, models, *pickers]
    page.load(open_page, [before], opened, js="() => [voicechat.storedSettings()]", **HIDDEN).then(
        None, opened, None, js="(...values) => voicechat.opened(...values)", **HIDDEN
    )
    for picker in pickers:
        picker.change(None, pickers, None, js="(...values) => voicechat.set(...values)", **HIDDEN)


async def models_with(api: ApiClient, picked: str) -> list[dict[str, Any]]:
    """Return the language models for the script, and the version `picked` if it is one of theirs."""
    found = await api.language_models()
    if picked.rpartition("@")[0] in [model.id for model in found]:
        with contextlib.suppress(openai.NotFoundError):
            found.append(await api.model(picked))
    return [asdict(model) for model in found]


def connect_tabs(api: ApiClient, tabs: gr.Tabs, models: ModelTab, trials: gr.HTML) -> None:
    """Let a button of the tab on models open the conversation, and a click on the trials open the tab on models."""

    async def talk_with(chosen: str) -> tuple[Any, ...]:
        """Pick a version of the registry and show the conversation, if the API serves this version."""
        try:
            wanted = await api.model(await asyncio.to_thread(champion_or_version, chosen))
        except openai.NotFoundError:
            text = f"The running service does not have {chosen}: it serves models that were promoted before its start."
        except openai.OpenAIError as error:
            text = api.explain(error)
        except Exception as error:  # the registry's
            log.exception("%s cannot be found", chosen)
            text = f"{chosen} cannot be found: {parts.why(error)}"
        else:
            return gr.Tabs(selected="talk"), asdict(wanted), ""
        return gr.Tabs(), None, parts.block(parts.fault(text))

    def show_model(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Show the version that the user clicked among the trials of a sweep."""
        return gr.Tabs(selected="models"), *open_tab(event.version, request)

    wanted = gr.JSON(visible=False)
    models.talk.click(talk_with, [models.version], [tabs, wanted, models.result], **HIDDEN).then(
        None, [wanted], None, js="(model) => voicechat.talkWith(model)", **HIDDEN
    )
    trials.click(show_model, None, [tabs, *models.shown], **HIDDEN)


def picked(before: Any, choices: list[str]) -> str | None:
    return before if before in choices else choices[0] if choices else None


def head() -> str:
    """Return the page's style and script, inlined."""
    script = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
    # Not as Gradio's `css`: Gradio splits its selectors at commas to scope them, also at the commas inside :is(…).
    style = (FOLDER / "style.css").read_text()
    return f'<style>{style}</style><script>(() => {{\n"use strict";\n{script}\n}})();</script>'


def add_model_list(app: FastAPI, api: ApiClient) -> None:
    """Add the route from which an open page refreshes its models. All pages share one answer of the API."""
    models: list[dict[str, Any]] = []
    asked_at = -MODELS_KEPT_S

    @app.get("/talk/models")
    async def list_models() -> dict[str, Any]:
        nonlocal models, asked_at
        if time.monotonic() - asked_at >= MODELS_KEPT_S:
            asked_at = time.monotonic()
            try:
                models = [asdict(model) for model in await api.language_models()]
            except openai.OpenAIError as error:
                log.warning("the models cannot be listed: %s", api.explain(error))
        return {"models": models}


def mount_page(app: FastAPI, api_base_url: str, api_key: str = "none") -> FastAPI:
    """Put the page at "/" of `app`, and the relay at /v1/realtime.

    The page answers every path for which `app` has no route. A path that the page does not know gets an error in
    OpenAI's form.

    Args:
        api_base_url: the API's address for this process; ends in /v1.
        api_key: the page's own key for the API, the same for all users of the page.

    Returns:
        The app to serve.
    """
    add_relay(app, api_base_url, api_key)
    api = ApiClient(api_base_url, api_key)
    add_model_list(app, api)
    gr.mount_gradio_app(
        app,
        build_page(api),
        path="/",
        theme=THEME,
        head=head(),
        footer_links=[],
        run_history=False,
        max_file_size="1mb",  # the page uploads nothing to Gradio
    )
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount)
    assert isinstance(mounted.app, FastAPI)
    answer_unknown_paths_in_openai_form(mounted.app)
    app.router.default = mounted.app  # a route at "/" would take the methods that the other routes do not have
    return app
