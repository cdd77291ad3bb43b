"""`voicechat evaluate --tools`: a model's answers are those of its service, under the grammar of its tools, or free."""

import json
import random
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from voicechat_platform.corpora.conversations import read_conversations
from voicechat_platform.corpora.texts import Text
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_ui.model_tasks import evaluate_tools

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "tool_conversations.py"))

TEMPLATE = """\
{%- for message in messages -%}{{ '<' + message.role + '>' + message.content + '\\n\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"""

MADE = "".join(json.dumps(GENERATOR["conversation"](random.Random(seed), 1, 1, 2)) + "\n" for seed in range(4))


@pytest.fixture
def model(tmp_path, monkeypatch) -> Iterator[Path]:
    """A chat model that knows nothing."""
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    torch.manual_seed(0)
    tokenizer = make_tokenizer("byte_pairs", 600, MADE + TEMPLATE)
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    yield tmp_path / "model"
    settings.cache_clear()


@pytest.mark.parametrize("is_constrained", [True, False])
def test_the_calls_of_a_model_that_knows_nothing_are_counted(model, is_constrained):
    conversations = read_conversations(Text("made.jsonl", MADE))
    result = evaluate_tools(model, conversations, "made.jsonl", 4, is_constrained)
    assert (result["turns"], result["constrained"]) == (4, is_constrained)
    assert result["right_calls"] == 0
    assert result["right_calls_interval"][0] == 0
    marked = read_conversations(Text("", MADE.replace('"content": "', '"content": "<tool_call>')))
    with pytest.raises(InputError, match=r"made\.jsonl, conversation 1 holds <tool_call>"):
        evaluate_tools(model, marked, "made.jsonl", 4, is_constrained)
