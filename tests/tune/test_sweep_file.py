"""The sweep file is checked whole before Ray starts."""

import optuna
import pytest

from voicechat_platform.errors import InputError
from voicechat_tune.search.samplers import listed_points
from voicechat_tune.search.space import Parameter, draw_point
from voicechat_tune.search.sweep_file import SweepFile, quickstart, read_sweep

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


BRANCH = "  model.metric: {choice: [symmetric, signed_diagonal], when: {model.attention: metric}}\nfirst:"
BRANCHED = GOOD.replace("first:", BRANCH)


def sweep(tmp_path, old="", new="", text=GOOD) -> SweepFile:
    path = tmp_path / "s.yaml"
    assert old in text
    path.write_text(text.replace(old, new))
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
        ("metric]", "metrics]", r"search\.model\.attention \(attention metrics\): .*'standard' or 'metric'"),
        ("model.attention: {choice", "model.attentoin: {choice", r"attentoin: unknown field; did you mean attention"),
        ("{loguniform: [0.001, 0.01]}", "{loguniform: [0, 0.01]}", r"s\.yaml:6: .*loguniform must be positive"),
        ("{loguniform: [0.001, 0.01]}", "{integer: [1, 2]}", r"unknown field; did you mean int\? Allowed: choice, int"),
        ("{loguniform: [0.001, 0.01]}", "{uniform: [2, 1]}", "first bound must be less than the second"),
        ("{loguniform: [0.001, 0.01]}", "{uniform: [0.1, 2]}", r"learning_rate 2.*less than 1"),
        ("{loguniform: [0.001, 0.01]}", "{uniform: [0, 1], choice: [1]}", "give exactly one of choice, int,"),
        ("{model.attention: metric}", "{model.heads: 2}", r"first\.0: model\.heads is not a search field"),
        (
            "{model.attention: metric}",
            "{model.attention: cosine}",
            "attention does not allow the value cosine",
        ),
        ("{model.attention: metric}", "{training.learning_rate: 0.5}", r"does not allow the value 0\.5"),
        ("{grace_steps: 250, reduction_factor: 2}", "{grace_steps: 5000}", r"\(5000\) must not exceed .* \(2000\)"),
        ("model.attention: {choice: [standard, metric]}", "corpus.source: {choice: [x]}", "only fields of model and"),
        ("model.attention: {choice: [standard, metric]}", "training.steps: {choice: [9]}", "all trials have the same"),
        ("model.attention: {choice: [standard, metric]}", "model.layers: {uniform: [1, 4]}", "valid integer"),
        ("trials: 4", "seed: 4", "trials is missing"),
        ("trials: 4", "trials: 4\nlimits: {cost: 3}", r"limits\.cost needs the price"),
        ("trials: 4", "trials: 4\nlimits: {gpu_hours: 3}", r"limits\.gpu_hours has no effect"),
        (
            "trials: 4",
            "trials: 4\nworkers_per_trial: 5",
            r"batch_size \(12\) must be a multiple of .* workers_per_trial",
        ),
        ("trials: 4", "trials: 4\nsampler: cma_es", "cma_es searches only numbers, without branches"),
        ("trials: 4", "trials: 4\nsampler: grid", "a grid needs a finite number of values"),
        ("trials: 4", "trials: 4\nobjectives: [validation_loss, parameters]", "several objectives need the sampler"),
        ("trials: 4", "trials: 4\nobjectives: [parameters]", "validation_loss first"),
        ("trials: 4", "trials: 4\npoints: [{model.layers: 3}]", "give either search"),
        (
            "{grace_steps: 250, reduction_factor: 2}",
            "{kind: pbt, population: 4}",
            r":10: .*interval_steps: Field required",
        ),
        ("{grace_steps: 250", "{population: 3, grace_steps: 250", "population does not belong to asha"),
        (
            "{grace_steps: 250, reduction_factor: 2}",
            "{kind: pbt, population: 4, interval_steps: 200}",
            r"pbt changes values during training, so it cannot search fields of the model: model\.attention",
        ),
        ("{grace_steps: 250", "{grace_steps: 0", r"s\.yaml:10: scheduler\.grace_steps: "),
        ("{grace_steps: 250", "\n  {grace_steps: 250, typo: null", r"s\.yaml:11: scheduler\.typo: .* grace_steps, red"),
        (
            "{grace_steps: 250",
            "\n  {kind: ashes, grace_steps: 250",
            r"s\.yaml:11: scheduler\.kind: .*'ashes'; give one",
        ),
    ],
)
def test_a_wrong_sweep_file_says_where_and_what(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        sweep(tmp_path, old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "metric}}",
            "metric, model.width: 64}}",
            r"search\.model\.metric\.when: model\.width must be a search field above model\.metric",
        ),
        ("when: {model.attention: metric}", "when: {model.attention: mtn}", r"model\.attention is never mtn"),
        (
            "  - {model.attention: metric}",
            "  - {model.attention: standard, model.metric: symmetric}",
            r"first\.0: model\.metric exists only when",
        ),
        ("  - {model.attention: metric}", "  - {model.metric: symmetric}", r"needs model\.attention too"),
        (", when: {model.attention: metric}}", "}", r"search\.model\.metric .*belongs to metric attention"),
    ],
)
def test_a_wrong_branch_says_what(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        sweep(tmp_path, old, new, BRANCHED)


def test_a_branch_is_drawn_only_where_it_exists(tmp_path):
    found, study, seen = sweep(tmp_path, text=BRANCHED), optuna.create_study(), set()
    for _ in range(40):
        point = draw_point(found.search, study.ask())
        assert ("model.metric" in point) == (point["model.attention"] == "metric")
        found.recipe_for(point)
        seen.add(point.get("model.metric"))
    assert seen == {None, "symmetric", "signed_diagonal"}


def test_whole_numbers_are_searched_as_such():
    study = optuna.create_study()
    layers = Parameter.model_validate({"int": [1, 3]})
    assert {draw_point({"model.layers": layers}, study.ask())["model.layers"] for _ in range(30)} == {1, 2, 3}


def test_a_grid_has_every_combination_once_and_no_branch_outside_its_own():
    grid = SweepFile.model_validate(
        {
            "name": "g",
            "sampler": "grid",
            "search": {
                "model.attention": {"choice": ["standard", "metric"]},
                "model.metric": {"choice": ["symmetric", "general"], "when": {"model.attention": "metric"}},
                "model.values": {"fixed": "separate", "when": {"model.attention": "metric"}},
                "model.layers": {"int": [1, 2]},
            },
        }
    )
    points = listed_points(grid)
    assert len(points) == 6
    assert len({str(point) for point in points}) == 6
    assert sum("model.metric" in point for point in points) == 4
    assert all(("model.values" in point) == ("model.metric" in point) for point in points)


def test_the_packaged_quickstart_tries_both_variants():
    packaged = read_sweep(quickstart())
    assert packaged.trials >= 4
    assert {point["model.attention"] for point in packaged.first} == {"standard", "metric"}


@pytest.mark.parametrize("field", ["corpus.source", "training.steps", "init_from"])
def test_points_change_what_differs_between_trials_and_nothing_else(field):
    with pytest.raises(ValueError, match="is the same for all trials; give it in the recipe"):
        SweepFile.model_validate({"name": "p", "points": [{field: "x"}]})


BRANCHES = {
    "model.attention": {"choice": ["standard", "metric"]},
    "model.metric": {"choice": ["symmetric", "signed_diagonal"], "when": {"model.attention": "metric"}},
}
NUMBER_IN_A_BRANCH = {
    "model.layers": {"int": [1, 2]},
    "model.dropout": {"uniform": [0, 0.1], "when": {"model.layers": 2}},
}
SPEED = ["validation_loss", "tokens_per_second"]
FIXED = {"model.layers": {"fixed": 2}}
POPULATION = {"kind": "pbt", "population": 4, "interval_steps": 200}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheduler": POPULATION, "recipe": {"training": {"patience": 2}}}, "leave out recipe.training.patience"),
        ({"scheduler": POPULATION, "sampler": "gp"}, r"leave out sampler \(gp\)"),
        ({"scheduler": POPULATION, "sampler": "cma_es"}, r"leave out sampler \(cma_es\)"),
        ({"sampler": "gp", "search": BRANCHES}, r"search\.model\.metric\.when: gp .*use tpe"),
        ({"sampler": "cma_es", "search": BRANCHES}, r"search\.model\.attention: cma_es .*use tpe or gp"),
        ({"sampler": "cma_es", "search": NUMBER_IN_A_BRANCH}, r"search\.model\.dropout: cma_es .*use tpe"),
        ({"sampler": "cma_es", "search": FIXED}, "search: all fields are fixed, so cma_es has nothing to draw"),
        ({"sampler": "gp", "search": FIXED}, "search: all fields are fixed, so gp has nothing to draw"),
        ({"search": FIXED}, "search: all fields are fixed, so tpe has nothing to draw; use sampler: grid"),
        ({"sampler": "gp", "scheduler": {"grace_steps": 200}}, r"use tpe, or leave out scheduler \(asha\)"),
        (
            {"sampler": "gp", "scheduler": {"kind": "hyperband", "grace_steps": 200}},
            r"sampler: gp cannot learn from runs that a scheduler stops; .*\(hyperband\)",
        ),
        (
            {"objectives": SPEED},
            "if runs share a machine, tokens_per_second .* concurrent: 1, or gpus_per_trial: 1",
        ),
        (
            {"objectives": SPEED, "concurrent": 2, "gpus_per_trial": 0.5},
            "if runs share a machine, tokens_per_second",
        ),
        ({"sampler": "random", "warm_start": "earlier"}, "warm_start: random does not use earlier trials; use"),
        ({"sampler": "cma_es", "warm_start": "earlier"}, "warm_start: cma_es does not use earlier trials; use"),
        ({"sampler": "grid", "warm_start": "earlier", "search": FIXED}, "warm_start: grid does not use earlier"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_with_a_remedy(fields, message):
    search = {"training.learning_rate": {"loguniform": [0.001, 0.01]}, "training.weight_decay": {"uniform": [0, 1]}}
    with pytest.raises(ValueError, match=message):
        SweepFile.model_validate({"name": "s", "search": search, "trials": 20, **fields})


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({}, True),
        ({"concurrent": 2}, True),
        ({"gpus_per_trial": 0.25}, True),
        ({"concurrent": 1}, False),
        ({"concurrent": 1, "gpus_per_trial": 0.5}, False),
        ({"gpus_per_trial": 1}, False),
    ],
)
def test_a_run_with_a_machine_or_whole_gpus_of_its_own_shares_none(fields, shares):
    search = {"training.learning_rate": {"loguniform": [0.001, 0.01]}}
    sweep = {"name": "s", "search": search, "trials": 20, **fields}
    assert SweepFile.model_validate(sweep).runs_share_machine() == shares
    if not shares:
        SweepFile.model_validate({**sweep, "objectives": SPEED})
