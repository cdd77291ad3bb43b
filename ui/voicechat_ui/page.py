"""The page: talk with a model, by voice or by typing. One more client of the API.

Gradio draws the frame: tabs and pickers. The conversation is the browser's own: the script (the folder page/) holds the
WebSocket to /v1/realtime, the microphone, the loudspeaker and what was said. Python only tells it which models and
voices there are.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import openai
from fastapi import FastAPI
from starlette.routing import Mount

from voicechat_serve.api.errors import answer_unknown_paths_in_openai_form
from voicechat_ui.api_client import ORIGINS, ApiClient, ListedModel
from voicechat_ui.relay import add_relay
from voicechat_ui.tabs import html_parts as parts
from voicechat_ui.tabs.model_tab import add_model_tab, champion_or_version, open_tab
from voicechat_ui.tabs.sweeps_tab import add_sweeps_tab

log = logging.getLogger(__name__)

TITLE = "llm-voice-chat"

# System fonts only: the page asks nobody but its own server for anything.
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
THEME = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace"))

FOLDER = Path(__file__).parent / "page"

# They share one scope: each may use what the ones before it define.
SCRIPTS = (
    "microphone.js",
    "playback.js",
    "realtime.js",
    "latency.js",
    "recording.js",
    "upload.js",
    "conversation.js",
    "status.js",
    "view.js",
    "main.js",
)

# Of five, the one with which SmolLM2 knows the capital of France and comes to an end.
INSTRUCTIONS = "Answer in one or two short sentences."

# Every model has its own: a chat model of this size rambles where a model of plays begins each reply alike.
TEMPERATURES = [("as the model likes", ""), *((f"{tenths / 10:g}", f"{tenths / 10:g}") for tenths in range(0, 16, 2))]

TURN_ENDS = [("when your sentence is over", "semantic_vad"), ("after half a second of silence", "server_vad")]

LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese"}
"""Of voices, as people call them; the others by their codes."""


def build_page(api: ApiClient) -> gr.Blocks:
    """The page as Gradio blocks."""

    async def open_page(before: dict[str, Any] | None) -> tuple[Any, ...]:
        """Fills the pickers: with what was picked `before` the page was loaded anew, where the server still has it."""
        before = before or {}
        models: list[ListedModel] = []
        voices: list[tuple[str, str]] = []
        problem = ""
        try:
            models, voices = await api.language_models(), await api.voices()
        except openai.OpenAIError as error:
            problem = f"{api.explain(error)} Reload the page to try again."
        else:
            problem = "" if models else "The server has no language model."
        ids = [voice for voice, _ in voices]
        return (
            model_picker(models, before.get("model")),
            gr.Dropdown(
                [(f"{voice} ({LANGUAGES.get(language, language)})", voice) for voice, language in voices],
                value=picked(before.get("voice"), ids),
            ),
            before.get("speed", 1),
            picked(before.get("temperature"), [value for _, value in TEMPERATURES]),
            picked(before.get("turnEnd"), [value for _, value in TURN_ENDS]),
            before.get("instructions", INSTRUCTIONS),
            problem,
            {model.id: {"label": model.label, "about": model.about} for model in models},
        )

    async def talk_with(chosen: str) -> tuple[Any, ...]:
        """Picks a version of the registry, where the API serves it, and shows the conversation."""
        try:
            wanted = await asyncio.to_thread(champion_or_version, chosen)
            await api.require_model(wanted)
            models = await api.language_models()
        except openai.NotFoundError:
            text = f"The running service does not have {chosen}: it serves the models that were promoted at its start."
        except openai.OpenAIError as error:
            text = api.explain(error)
        except Exception as error:  # the registry's
            log.exception("%s cannot be found", chosen)
            text = f"{chosen} cannot be found: {parts.why(error)}"
        else:
            return gr.Tabs(selected="talk"), model_picker(models, wanted), ""
        return gr.Tabs(), gr.Dropdown(), parts.block(parts.fault(text))

    def show_model(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Shows a version that was clicked among the trials of a sweep."""
        return gr.Tabs(selected="models"), *open_tab(event.version, request)

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_height=True) as page:
        gr.HTML(f"<h1>{TITLE}</h1>", elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Talk", id="talk", elem_id="talk-tab"):
                gr.HTML((FOLDER / "talk.html").read_text(), elem_id="talk-frame", padding=False)
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    with gr.Row():
                        model = gr.Dropdown(
                            [], label="Who answers", filterable=False, interactive=True, elem_id="model", min_width=200
                        )
                        voice = gr.Dropdown(
                            [], label="Voice", filterable=False, interactive=True, elem_id="voice", min_width=200
                        )
                    with gr.Row():
                        speed = gr.Slider(
                            0.5, 2, value=1, step=0.05, label="Speed of speech", interactive=True, min_width=200
                        )
                        temperature = gr.Dropdown(
                            TEMPERATURES,
                            value="",
                            label="Freedom of its words",
                            info="0: always the likeliest (temperature)",
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
                    instructions = gr.Textbox(
                        INSTRUCTIONS,
                        label="What the model is told before you talk",
                        info="Also called the system prompt. Changes of all settings count from your next message on.",
                        lines=2,
                        max_lines=6,
                        interactive=True,
                    )
            with gr.Tab("Models", id="models") as tab:
                models = add_model_tab(tab)
            with gr.Tab("Sweeps", id="sweeps") as tab:
                trials = add_sweeps_tab(tab)
        before, problem, names = gr.JSON(visible=False), gr.Textbox(visible=False), gr.JSON(visible=False)

        pickers = [model, voice, speed, temperature, turn_end, instructions]
        event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        known = [*pickers, problem, names]
        page.load(open_page, [before], known, js="() => [voicechat.storedSettings()]", **event).then(
            None, [problem, names, *pickers], None, js="(...values) => voicechat.opened(...values)", **event
        )
        models.talk.click(talk_with, [models.version], [tabs, model, models.said], **event)
        trials.click(show_model, None, [tabs, *models.shown], **event)
        for picker in pickers:
            picker.change(None, pickers, None, js="(...values) => voicechat.set(...values)", **event)
    return page


def model_picker(models: Sequence[ListedModel], wanted: str | None) -> gr.Dropdown:
    """Who there is to talk with; the first one is picked unless the `wanted` one, or a version of one, is there."""
    choices = [(model.label, model.id) for model in models]
    ids = [model.id for model in models]
    if wanted and wanted not in ids and wanted.rpartition("@")[0] in ids:
        choices.append((wanted, wanted))
        ids.append(wanted)
    about = {model.origin: f"{ORIGINS[model.origin][0].capitalize()}: {model.about}" for model in models if model.about}
    return gr.Dropdown(choices, value=picked(wanted, ids), info=" ".join(about.values()) or None)


def picked(before: Any, choices: list[str]) -> str | None:
    return before if before in choices else choices[0] if choices else None


def head() -> str:
    """The page's style and script, inlined."""
    script = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
    # Not as Gradio's `css`: that is scoped by splitting selectors at commas, those inside :is(…) included.
    style = (FOLDER / "style.css").read_text()
    return f'<style>{style}</style><script>(() => {{\n"use strict";\n{script}\n}})();</script>'


def mount_page(app: FastAPI, api_base_url: str, api_key: str = "none") -> FastAPI:
    """Put the page at "/" of `app`, and /v1/realtime for where nobody else answers it.

    The page answers every path that `app` has no route for; what the page does not know is an error in OpenAI's form.

    Args:
        api_base_url: the API as this process reaches it; ends in /v1.
        api_key: the page's own, which it asks the API with, whoever looks at it.

    Returns:
        The app to serve.
    """
    add_relay(app, api_base_url, api_key)
    gr.mount_gradio_app(
        app,
        build_page(ApiClient(api_base_url, api_key)),
        path="/",
        theme=THEME,
        head=head(),
        footer_links=[],
        run_history=False,
        max_file_size="1mb",  # nothing is uploaded to Gradio
    )
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount)
    assert isinstance(mounted.app, FastAPI)
    answer_unknown_paths_in_openai_form(mounted.app)
    app.router.default = mounted.app  # a route at "/" would take the methods that the others do not know
    return app
