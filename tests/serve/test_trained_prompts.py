"""What a model is trained on is what the service will ask of it: the same prompt, and an answer that its grammar
allows, token for token."""

import json
import random
import runpy
from pathlib import Path

import pytest

from voicechat_platform.assets import locate
from voicechat_platform.checkpoints import load_tokenizer
from voicechat_platform.corpora.batches import IGNORED
from voicechat_platform.corpora.conversations import Conversation, read_conversations
from voicechat_platform.corpora.dialogue import example
from voicechat_platform.corpora.texts import Text
from voicechat_platform.tool_text import HERMES
from voicechat_serve.generation.answer_form import Tool, ToolUse
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.tool_calls import CallReader, answer_grammar

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "tool_conversations.py"))

OWN_FORM = """\
{%- if tools -%}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '' if loop.first else '\\n' }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
"""Of a model that knows tools, in short."""


NO_SYSTEM = """\
{%- for message in messages if message.role != 'system' -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"""


@pytest.fixture(scope="module", params=["told in text", "own form", "no system"])
def folder(request, tmp_path_factory) -> Path:
    tokenizer = load_tokenizer(locate("smollm2-135m-instruct"))
    if request.param != "told in text":
        tokenizer.chat_template = OWN_FORM if request.param == "own form" else NO_SYSTEM
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    made = [GENERATOR["conversation"](random.Random(seed), 0) for seed in range(40)]
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in made)
    return read_conversations(Text("made.jsonl", lines.replace("Anna", "Žofie").replace("Paris", "Orléans")))


def test_the_trained_tokens_are_the_services_prompt_and_an_answer_of_its_grammar(folder, conversations):
    service, trained = ChatTokenizer(folder), load_tokenizer(folder)
    end = service.end_ids[0]
    for conversation in conversations:
        ids, labels = example(trained, conversation)
        tools = [
            Tool(name=each["name"], description=each["description"], parameters=each["parameters"], is_strict=True)
            for each in (tool["function"] for tool in conversation.tools)
        ]
        grammar = answer_grammar(ToolUse(tools=tuple(tools)), None, service.call_form or HERMES, has_end=True)
        place = 0
        for number, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            prompt = service.encode_chat(conversation.messages[:number], tools)
            assert ids[: len(prompt)] == prompt
            assert set(labels[place : len(prompt) - 1]) <= {IGNORED}
            answer = labels[len(prompt) - 1 : labels.index(end, len(prompt) - 1) + 1]
            place = len(prompt) + len(answer)
            assert IGNORED not in answer
            assert service.grammars.start(grammar).matcher.validate_tokens(answer) == len(answer)
            text, pieces = CallReader(service.call_form or HERMES).push(service.vocabulary.decode(answer), is_last=True)
            assert text == message["content"]
            calls = [call["function"] for call in message.get("tool_calls", ())]
            assert [piece.name for piece in pieces if piece.name] == [call["name"] for call in calls]
            assert [json.loads(piece.arguments) for piece in pieces if piece.arguments] == [
                call["arguments"] for call in calls
            ]
