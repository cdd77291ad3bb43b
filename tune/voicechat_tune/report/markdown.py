"""Text that is safe in Markdown: none of it becomes markup."""

import re
from typing import Any

from markupsafe import Markup, escape

SPECIAL = re.compile(r"([\\`*_\[\]|#~])")
STARTS_A_BLOCK = re.compile(r"^(?:[-+]+(?=\s|$)|=|-{2,})|^\d+(?=[.)](?:\s|$))")
"""A list, a rule or an underline, at the start of a line."""


def plain(value: Any) -> Markup:
    """Return a value as text on one line. Text that is marked as safe stays as it is."""
    if isinstance(value, Markup):
        return value
    text = SPECIAL.sub(r"\\\1", " ".join(str(value).split()))
    block = STARTS_A_BLOCK.match(text)
    if block:
        end = block.end()
        text = f"{text[:end]}\\{text[end:]}" if text[0].isdigit() else f"\\{text}"
    # In Markdown, HTML's entities stand for their characters, and a tag would be a tag.
    return Markup(str(escape(text)).replace("&#39;", "'").replace("&#34;", '"'))


def fenced(text: str) -> Markup:
    """Return text as a code block, with a fence that is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{text}\n{fence}")
