"""Configuration errors name the file, the line, the field and what is allowed."""

import pytest

from voicechat_platform.errors import InputError
from voicechat_platform.strict_yaml import compose_yaml, read_yaml
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.5e-3", 0.0025),
        ("010", 10),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-11-30", "2026-11-30"),
        ("0x10", 16),
        ("1_000", "1_000"),
        ("1_0.5", "1_0.5"),
        ("-0b11", "-0b11"),
        ("true", True),
        ("null", None),
    ],
)
def test_values_are_those_of_yaml_1_2(tmp_path, text, value):
    path = tmp_path / "v.yaml"
    path.write_text(f"v: [{text}]\n")
    assert compose_yaml(path)[0] == {"v": [value]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\nname: b\n", r"v\.yaml:2: .*duplicate"),
        (b"a: {b: 1, b: 2}\n", r"v\.yaml:1: .*duplicate"),
        (b"a: 1\n---\nb: 2\n", "another document"),
        (b"", "expected a mapping"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a: \x00b\n", "v.yaml"),
        (b"a: &x [*x]\n", "refers to a value that contains it"),
        (b"a: &x {b: 1}\nc:\n  <<: *x\n", "no merge keys"),
        (b"1: one\n", "a key must be text"),
        (b"%YAML 1.1\n---\na: yes\n", "YAML 1.2"),
        (b"a: [" + b"[" * 5000, "not valid YAML"),
        (b'a: "' + b"x" * 2**20 + b'"\n', "more than"),
        (
            b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)),
            "aliases counted",
        ),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "v.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        compose_yaml(path)
