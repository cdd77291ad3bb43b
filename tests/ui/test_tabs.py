"""The tabs on models and sweeps: over a real registry, a real checkpoint and a real study, once in Chromium."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from playwright.sync_api import expect

from begun_sweep import begun_sweep
from voicechat_platform.registry import Registry, parse_version
from voicechat_platform.settings import settings
from voicechat_platform.strict_yaml import read_yaml
from voicechat_platform.training.history import Evaluation
from voicechat_platform.training.recipe import Recipe
from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.operations.keys import create_key, fingerprint, make_secret
from voicechat_tune.report.heads import show_heads
from voicechat_tune.running import sweep_index
from voicechat_tune.running.run import locked
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.study import Study
from voicechat_tune.search.trials import RunKey
from voicechat_ui.api_client import ApiClient
from voicechat_ui.model_tasks import train_recipe
from voicechat_ui.page import build_page, mount_page
from voicechat_ui.tabs import html_parts, model_tab, sweeps_tab

RECIPE = """\
name: tiny
corpus: {{source: {play}}}
model: {{layers: 1, heads: 2, width: 16, context: 16, attention: metric}}
training: {{steps: 4, batch_size: 2, evaluate_every: 2, warmup_steps: 1}}
"""
SWEEP = """\
name: rates
search: {training.learning_rate: {loguniform: [0.001, 0.1]}}
trials: 3
"""


OPERATOR: Any = SimpleNamespace(state=SimpleNamespace(is_operator=True))
"""What Gradio tells a function of who asks."""
ANYBODY: Any = SimpleNamespace(state=SimpleNamespace())


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[None]:
    """A home folder of its own: empty at first, filled by those who ask for `tiny` or `rates`."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOICECHAT_HOME", str(folder))
        settings.cache_clear()
        yield
    settings.cache_clear()


@pytest.fixture(scope="module")
def tiny(home, tmp_path_factory) -> str:
    """A champion in the registry."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "play.txt").write_text("".join(f"ROMEO:\nLine {n} of it.\n\n" for n in range(400)))
    (folder / "tiny.yaml").write_text(RECIPE.format(play=folder / "play.txt"))
    recipe = read_yaml(folder / "tiny.yaml", Recipe)
    train_recipe(recipe, folder / "tiny.yaml", settings().folder("runs") / "tiny", resume=False)
    registry = Registry()
    return str(registry.promote(registry.version("tiny", 1)))


@pytest.fixture
def rates(home, tmp_path) -> Iterator[Study]:
    """A sweep of three trials: one finished, one stopped, one unfinished."""
    study = begun_sweep(SWEEP, tmp_path)
    for number, losses in ((1, (2.0, 1.25)), (2, (3.0,)), (3, (2.5,))):
        study.begin_trial(None, {"training.learning_rate": number / 100})
        for step, loss in enumerate(losses, 1):
            evaluation = asdict(Evaluation(step, loss, loss, loss, loss, 0.01, 1.0, 0.1, 1.0, 1.0)) | {"spent": step}
            study.record(RunKey(number), evaluation, clock=step)
    study.end_run(RunKey(1), "finished", facts={"validation_loss": 1.25})
    study.end_run(RunKey(2), "stopped")
    yield study
    shutil.rmtree(study.folder)


def test_an_empty_home_says_what_to_do(home):
    _, talk, promote, card, heads, button = model_tab.open_tab(None, OPERATOR)
    assert "voicechat sweep tune/sweeps/quickstart.yaml" in card
    assert (heads, talk.visible, promote.visible, button.visible) == ("", False, False, False)
    assert "voicechat sweep tune/sweeps/quickstart.yaml" in sweeps_tab.open_tab(None)[0]


def test_the_card_tells_where_a_version_comes_from(tiny):
    picker, talk, promote, card, heads, button = model_tab.open_tab("gone@7", OPERATOR)
    assert picker.value == tiny == "tiny@1"
    for fact in ("tiny@1, the champion", "metric attention", "nats per character", "train/", "SHA-256", "torch 2."):
        assert fact in card, fact
    assert "training.batch_size" in card
    assert "Learning curve: the validation loss falls from" in card
    assert re.search(r"validation, <tspan[^>]*>step 2: \d\.\d+<", card), "the chart says its values"
    assert picker.choices == [(f"tiny@1: {Registry().version('tiny', 1).nats_per_character:.4f}, champion", "tiny@1")]
    assert "The curve in numbers" in card
    assert (heads, talk.visible, promote.visible, button.visible) == ("", True, False, True)


async def test_heads_are_drawn_once_and_kept(tiny):
    steps = [step async for step in model_tab.draw_heads(tiny, OPERATOR)]
    assert "Reading and drawing" in steps[0][0]
    drawn, button = steps[-1]
    assert "Layer 0, head 1" in drawn
    assert drawn.count('class="cells"') == 2 * 4, "each value of each matrix can be pointed at"
    assert "invert(" not in drawn, "the pictures have no paper"
    assert not button.visible
    assert model_tab.open_tab(tiny, OPERATOR)[-2] == drawn
    file = Registry().version("tiny", 1).checkpoint() / "heads" / "heads.json"
    whole = file.read_text()
    file.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name != "text"}))
    try:
        *_, heads, button = model_tab.open_tab(tiny, OPERATOR)
        assert (heads, button.visible) == ("", True), "an older version's, which lack values, are drawn anew"
    finally:
        file.write_text(whole)


def test_a_broken_checkpoint_is_told(tiny):
    file = Registry().version("tiny", 1).checkpoint() / "run.json"
    whole = file.read_text()
    try:
        file.write_text(whole[:100])
        *_, card, heads, button = model_tab.open_tab(tiny, OPERATOR)
        assert "run.json:" in card
        assert (heads, button.visible) == ("", False)
    finally:
        file.write_text(whole)


async def test_heads_that_cannot_be_drawn_say_why(home):
    steps = [step async for step in model_tab.draw_heads("tiny@9", OPERATOR)]
    assert "there is no model version tiny@9" in steps[-1][0]


async def test_drawing_that_does_not_end_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(model_tab, "DRAWING_S", 0)
    steps = [step async for step in model_tab.draw_heads(tiny, OPERATOR)]
    drawn, button = steps[-1]
    assert "cannot be drawn: it takes more than 0 minutes" in drawn
    assert button.visible
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # one of another test's, that ends now
            assert "voicechat_ui.cli" not in child.cmdline()


def test_a_sweep_is_followed_while_it_runs(rates):
    with locked(rates.folder):
        overview, picker, trials = sweeps_tab.open_tab(None)
    assert picker.value == "rates"
    for column, cell in (("state", "running"), ("trials done", "2 of 3"), ("best validation loss", "1.2500 (trial 1)")):
        assert f'<td data-column="{column}">{cell}</td>' in overview
    assert '<tr class="best"><th scope="row" data-column="trial">1 (best)</th>' in trials
    for cell in ("finished", "stopped early", "training"):
        assert f'<td data-column="state">{cell}</td>' in trials
    assert "trial 3 2.500 at step 1" in trials, "the picture in words"
    assert re.search("trial 2, <tspan[^>]*>step 1: 3<", trials), (
        "the first losses are not cut off, and say their values"
    )
    assert "interrupted; it can continue" in sweeps_tab.open_tab("rates")[0]
    rates.end_run(RunKey(3), "failed", "ValueError: /srv/secret <b>no</b>")
    overview, _, trials = sweeps_tab.open_tab("rates")
    assert '<td data-column="state">finished</td>' in overview
    assert "Trial 3 failed: ValueError. More: voicechat trial rates 3" in trials
    assert "secret" not in trials
    assert sweeps_tab.reason("InputError: the corpus is <b>empty</b>\nmore") == "the corpus is <b>empty</b>"
    ours = "the loss became nan at step 120; the last checkpoint is untouched: lower training.learning_rate (1)"
    assert sweeps_tab.reason(ours) == ours
    assert sweeps_tab.reason("its process or its machine is gone") == "its process or its machine is gone"


@pytest.mark.parametrize("file", [sweep_index.INDEX, JOURNAL])
def test_a_broken_sweep_is_told(rates, file):
    (rates.folder / file).write_text("{\n{\n")
    overview, _, trials = sweeps_tab.open_tab("rates")
    assert "cannot be read" in overview
    assert "rates cannot be shown" in trials


async def test_errors_that_are_not_ours_are_told_by_the_log_alone(rates, monkeypatch, caplog, tmp_path):
    def broken(*_: Any) -> None:
        raise OSError("unable to open /srv/secret/mlflow.db")

    monkeypatch.setattr("voicechat_platform.registry.Registry", broken)
    talk = next(each.fn for each in build_page(api_client()).fns.values() if each.name == "talk_with")
    shown = [
        model_tab.open_tab(None, OPERATOR)[3],
        model_tab.show_version("tiny@1", OPERATOR)[2],
        model_tab.promote_version("tiny@1", OPERATOR)[0],
        (await talk("tiny@1"))[2],
        sweeps_tab.find_sweeps()[1],
        sweeps_tab.show_sweep("elsewhere"),
    ]
    monkeypatch.setattr(sweep_index, "open_study", broken)
    shown.append(sweeps_tab.find_sweeps()[0][0].state)
    shown.append(sweeps_tab.show_sweep("rates"))
    (tmp_path / "heads").write_text("#!/bin/sh\necho 'OSError: /srv/secret/heads' >&2\nexit 1\n")
    (tmp_path / "heads").chmod(0o700)
    monkeypatch.setattr(model_tab.sys, "executable", str(tmp_path / "heads"))
    shown.append([step async for step in model_tab.draw_heads("tiny@1", OPERATOR)][-1][0])
    for text in shown:
        assert "see the log of this program" in text
        assert "secret" not in text
    logged = [record.getMessage() + str(record.exc_info) for record in caplog.records]
    assert sum("/srv/secret" in line for line in logged) >= len(shown)


def api_client() -> ApiClient:
    return ApiClient("http://127.0.0.1:1/v1", "none")


def test_a_sweep_that_only_the_registry_knows(tiny):
    registry = Registry()
    registry.record("elsewhere-1a2b3c", "0007", {}, [], registry.version("tiny", 1).checkpoint())
    overview, picker, trials = sweeps_tab.open_tab(None)
    assert picker.value == "elsewhere-1a2b3c"
    assert '<td data-column="state">only in the registry</td>' in overview
    assert "7 (best)" in trials
    assert 'data-version="tiny@2"' in trials


def test_what_is_shown_is_text():
    row = html_parts.table("<i>", ["<u>"], [["<script>"]]) + html_parts.facts({"<b>": "<img src=x>"})
    assert not any(tag in row for tag in ("<i>", "<u>", "<script>", "<b>", "<img"))


@pytest.mark.parametrize(
    ("columns", "stacked"), [(3, ""), (5, "below-640"), (8, "below-900"), (10, "below-1120"), (40, "below-99999")]
)
def test_a_table_is_stacked_where_the_page_has_no_room_for_it(columns, stacked):
    html = html_parts.block(html_parts.table("Trials", ["loss <here>"] * columns, [["0.12345678"] * columns] * 2))
    assert f'<table class="{stacked}"' in html
    assert html.count('data-column="loss &lt;here&gt;"') == 2 * columns, "each cell can say its column"
    assert not stacked or f".{stacked} thead {{ display: none; }}" in html
    assert 'class=""' in html_parts.table("None", ["a"], [])


def test_a_trial_is_linked_to_its_models(tiny, rates):
    registry, group = Registry(), sweep_index.read_index(rates.folder)["group"]
    folder = registry.version("tiny", 1).checkpoint()
    made = [registry.record(group, str(RunKey(*key)), {}, [], folder) for key in ((1, 0), (1, 1), (3, 0))]
    first, again, third = (f'data-version="{version}"' for version in made)
    rows = re.findall(r"<tr.*?</tr>", sweeps_tab.show_sweep("rates"))[1:]
    assert first in rows[0]
    assert again in rows[0], "the other seed's"
    assert "data-version" not in rows[1], "a trial that was stopped has none"
    assert third in rows[2]
    registry.record("gone-1a2b3c", "0001", {}, [], folder)
    assert "data-version" in sweeps_tab.show_sweep("gone-1a2b3c"), "of a sweep that only the registry knows"


def test_promoting_and_going_back(tiny):
    registry = Registry()
    registry.record("other-1a2b3c", "0001", {}, [], registry.version("tiny", 1).checkpoint())
    newest = str(registry.versions()[0])
    said, undo, before = model_tab.promote_version(newest, ANYBODY)
    assert "keys create NAME --operator" in said
    assert not undo.visible
    assert champion() == tiny, "nobody but an operator promotes"
    _, talk, promote, card, *_ = model_tab.open_tab(newest, ANYBODY)
    assert (talk.visible, promote.visible) == (True, False)
    assert "keys create NAME --operator" in card

    assert model_tab.open_tab(newest, OPERATOR)[2].visible
    said, undo, before = model_tab.promote_version(newest, OPERATOR)
    assert f"{newest} is now the champion" in said
    assert (champion(), before, undo.visible, tiny in undo.value) == (newest, tiny, True, True)
    assert model_tab.champion_or_version(newest) == "tiny"
    assert model_tab.champion_or_version(tiny) == tiny
    _, undo, back = model_tab.promote_version(before, OPERATOR)
    assert (champion(), back) == (tiny, newest)
    for wrong in ("tiny@99", "tiny", "no such"):
        assert "cannot be promoted" in model_tab.promote_version(wrong, OPERATOR)[0]
    assert champion() == tiny


def champion() -> str:
    (version,) = Registry().champions()
    return str(version)


@pytest.fixture
def together(home, realtime: Any, serve: Callable[..., Any], free_port: Callable[[], int], tmp_path) -> Any:
    """The page on the API's own port behind the guard, as under `voicechat up`, and its keys file."""
    port, keys = free_port(), tmp_path / "keys.json"
    app: FastAPI = realtime.app()
    page_key = make_secret()
    guard(app, AccessRules(keys_file=keys, page_key_sha256=fingerprint(page_key)), "Basic")
    return serve(mount_page(app, f"http://127.0.0.1:{port}/v1", page_key), port).url, keys


CUT_OFF = """() => [...document.querySelectorAll(".tabitem *")].filter(element => {
  const isText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!element.checkVisibility({ visibilityProperty: true }) || !(isText || element.tagName === "INPUT")) return false;
  const { left, right, top, bottom } = element.getBoundingClientRect();
  const svg = element.closest("svg")?.getBoundingClientRect() ?? { left: 0, right: innerWidth, top, bottom };
  return left < svg.left - 1 || right > Math.min(svg.right, innerWidth) + 1 || top < svg.top - 1 ||
    bottom > svg.bottom + 1 || (element.tagName === "INPUT" && element.scrollWidth > element.clientWidth);
}).map(element => element.value || element.textContent)"""
"""The texts that are not wholly on the page, or in their picture."""


def cut_off(page: Any) -> dict[int, list[str]]:
    """By the page's width in CSS pixels: a phone's, a tablet's, a laptop's."""
    texts = {}
    for width in (390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        texts[width] = page.evaluate(CUT_OFF)
    return texts


def test_from_a_trial_to_its_model_promoted_and_talked_with(tiny, rates, together, open_page, realtime):
    url, _ = together
    made = Registry().record(
        sweep_index.read_index(rates.folder)["group"],
        "0001",
        {},
        [],
        Registry().version(*parse_version(tiny)).checkpoint(),
    )
    show_heads(made.checkpoint(), made.checkpoint() / "heads")
    talk = open_page(url, color_scheme="dark")
    page = talk.page
    page.get_by_role("tab", name="Sweeps").click()
    expect(page.get_by_role("table", name="Trials of rates")).to_be_visible(timeout=30_000)
    chart = page.get_by_role("img", name="Validation loss over steps")
    assert chart.evaluate("element => getComputedStyle(element).backgroundColor") == "rgba(0, 0, 0, 0)", (
        "no white paper"
    )
    value = chart.get_by_text("trial 1, step 2: 1.25")
    expect(value).to_be_hidden()
    chart.locator(".point .near").nth(1).hover()
    expect(value).to_be_visible()
    assert cut_off(page) == {390: [], 768: [], 1280: []}
    link = page.get_by_role("button", name=f"Show the model {made}")
    link.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Models")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("button", name=f"Promote {made}")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("img", name="Learning curve")).to_be_visible()
    page.get_by_text("Layer 0, head 1").click()
    page.locator(".head[open] .cells").first.hover(position={"x": 2, "y": 2})
    expect(page.locator(".head[open] .value").first).to_have_text(re.compile("“.*” attends to “.*”: 1$"))
    page.get_by_text("The same in numbers").click()
    assert cut_off(page) == {390: [], 768: [], 1280: []}

    page.get_by_role("button", name=f"Promote {made}").click()
    expect(page.get_by_text(f"{made}, the champion")).to_be_visible(timeout=30_000)
    assert champion() == str(made)
    page.get_by_role("button", name=f"Undo: go back to {tiny}").click()
    expect(page.get_by_role("button", name=f"Promote {made}")).to_be_visible(timeout=30_000)
    assert champion() == tiny

    page.get_by_role("button", name="Talk with this one").click()
    expect(page.get_by_role("alert").filter(has_text="does not have")).to_be_visible(timeout=30_000)
    realtime.models.append({**realtime.models[0], "id": "tiny"})
    page.get_by_role("button", name="Talk with this one").click()
    expect(page.get_by_role("tab", name="Talk")).to_have_attribute("aria-selected", "true", timeout=30_000)
    version = page.locator(f"[data-model='{made}']")
    expect(version).to_have_text(f"tiny, version {made.number}from the registry")
    expect(version).to_have_attribute("aria-pressed", "true")
    talk.type("Who art thou?")
    talk.wait_for_said("assistant", 1)
    assert realtime.session.model == str(made)
    page.reload()
    talk.wait_for("ready")
    talk.type("Still there?")
    talk.wait_for_said("assistant", 2)
    assert realtime.session.model == str(made), "a reload keeps it"


def test_with_keys_an_operators_promotes_and_no_other_pages(tiny, together, open_page):
    url, keys = together
    registry = Registry()
    made = registry.record("keyed-1a2b3c", "0001", {}, [], registry.version(*parse_version(tiny)).checkpoint())
    page = {}
    for name in ("anna", "olga"):
        _, secret = create_key(keys, name, operator=name == "olga")
        deadline = time.monotonic() + 30
        while httpx.get(url, auth=(name, secret)).status_code != 200:  # a running service follows within a second
            assert time.monotonic() < deadline
            time.sleep(0.1)
        page[name] = open_page(url, http_credentials={"username": name, "password": secret}).page
        page[name].get_by_role("tab", name="Models").click()
        expect(page[name].get_by_text(f"{tiny}, the champion")).to_be_visible(timeout=30_000)
        page[name].get_by_label("Model, version: nats per character").click()
        page[name].get_by_role("option", name=f"{made}:").click()
        expect(page[name].get_by_text("keyed-1a2b3c/0001")).to_be_visible(timeout=30_000)
    promote = f"Promote {made}"
    expect(page["anna"].get_by_role("button", name=promote)).to_have_count(0)
    expect(page["anna"].get_by_text("keys create NAME --operator")).to_be_visible()
    page["olga"].get_by_role("button", name=promote).click()
    expect(page["olga"].get_by_text(f"{made}, the champion")).to_be_visible(timeout=30_000)
    assert champion() == str(made)
    registry.promote(registry.version(*parse_version(tiny)))
    elsewhere = {"origin": "https://elsewhere.example"}
    assert httpx.post(f"{url}/gradio_api/queue/join", json={}, headers=elsewhere).status_code == 403
