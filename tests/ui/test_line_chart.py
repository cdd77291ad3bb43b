"""Charts: nothing is cut off, whatever the values are; each point says its values; all text is text."""

import math
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from voicechat_ui.line_chart import HEIGHT, LEFT, MOST_POINTS, WIDTH, Line, line_chart

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


def test_each_point_says_its_values():
    figure = drawn(
        [Line("trial <4>", [(40, 3.5), (80, 1.51657), (120, math.nan)], "best"), Line("trial 2", [(40, 3.6)])]
    )
    assert [tip.text for tip in figure.iter("text") if tip.get("class") == "tip"] == [
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
