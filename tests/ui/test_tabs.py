"""The tabs on models and sweeps: over a real registry, a real checkpoint and a real study, once in Chromium."""

import contextlib
import shutil
from collections.abc import Iterator

import gradio as gr
import psutil
import pytest
from playwright.sync_api import expect, sync_playwright

from voicechat_platform.registry import Registry
from voicechat_platform.settings import settings
from voicechat_platform.strict_yaml import read_yaml
from voicechat_tune import notes
from voicechat_tune.run import locked
from voicechat_tune.run_files import sweep_folder
from voicechat_tune.study import JOURNAL, RunKey, Study
from voicechat_tune.sweep_file import SweepFile
from voicechat_ui import html_parts, model_tab, sweeps_tab
from voicechat_ui.training import train_recipe

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
    train_recipe(folder / "tiny.yaml", None, resume=False)
    registry = Registry()
    return str(registry.promote(registry.version("tiny", 1)))


@pytest.fixture
def rates(home, tmp_path) -> Iterator[Study]:
    """A sweep of three trials: one finished, one stopped, one unfinished."""
    (tmp_path / "rates.yaml").write_text(SWEEP)
    sweep = read_yaml(tmp_path / "rates.yaml", SweepFile)
    folder = sweep_folder(sweep.name)
    study = Study(folder, sweep)
    notes.note(sweep, folder, force=False)
    for number, losses in ((1, (2.0, 1.25)), (2, (3.0,)), (3, (2.5,))):
        study.begin(None, {"training.learning_rate": number / 100})
        for step, loss in enumerate(losses, 1):
            evaluation = {"step": step, "validation_loss": loss, "selection_loss": loss, "spent": step}
            study.record(RunKey(number), evaluation, clock=step)
    study.end_run(RunKey(1), "finished", facts={"validation_loss": 1.25})
    study.end_run(RunKey(2), "stopped")
    yield study
    shutil.rmtree(folder)


def test_an_empty_home_says_what_to_do(home):
    _, card, heads, button = model_tab.open_tab(None)
    assert "voicechat sweep tune/sweeps/quickstart.yaml" in card
    assert (heads, button.visible) == ("", False)
    assert "voicechat sweep tune/sweeps/quickstart.yaml" in sweeps_tab.open_tab(None)[0]


def test_the_card_tells_where_a_version_comes_from(tiny):
    picker, card, heads, button = model_tab.open_tab("gone@7")
    assert picker.value == tiny == "tiny@1"
    for fact in ("tiny@1, the champion", "metric attention", "nats per character", "train/", "SHA-256", "torch 2."):
        assert fact in card, fact
    assert "training.batch_size" in card
    assert "Learning curve: the validation loss falls from" in card
    assert (heads, button.visible) == ("", True)


async def test_heads_are_drawn_once_and_kept(tiny):
    steps = [step async for step in model_tab.draw_heads(tiny)]
    assert "Reading and drawing" in steps[0][0]
    drawn, button = steps[-1]
    assert drawn.count("<img") == drawn.count("alt=") == len(model_tab.HEADS)
    assert "layer 0 head" in drawn
    assert not button.visible
    assert model_tab.open_tab(tiny)[2] == drawn


def test_a_broken_checkpoint_is_told(tiny):
    file = Registry().version("tiny", 1).checkpoint() / "run.json"
    whole = file.read_text()
    try:
        file.write_text(whole[:100])
        _, card, heads, button = model_tab.open_tab(tiny)
        assert "run.json is missing or damaged" in card
        assert (heads, button.visible) == ("", False)
    finally:
        file.write_text(whole)


@pytest.mark.nightly  # the same process as above
async def test_heads_that_cannot_be_drawn_say_why(home):
    steps = [step async for step in model_tab.draw_heads("tiny@9")]
    assert "there is no model version tiny@9" in steps[-1][0]


async def test_drawing_that_does_not_end_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(model_tab, "DRAWING_S", 0)
    steps = [step async for step in model_tab.draw_heads(tiny)]
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
    for cell in ("running", "2 of 3", "1.2500 (trial 1)"):
        assert f"<td>{cell}</td>" in overview
    assert '<tr class="best"><th scope="row">1 (best)</th>' in trials
    for cell in ("finished", "stopped early", "training"):
        assert f"<td>{cell}</td>" in trials
    assert "trial 3 2.500 at step 1" in trials, "the picture in words"
    assert "broken off; it can go on" in sweeps_tab.open_tab("rates")[0]
    rates.end_run(RunKey(3), "failed", "ValueError: <b>no</b>")
    overview, _, trials = sweeps_tab.open_tab("rates")
    assert "<td>finished</td>" in overview
    assert "Trial 3 failed: ValueError: &lt;b&gt;no&lt;/b&gt;" in trials


@pytest.mark.parametrize("file", [notes.NOTES, JOURNAL])
def test_a_broken_sweep_is_told(rates, file):
    (rates.folder / file).write_text("{\n{\n")
    overview, _, trials = sweeps_tab.open_tab("rates")
    assert "cannot be read" in overview
    assert "rates cannot be shown" in trials


def test_a_sweep_that_only_the_registry_knows(tiny):
    registry = Registry()
    registry.record("elsewhere-1a2b3c", "0007", {}, [], registry.version("tiny", 1).checkpoint())
    overview, picker, trials = sweeps_tab.open_tab(None)
    assert picker.value == "elsewhere-1a2b3c"
    assert "<td>only in the registry</td>" in overview
    assert "0007 (best)" in trials
    assert "<td>tiny@2</td>" in trials


def test_what_is_shown_is_text():
    row = html_parts.table("<i>", ["<u>"], [["<script>"]]) + html_parts.facts({"<b>": "<img src=x>"})
    assert not any(tag in row for tag in ("<i>", "<u>", "<script>", "<b>", "<img"))


def test_the_tabs_in_chromium(tiny, rates):
    with gr.Blocks(analytics_enabled=False) as page:
        with gr.Tab("Talk"):
            gr.Markdown("Nothing is read for this one.")
        with gr.Tab("Model") as tab:
            model_tab.add_model_tab(tab)
        with gr.Tab("Sweeps") as tab:
            sweeps_tab.add_sweeps_tab(tab)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, inbrowser=False)
    complaints: list[str] = []
    try:
        with sync_playwright() as api:
            browser = api.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            window = browser.new_page()
            window.on("pageerror", lambda error: complaints.append(str(error)))
            window.goto(url)
            window.get_by_role("tab", name="Model").click()
            expect(window.get_by_text("tiny@1, the champion")).to_be_visible(timeout=30_000)
            expect(window.get_by_role("img", name="Learning curve")).to_be_visible()
            window.get_by_role("tab", name="Sweeps").click()
            expect(window.get_by_role("table", name="Trials of rates")).to_be_visible(timeout=30_000)
            browser.close()
    finally:
        page.close()
    assert complaints == []
