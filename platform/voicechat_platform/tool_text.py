"""Tools in a model's text: how a prompt tells of them, and the form in which a model writes calls.

The service renders prompts with this, and the training renders dialogues with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of no arguments."""


@dataclass(frozen=True)
class CallForm:
    """How a model writes a call: `begin`, an object with the tool's name and the arguments, `end`."""

    begin: str = "<tool_call>\n"
    end: str = "\n</tool_call>"
    arguments: str = "arguments"
    """The name of the arguments in the object."""
    is_single: bool = False
    """Whether an answer has at most one call."""

    def head(self, name: str) -> str:
        """Return the text of a call up to its arguments."""
        return f'{self.begin}{{"name": {json.dumps(name)}, "{self.arguments}": '


HERMES = CallForm()
"""Of Hermes, Qwen and SmolLM3; also of models that have no form of their own."""

LLAMA = CallForm(begin="", end="", arguments="parameters", is_single=True)
"""Of Llama 3. An object that is the answer itself would look the same."""

MARKS_OF_CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Texts that no message may hold."""

TOOLS_TOLD = (
    'To call a function, answer with <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>. You can call these:'
)


def form_of(template: str | None) -> CallForm | None:
    """Return the form of calls that a chat template shows to its model, or None if it has none that is known here."""
    if not template or "tools" not in template:
        return None
    if "<tool_call>" in template and '"arguments": ' in template.replace('\\"', '"'):
        return HERMES
    if '"parameters": ' in template.replace('\\"', '"') and "ipython" in template:
        return LLAMA
    return None


def described(name: str, description: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Return a tool in the form that chat templates show to a model.

    Args:
        parameters: the JSON Schema of its arguments; None for a function without arguments.
    """
    function = {"name": name, "description": description, "parameters": parameters or NO_PARAMETERS}
    return {"type": "function", "function": function}


def told_in_text(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], role: Literal["system", "user"] = "system"
) -> list[dict[str, Any]]:
    """Return messages without tools, calls and results, which their texts tell instead, for a chat template that has no
    place for these.

    Args:
        messages: the conversation; the arguments of calls are objects.
        tools: in the form for chat templates.
        role: of the first message, which describes the tools.
    """
    told: list[dict[str, Any]] = []
    for message in messages:
        speaker, text = message["role"], message["content"] or ""
        if speaker == "tool":
            speaker, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        is_after_result = bool(told) and told[-1]["role"] == "user" and told[-1]["content"].endswith("</tool_response>")
        if speaker == "user" and is_after_result:  # templates require that the roles alternate
            told[-1] = {"role": "user", "content": f"{told[-1]['content']}\n{text}"}
            continue
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = [
            f"{HERMES.head(each['name'])}{json.dumps(each['arguments'], ensure_ascii=False)}}}{HERMES.end}"
            for each in functions
        ]
        told.append({"role": speaker, "content": "\n".join([text] * bool(text) + calls)})
    if tools:
        before = f"{told.pop(0)['content']}\n\n" if told and told[0]["role"] == role else ""
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        told.insert(0, {"role": role, "content": f"{before}{TOOLS_TOLD}\n{listed}"})
    return told
