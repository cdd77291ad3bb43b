"""Files that nobody should write: each gives one InputError at once, or is valid and can be dry-run."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import compose_yaml, read_yaml
from voicechat_platform.training.recipe import Recipe
from voicechat_serve.application_file import local_application, read_application
from voicechat_tune.comparison.comparison_file import read_comparison
from voicechat_tune.running.dry_run import drawn_points
from voicechat_tune.search.samplers import listed_points
from voicechat_tune.search.sweep_file import read_sweep

RECIPE = """\
name: plain
seed: 3
corpus: {source: shakespeare-plays, validation_fraction: 0.1, tokenizer: byte_pairs, vocabulary_size: 300}
model: {attention: metric, metric: general, qk_norm: true, layers: 2, heads: 2, width: 32, mlp_width: 64, context: 32}
training: {steps: 200, batch_size: 4, learning_rate: 0.001, warmup_steps: 10, compile: false, patience: 2}
"""
SWEEP = """\
name: plain
recipe: {training: {steps: 200, warmup_steps: 10, evaluate_every: 50}, model: {width: 32, heads: 2}}
search:
  model.attention: {choice: [standard, metric]}
  model.metric: {choice: [general, low_rank], when: {model.attention: [metric]}}
  model.layers: {int: [1, 4]}
  training.learning_rate: {loguniform: [1e-3, 1e-2]}
  training.weight_decay: {uniform: [0, 0.1]}
  training.batch_size: {fixed: 6}
first: [{model.attention: standard, model.layers: 2}]
trials: 5
seeds: 2
sampler: tpe
objectives: [validation_loss]
scheduler: {kind: asha, grace_steps: 50, reduction_factor: 2}
limits: {hours: 2, cost: 3}
price: {cpu_hour: 0.1}
cpus_per_trial: 1
concurrent: 2
storage: /tmp/results
seed: 4
"""
POINTS = "name: plain\npoints: [{model.layers: 2, training.patience: 2, seed: 4}]\n"
GRID = "name: plain\nsampler: grid\nsearch: {model.layers: {int: [1, 3]}, model.dropout: {choice: [0, 0.1]}}\n"
COMPARISON = """\
name: plain
title: Two models
recipe: {seed: 2, model: {width: 32, heads: 2}}
variants: {standard: {}, metric: {model.attention: metric, model.qk_norm: true}}
baseline: standard
tables: [equal width, equal parameters]
tuning: {training.learning_rate: [1e-3, 3e-3]}
seeds: 3
margin: 0.01
prompt: To be
cpus_per_trial: 1
price: {cpu_hour: 1}
"""
FILES = {
    "recipe": RECIPE,
    "sweep": SWEEP,
    "points": POINTS,
    "grid": GRID,
    "comparison": COMPARISON,
    "application": local_application().read_text(),
}
HOSTILE = [
    *(None, True, False, "", " ", "2", "yes", "1e-3", "\n", "a\nb", "x" * 300, "x" * 5000, "../..", "~nouser/x"),
    *("\x01", "../" * 100, "é" * 200, "😀", 0, -1, 1, 2, 3.5, 1e-320, 1e308, -1e308),
    *(float("inf"), float("-inf"), float("nan"), 2**31, 2**32, 2**63, 2**64, 10**9, 10**6, 10**400),
    *([], {}, [[]], [None], [1, "1"], {"": 1}, {"x": []}, {"model.attention": []}, [1] * 2000, {"a": {"b": {"c": {}}}}),
]


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Of everything within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from paths(part, (*at, key))


def mutations(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each part replaced by each hostile value, dropped, nested, doubled, or under another name."""
    for *above, last in paths(whole):
        for change in [*HOSTILE, "drop", "nest", "rename", "double"]:
            changed = copy.deepcopy(whole)
            target: Any = changed
            for key in above:
                target = target[key]
            if change == "drop":
                del target[last]
            elif change == "nest":
                target[last] = {last: target[last]} if isinstance(last, str) else [target[last]]
            elif change == "rename":
                name = f"{last}\n" * 30
                if isinstance(target, dict):
                    target[name] = target.pop(last)
            elif change == "double":
                target[last] = [target[last], target[last]]
            else:
                target[last] = copy.deepcopy(change)
            yield changed


def read(kind: str, path: Path) -> Any:
    """Read as the commands do, and look at what a dry run would draw."""
    if kind == "recipe":
        return read_yaml(path, Recipe)
    if kind == "comparison":
        return read_comparison(path)
    if kind == "application":
        return read_application(path)
    sweep = read_sweep(path)
    for point in (listed_points(sweep) or drawn_points(sweep))[:8]:
        sweep.recipe_for(point, sweep.seeds - 1)
    return sweep


@pytest.mark.parametrize("kind", FILES)
def test_a_mutated_file_gives_one_error_or_is_valid(kind, tmp_path, monkeypatch):
    path = tmp_path / "file.yaml"
    path.write_text(FILES[kind])
    whole, _ = compose_yaml(path)
    read(kind, path)
    # Writing and parsing each of some thousand files takes the time; the values are given as they would be read.
    for module in ("voicechat_platform.strict_yaml", "voicechat_serve.application_file"):
        monkeypatch.setattr(f"{module}.compose_yaml", lambda _: (changed, None))
    refused = valid = 0
    for changed in mutations(whole):
        began = time.process_time()
        message = None
        try:
            read(kind, path)
        except InputError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nfor {changed}"[:3000]) from error
        if message is None:
            valid += 1
        else:
            refused += 1
            assert message.startswith(str(path)), changed
            assert len(message) < 10_000, changed
        assert time.process_time() - began < 2, changed  # of this process's work: it reads, and starts nothing
    assert refused > valid
