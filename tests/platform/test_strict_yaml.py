"""Configuration errors name the file, the line, the field and what is allowed."""

import pytest

from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import read_yaml
from voicechat_platform.training.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "training:\n  stepps: 10\n",
            r"r\.yaml:2: training\.stepps: unknown field; did you mean steps\? Allowed: steps",
        ),
        ("model:\n  attention: metrics\n", r"r\.yaml:2: model\.attention: .*'standard' or 'metric' \(got 'metrics'\)"),
        ("training:\n  steps: 0\n", r"r\.yaml:2: training\.steps: .*greater than or equal to 1 \(got 0\)"),
        ("name: x\nmodel:\n  width: 30\n  heads: 4\n", r"r\.yaml:2: model: width must be a multiple of heads"),
        ("training:\n  steps: 10\n", r"warmup_steps \(100\) must be fewer than steps \(10\)"),
        ("name: Bad Name\n", r"r\.yaml:1: name: "),
        ("- a list\n", "expected a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_says_where_and_what(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(path, Recipe)


def test_every_fault_is_told_at_once(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nsede: 3\ntraining:\n  batchsize: 3\n")
    with pytest.raises(InputError) as caught:
        read_yaml(path, Recipe)
    assert str(caught.value).count("\n") == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: there is no such file"):
        read_yaml(tmp_path / "none.yaml", Recipe)
