"""The comparison: what it runs, how variants are brought to one size, and the report from a real small one."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch

from voicechat_platform.errors import InputError
from voicechat_platform.training.starting_point import load_data, make_model
from voicechat_platform.training.throughput import training_flops
from voicechat_tune.comparison.compare import run_comparison, sized, tuning_sweep
from voicechat_tune.comparison.comparison_file import read_comparison
from voicechat_tune.search.sweep_file import with_fields

FILE = """\
name: tiny
recipe:
  name: tiny
  corpus: {{source: {play}, validation_fraction: 0.05, test_fraction: 0.05}}
  model: {{layers: 2, heads: 2, width: 32, context: 32, mlp: relu_squared}}
  training: {{steps: 20, batch_size: 4, evaluate_every: 10, warmup_steps: 5}}
variants:
  standard: {{}}
  symmetric, tied: {{model.attention: metric}}
  shared P, tied: {{model.attention: metric, model.projection: shared}}
baseline: standard
tuning:
  training.learning_rate: [0.002, 0.008]
seeds: 2
"""
VARIANTS = ("standard", "symmetric, tied", "shared P, tied")


@pytest.fixture
def path(tmp_path, play):
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE.format(play=play))
    return file


def test_variants_are_brought_to_the_baselines_size(path):
    comparison = read_comparison(path)
    tokenizer = load_data(comparison.recipe).tokenizer

    def model_of(change):
        with torch.device("meta"):
            return make_model(with_fields(comparison.recipe, change), tokenizer, None)

    baseline = model_of({})
    for variant in ("symmetric, tied", "shared P, tied"):
        change = comparison.variants[variant]
        assert sized(comparison, "equal width", variant, tokenizer) == {}
        wide = model_of({**change, **sized(comparison, "equal parameters", variant, tokenizer)})
        one_more = 2 * 32 * 2  # an MLP's neuron in every layer
        assert abs(wide.num_parameters() - baseline.num_parameters()) <= one_more / 2
        busy = model_of({**change, **sized(comparison, "equal FLOPs", variant, tokenizer)})
        assert training_flops(busy, 32) == pytest.approx(training_flops(baseline, 32), rel=0.01)


def test_every_variant_has_the_same_tuning_budget(path):
    sweep, places = tuning_sweep(read_comparison(path))
    by_variant = {}
    for point, place in zip(sweep.points, places, strict=True):
        by_variant.setdefault(place.variant, []).append(point["training.learning_rate"])
    assert by_variant == {variant: [0.002, 0.008] for variant in VARIANTS}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: standard", "baseline: llama", "baseline 'llama' is not among the variants"),
        ("training.learning_rate: [", "model.width: [", "only fields of training, and model.dropout, are tuned"),
        ("{model.attention: metric}", "{model.attention: mtn}", "variants.symmetric, tied .*'standard' or 'metric'"),
        ("{model.attention: metric}", "{training.steps: 3}", "only fields of the model differ, not training.steps"),
        ("seeds: 2", "seeds: 1", "greater than or equal to 2"),
        ("seeds: 2", "tables: [equal height]", "'equal width', 'equal parameters', 'equal FLOPs'"),
    ],
)
def test_a_wrong_comparison_says_where_and_what(path, old, new, message):
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_comparison(path)


class Text(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.words: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.nightly  # its parts, the report and the statistics, have tests of every day
def test_a_comparison_ends_in_a_report_that_claims_no_more_than_two_seeds_can(path, tmp_path):
    environment = {**os.environ, "VOICECHAT_HOME": str(tmp_path / "home"), "VOICECHAT_CPUS": "2"}

    def voicechat(*arguments):
        command = [sys.executable, "-m", "voicechat_ui.cli", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)

    early = voicechat("compare", path, "--write")
    assert early.returncode == 2
    assert "there is no sweep 'tiny-tuning'" in early.stderr
    done = voicechat("compare", path, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "report" / "findings.json").read_text())
    runs = found["runs"]
    assert sum(run["table"] == "tuning" for run in runs) == 6
    for table in ("equal width", "equal parameters", "equal FLOPs"):
        seeds = {}
        for run in runs:
            if run["table"] == table:
                seeds.setdefault(run["variant"], []).append(run["seed"])
        assert seeds == {variant: [2, 3] for variant in VARIANTS}
    assert all(run["facts"]["test_loss"] > 0 for run in runs)
    assert set(found["heads"]) == set(found["samples"]) == set(VARIANTS)
    cells = {words.strip() for words in Text((tmp_path / "report" / "report.html").read_text()).words}
    assert "undecided" in cells
    assert not cells & {"better", "worse", "equivalent"}
    edited = tmp_path / "edited.yaml"
    edited.write_text(path.read_text().replace("[0.002, 0.008]", "[0.008, 0.002]"))
    changed = voicechat("compare", edited, "--write")
    assert changed.returncode == 2
    assert "the comparison's file has changed since" in " ".join(changed.stderr.split())
    edited.write_text(path.read_text().replace("[0.002, 0.008]", "[0.002, 0.008, 0.004]"))
    wider = voicechat("compare", edited)
    assert wider.returncode == 2
    assert "other tuning choices or variants than when tiny-tuning began" in " ".join(wider.stderr.split())
    edited.write_text(path.read_text().replace("steps: 20", "steps: 30"))
    longer = voicechat("compare", edited)
    assert longer.returncode == 2
    assert "recipe.training.steps: 20 -> 30" in longer.stderr
    path.write_text(path.read_text().replace("seeds: 2", "seeds: 3"))
    more = voicechat("compare", path, "--out", tmp_path / "report")
    assert more.returncode == 0, more.stderr
    begun = [line for line in more.stderr.splitlines() if line.endswith("begins")]
    assert len(begun) == 7  # the third seed of each variant in each table, and nothing twice
    assert all("seed 4 " in line for line in begun)
    path.write_text(path.read_text().replace("seeds: 3", "seeds: 2"))
    fewer = voicechat("compare", path, "--out", tmp_path / "report")
    assert fewer.returncode == 0, fewer.stderr
    assert {run["seed"] for run in json.loads((tmp_path / "report" / "findings.json").read_text())["runs"]} == {1, 2, 3}


def test_an_impossible_size_is_said_before_anything_is_trained(path, monkeypatch):
    path.write_text(path.read_text().replace("shared P, tied: {", "shared P, tied: {model.layers: 60, "))
    monkeypatch.setattr("voicechat_tune.comparison.compare.run_sweep", None)
    with pytest.raises(
        InputError, match="shared P, tied is larger than standard even without an MLP: leave equal parameters out"
    ):
        run_comparison(read_comparison(path))
