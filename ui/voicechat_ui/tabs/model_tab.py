"""The page's tab on models: the registry's facts about a version, its learning curve, and what its heads have learned.

The tab reads nothing before the user opens it. Functions that read files and the registry are not async, so that Gradio
runs them in threads. A separate process draws the heads, because drawing would block the page's event loop.
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
    "Only an operator can promote a model for all users, and your key is not an operator's key: "
    "`voicechat keys create NAME --operator` creates one."
)
EMPTY = (
    "The registry has no model yet. Tune models with `voicechat sweep tune/sweeps/quickstart.yaml --promote`, or train "
    "one with `voicechat train tune/recipes/shakespeare.yaml`; then press Refresh."
)
DRAWING_S = 300
"""The time limit for drawing. Models that a laptop can tune take about ten seconds."""


@dataclass(frozen=True)
class ModelTab:
    """The components of the tab for the rest of the page."""

    version: gr.Dropdown
    talk: gr.Button
    """Opens a conversation with the chosen version."""
    result: gr.HTML
    """The result of a button."""
    shown: list[Any]
    """The outputs of `open_tab`."""


def add_model_tab(tab: gr.Tab) -> ModelTab:
    """Add the components, inside `with gr.Tab(...) as tab`."""
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
    result = gr.HTML()
    before = gr.State("")
    card = gr.HTML(parts.block(parts.notice(READING)))
    heads = gr.HTML(js_on_load=VALUES)
    draw = gr.Button("Draw what its heads have learned", visible=False)

    buttons = [talk, promote]
    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": [card]}
    gr.on([tab.select, refresh.click], open_tab, [version], [version, *buttons, card, heads, draw], **event)
    version.input(show_version, [version], [*buttons, card, heads, draw], **event)
    for button, promoted in ((promote, version), (undo, before)):
        button.click(promote_version, [promoted], [result, undo, before], **event).then(
            open_tab, [version], [version, *buttons, card, heads, draw], **event
        )
    gr.on([tab.select, version.input], lambda: ("", gr.Button(visible=False)), None, [result, undo], **event)
    # One drawing at a time for all pages: each takes a core for some seconds.
    event["show_progress"] = "hidden"
    draw.click(draw_heads, [version], [heads, draw], concurrency_limit=1, **event)
    return ModelTab(version, talk, result, [version, *buttons, card, heads, draw])


def may_promote(request: gr.Request) -> bool:
    """Return whether the user may promote a model, which the page's guard stores in the request (serve's access.py)."""
    return bool(getattr(request.state, "is_operator", False))


def promote_version(chosen: str, request: gr.Request) -> tuple[str, Any, str]:
    """Make a version the champion of its model.

    Returns:
        The result in HTML, the button that undoes the promotion, and the version that this button promotes.
    """
    from voicechat_platform.registry import Registry, parse_version

    if not may_promote(request):
        return fault_block(NOT_ALLOWED), hidden(), ""
    try:
        registry = Registry()
        version = registry.version(*parse_version(chosen))
        before = next((str(each) for each in registry.champions() if each.name == version.name), "")
        registry.promote(version)
    except Exception as error:  # of MLflow, SQLAlchemy or the network; or the version is gone
        log.exception("%s cannot be promoted", chosen)
        return fault_block(f"{chosen} cannot be promoted: {parts.why(error)}"), hidden(), ""
    log.info("%s was promoted on the page by %s", version, getattr(request.state, "key_id", "a user without a key"))
    if not before:
        text = f"{version} is now the champion of {version.name}: a service has it after its next start."
    else:
        text = f"{version} is now the champion of {version.name}: a running service has it within seconds."
    undo = gr.Button(f"Undo: go back to {before}", visible=before not in ("", str(version)))
    return parts.block(parts.notice(text)), undo, before


def open_tab(chosen: str | None, request: gr.Request) -> tuple[Any, ...]:
    """Return the current list of versions, and the view of the chosen version, or of the first one."""
    from voicechat_platform.registry import Registry

    try:
        versions = sorted(Registry().versions(), key=lambda version: not version.is_champion)
    except Exception as error:  # of MLflow, SQLAlchemy or the network
        log.exception("the registry cannot be read")
        return gr.Dropdown(choices=[], value=None), *nothing(
            fault_block(f"The registry cannot be read: {parts.why(error)}")
        )
    if not versions:
        return gr.Dropdown(choices=[], value=None), *nothing(parts.block(parts.notice(EMPTY)))
    choices = [(label(version), str(version)) for version in versions]
    known = [value for _, value in choices]
    shown = chosen if chosen in known else known[0]
    return gr.Dropdown(choices=choices, value=shown), *show_version(shown, request)


def champion_or_version(chosen: str) -> str:
    """Return the API's name of a version: the model's name for the champion, else NAME@NUMBER.

    Raises:
        InputError: the version does not exist.
    """
    from voicechat_platform.registry import Registry, parse_version

    version = Registry().version(*parse_version(chosen))
    return version.name if version.is_champion else str(version)


def nothing(card: str) -> tuple[Any, ...]:
    """Return the view without a version; `card` gives the reason."""
    return hidden(), hidden(), card, "", hidden()


def label(version: Any) -> str:
    """Return a short name that fits a line of a phone; the card has all other facts."""
    return f"{version}: {version.nats_per_character:.4f}{', champion' if version.is_champion else ''}"


def show_version(chosen: str | None, request: gr.Request) -> tuple[Any, ...]:
    """Return the view of a version: the buttons to talk with it and to promote it, the card with the learning curve,
    the heads if they were drawn before, and the button to draw them."""
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
            log.warning("the heads in %s cannot be read (%s): draw them again", folder / "heads", error)
            heads = ""
    except Exception as error:  # any damage of a file or a folder: the page must stay usable
        log.exception("%s cannot be shown", chosen)
        return nothing(fault_block(f"{chosen} cannot be shown: {parts.why(error)}"))
    return gr.Button(visible=True), promote, card, heads, gr.Button(visible=not heads)


def card_facts(version: Any, run: dict[str, Any]) -> dict[str, str]:
    """Return the facts about a version, in words, by name."""
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
    """Return the recipe's fields that have a value, with dotted names as in sweep files."""
    from voicechat_ui.model_tasks import flat

    return {field: str(value) for field, value in flat(recipe).items() if value is not None}


def curve(history: list[dict[str, float]]) -> str:
    whole = [entry for entry in history if "train_loss" in entry and "validation_loss" in entry]
    if not whole:
        return parts.notice("There are no evaluations for a learning curve.")

    caption = "Learning curve: the loss over the steps. Point at a line to see its values."
    best = min(whole, key=lambda entry: entry["validation_loss"])
    first, last = whole[0], whole[-1]
    description = (
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
    chart = line_chart(lines, "step", "loss (nats per token)", caption, description)
    return chart + parts.folded("The curve in numbers", table)


def drawn_heads(folder: Path) -> str:
    """Return the pictures and readouts of the heads from a checkpoint's folder; empty if it has none."""
    drawn = folder / "heads"
    if not (drawn / "heads.json").exists():  # `voicechat heads` writes this file last
        return ""
    read = json.loads((drawn / "heads.json").read_text())
    if "text" not in read:  # an older version of this program kept only pictures: draw them again
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
    """Draw the heads of a version, and keep the pictures in its checkpoint's folder."""
    if not chosen:
        return
    yield (
        parts.block(parts.notice(f"Reading and drawing the heads of {chosen}: about ten seconds, only once.")),
        hidden(),
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "voicechat_ui.cli", "heads", chosen, "--json"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        with contextlib.suppress(ProcessLookupError):  # it has already ended
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)  # conversations have priority
        async with asyncio.timeout(DRAWING_S):
            _, output = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            process.kill()
        await process.wait()
        output = f"error: it takes more than {DRAWING_S // 60} minutes".encode()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        log.error("the heads of %s cannot be drawn: %s", chosen, output.decode(errors="replace"))
        kind, _, reason = output.decode(errors="replace").strip().rpartition("\n")[2].partition("error: ")
        error = RuntimeError() if kind else InputError(reason)  # the command prints only our errors in one line
        yield fault_block(f"The heads of {chosen} cannot be drawn: {parts.why(error)}"), gr.Button(visible=True)
        return
    *_, heads, button = await asyncio.to_thread(show_version, chosen, request)
    yield heads, button


def fault_block(problem: str) -> str:
    return parts.block(parts.fault(problem))


def hidden() -> Any:
    return gr.Button(visible=False)
