"""A line chart as a piece of HTML: an inline SVG in the page's own colours, light or dark, without a script.

Every value is inside: the vertical axis is logarithmic where it can be, so that the fall at the beginning does not
press the end together. Each point says its values when it is pointed at.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

Style = Literal["best", "plain", "faded", "open"]
"""Of a line: thick; as thin as the others; grey; dotted, because it goes on."""

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 100, 14, 44, 70
COLOURS = 7
"""For which the style of html_parts.py has colours; more lines than these are grey."""
MOST_WITH_VALUES = 20
"""Lines whose points tell their values: a sweep may have thousands."""
MOST_POINTS = 120
"""Of a line."""

Point = tuple[float, float]

CHART = Markup(
    '<figure class="chart"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{shows}">{grid}{lines}{points}'
    "{axes}</svg><ul>{legend}</ul><figcaption>{caption}</figcaption></figure>"
)
POINT = Markup(
    '<g class="point" style="--line: var(--{paint})"><circle class="near" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
    '<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    '<text class="tip" x="{tip:.1f}" y="{above:.1f}" text-anchor="{anchor}">{label}, '
    '<tspan x="{tip:.1f}" dy="1.2em">{says}</tspan></text></g>'
)


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[Point]
    """Steps and losses; those that are not finite are left out."""
    style: Style = "plain"


def line_chart(lines: Sequence[Line], across: str, up: str, caption: str, shows: str) -> str:
    """
    Args:
        lines: the most important first: the first few are coloured, and in the legend.
        across: what is on the horizontal axis; `up`, on the vertical one.
        caption: for everybody.
        shows: what is to be seen in it, for those who do not see it.

    Returns:
        The chart; nothing where no line has a point.
    """
    drawn = [Line(line.label, thinned([p for p in line.points if math.isfinite(p[1])]), line.style) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    xs, ys = ([point[axis] for line in drawn for point in line.points] for axis in (0, 1))
    x_of, x_ticks = axis_of(xs, LEFT, WIDTH - RIGHT, logarithmic=False)
    y_of, y_ticks = axis_of(ys, HEIGHT - BOTTOM, TOP, logarithmic=min(ys) > 0)
    paints = paints_of(drawn)
    polylines = Markup("").join(
        Markup('<polyline class="{}" style="--line: var(--{})" points="{}"><title>{}</title></polyline>').format(
            line.style, paint, " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points), line.label
        )
        for line, paint in reversed(list(zip(drawn, paints, strict=True)))  # the first on top
    )
    points = Markup("").join(
        point(x_of(x), y_of(y), paint, line.label, f"{across} {x:g}: {y:.4g}")
        for line, paint in zip(drawn[:MOST_WITH_VALUES], paints, strict=False)
        for x, y in line.points
    )
    grid = Markup("").join(
        Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            LEFT, y_of(tick), WIDTH - RIGHT, LEFT - 8, y_of(tick) + 5, f"{tick:.4g}"
        )
        for tick in y_ticks
    ) + Markup("").join(
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x_of(tick), HEIGHT - BOTTOM + 26, f"{tick:g}"
        )
        for tick in x_ticks
    )
    axes = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text><text x="0" y="24">{}</text>').format(
        (LEFT + WIDTH - RIGHT) // 2, HEIGHT - 10, across, up
    )
    legend = Markup("").join(
        Markup('<li class="{}" style="--line: var(--{})">{}</li>').format(line.style, paint, line.label)
        for line, paint in list(zip(drawn, paints, strict=True))[:MOST_WITH_VALUES]
        if paint != "line-grey"
    )
    if "line-grey" in paints:
        legend += Markup('<li style="--line: var(--line-grey)">others, and those that were stopped early</li>')
    drawing = {"grid": grid, "lines": polylines, "points": points, "axes": axes, "legend": legend}
    return str(CHART.format(width=WIDTH, height=HEIGHT, shows=shows, caption=caption, **drawing))


def paints_of(lines: Sequence[Line]) -> list[str]:
    """The name of each line's colour in the page's style."""
    paints, coloured = [], 0
    for line in lines:
        if line.style == "faded" or coloured == COLOURS:
            paints.append("line-grey")
        else:
            paints.append(f"line-{coloured}")
            coloured += 1
    return paints


def point(x: float, y: float, paint: str, label: str, says: str) -> Markup:
    """What is seen when it is pointed at: its line's label and its values, where there is room for them."""
    anchor, aside = ("start", 12) if x < WIDTH / 3 else ("middle", 0) if x < 2 * WIDTH / 3 else ("end", -12)
    is_low = y > (TOP + HEIGHT - BOTTOM) / 2
    return POINT.format(
        paint=paint,
        x=x,
        y=y,
        tip=x + aside,
        above=y - 50 if is_low else y + 34,
        anchor=anchor,
        label=label,
        says=says,
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most some MOST_POINTS of them, the last and the lowest included."""
    every = math.ceil(len(points) / MOST_POINTS) or 1
    lowest = min(points, key=lambda point: point[1], default=None)
    return [p for n, p in enumerate(points) if n % every == 0 or n == len(points) - 1 or p == lowest]


def axis_of(
    values: Sequence[float], start: float, end: float, logarithmic: bool
) -> tuple[Callable[[float], float], list[float]]:
    """
    Args:
        values: all that must have a place.
        start: the place of the smallest; `end`, that of the largest.

    Returns:
        A value's place, and the values to be labelled.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = min(values), max(values)
    room = 0.02 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = (low if logarithmic and low <= room else low - room), high + room
    scale: Callable[[float], float] = math.log if logarithmic else float
    locator = LogLocator(subs=(1, 2, 5)) if logarithmic and high > 10 * low else MaxNLocator(5)
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return lambda value: start + (end - start) * (scale(value) - scale(low)) / (scale(high) - scale(low)), ticks
