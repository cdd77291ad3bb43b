"""Pieces of HTML for the tabs that show models and sweeps. All text is escaped here."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from voicechat_platform.errors import InputError

# Gradio shows HTML unchanged, with its style. A class named twice overrides Gradio's own rules for tables. The colours
# are Gradio's variables, so that they fit the light and the dark theme.
STYLE = """<style>
.facts.facts { color: var(--body-text-color); font-size: .92rem; }
.facts .wide { overflow-x: auto; }
.facts.facts table { width: 100%; margin: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.facts.facts :is(table, thead, tbody, tr) { border: 0; }
.facts.facts .caption { margin: 0; padding: 4px 0 8px; font-weight: 600; overflow-wrap: anywhere; }
.facts.facts :is(th, td) {
  padding: 5px 14px 5px 0; border: 0; border-bottom: 1px solid var(--border-color-primary); text-align: left;
}
.facts.facts :is(th, td):last-child { padding-right: 0; }
.facts.facts tbody th { font-weight: 500; white-space: nowrap; }
.facts.facts tr.best :is(th, td) { font-weight: 700; color: #0f766e; }
.dark .facts.facts tr.best :is(th, td) { color: #5eead4; }
.facts dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 18px; margin: 8px 0; }
.facts dt { opacity: .8; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts figure { margin: 14px 0; }
.heads { display: grid; grid: auto-flow dense / repeat(auto-fill, minmax(130px, 1fr)); gap: 12px; }
.head { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 0 10px 8px; }
.head[open] { grid-column: 1 / -1; }
.head summary { font-size: .85rem; }
.head summary::marker { content: ""; }
.head summary img { width: 100%; max-width: 130px; aspect-ratio: 1; margin-bottom: 4px; }
.head[open] summary { font-size: 1rem; font-weight: 600; }
.head[open] summary img { display: none; }
.head :is(img, image) { image-rendering: pixelated; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 0 24px; }
.maps svg { display: block; width: 100%; max-width: 440px; height: auto; }
.maps text { fill: currentColor; font: 13px var(--font-mono); text-anchor: end; }
.maps .attracts { fill: rgb(13 148 136); }
.maps .repels { fill: rgb(234 88 12); }
.maps .zero { stroke: currentColor; }
.maps .cells { fill: transparent; stroke: var(--border-color-primary); }
.maps .here { fill: none; stroke: currentColor; stroke-width: 2; }
.maps .value { display: block; min-height: 1.5em; font-weight: 600; overflow-wrap: anywhere; }
.scores { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 8px 24px; }
.score { padding: 2px 8px; border-radius: 6px; }
.score { background: color-mix(in srgb, transparent, #14b8a6 calc(var(--score) * .45)); }
.facts button.link { padding: 0; border: 0; background: none; color: inherit; font: inherit; }
.facts button.link { text-decoration: underline; cursor: pointer; }
.facts button.link:hover { color: #0f766e; }
.dark .facts button.link:hover { color: #5eead4; }
.facts button.link:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.chart { --line-0: #0072b2; --line-1: #b84c00; --line-2: #00795a; --line-3: #a9508a; --line-4: #8a6100; }
.chart { --line-5: #5b4bc4; --line-6: #b3261e; --line-grey: #8a94a3; }
.dark .chart { --line-0: #56b4e9; --line-1: #ff9b55; --line-2: #34d3a4; --line-3: #e79bc9; --line-4: #e6b422; }
.dark .chart { --line-5: #a99cff; --line-6: #ff8a80; --line-grey: #76839a; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: currentColor; font-size: 14px; }
.chart .grid { stroke: var(--border-color-primary); }
.chart polyline { fill: none; stroke: var(--line); stroke-width: 1.8; stroke-linejoin: round; }
.chart polyline.best { stroke-width: 3.4; }
.chart polyline.faded { opacity: .5; }
.chart polyline.open { stroke-dasharray: 2 5; stroke-linecap: round; stroke-width: 2.4; }
.chart .near { fill: transparent; }
.chart .mark { fill: var(--line); }
.chart .tip { font-weight: 600; paint-order: stroke; stroke: var(--body-background-fill); stroke-width: 5px; }
.chart :is(.mark, .tip) { pointer-events: none; }
.chart .point:not(:hover) :is(.mark, .tip) { visibility: hidden; }
.chart ul { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 4px 0; padding: 0; list-style: none; }
.chart li { display: flex; align-items: center; gap: 7px; font-size: .85rem; }
.chart li::before { width: 18px; border-top: 3px solid var(--line); content: ""; }
.chart li.open::before { border-top-style: dotted; }
.facts figcaption { padding-top: 4px; font-size: .85rem; }
.facts summary { cursor: pointer; padding: 6px 0; }
.facts [role="status"], .facts [role="alert"] {
  margin: 8px 0; padding: 10px 14px; border: 1px solid var(--border-color-primary); border-radius: 12px;
}
.facts [role="alert"] { border: 2px solid #b45309; }
.facts-picker [data-testid="block-info"] { padding: 0; background: none; color: var(--body-text-color); }
@media (max-width: 640px) {
  .chart text { font-size: 26px; }
  .maps text { font-size: 14px; }
  .facts-picker input { font-size: .8rem; }
  .facts dl { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 8px; }
}
</style>"""

# For a table that is wider than the page: each row becomes a few lines, and each cell shows its column's name.
STACKED = """@media (max-width: {below}px) {{
  .facts .below-{below} thead {{ display: none; }}
  .facts.facts .below-{below} tr {{
    display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 6px 0; border-bottom: 1px solid var(--border-color-primary);
  }}
  .facts.facts .below-{below} :is(th, td) {{ padding: 0; border: 0; white-space: normal; overflow-wrap: anywhere; }}
  .facts.facts .below-{below} td:empty {{ display: none; }}
  .facts .below-{below} :is(th, td)::before {{ opacity: .8; font-weight: 400; content: attr(data-column) " "; }}
}}
"""
PAGE_WIDTHS = (640, 900, 1120, 99_999)
"""In CSS pixels. Below each width, some tables are stacked. A phone has about 390."""
BESIDE_TABLE, LETTER, BETWEEN_COLUMNS = 80, 8.5, 14
"""In CSS pixels: the part of the page's width beside a table, the width of a letter, the gap after each column."""


def block(*parts: str) -> str:
    """Return the content of one HTML component of a tab."""
    stacked = "".join(STACKED.format(below=width) for width in PAGE_WIDTHS)
    return f'{STYLE}<style>{stacked}</style><div class="facts">{"".join(parts)}</div>'


def notice(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'


def fault(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'


def facts(pairs: dict[str, str]) -> str:
    """Return a list of names and values."""
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in pairs.items()) + "</dl>"


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    """Return a table whose first column has the names of the rows. `Markup` cells are not escaped.

    Args:
        best: the row to mark.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for number, (first, *others) in enumerate(rows):
        cells = "".join(
            f'<td data-column="{escape(column)}">{escape(cell)}</td>'
            for column, cell in zip(columns[1:], others, strict=True)
        )
        mark, suffix = (' class="best"', " (best)") if number == best else ("", "")
        body += f'<tr{mark}><th scope="row" data-column="{escape(columns[0])}">{escape(first)}{suffix}</th>{cells}</tr>'
    # The caption is outside the region that scrolls a wide table. tabindex lets the keyboard scroll it, too.
    return (
        f'<div><p class="caption">{escape(caption)}</p>'
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<table class="{stacks(columns, rows)}" aria-label="{escape(caption)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def stacks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the class that stacks a table on pages that are too narrow for it; empty if it fits a phone."""
    letters = [
        max(longest_word(column), *(longest_word(row[number]) for row in rows)) if rows else longest_word(column)
        for number, column in enumerate(columns)
    ]
    width = BESIDE_TABLE + sum(LETTER * each + BETWEEN_COLUMNS for each in letters)
    return "" if width <= 390 else f"below-{next(page for page in PAGE_WIDTHS if page >= min(width, PAGE_WIDTHS[-1]))}"


def longest_word(cell: str) -> int:
    text = cell.striptags() if isinstance(cell, Markup) else cell
    return max(map(len, text.split()), default=0)


def version_button(version: str) -> Markup:
    """Return a button with a version's name. A click shows the version in the tab on models (`VERSION_CLICKS`)."""
    return Markup(
        '<button type="button" class="link" data-version="{0}" aria-label="Show the model {0}">{0}</button>'
    ).format(version)


VERSION_CLICKS = """element.addEventListener("click", ({ target }) => {
  const { version } = target.closest("button[data-version]")?.dataset ?? {};
  if (version) trigger("click", { version });
});"""
"""For gr.HTML(js_on_load=…): a click on a `version_button` triggers the component's click, with the version as data."""


def folded(summary: str, content: str) -> str:
    """Return content that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def why(error: Exception) -> str:
    """Return the reason for the user. Errors that are not ours may contain paths or SQL: only the log has them."""
    return str(error) if isinstance(error, InputError) else "see the log of this program"
