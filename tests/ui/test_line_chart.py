"""Charts and heads' matrices: nothing is cut off, whatever the values are; each point and cell says its value; all text
is text; nothing has a ground of its own, light or dark."""

import base64
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from io import BytesIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from voicechat_ui.tabs.head_maps import CELL, LETTER, MOST_HEADS, MOST_LETTERS, Matrix, head_maps, heat, wide
from voicechat_ui.tabs.line_chart import HEIGHT, LEFT, MOST_POINTS, WIDTH, Line, line_chart

TEXT = st.text(st.characters(exclude_categories=("C",)), max_size=20)
LOSSES = st.floats(allow_nan=True, allow_infinity=True, width=32)
CURVES = st.lists(
    st.builds(
        Line,
        st.text(st.characters(exclude_categories=("C",)), max_size=8),
        st.lists(st.tuples(st.integers(0, 10**9), LOSSES), max_size=12),
        st.sampled_from(("best", "plain", "faded", "open")),
    ),
    max_size=12,
)


def drawn(lines: list[Line]) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(lines, "step", "loss", "A <caption>.", 'It "falls".'))


@settings(deadline=None)  # matplotlib is imported at the first
@given(CURVES)
def test_every_value_is_inside(lines):
    if not any(math.isfinite(loss) for line in lines for _, loss in line.points):
        assert line_chart(lines, "step", "loss", "", "") == ""
        return
    figure = drawn(lines)
    for polyline in figure.iter("polyline"):
        for place in polyline.get("points", "").split():
            x, y = map(float, place.split(","))
            assert LEFT <= x <= WIDTH
            assert 0 <= y <= HEIGHT - 40
    for text in figure.iter("text"):
        assert "nan" not in (text.get("y") or "")
    for tip in figure.iter("tspan"):  # 18 letters, at 26 on a phone, bold
        start = {"start": 0, "middle": 0.5, "end": 1}[tip_anchor(figure, tip)]
        left = float(tip.get("x", "")) - start * 320
        assert 0 <= left <= WIDTH - 320


def tip_anchor(figure: ElementTree.Element, tip: ElementTree.Element) -> str:
    return next(text.get("text-anchor", "") for text in figure.iter("text") if tip in list(text))


def test_each_point_says_its_values():
    figure = drawn(
        [Line("trial <4>", [(40, 3.5), (80, 1.51657), (120, math.nan)], "best"), Line("trial 2", [(40, 3.6)])]
    )
    assert ["".join(tip.itertext()) for tip in figure.iter("text") if tip.get("class") == "tip"] == [
        "trial <4>, step 40: 3.5",
        "trial <4>, step 80: 1.517",
        "trial 2, step 40: 3.6",
    ]
    assert [item.text for item in figure.iter("li")] == ["trial <4>", "trial 2"]
    assert figure.find("figcaption").text == "A <caption>."
    assert figure.find("svg").get("aria-label") == 'It "falls".'


def test_the_page_gives_the_colours():
    html = line_chart([Line("a", [(1, 2.0), (2, 1.0)])], "step", "loss", "", "")
    assert not re.search(r"#[0-9a-f]{3,6}|white|black|http|<img|<script", html)


def test_a_sweep_of_a_thousand_long_trials_stays_small():
    curve = [(step, 4 / math.sqrt(step)) for step in range(1, 2001)]
    html = line_chart([Line(f"trial {n}", curve) for n in range(1000)], "step", "loss", "", "")
    assert len(html) < 3_000_000
    points = ElementTree.fromstring(html).find(".//polyline").get("points").split()
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS + 3


@settings(deadline=None)
@given(st.data(), st.lists(TEXT, min_size=1, max_size=5), st.lists(TEXT, min_size=1, max_size=5))
def test_a_heads_matrix_is_whole_and_says_its_values(data, rows, columns):
    row = st.lists(
        st.floats(-1e6, 1e6, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6),
        min_size=len(columns),
        max_size=len(columns),
    )
    values = data.draw(st.lists(row, min_size=len(rows), max_size=len(rows)))
    figure = ElementTree.fromstring(
        heat("A <head>", Matrix("A <map>.", "{row}, {column}: {value}", rows, columns, values))
    )
    _, top, width, height = map(float, figure.find("svg").get("viewBox").split())
    (cells,) = (rect for rect in figure.iter("rect") if rect.get("class") == "cells")
    told = json.loads(cells.get("data-map"))
    assert (told["rows"], told["columns"]) == (rows, columns)
    np.testing.assert_allclose(told["values"], values, rtol=0.01)
    left, down = float(cells.get("x")), float(cells.get("height"))
    assert left + float(cells.get("width")) <= width
    upright = [text for text in figure.find("svg") if text.tag == "text"]
    turned = [text for text in figure.find("svg/g") if text.tag == "text"]
    for text, name in zip([*upright, *turned], [*rows, *columns], strict=True):
        label = text.text or ""
        assert label.rstrip("…") == name.replace(" ", "·")[: len(label.rstrip("…"))]
        assert wide(label) <= MOST_LETTERS
        end, across = float(text.get("x")), float(text.get("y"))
        if text in upright:
            assert end - LETTER * wide(label) >= 0
            assert CELL / 2 <= across <= down
        else:
            assert LETTER * wide(label) - end <= top + height
            assert left <= across <= width
    pixels = imread(BytesIO(base64.b64decode(figure.find("svg/image").get("href").partition(",")[2])))
    assert pixels.shape == (len(rows), len(columns), 4)
    assert (pixels[..., 3][np.array(values) == 0] == 0).all(), "what is nothing has no colour"
    assert pixels[..., 3].max() == (1 if np.any(values) else 0)
    assert (pixels[..., 0] > pixels[..., 2])[np.array(values) < 0].all(), "orange below zero"
    assert (pixels[..., 0] < pixels[..., 2])[np.array(values) >= 0].all(), "teal above"


def test_the_heads_of_a_large_model_stay_small():
    random, tokens = np.random.default_rng(0), [f" token{number}" for number in range(24)]
    heads = [
        {"layer": number // 12, "head": number % 12, "positive": 40, "negative": 24, "effective_rank": 33.3}
        | dict.fromkeys(("symmetry", "self_weight", "previous_token", "induction"), 0.25)
        | {"eigenvalues": random.normal(size=64).tolist()}
        | {"loadings": random.normal(size=(24, 64)).tolist(), "token_distances": random.normal(size=(24, 24)).tolist()}
        | {"attention": np.tril(random.random((24, 24))).tolist()}
        for number in range(144)
    ]
    html = head_maps({"tokens": tokens, "text": tokens, "heads": heads})
    assert len(html) < 1_200_000
    assert html.count("<details") == MOST_HEADS
    assert f"The last {144 - MOST_HEADS} heads are not drawn here" in html
    assert html.count("0.25</span>") == 4 * 144, "the scores are of all"
    assert not re.search(r"#[0-9a-f]{6}|white|black|http|<script", re.sub(r"base64,[^\"]*", "", html))
