"""The page's tab on models: what the registry knows of a version, how it learned, and what its heads have learned.

Nothing is read before the tab is opened. What reads files and the registry are plain functions, which Gradio runs in
threads. The heads' pictures take their own process: drawing them would hold the page's event loop up.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from voicechat_platform.errors import InputError
from voicechat_ui.tabs import html_parts as parts
from voicechat_ui.tabs.head_maps import VALUES, head_maps
from voicechat_ui.tabs.line_chart import Line, line_chart

log = logging.getLogger(__name__)

READING = "Reading the registry …"
NOT_ALLOWED = (
    "Who is served to everybody is an operator's to choose, and the key that you came with is no operator's: "
    "`voicechat keys create NAME --operator` makes one."
)
EMPTY = (
    "The registry holds no model yet. Tune some with `voicechat sweep tune/sweeps/quickstart.yaml --promote`, or train "
    "one with `voicechat train tune/recipes/shakespeare.yaml`; then press Refresh."
)
DRAWING_S = 300
"""After which drawing is given up: the models that a laptop tunes take some ten seconds."""


@dataclass(frozen=True)
class ModelTab:
    """What the rest of the page needs of the tab."""

    version: gr.Dropdown
    talk: gr.Button
    """Asks to talk with the chosen version."""
    said: gr.HTML
    """What came of a button."""
    shown: list[Any]
    """What `open_tab` fills."""


def add_model_tab(tab: gr.Tab) -> ModelTab:
    """Builds the components, inside `with gr.Tab(...) as tab`."""
    with gr.Row():
        version = gr.Dropdown(
            [],
            label="Model, version: nats per character",
            filterable=False,
            scale=1,
            min_width=280,
            elem_classes="facts-picker",
        )
        refresh = gr.Button("Refresh", scale=0, min_width=110, size="md")
    with gr.Row():
        talk = gr.Button("Talk with this one", visible=False, size="md", min_width=200, scale=0)
        promote = gr.Button("Promote", visible=False, size="md", min_width=200, scale=0)
        undo = gr.Button(visible=False, size="md", min_width=200, scale=0)
    said = gr.HTML()
    before = gr.State("")
    card = gr.HTML(parts.block(parts.notice(READING)))
    heads = gr.HTML(js_on_load=VALUES)
    draw = gr.Button("Draw what its heads have learned", visible=False)

    buttons = [talk, promote]
    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": [card]}
    gr.on([tab.select, refresh.click], open_tab, [version], [version, *buttons, card, heads, draw], **event)
    version.input(show_version, [version], [*buttons, card, heads, draw], **event)
    for button, promoted in ((promote, version), (undo, before)):
        button.click(promote_version, [promoted], [said, undo, before], **event).then(
            open_tab, [version], [version, *buttons, card, heads, draw], **event
        )
    gr.on([tab.select, version.input], lambda: ("", gr.Button(visible=False)), None, [said, undo], **event)
    # One at a time for all pages together: each takes a core for some seconds.
    event["show_progress"] = "hidden"
    draw.click(draw_heads, [version], [heads, draw], concurrency_limit=1, **event)
    return ModelTab(version, talk, said, [version, *buttons, card, heads, draw])


def may_promote(request: gr.Request) -> bool:
    """Whether who asks may change what is served, which the guard before the page has noted (serve's access.py)."""
    return bool(getattr(request.state, "is_operator", False))


def promote_version(chosen: str, request: gr.Request) -> tuple[str, Any, str]:
    """Makes a version its model's champion.

    Returns:
        What came of it, the button that undoes it, and the version that this button promotes.
    """
    from voicechat_platform.registry import Registry, parse_version

    if not may_promote(request):
        return told(NOT_ALLOWED), hidden(), ""
    try:
        registry = Registry()
        version = registry.version(*parse_version(chosen))
        before = next((str(each) for each in registry.champions() if each.name == version.name), "")
        registry.promote(version)
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's; or the version is gone
        log.exception("%s cannot be promoted", chosen)
        return told(f"{chosen} cannot be promoted: {parts.why(error)}"), hidden(), ""
    log.info("%s was promoted on the page by %s", version, getattr(request.state, "key_id", "somebody without a key"))
    if not before:
        text = f"{version} is the champion of {version.name} now: it is served from the service's next start on."
    else:
        text = f"{version} is the champion of {version.name} now: a running service has it within seconds."
    undo = gr.Button(f"Undo: go back to {before}", visible=before not in ("", str(version)))
    return parts.block(parts.notice(text)), undo, before


def open_tab(chosen: str | None, request: gr.Request) -> tuple[Any, ...]:
    """The list of versions as it is now, and the chosen one, or the first."""
    from voicechat_platform.registry import Registry

    try:
        versions = sorted(Registry().versions(), key=lambda version: not version.is_champion)
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's
        log.exception("the registry cannot be read")
        return gr.Dropdown(choices=[], value=None), *nothing(told(f"The registry cannot be read: {parts.why(error)}"))
    if not versions:
        return gr.Dropdown(choices=[], value=None), *nothing(parts.block(parts.notice(EMPTY)))
    choices = [(label(version), str(version)) for version in versions]
    known = [value for _, value in choices]
    shown = chosen if chosen in known else known[0]
    return gr.Dropdown(choices=choices, value=shown), *show_version(shown, request)


def champion_or_version(chosen: str) -> str:
    """What the API calls a version: by its model's name where it is the champion, and NAME@NUMBER else.

    Raises:
        InputError: there is no such version.
    """
    from voicechat_platform.registry import Registry, parse_version

    version = Registry().version(*parse_version(chosen))
    return version.name if version.is_champion else str(version)


def nothing(card: str) -> tuple[Any, ...]:
    """A tab that shows no version, only why."""
    return hidden(), hidden(), card, "", hidden()


def label(version: Any) -> str:
    """Short, for a phone's line: all else is on the card."""
    return f"{version}: {version.nats_per_character:.4f}{', champion' if version.is_champion else ''}"


def show_version(chosen: str | None, request: gr.Request) -> tuple[Any, ...]:
    """What can be done with it, the card with the learning curve, the heads where they have been drawn before, else the
    button to draw them."""
    from voicechat_platform.checkpoint_files import read_run
    from voicechat_platform.registry import Registry, parse_version

    if not chosen:
        return nothing("")
    try:
        registry = Registry()
        version = registry.version(*parse_version(chosen))
        folder = version.checkpoint()
        run = read_run(folder)
        card = parts.block(
            parts.facts(card_facts(version, run)),
            parts.folded("Recipe", parts.facts(recipe_facts(run["recipe"]))),
            curve(registry.history(version, ("train_loss", "validation_loss")) or run["history"]),
        )
        promote = gr.Button(f"Promote {version}", visible=not version.is_champion and may_promote(request))
        if not may_promote(request):
            card += parts.block(parts.notice(NOT_ALLOWED))
        try:
            heads = drawn_heads(folder)
        except Exception as error:
            log.warning("the heads in %s cannot be read (%s): they are to be drawn again", folder / "heads", error)
            heads = ""
    except Exception as error:  # whatever is broken in a file or a folder: the page goes on
        log.exception("%s cannot be shown", chosen)
        return nothing(told(f"{chosen} cannot be shown: {parts.why(error)}"))
    return gr.Button(visible=True), promote, card, heads, gr.Button(visible=not heads)


def card_facts(version: Any, run: dict[str, Any]) -> dict[str, str]:
    """What there is to know of a version, in words, by name."""
    recipe, metrics = run["recipe"], run["metrics"]
    model = recipe["model"]
    variant = ", ".join(filter(None, [f"{model['attention']} attention", model.get("metric")]))
    size = f" ({model['layers']} layers, {model['heads']} heads, width {model['width']}, context {model['context']})"
    if recipe.get("init_from"):
        variant, size = f"tuned from {recipe['init_from']}", ""
    losses = f"{metrics['nats_per_character']:.4f} nats per character, {metrics['validation_loss']:.4f} per token"
    corpus = run.get("corpus", {})
    return {
        "version": f"{version}, the champion" if version.is_champion else str(version),
        "variant": variant,
        "parameters": f"{run['parameters']:,}{size}",
        "validation loss": f"{losses}, at step {metrics['step']} of {recipe['training']['steps']}",
        "from": version.origin,
        "corpus": f"{corpus.get('source', '?')} (SHA-256 {corpus.get('sha256', '?')[:12]}…)",
        "git commit": run.get("commit") or "not from a repository",
        "trained on": run.get("machine", "not noted"),
        "packages": ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items()),
    }


def recipe_facts(recipe: dict[str, Any]) -> dict[str, str]:
    """The recipe's fields that have a value, as sweep files write them."""
    from voicechat_ui.model_tasks import flat

    return {field: str(value) for field, value in flat(recipe).items() if value is not None}


def curve(history: list[dict[str, float]]) -> str:
    whole = [entry for entry in history if "train_loss" in entry and "validation_loss" in entry]
    if not whole:
        return parts.notice("There are no evaluations to draw a learning curve from.")

    caption = "Learning curve: the loss over the steps. Point at the line for its values."
    best = min(whole, key=lambda entry: entry["validation_loss"])
    first, last = whole[0], whole[-1]
    shows = (
        f"Learning curve: the validation loss falls from {first['validation_loss']:.3f} at step {first['step']:.0f} to "
        f"{best['validation_loss']:.3f} at step {best['step']:.0f}; at the last step, {last['step']:.0f}, it is "
        f"{last['validation_loss']:.3f}, the training loss {last['train_loss']:.3f}."
    )
    lines = [
        Line("validation", [(entry["step"], entry["validation_loss"]) for entry in whole], "best"),
        Line("training", [(entry["step"], entry["train_loss"]) for entry in whole], "open"),
    ]
    rows = [
        [f"{entry['step']:.0f}", f"{entry['train_loss']:.4f}", f"{entry['validation_loss']:.4f}"] for entry in whole
    ]
    table = parts.table("Losses in nats per token", ("step", "training", "validation"), rows, whole.index(best))
    chart = line_chart(lines, "step", "loss (nats per token)", caption, shows)
    return chart + parts.folded("The curve in numbers", table)


def drawn_heads(folder: Path) -> str:
    """The pictures and read-outs of the heads that a checkpoint's folder holds; empty where there are none."""
    drawn = folder / "heads"
    if not (drawn / "heads.json").exists():  # written last
        return ""
    read = json.loads((drawn / "heads.json").read_text())
    if "text" not in read:  # an older version's, which kept only pictures: they are drawn anew
        return ""
    names = [name for name, value in read["heads"][0].items() if not isinstance(value, list)]
    rows = [
        [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (head[name] for name in names)]
        for head in read["heads"]
    ]
    table = parts.table("Each head in numbers", [name.replace("_", " ") for name in names], rows)
    return parts.block(
        "<h3>What its heads have learned</h3>", head_maps(read), parts.folded("The same in numbers", table)
    )


async def draw_heads(chosen: str | None, request: gr.Request) -> AsyncGenerator[tuple[str, Any], None]:
    """Draws the heads of a version, and keeps the pictures in its checkpoint's folder."""
    if not chosen:
        return
    yield parts.block(parts.notice(f"Reading and drawing the heads of {chosen}: some ten seconds, once.")), hidden()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "voicechat_ui.cli", "heads", chosen, "--json"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)  # those who talk meanwhile come first
        async with asyncio.timeout(DRAWING_S):
            _, said = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it has ended in this very moment
            process.kill()
        await process.wait()
        said = f"error: it takes more than {DRAWING_S // 60} minutes".encode()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        log.error("the heads of %s cannot be drawn: %s", chosen, said.decode(errors="replace"))
        kind, _, reason = said.decode(errors="replace").strip().rpartition("\n")[2].partition("error: ")
        error = RuntimeError() if kind else InputError(reason)  # the command tells those of ours in one line
        yield told(f"The heads of {chosen} cannot be drawn: {parts.why(error)}"), gr.Button(visible=True)
        return
    *_, heads, button = await asyncio.to_thread(show_version, chosen, request)
    yield heads, button


def told(problem: str) -> str:
    return parts.block(parts.fault(problem))


def hidden() -> Any:
    return gr.Button(visible=False)
