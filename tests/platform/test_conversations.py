"""Conversations with tools: a file of them is read, refused with a reason, learned, and its calls are counted."""

import json
import random
import runpy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from voicechat_platform.corpora.batches import IGNORED
from voicechat_platform.corpora.conversations import Conversation, read_conversations
from voicechat_platform.corpora.dialogue import example, make_dialogue
from voicechat_platform.corpora.texts import Text
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.tool_text import HERMES, LLAMA
from voicechat_platform.training import calls_evaluation
from voicechat_platform.training.calls_evaluation import answers, calls_in, evaluate_calls, spread, turns_of

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "tool_conversations.py"))

CHAT = """\
{%- for message in messages -%}
{{ '<' + message.role + '>' + message.content + '</s>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"""

TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer"}, "label": {"type": "string"}},
            "required": ["minutes"],
        },
    },
}
CALL = {"id": "a", "type": "function", "function": {"name": "set_timer", "arguments": '{"label": "tea", "minutes": 4}'}}
LINE = {
    "tools": [TIMER],
    "messages": [
        {"role": "user", "content": "Tea, four minutes."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "started"},
        {"role": "assistant", "content": "It runs."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "You are welcome."},
    ],
}


def text_of(*lines) -> Text:
    return Text("tools.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def tokenizer():
    made = make_tokenizer("byte_pairs", 400, CHAT + json.dumps(LINE) + "".join(map(chr, range(32, 127))))
    made.chat_template = CHAT
    return made


def test_a_line_becomes_a_conversation_as_the_service_has_it():
    (found,) = read_conversations(text_of(LINE))
    call, result = found.messages[1], found.messages[2]
    assert call["content"] == ""
    assert list(call["tool_calls"][0]["function"]["arguments"].items()) == [("minutes", 4), ("label", "tea")]
    assert (result["name"], result["tool_call_id"]) == ("set_timer", "a")
    assert found.tools[0]["function"]["description"] == ""


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("tools", 0, "type"), "web_search", r"tools\.0\.type: Input should be 'function'"),
        (("tools", 0, "function", "parameters", "type"), 7, r"parameters is no JSON Schema"),
        (("tools",), [], "the call 'a' is of 'set_timer', which is not in tools"),
        (("tools",), [TIMER, TIMER], "two tools have one name"),
        (("messages", 1, "tool_calls", 0, "function", "arguments"), "{", "arguments is no JSON"),
        (("messages", 1, "tool_calls", 0, "function", "arguments"), '{"minutes": "x"}', "'x' is not of type 'integer'"),
        (("messages", 2, "tool_call_id"), "b", "the message before makes no call 'b'"),
        (("messages", 2), {"role": "user", "content": "?"}, "no result follows the calls a"),
        (("messages", 0, "role"), "speaker", "Input should be 'system', 'user', 'assistant' or 'tool'"),
        (("messages", 0, "weight"), 1, r"messages\.0\.weight: Extra inputs are not permitted"),
        (("messages", 3, "content"), None, "a message needs content or tool_calls"),
        (
            ("tools", 0, "function", "parameters", "properties", "minutes"),
            {"$ref": "http://h/s"},
            "not in it: http://h",
        ),
    ],
)
def test_a_wrong_line_is_named_with_its_fault(place, value, message):
    wrong = json.loads(json.dumps(LINE))
    *before, last = place
    inner = wrong
    for key in before:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(InputError, match=f"tools.jsonl, line 2.*{message}"):
        read_conversations(text_of(LINE, wrong))


def test_the_assistants_texts_and_calls_alone_are_learned(tokenizer):
    (conversation,) = read_conversations(text_of(LINE))
    ids, labels = example(tokenizer, conversation)
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == (
        '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 4, "label": "tea"}}\n</tool_call></s>'
        "It runs.</s>You are welcome.</s>"
    )
    assert "<user><tool_response>\nstarted\n</tool_response></s>" in tokenizer.decode(ids)
    assert all(label == following for label, following in zip(labels, ids[1:], strict=False) if label != IGNORED)


def test_a_corpus_of_conversations_keeps_its_end_for_validation(tokenizer):
    data = make_dialogue(text_of(*[LINE] * 10), tokenizer, 0.2)
    assert (len(data.train_examples), len(data.validation_examples), len(data.held_out)) == (8, 2, 2)
    assert 1 < data.characters_per_token < 8
    with pytest.raises(InputError, match="has no chat template"):
        make_dialogue(text_of(*[LINE] * 10), make_tokenizer("gpt2", 0, ""), 0.2)
    marked = json.loads(json.dumps(LINE).replace("Thanks.", "</tool_call>"))
    with pytest.raises(InputError, match="conversation 10 holds </tool_call>"):
        make_dialogue(text_of(*[LINE] * 9, marked), tokenizer, 0.2)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("It is late.", []),
        ('{"name": "a", "arguments": {}}', []),
        ('<tool_call>\n{"name": "a", "arguments": {"n": 1}}\n</tool_call>', [("a", {"n": 1})]),
        (
            'Well. <tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>\n{"name": "b", "arguments": {}}\n'
            "</tool_call>",
            [("a", {}), ("b", {})],
        ),
        ('<tool_call>\n{"name": "a", "arguments": {"n": 1}}', None),
        ('<tool_call>\n{"name": "a", "arguments": 1}\n</tool_call>', None),
        ('<tool_call>\n{"name": "a"}\n</tool_call>', None),
        ('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call> <tool_call>', None),
    ],
)
def test_calls_are_found_in_a_whole_answer(text, calls):
    assert calls_in(text, HERMES) == calls


def test_a_call_of_llamas_is_the_whole_answer():
    assert calls_in('{"name": "a", "parameters": {}}', LLAMA) == [("a", {})]
    assert calls_in("It is late.", LLAMA) == []
    assert calls_in('{"name": "a", ', LLAMA) is None


def test_shares_of_valid_right_and_needless_calls(tokenizer, monkeypatch):
    turns = turns_of(read_conversations(text_of(*[LINE] * 4)))
    assert [len(turn.expected) for turn in turns[:3]] == [1, 0, 0]
    head = '<tool_call>\n{"name": "set_timer", "arguments": '
    said = iter([f'{head}{{"label": "tea", "minutes": 4}}}}\n</tool_call>', "It runs.", "You are welcome.",
                 f'{head}{{"minutes": 5}}}}\n</tool_call>', f"{head}...", "Bye",
                 f'{head}{{"minutes": "x"}}}}\n</tool_call>', "It runs.", "It runs.",
                 "I set a timer.", "It runs.", "It runs."])  # fmt: skip
    monkeypatch.setattr(calls_evaluation, "answers", lambda model, tokenizer, turns: zip(turns, said, strict=True))
    shares = evaluate_calls(None, tokenizer, turns)
    assert (shares["turns"], shares["turns_with_calls"]) == (12, 4)
    assert (shares["valid_calls"], shares["right_calls"], shares["needless_calls"]) == (0.5, 0.25, 0.125)
    assert shares["valid_calls_interval"] == pytest.approx([0.15, 0.85], abs=0.001)  # Wilson's, 2 of 4


def test_answers_in_a_batch_are_those_of_each_prompt_alone(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    turns = turns_of(read_conversations(text_of(LINE)))
    together = [text for _, text in answers(model, tokenizer, turns)]
    assert together == [text for turn in turns for _, text in answers(model, tokenizer, [turn])]
    assert len(set(together)) > 1
    model.config.max_position_embeddings = 200
    with pytest.raises(InputError, match="tokens before an answer, and the model's context leaves 72"):
        list(answers(model, tokenizer, turns))


def test_turns_are_spread_evenly():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread(list(range(3)), 4) == [0, 1, 2]


def test_the_generated_conversations_are_right_and_the_held_out_ones_have_other_sentences():
    made = [[GENERATOR["conversation"](random.Random(seed), split) for seed in range(60)] for split in (0, 1)]
    trained, held_out = (read_conversations(text_of(*part)) for part in made)
    assert GENERATOR["conversation"](random.Random(5), 0) == made[0][5]
    kinds = [len(turn.expected) for turn in turns_of(trained)]
    assert {0, 1, 2} <= set(kinds)
    assert {name for turn in turns_of(trained) for name, _ in turn.expected} == {
        skill.name for skill in GENERATOR["SKILLS"]
    }
    for skill in GENERATOR["SKILLS"]:
        assert not set(skill.sentences[0]) & set(skill.sentences[1])

    def asked(part: list[Conversation]) -> set[str]:
        return {message["content"] for each in part for message in each.messages if message["role"] == "user"}

    assert not asked(trained) & asked(held_out)
