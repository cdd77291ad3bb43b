"""Pieces of HTML for the tabs that show models and sweeps. All text is escaped here, and pictures are part of the page:
it asks nobody for anything."""

import base64
import html
from collections.abc import Sequence

# Gradio shows HTML as it is, its style included. Its own rules for tables are outdone by naming the class twice; the
# colours are its variables, so that both themes fit.
STYLE = """<style>
.facts.facts { color: var(--body-text-color); font-size: .92rem; }
.facts .wide { overflow-x: auto; }
.facts.facts table { width: 100%; margin: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.facts.facts :is(table, thead, tbody, tr) { border: 0; }
.facts.facts caption { padding: 4px 0 8px; text-align: left; font-weight: 600; }
.facts.facts :is(th, td) {
  padding: 5px 14px 5px 0; border: 0; border-bottom: 1px solid var(--border-color-primary); text-align: left;
}
.facts.facts tbody th { font-weight: 500; white-space: nowrap; }
.facts.facts tr.best :is(th, td) { font-weight: 700; color: #0f766e; }
.dark .facts.facts tr.best :is(th, td) { color: #5eead4; }
.facts dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 18px; margin: 8px 0; }
.facts dt { opacity: .8; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts figure { margin: 14px 0; }
.facts img { max-width: 100%; border-radius: 10px; background: white; }
.facts figcaption { padding-top: 4px; font-size: .85rem; }
.facts summary { cursor: pointer; padding: 6px 0; }
.facts [role="status"], .facts [role="alert"] {
  margin: 8px 0; padding: 10px 14px; border: 1px solid var(--border-color-primary); border-radius: 12px;
}
.facts [role="alert"] { border: 2px solid #b45309; }
.facts-picker [data-testid="block-info"] { padding: 0; background: none; color: var(--body-text-color); }
@media (max-width: 640px) { .facts dl { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: 8px; } }
</style>"""


def block(*parts: str) -> str:
    """What one HTML component of a tab shows."""
    return f'{STYLE}<div class="facts">{"".join(parts)}</div>'


def notice(text: str) -> str:
    return f'<p role="status">{html.escape(text)}</p>'


def fault(text: str) -> str:
    return f'<p role="alert">{html.escape(text)}</p>'


def facts(pairs: dict[str, str]) -> str:
    """A list of names and what they stand for."""
    return "<dl>" + "".join(f"<dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd>" for n, v in pairs.items()) + "</dl>"


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    """A table whose first column names its rows.

    Args:
        best: the row to mark.
    """
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = ""
    for number, (first, *others) in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        mark, said = (' class="best"', " (best)") if number == best else ("", "")
        body += f'<tr{mark}><th scope="row">{html.escape(first)}{said}</th>{cells}</tr>'
    return (
        f'<div class="wide" role="region" aria-label="{html.escape(caption)}" tabindex="0">'  # scrolls by keyboard, too
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(png: bytes, caption: str, shows: str) -> str:
    """
    Args:
        caption: for everybody.
        shows: what is to be seen in it, for those who do not see it.
    """
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return (
        f'<figure><img src="{source}" alt="{html.escape(shows)}"><figcaption>{html.escape(caption)}</figcaption>'
        "</figure>"
    )


def folded(summary: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"
