"""Remove the markup of Markdown, HTML and LaTeX as a person does who reads aloud, one sentence at a time, while the
model still generates."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

FENCE = re.compile(r"(`{3,}|~{3,})\s*([^`]*)$")
RULE = re.compile(r"(?:[-*_=]\s*){2,}$|[-*_=]$")
TABLE_RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)+\|?$|\|\s*:?-+:?\s*\|$")
REFERENCE = re.compile(r"\[[^\]^]+\]:\s+\S")
FOOTNOTE = re.compile(r"\[\^([^\]]+)\]:\s*")
FOOTNOTE_MARK = re.compile(r"\[\^[^\]\s]+\]")
LEADER = re.compile(r"#{1,6}(?:\s+|$)|(?:>(?=[\s>]|$)\s*|>(?=[^\d=]))|[-*+•‣▪◦·](?:\s+|$)|:\s+")
CALLOUT = re.compile(r"\[!(\w+)\]\s*")
TASK = re.compile(r"\[([ xX])\](?:\s+|$)")
CLOSING_HASHES = re.compile(r"\s+#+$")
CELL_EDGE = re.compile(r"(?:^|(?<=\s))\|+(?=\s|$)|^\|+|\|+$|(?<=\w)\|(?=\s)|(?<=\s)\|(?=\w)")
HIDDEN = {"<!--": "-->", "<script": "</script>", "<style": "</style>", "$$": "$$", "\\[": "\\]"}
"""The start of a stretch that may span lines -> its end. Only mathematics among these is read."""
MATHEMATICS = ("$$", "\\[")
BREAKING_TAG = re.compile(r"</?(?:br|p|div|li|ul|ol|td|th|tr|table|h[1-6]|hr|blockquote)\b", re.IGNORECASE)
REFERENCE_LINK = re.compile(r"!?\[([^\]]+)\]\[[^\]]*\]")
STRAY_MARK = re.compile(r"(?<!\S)[*_~`]+(?=\S)|(?<=\S)[*_~`]+(?!\S)|\*{2,}|~~+|`+|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)")
INLINE_MATH = re.compile(r"\\\((.+?)\\\)|(?<![\\$\w])\$(?=[^\s$])([^$\n]*?[^\s$\\])\$(?![\d$])")

INLINE = MarkdownIt("commonmark").enable("strikethrough")


class Markup:
    """Removes the markup from a text's sentences, in their order.

    It keeps the state that spans sentences: a block of code, a comment, displayed mathematics. It names a block of code
    and does not read it. It reads the cells of a table, one line at a time.

    Args:
        is_english: whether it may add words, such as "Footnote".
    """

    def __init__(self, is_english: bool) -> None:
        self.is_english = is_english
        self._fence = ""
        """The end of the current block of code; empty outside of one."""
        self._hidden = ""
        """The same for the other stretches of HIDDEN: the start of the current one."""

    def without(self, sentence: str, begins_line: bool) -> str:
        """Return the sentence as a person reads it; empty if nothing of it is read.

        Args:
            sentence: from SentenceSplitter, without line breaks.
            begins_line: whether it is at the start of a line, where the marks of blocks are.
        """
        if self._fence:
            if begins_line and sentence.startswith(self._fence) and not sentence.strip(self._fence[0]):
                self._fence = ""
            return ""
        if begins_line and not self._hidden and (fence := FENCE.match(LEADER.sub("", sentence, count=1) or sentence)):
            self._fence = fence[1]
            return self._named_code(fence[2].strip("{}. "))
        visible = self._visible(sentence)
        return self._line(visible) if begins_line else inline(cells(visible), self.is_english)

    def _named_code(self, language: str) -> str:
        name = language.split(maxsplit=1)[0] if language else ""
        if self.is_english:
            return f"A block of {name} code." if name else "A block of code."
        return f"Code: {name}." if name else "Code."

    def _visible(self, text: str) -> str:
        """Return the text without comments and the like, and with displayed mathematics in words."""
        read = ""
        while text:
            if self._hidden:
                end = HIDDEN[self._hidden]
                inside, found, text = text.partition(end)
                if self._hidden in MATHEMATICS:
                    read += f" {latex(inside, self.is_english)} "
                if found:
                    self._hidden = ""
                continue
            starts = [(place, mark) for mark in HIDDEN if (place := self._start(mark, text, not read)) is not None]
            if not starts:
                return read + text
            place, self._hidden = min(starts)
            read, text = read + text[:place], text[place + len(self._hidden) :]
        return read

    @staticmethod
    def _start(mark: str, text: str, is_first: bool) -> int | None:
        place = text.lower().find(mark)
        if place < 0 or text.count("`", 0, place) % 2:  # absent, or between code marks
            return None
        is_alone = is_first and not text[:place].strip()
        # "$$" in prose is money, and "\\[" is a bracket, unless the same text closes them.
        is_open = mark not in MATHEMATICS or is_alone or text.find(HIDDEN[mark], place + len(mark)) > 0
        return place if is_open else None

    def _line(self, line: str) -> str:
        line = line.strip()
        if RULE.match(line) or TABLE_RULE.match(line) or REFERENCE.match(line):
            return ""
        is_marked = line.startswith("|")
        while leader := LEADER.match(line):
            if leader[0].startswith("#"):
                line = CLOSING_HASHES.sub("", line)
            line, is_marked = line[leader.end() :], True
            if RULE.match(line):
                return ""
        line = CALLOUT.sub(lambda found: f"{found[1].capitalize()}: ", line, count=1)
        label = "Footnote " if self.is_english else ""
        line = FOOTNOTE.sub(lambda found: f"{label}{found[1]}: ", line, count=1)
        if task := TASK.match(line):
            state = "done" if task[1] in "xX" else "to do"
            line = (f"{state}: " if self.is_english else "") + line[task.end() :]
        read = inline(cells(line), self.is_english)
        # A heading or an item has no full stop of its own; the voice lowers its tone at one.
        return f"{read}." if is_marked and read and (read[-1].isalnum() or read[-1] in ")]\"'%") else read


def cells(line: str) -> str:
    """Return a table's row with commas between its cells."""
    if "|" not in line:
        return line
    parts = [part.strip() for part in CELL_EDGE.split(line)]
    return ", ".join(part for part in parts if part)


def inline(text: str, is_english: bool) -> str:
    """Return a sentence without its emphasis, links, code marks, tags, escapes, entities and inline mathematics."""
    if not any(mark in text for mark in "*_~`[]<>&\\$!|^"):
        return text
    text = INLINE_MATH.sub(lambda found: latex(found[1] or found[2], is_english), text)
    text = FOOTNOTE_MARK.sub("", text)
    text = REFERENCE_LINK.sub(r"\1", text)
    text = re.sub(r"(?<=\d)\s?\*\s?(?=\d)", " × ", text)  # not emphasis
    (parsed,) = INLINE.parseInline(text)
    read = "".join(read_token(token, is_english) for token in parsed.children or [])
    parts = [part for part in (STRAY_MARK.sub("", part).strip() for part in read.split("\n")) if part]
    return re.sub(r"\s+([,.;:!?])", r"\1", ", ".join(parts))


def read_token(token: Token, is_english: bool) -> str:
    match token.type:
        case "text" | "text_special":
            return token.content
        case "code_inline":
            return re.sub(r"\(\)|[_`]", " ", token.content).strip()
        case "softbreak" | "hardbreak":
            return " "
        case "image":
            alternative = "".join(read_token(child, is_english) for child in token.children or [])
            if not is_english:
                return alternative
            return f"image: {alternative}" if alternative else "an image"
        case "html_inline":
            return "\n" if BREAKING_TAG.match(token.content) else ""
        case _:
            return ""


COMMANDS = {
    **{name: "times" for name in ("times", "cdot", "ast")},
    **{"div": "divided by", "pm": "plus or minus", "mp": "minus or plus", "neq": "not equal to", "ne": "not equal to"},
    **{"leq": "less than or equal to", "le": "less than or equal to", "lt": "less than", "gt": "greater than"},
    **{"geq": "greater than or equal to", "ge": "greater than or equal to", "approx": "about", "sim": "about"},
    **{"equiv": "is equivalent to", "infty": "infinity", "sum": "the sum", "prod": "the product"},
    **{"int": "the integral", "partial": "partial", "nabla": "del", "in": "in", "notin": "not in", "to": "to"},
    **{"rightarrow": "to", "Rightarrow": "implies", "implies": "implies", "leftarrow": "from", "mapsto": "maps to"},
    **{"iff": "if and only if", "forall": "for all", "exists": "there is", "cup": "union", "cap": "intersection"},
    **{"subset": "is a subset of", "subseteq": "is a subset of", "emptyset": "the empty set", "lim": "the limit"},
    **{"dots": "and so on", "ldots": "and so on", "cdots": "and so on", "circ": "degrees", "ln": "natural log"},
    **{
        "land": "and",
        "lor": "or",
        "neg": "not",
        "lnot": "not",
        "mid": "given",
        "log": "log",
        "propto": "is proportional to",
    },
}
"""LaTeX's commands in words; for other commands the name is read, as for \\alpha."""
SILENT_COMMAND = re.compile(
    r"\\(?:left|right|big|Big|displaystyle|limits|quad|qquad|,|;|:|!|\s)(?![a-z])"
    r"|\\(?:begin|end)\s*\{[^}]*\}|\\(?:text|mathrm|mathbf|mathit|mathbb|mathcal|operatorname|boxed|textbf)\b|[&~]"
)
GROUP = r"\{([^{}]*)\}"
POWERS = {"2": " squared", "3": " cubed"}


def latex(source: str, is_english: bool) -> str:
    """Return a formula in words: "x^2 + \\frac{a}{b}" -> "x squared + a over b"; in other languages without
    its marks."""
    text = SILENT_COMMAND.sub(" ", source.replace("\\\\", ", "))
    if not is_english:
        return " ".join(re.sub(r"[\\{}$]", " ", text).split())
    bound = rf"(?:{GROUP}|(\\[A-Za-z]+|[^\s{{\\]))"
    text = re.sub(
        rf"(\\(?:sum|prod|int|lim))\s*_\s*{bound}(?:\s*\^\s*{bound})?",
        lambda found: (
            f"{found[1]} from {found[2] or found[3]}"
            + (f" to {found[4] or found[5]} of " if found[4] or found[5] else " of ")
        ),
        text,
    )
    before = None
    while text != before:  # from the innermost group outwards
        before = text
        text = re.sub(rf"\\[dt]?frac\s*{GROUP}\s*{GROUP}", r" \1 over \2 ", text)
        text = re.sub(rf"\\sqrt\s*\[([^\]]*)\]\s*{GROUP}", r" the root of order \1 of \2 ", text)
        text = re.sub(rf"\\sqrt\s*{GROUP}", r" the square root of \1 ", text)
        text = re.sub(rf"\^\s*(?:{GROUP}|(\\[A-Za-z]+|[^\s{{\\]))", power, text)
        text = re.sub(rf"_\s*(?:{GROUP}|([^\s{{\\]))", lambda found: f" sub {found[1] or found[2]} ", text)
        text = re.sub(r"(?<!\\)" + GROUP, r" \1 ", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: f" {COMMANDS.get(found[1], found[1])} ", text)
    text = re.sub(r"(?<=[\w)])\s*-\s*(?=[\w(])", " minus ", text)
    return " ".join(re.sub(r"\\(?=[^A-Za-z])|[{}]", "", text).split())


def power(found: re.Match[str]) -> str:
    exponent = (found[1] if found[1] is not None else found[2]).strip()
    if exponent == "\\circ":
        return " degrees"
    return f"{POWERS.get(exponent, f' to the power of {exponent}')} "
