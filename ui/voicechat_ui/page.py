"""The page: pick a model, speak or type, read and hear the reply. One more client of the API.

Gradio draws it and carries the text; the sound takes its own way, because Gradio's streamed audio starts late. Each
turn has an id that cannot be guessed. The page's script (page.js) finds it in the server's state, fetches
/speech/{id}, and plays the samples as they arrive. Closing that request is also how the server learns that nobody
listens any more.
"""

import asyncio
import contextlib
import html
import time
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import openai
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from voicechat_ui.api_client import ApiClient
from voicechat_ui.old_turn import Message, Timings
from voicechat_ui.page_session import PageSession, Turn

TITLE = "llm-voice-chat"
EMPTY_CHAT = "### Say something\nPress **Record**, speak, then press **Stop**. Or type below."

# System fonts only: the page asks nobody but its own server for anything.
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
THEME = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace"))

NO_MODEL = "No model is picked. Reload the page to list the server's models."

RECORDINGS_KEPT_S = 60

HEADER = f"""
<h1>{TITLE}</h1>
<p>Speak with a language model that runs on this machine.</p>
"""

# page.js writes here: only the browser knows whether it is recording or playing.
STATUS_LINE = """
<div id="status" role="status" aria-live="polite"><span class="dot" aria-hidden="true"></span><span id="status-text">
Starting …</span></div>
<p id="microphone-notice" role="alert" hidden></p>
"""


def build_page(api: ApiClient, speeches: dict[str, Turn]) -> gr.Blocks:
    """The page as Gradio blocks.

    Args:
        api: transcribes, replies and speaks.
        speeches: where the page puts each turn that has speech to fetch, by the turn's id.
    """

    async def open_page() -> tuple[PageSession, Any]:
        session = PageSession(api, speeches)
        models: list[str] = []
        try:
            models = await api.language_models()
        except openai.OpenAIError as error:
            session.show("failed", api.explain(error))
        else:
            session.show("ready") if models else session.show("failed", "The server has no language model.")
        return session, gr.Dropdown(choices=models, value=models[0] if models else None)

    async def draw(session: PageSession) -> AsyncGenerator[tuple[Any, ...], None]:
        """Draws the session for as long as the page is open.

        Nothing else writes to these two components: Gradio sends an event's last value again when the event ends, so a
        second writer that ends late would bring old words back.
        """
        async with contextlib.aclosing(session.changes()) as changes:
            async for is_new in changes:
                messages = [as_shown(message) for message in session.messages] if is_new else gr.skip()
                yield messages, what_the_server_says(session)

    async def take_recording(session: PageSession, model: str | None, recording: str | None) -> None:
        """Answers a recording, and empties the recorder, so that it is ready for the next turn."""
        if not model:
            session.show("failed", NO_MODEL)
        elif recording is None:
            session.show("nothing heard")
        else:
            path = Path(recording)
            # What a person says is not kept, but the recorder may still fetch it for its player.
            asyncio.get_running_loop().call_later(RECORDINGS_KEPT_S, partial(path.unlink, missing_ok=True))
            await session.start(model=model, audio=path.read_bytes())

    async def take_text(session: PageSession, model: str | None, text: str) -> str:
        """Answers a typed message; returns what is left in the text box."""
        if not model:
            session.show("failed", NO_MODEL)
            return text
        if text.strip():
            await session.start(model=model, text=text.strip())
        return ""

    async def stop(session: PageSession) -> None:
        await session.stop()

    async def clear(session: PageSession) -> None:
        await session.clear()

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_height=True) as page:
        session = gr.State(None)
        with gr.Row(elem_id="top", equal_height=True):
            gr.HTML(HEADER, elem_id="title")
            model = gr.Dropdown(
                choices=[], label="Model", elem_id="model", filterable=False, interactive=True, scale=0, min_width=260
            )
            clear_button = gr.Button("Clear conversation", elem_id="clear", scale=0, min_width=0)
        chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            elem_id="chat",
            placeholder=EMPTY_CHAT,
            # A reply is plain words; as Markdown it could make the browser fetch pictures from elsewhere.
            render_markdown=False,
            feedback_options=None,
            buttons=[],
            height=None,
            scale=1,
        )
        with gr.Row(elem_id="now"):
            gr.HTML(STATUS_LINE, elem_id="status-line")
            state = gr.HTML(elem_id="server-state")
        with gr.Row(elem_id="composer"):
            recorder = gr.Audio(
                sources=["microphone"],
                type="filepath",
                format="wav",
                label="Speak",
                show_label=False,
                elem_id="recorder",
                editable=False,
                buttons=[],
                waveform_options=gr.WaveformOptions(show_recording_waveform=False),
                scale=0,
                min_width=220,
            )
            text = gr.Textbox(
                label="Your message",
                show_label=False,
                placeholder="… or type a message",
                elem_id="message",
                lines=1,
                max_lines=4,
                submit_btn=True,
                scale=1,
                min_width=220,
            )
            stop_button = gr.Button("Stop reply", elem_id="stop", variant="stop", scale=0, min_width=96)

        # Many pages at once; and a page's new turn may come while the start of its last one is still on the way.
        event: dict[str, Any] = {
            "concurrency_limit": None,
            "show_progress": "hidden",
            "api_visibility": "private",
            "trigger_mode": "multiple",
        }
        page.load(open_page, None, [session, model], **event).then(draw, [session], [chat, state], **event)
        recorder.start_recording(None, js="() => voicechat.recordingStarted()", **event)
        recorder.stop_recording(take_recording, [session, model, recorder], [recorder], **event)
        text.submit(None, [text], None, js="(text) => { if (text.trim()) voicechat.sent(); }", **event)
        text.submit(take_text, [session, model, text], [text], **event)
        stop_button.click(stop, [session], None, **event)
        clear_button.click(clear, [session], None, **event)
    return page


def as_shown(message: Message) -> dict[str, str]:
    """The message as plain words: the chat would take them for HTML, and fetch pictures that a reply names."""
    return {**message, "content": html.escape(message["content"], quote=False)}


def what_the_server_says(session: PageSession) -> str:
    """The session's state, as an element that page.js reads, and the timings of the last turn for the person."""
    data = {
        "state": session.state,
        "problem": session.problem,
        "turn": session.turn.id if session.turn else "",
        "revision": str(session.revision),
        # Changes even when nothing else does: the script waits for signs of life.
        "time": str(time.monotonic_ns()),
    }
    attributes = " ".join(f'data-{name}="{html.escape(value)}"' for name, value in data.items())
    return f'<div id="server-says" {attributes}>{latency_line(session.timings) if session.timings else ""}</div>'


def latency_line(timings: Timings) -> str:
    """Where the time of a turn went, each in seconds from its start."""
    steps = (
        ("heard", timings.transcription),
        ("first word", timings.first_token),
        ("first sound", timings.first_sound),
        ("all", timings.total),
    )
    shown = (f"<span>{name} <b>{seconds:.2f} s</b></span>" for name, seconds in steps if seconds is not None)
    return f'<div id="latency" aria-label="Seconds from the start of the turn">{"".join(shown)}</div>'


def mount_page(app: FastAPI, api_base_url: str, api_key: str = "none") -> FastAPI:
    """Put the page at "/" of `app`, with the speech route that it needs.

    The page answers every path that has no route yet, so `app`'s own routes must be there before.

    Args:
        api_base_url: the API as this process reaches it; ends in /v1.
        api_key: the page's own, which it asks the API with, whoever looks at it.

    Returns:
        The app to serve.
    """
    speeches: dict[str, Turn] = {}

    @app.get("/speech/{turn_id}", include_in_schema=False)
    async def speech(turn_id: str) -> StreamingResponse:
        """The turn's speech as it is made: signed 16-bit little-endian mono samples at 24 kHz; for one listener."""
        turn = speeches.pop(turn_id, None)
        if turn is None:
            raise HTTPException(404, "no turn of that id has speech to fetch")
        return StreamingResponse(listen(turn), media_type="audio/pcm", headers={"Cache-Control": "no-store"})

    folder = Path(__file__).parent
    return gr.mount_gradio_app(
        app,
        build_page(ApiClient(api_base_url, api_key), speeches),
        path="/",
        theme=THEME,
        # Not as `css`: Gradio scopes that by splitting selectors at commas, those inside :is(…) included.
        head=f"<style>{(folder / 'page.css').read_text()}</style><script>{(folder / 'page.js').read_text()}</script>",
        footer_links=[],
        run_history=False,
        max_file_size="25mb",
    )


async def listen(turn: Turn) -> AsyncGenerator[bytes, None]:
    """The turn's samples; a listener that goes away before the end stops the turn."""
    try:
        async with contextlib.aclosing(turn.speech.chunks()) as chunks:
            async for pcm in chunks:
                yield pcm
    except BaseException:
        turn.cancel()
        raise
