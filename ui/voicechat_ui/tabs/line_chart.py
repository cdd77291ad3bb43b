"""A line chart in HTML: an inline SVG in the page's colours, light or dark, without a script.

The chart has room for all values. The vertical axis is logarithmic if all values are positive, so that the differences
at the end stay visible after the steep fall at the start. The pointer on a point shows its values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

Style = Literal["best", "plain", "faded", "open"]
"""The style of a line: thick; thin; grey; dotted, because the run continues."""

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 100, 14, 44, 70
COLOURS = 7
"""The number of line colours in the style of html_parts.py; all further lines are grey."""
MOST_WITH_VALUES = 20
"""The most lines whose points show their values: a sweep may have thousands."""
MOST_POINTS = 120
"""The most points of a line."""

GREY = "line-grey"

Point = tuple[float, float]
Scale = Callable[[float], float]
"""Converts a value to a coordinate of the SVG."""

CHART = Markup(
    '<figure class="chart"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{description}">{grid}{lines}'
    "{points}{axes}</svg><ul>{legend}</ul><figcaption>{caption}</figcaption></figure>"
)
POINT = Markup(
    '<g class="point" style="--line: var(--{paint})"><circle class="near" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
    '<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    '<text class="tip" x="{tip:.1f}" y="{above:.1f}" text-anchor="{anchor}">{label}, '
    '<tspan x="{tip:.1f}" dy="1.2em">{values}</tspan></text></g>'
)


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[Point]
    """Steps and losses; the chart omits losses that are not finite."""
    style: Style = "plain"


def line_chart(lines: Sequence[Line], across: str, up: str, caption: str, description: str) -> str:
    """Return a chart, or an empty string if no line has a point.

    Args:
        lines: the most important first: the first few have colours and are in the legend.
        across: the name of the horizontal axis.
        up: the name of the vertical axis.
        caption: the text below the chart.
        description: the content of the chart in words, for screen readers.
    """
    drawn = [Line(line.label, thinned([p for p in line.points if math.isfinite(p[1])]), line.style) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    xs, ys = ([point[axis] for line in drawn for point in line.points] for axis in (0, 1))
    x_of, x_ticks = axis_of(xs, LEFT, WIDTH - RIGHT, logarithmic=False)
    y_of, y_ticks = axis_of(ys, HEIGHT - BOTTOM, TOP, logarithmic=min(ys) > 0)
    painted = list(zip(drawn, paints_of(drawn), strict=True))
    points = Markup("").join(
        point(x_of(x), y_of(y), paint, line.label, f"{across} {x:g}: {y:.4g}")
        for line, paint in painted[:MOST_WITH_VALUES]
        for x, y in line.points
    )
    chart = CHART.format(
        width=WIDTH,
        height=HEIGHT,
        description=description,
        grid=grid(y_of, y_ticks) + tick_labels(x_of, x_ticks),
        lines=Markup("").join(polyline(line, paint, x_of, y_of) for line, paint in reversed(painted)),  # first on top
        points=points,
        axes=axis_names(across, up),
        legend=legend(painted),
        caption=caption,
    )
    return str(chart)


def grid(y_of: Scale, ticks: Sequence[float]) -> Markup:
    """Return a horizontal line with its value for each tick of the vertical axis."""
    return Markup("").join(
        Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            LEFT, y_of(tick), WIDTH - RIGHT, LEFT - 8, y_of(tick) + 5, f"{tick:.4g}"
        )
        for tick in ticks
    )


def tick_labels(x_of: Scale, ticks: Sequence[float]) -> Markup:
    """Return the values below the horizontal axis."""
    return Markup("").join(
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x_of(tick), HEIGHT - BOTTOM + 26, f"{tick:g}"
        )
        for tick in ticks
    )


def axis_names(across: str, up: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="middle">{}</text><text x="0" y="24">{}</text>').format(
        (LEFT + WIDTH - RIGHT) // 2, HEIGHT - 10, across, up
    )


def polyline(line: Line, paint: str, x_of: Scale, y_of: Scale) -> Markup:
    return Markup('<polyline class="{}" style="--line: var(--{})" points="{}"><title>{}</title></polyline>').format(
        line.style, paint, " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points), line.label
    )


def legend(painted: Sequence[tuple[Line, str]]) -> Markup:
    items = Markup("").join(
        Markup('<li class="{}" style="--line: var(--{})">{}</li>').format(line.style, paint, line.label)
        for line, paint in painted[:MOST_WITH_VALUES]
        if paint != GREY
    )
    if any(paint == GREY for _, paint in painted):
        items += Markup('<li style="--line: var(--{})">others, and runs that were stopped early</li>').format(GREY)
    return items


def paints_of(lines: Sequence[Line]) -> list[str]:
    """Return the name of each line's colour in the page's style."""
    paints, coloured = [], 0
    for line in lines:
        if line.style == "faded" or coloured == COLOURS:
            paints.append(GREY)
        else:
            paints.append(f"line-{coloured}")
            coloured += 1
    return paints


def point(x: float, y: float, paint: str, label: str, values: str) -> Markup:
    """Return a point that shows its line's label and its values at the pointer, on the side where there is room."""
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
        values=values,
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return about MOST_POINTS of the points at most, with the last and the lowest."""
    every = math.ceil(len(points) / MOST_POINTS) or 1
    lowest = min(points, key=lambda point: point[1], default=None)
    return [p for n, p in enumerate(points) if n % every == 0 or n == len(points) - 1 or p == lowest]


def axis_of(values: Sequence[float], start: float, end: float, logarithmic: bool) -> tuple[Scale, list[float]]:
    """Return the scale of an axis, and the values of its ticks.

    Args:
        values: all values on the axis.
        start: the coordinate of the smallest value.
        end: the coordinate of the largest value.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = min(values), max(values)
    room = 0.02 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = (low if logarithmic and low <= room else low - room), high + room
    scale: Scale = math.log if logarithmic else float
    locator = LogLocator(subs=(1, 2, 5)) if logarithmic and high > 10 * low else MaxNLocator(5)
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return lambda value: start + (end - start) * (scale(value) - scale(low)) / (scale(high) - scale(low)), ticks
