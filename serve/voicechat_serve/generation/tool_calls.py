"""Calls of tools in a model's text: the grammar of its answer, and their reader."""

import json
import re
from typing import Any, Literal

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from voicechat_platform.errors import InputError
from voicechat_platform.tool_text import NO_PARAMETERS, CallForm
from voicechat_serve.generation.answer_form import CallPiece, Schema, TextForm, ToolUse
from voicechat_serve.generation.closed_schema import closed
from voicechat_serve.generation.engines.text_stream import possible_stop

MOST_CALLS = 16
"""The most calls in one answer."""

JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""JSON as Python writes it. Free white space would let a model write spaces without an end."""


def answer_grammar(use: ToolUse, text: TextForm | None, form: CallForm, has_end: bool) -> str | None:
    """Return the grammar of an answer in Lark, as llguidance extends it; None for any text.

    With tools and a form of the text, the answer is calls or the text, and the client never waits for the other one.

    Args:
        use: the tools.
        text: what the text must be; None for any text.
        form: how the model writes calls.
        has_end: whether the model has an end token: without one, an answer has at most one call.

    Raises:
        InputError: a grammar in GBNF, or a regular expression, cannot be read; or a choice would be read as a call.
    """
    tools = use.allowed
    if not tools:
        if text is None:
            return None
        return lark_of(text.content) if text.kind == "grammar" else f"start: {rule_of(text)}\n"
    rules = [
        f"call_{number}: {json.dumps(form.head(tool.name)[len(form.begin) :])} "
        f"{json_rule(tool.parameters or NO_PARAMETERS, tool.is_strict)} {json.dumps('}' + form.end)}"
        for number, tool in enumerate(tools)
    ]
    any_call = " | ".join(f"call_{number}" for number in range(len(tools)))
    rules.append(f"call: {any_call}")
    is_single = form.is_single or not use.is_parallel or not has_end
    begin = f"{json.dumps(form.begin)} " if form.begin else ""
    further = "" if is_single else f" ({json.dumps(chr(10) + form.begin)} call){{0,{MOST_CALLS - 1}}}"
    if use.is_required:
        start = f"{begin}call{further}"
    elif text is not None:
        if text.kind == "choice" and form.begin and any(form.begin in choice for choice in text.content):
            raise InputError(
                f"a choice has {form.begin.strip()!r}, which begins a call: leave out the choice or the tools"
            )
        start = f"{begin}call{further} | {rule_of(text)}"
    elif form.begin:
        rules += ["TEXT: /(.|\\n)*/", f"head[lazy]: TEXT {json.dumps(form.begin)}"]
        start = f"head call{further} | TEXT"
    else:
        rules.append("TEXT: /([^{](.|\\n)*)?/")
        start = "call | TEXT"
    return "\n".join([f"start: {start}", *rules, ""])


def rule_of(text: TextForm) -> str:
    """Return the right side of a rule for a text."""
    if text.kind == "json_schema":
        return json_rule(text.content, text.is_strict)
    if text.kind == "regex":
        if (len(text.content) - len(text.content.rstrip("\\"))) % 2:  # which regex_to_lark would leave out
            raise InputError("the regular expression ends within an escape")
        return f"/{regex_to_lark(text.content)}/"
    return " | ".join(json.dumps(choice) for choice in text.content)


def json_rule(schema: Schema, is_strict: bool) -> str:
    style: dict[str, Any] = JSON_STYLE if is_strict else JSON_STYLE | {"lenient": True}
    return f"%json {json.dumps(closed(schema) | {'x-guidance': style})}"


def lark_of(grammar: str) -> str:
    """Return a grammar in Lark, which may be in llama.cpp's GBNF."""
    try:
        return any_to_lark(grammar)
    except Exception as error:  # the converter has no bounds on its own errors
        raise InputError(f"the grammar cannot be read, neither as Lark (start: ...) nor as GBNF: {error}") from error


class CallReader:
    """Separates the text of an answer, which arrives in pieces, from its calls.

    The grammar has made sure of their form, except at the end of an answer that is cut off.

    Args:
        form: how the model writes calls.
    """

    def __init__(self, form: CallForm):
        self.form = form
        self.head = re.compile(rf'\{{"name": "([^"]+)", "{form.arguments}": ')
        self.held = ""
        """Text that is not read yet."""
        self.num_calls = 0
        self.state: Literal["text", "head", "arguments", "tail"] = "text"
        self.has_text = False
        self.scan = ObjectEnd()

    @property
    def is_whole(self) -> bool:
        """Whether there are calls, and the last one that has begun is complete."""
        return self.num_calls > 0 and not self.is_cut

    @property
    def is_cut(self) -> bool:
        """Whether the last call is incomplete."""
        return self.state in ("head", "arguments")

    def push(self, text: str, is_last: bool = False) -> tuple[str, list[CallPiece]]:
        """Return the text that is certain now, and the pieces of calls.

        Args:
            text: the next piece.
            is_last: whether it is the last one: then no text is held back.
        """
        self.held += text
        given, calls = "", list[CallPiece]()
        while True:
            before = self.state, len(self.held)
            match self.state:
                case "text":
                    given += self.read_text(is_last)
                case "head":
                    if found := self.head.match(self.held):
                        self.held, self.state = self.held[found.end() :], "arguments"
                        calls.append(CallPiece(self.num_calls, name=found[1]))
                        self.num_calls, self.scan = self.num_calls + 1, ObjectEnd()
                case "arguments":
                    length = self.scan.length_in(self.held)
                    if length:
                        calls.append(CallPiece(self.num_calls - 1, arguments=self.held[:length]))
                        self.held = self.held[length:]
                    if self.scan.is_over:
                        self.state = "tail"
                case "tail":
                    if self.held.startswith(tail := "}" + self.form.end):
                        self.held, self.state = self.held[len(tail) :], "text"
            if before == (self.state, len(self.held)):
                return given, calls

    def read_text(self, is_last: bool) -> str:
        """Return the text that no call follows, without the white space before a call."""
        begin = self.form.begin
        if begin:
            place = self.held.find(begin)
        else:
            place = 0 if self.held.startswith("{") and not self.has_text and not self.num_calls else -1
        if place >= 0:
            text, self.held, self.state = self.held[:place].rstrip(), self.held[place + len(begin) :], "head"
        elif is_last:
            text, self.held = self.held, ""
        else:
            before_call = self.held[: len(self.held) - possible_stop(self.held, begin)].rstrip() if begin else self.held
            text, self.held = before_call, self.held[len(before_call) :]
        self.has_text = self.has_text or bool(text)
        return "" if self.num_calls else text  # between two calls is only white space, or the beginning of a call


class ObjectEnd:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = self.is_escaped = self.is_over = False

    def length_in(self, text: str) -> int:
        """Return the number of characters of the next piece that belong to the object."""
        for place, character in enumerate(text):
            if self.is_escaped:
                self.is_escaped = False
            elif self.in_string:
                self.is_escaped = character == "\\"
                self.in_string = character != '"'
            elif character == '"':
                self.in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if not self.depth:
                    self.is_over = True
                    return place + 1
        return len(text)
