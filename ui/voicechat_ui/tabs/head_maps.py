"""HTML of what a model's heads have learned: a card for each head, which opens on a click.

The matrices are transparent images in two colours that are visible on light and dark backgrounds. Their labels are
text. The pointer on a cell shows its value (`VALUES`).
"""

import base64
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from markupsafe import Markup

from voicechat_ui.tabs import html_parts as parts

MOST_HEADS = 36
"""The most heads to draw. Each takes about 30 kB of the page."""
MOST_DIRECTIONS = 16
MOST_LETTERS = 8
"""The most letters of a label; the text below the matrix shows all."""
CELL = 14
"""The side of a matrix's cell, equal to the height of a label."""
LETTER = 8.5
"""The greatest width of a label's letter."""
BARS_WIDTH, BARS_HEIGHT = 336, 120
ATTRACTS, REPELS = (13, 148, 136), (234, 88, 12)
"""Red, green and blue of values above zero, and below zero."""

SCORES = {
    "symmetry": "share of the symmetric part in the head's form: 1 for a metric, about 0.5 for random queries and keys",
    "self_weight": "attention to the same token",
    "previous_token": "attention to the previous token",
    "induction": "attention to the token that followed the last occurrence of this token",
}
"""The scores of each head, 0 to 1, each shown as a table, with their meanings."""

CARD = Markup(
    '<details class="head"><summary><img src="{small}" alt="">{name}</summary><div class="maps">{maps}</div></details>'
)
MAP = Markup(
    '<figure><svg viewBox="0 -3 {width} {height}" role="img" aria-label="{name}: {caption}">{drawing}'
    '<rect class="here" width="0" height="0"/>'
    '<rect class="cells" x="{left}" y="0" width="{across}" height="{down}" data-map="{data}"/></svg>'
    '<figcaption>{caption}<output class="value">Point at a cell to see its value.</output></figcaption></figure>'
)
VALUES = """const showValue = ({ target, clientX, clientY }) => {
  const cells = target.closest(".cells");
  if (!cells) return;
  const { template, rows, columns, values } = JSON.parse(cells.dataset.map);
  const box = cells.getBoundingClientRect();
  const place = (at, from, size, count) => Math.max(0, Math.min(count - 1, Math.floor(((at - from) / size) * count)));
  const row = place(clientY, box.top, box.height, rows.length);
  const column = place(clientX, box.left, box.width, columns.length);
  const names = { row: rows[row], column: columns[column], value: values[row][column] };
  cells.closest("figure").querySelector(".value").textContent = template.replace(/{(\w+)}/g, (_, name) => names[name]);
  const here = cells.parentElement.querySelector(".here");
  const [left, width, height] = [cells.x.baseVal.value, cells.width.baseVal.value, cells.height.baseVal.value];
  here.setAttribute("x", left + (column * width) / columns.length);
  here.setAttribute("y", (row * height) / rows.length);
  here.setAttribute("width", width / columns.length);
  here.setAttribute("height", height / rows.length);
};
for (const event of ["pointermove", "pointerdown"]) element.addEventListener(event, showValue);"""
"""For gr.HTML(js_on_load=…): shows the value of the cell at the pointer or finger, and frames the cell."""


@dataclass(frozen=True)
class Matrix:
    """The values of one picture of a head."""

    caption: str
    template: str
    """The text for the cell at the pointer, with {row}, {column} and {value}."""
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


def head_maps(read: dict[str, Any]) -> str:
    """Return the HTML of all heads.

    Args:
        read: the content of heads.json, which `voicechat heads` writes.

    Returns:
        Tables of scores with a row for each layer, then the cards.
    """
    heads = read["heads"]
    cards = Markup("").join(
        card(f"Layer {head['layer']}, head {head['head']}", matrices(read, head)) for head in heads[:MOST_HEADS]
    )
    left_out = len(heads) - MOST_HEADS
    more = (
        f" The last {left_out} heads are not drawn here; `voicechat heads` draws all of them." if left_out > 0 else ""
    )
    text = f"The attention of each head: rows attend to columns. Click a head for more pictures.{more}"
    scores = "".join(score_table(heads, name, meaning) for name, meaning in SCORES.items())
    return f'<div class="scores">{scores}</div>{parts.notice(text)}<div class="heads">{cards}</div>'


def score_table(heads: Sequence[dict[str, Any]], name: str, meaning: str) -> str:
    """Return the table of one of `SCORES`: layers as rows, heads as columns; a higher score has a stronger colour."""
    layers = sorted({head["layer"] for head in heads})
    across = sorted({head["head"] for head in heads})
    scores = {(head["layer"], head["head"]): head[name] for head in heads}
    rows = [[f"layer {layer}", *(shaded(scores[layer, head]) for head in across)] for layer in layers]
    return parts.table(f"{name.replace('_', ' ').capitalize()}: {meaning}", ["", *(f"head {h}" for h in across)], rows)


def shaded(score: float) -> Markup:
    return Markup('<span class="score" style="--score: {:.0f}%">{:.2f}</span>').format(100 * score, score)


def matrices(read: dict[str, Any], head: dict[str, Any]) -> list[Matrix]:
    """Return the matrices of a head, attention first: the closed card shows the first one."""
    common, text = read["tokens"], read["text"]
    spectrum = head["eigenvalues"]
    directions = [f"{value:+.2g}" for value in spectrum[:MOST_DIRECTIONS]]
    return [
        Matrix(
            "Attention weights over the beginning of the validation text; rows attend to columns.",
            "“{row}” attends to “{column}”: {value}",
            text,
            text,
            head["attention"],
        ),
        Matrix(
            f"Eigenvalues of the head's form, the largest first: +{head['positive']} −{head['negative']}, effective "
            f"rank {head['effective_rank']:.1f}. Teal attracts, orange repels.",
            "eigenvalue {column}: {value}",
            ["spectrum"],
            [str(number + 1) for number in range(len(spectrum))],
            [spectrum],
        ),
        Matrix(
            "The most common tokens along the eigenvectors of the head's form; columns: eigenvalues.",
            "“{row}” along the eigenvector of eigenvalue {column}: {value}",
            common,
            directions,
            [row[:MOST_DIRECTIONS] for row in head["loadings"]],
        ),
        Matrix(
            "Squared distances between the most common tokens under the head's form; orange below zero.",
            "from “{row}” to “{column}”: {value}",
            common,
            common,
            head["token_distances"],
        ),
    ]


def card(name: str, shown: Sequence[Matrix]) -> Markup:
    maps = Markup("").join(bars(name, each) if len(each.rows) == 1 else heat(name, each) for each in shown)
    return CARD.format(small=image(shown[0]), name=name, maps=maps)


def heat(name: str, matrix: Matrix) -> Markup:
    """Return a coloured cell for each value, with labels on the left and below."""
    across, down = CELL * len(matrix.columns), CELL * len(matrix.rows)
    left, below = room(matrix.rows), room(matrix.columns)
    labels = [
        Markup('<text x="{:.0f}" y="{:.0f}">{}</text>').format(at, start + CELL * number + CELL - 3, short(label))
        for names, at, start in ((matrix.rows, left - 5, 0), (matrix.columns, -down - 5, left))
        for number, label in enumerate(names)
    ]
    drawing = Markup(
        '<image href="{}" x="{:.0f}" width="{}" height="{}" preserveAspectRatio="none"/>{}'
        '<g transform="rotate(-90)">{}</g>'
    ).format(
        image(matrix),
        *(left, across, down),
        *(Markup("").join(each) for each in (labels[: len(matrix.rows)], labels[len(matrix.rows) :])),
    )
    return figure(name, matrix, drawing, left, across, down, below)


def bars(name: str, matrix: Matrix) -> Markup:
    """Return a bar for each value of the only row, up or down from zero."""
    (values,) = matrix.values
    top, bottom = max(0.0, *values), min(0.0, *values)
    scale = BARS_HEIGHT / ((top - bottom) or 1)
    limits = [(f"{value:+.2g}", y) for value, y in ((top, 11), (bottom, BARS_HEIGHT)) if value]
    left, across = room([label for label, _ in limits]), BARS_WIDTH
    step = across / len(values)
    paths = Markup("").join(
        Markup('<path class="{}" d="M{:.1f} {:.1f}h{:.1f}v{:.1f}h{:.1f}z"/>').format(
            "attracts" if value > 0 else "repels",
            *(left + step * number, scale * top, 0.8 * step, -scale * value, -0.8 * step),
        )
        for number, value in enumerate(values)
    )
    zero = Markup('<path class="zero" d="M{} {:.1f}h{}"/>').format(left, scale * top, across)
    ticks = Markup("").join(
        Markup('<text x="{:.0f}" y="{}">{}</text>').format(left - 5, y, label) for label, y in limits
    )
    return figure(name, matrix, paths + zero + ticks, left, across, BARS_HEIGHT, 6)


def figure(name: str, matrix: Matrix, drawing: Markup, left: float, across: float, down: float, below: float) -> Markup:
    data = {
        "template": matrix.template,
        "rows": matrix.rows,
        "columns": matrix.columns,
        "values": [[float(f"{value:.3g}") for value in row] for row in matrix.values],
    }
    return MAP.format(
        width=round(left + across + 6),
        height=round(down + below) + 3,
        name=name,
        caption=matrix.caption,
        drawing=drawing,
        left=round(left),
        across=across,
        down=down,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")),
    )


def image(matrix: Matrix) -> str:
    """Return a PNG in a data URI, one pixel per value. Opacity is a square root, so that small values are visible."""
    from matplotlib.image import imsave

    values = np.array(matrix.values)
    pixels = np.where((values < 0)[..., None], REPELS, ATTRACTS)
    opacity = 255 * np.sqrt(np.abs(values) / (np.abs(values).max() or 1))
    file = BytesIO()
    imsave(file, np.dstack([pixels, opacity]).astype(np.uint8), format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def room(labels: Sequence[str]) -> float:
    """Return the width for labels and a gap beside a matrix."""
    return 8 + LETTER * max((wide(short(label)) for label in labels), default=0)


def short(label: str) -> str:
    """Return a label of at most `MOST_LETTERS` letters, with dots for spaces."""
    letters = label.replace(" ", "·")
    if wide(letters) <= MOST_LETTERS:
        return letters
    while wide(letters) >= MOST_LETTERS:
        letters = letters[:-1]
    return letters + "…"


def wide(text: str) -> int:
    """Return the width of a text in letters: wide letters, such as Chinese ones, count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
