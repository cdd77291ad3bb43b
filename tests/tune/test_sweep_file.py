"""The sweep file is checked whole before Ray starts."""

import optuna
import pytest

from voicechat_platform.errors import InputError
from voicechat_tune.search import suggest
from voicechat_tune.sweep_file import Distribution, SweepFile, quickstart, read_sweep

GOOD = """\
name: try
recipe:
  model: {width: 64}
search:
  model.attention: {choice: [standard, metric]}
  training.learning_rate: {loguniform: [0.001, 0.01]}
first:
  - {model.attention: metric}
trials: 4
scheduler: {grace_steps: 250, reduction_factor: 2}
"""


def sweep(tmp_path, old="", new="") -> SweepFile:
    path = tmp_path / "s.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    return read_sweep(path)


def test_a_point_fills_the_recipe(tmp_path):
    recipe = sweep(tmp_path).recipe_for({"model.attention": "metric", "training.learning_rate": 0.002})
    assert (recipe.model.attention, recipe.training.learning_rate, recipe.model.width) == ("metric", 0.002, 64)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials: 4", "trails: 4", r"s\.yaml:9: trails: unknown field; did you mean trials\?"),
        ("trials: 4", "trials: 0", r"s\.yaml:9: trials: .*greater than or equal to 1"),
        ("width: 64", "widht: 64", r"s\.yaml:3: recipe\.model\.widht: unknown field; did you mean width"),
        ("metric]", "metrics]", r"search\.model\.attention = metrics: .*'standard' or 'metric'"),
        ("model.attention: {choice", "model.attentoin: {choice", r"attentoin: unknown field; did you mean attention"),
        ("{loguniform: [0.001, 0.01]}", "{loguniform: [0, 0.01]}", r"s\.yaml:6: .*loguniform must be positive"),
        ("{loguniform: [0.001, 0.01]}", "{uniform: [2, 1]}", "first bound must be less than the second"),
        ("{loguniform: [0.001, 0.01]}", "{uniform: [0.1, 2]}", r"learning_rate = 2.*less than 1"),
        ("{loguniform: [0.001, 0.01]}", "{uniform: [0, 1], choice: [1]}", "give exactly one of choice, integer"),
        ("{model.attention: metric}", "{model.heads: 2}", r"first\.0: model\.heads is not searched"),
        ("{model.attention: metric}", "{model.attention: cosine}", "model.attention = cosine is not among what search"),
        ("{model.attention: metric}", "{training.learning_rate: 0.5}", r"= 0.5 is not among what search"),
        ("{grace_steps: 250, reduction_factor: 2}", "{grace_steps: 5000}", r"\(5000\) must not exceed .* \(2000\)"),
        ("model.attention: {choice: [standard, metric]}", "corpus.source: {choice: [x]}", "only fields of model and"),
        ("model.attention: {choice: [standard, metric]}", "training.steps: {choice: [9]}", "all trials have the same"),
        ("model.attention: {choice: [standard, metric]}", "model.layers: {uniform: [1, 4]}", "valid integer"),
        ("{grace_steps: 250", "{grace_steps: 0", r"s\.yaml:10: scheduler\.grace_steps: "),
    ],
)
def test_a_wrong_sweep_file_says_where_and_what(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        sweep(tmp_path, old, new)


def test_whole_numbers_are_searched_as_such(tmp_path):
    found = sweep(tmp_path, "first:\n  - {model.attention: metric}\n", "").model_copy(
        update={"search": {"model.layers": Distribution(integer=(1, 3))}}
    )
    study = optuna.create_study()
    for _ in range(20):
        trial = study.ask()
        suggest(found, trial)
        assert trial.params["model.layers"] in (1, 2, 3)


def test_the_packaged_quickstart_tries_both_variants():
    packaged = read_sweep(quickstart())
    assert packaged.trials >= 4
    assert {point["model.attention"] for point in packaged.first} == {"standard", "metric"}
