"""A sweep can look for the model that calls tools rightly: calls are counted over the validation part."""

import json
import random
import runpy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import load_data
from voicechat_tune.running.trial import calls_of
from voicechat_tune.search.sweep_file import SweepFile

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "tool_conversations.py"))

TEMPLATE = """\
{%- for message in messages -%}
{{ '<' + message.role + '>' + message.content + '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("tools")
    made = [GENERATOR["conversation"](random.Random(seed), 0, 1, 2) for seed in range(20)]
    lines = "".join(json.dumps(line) + "\n" for line in made)
    (folder / "tools.jsonl").write_text(lines)
    tokenizer = make_tokenizer("byte_pairs", 600, lines + TEMPLATE)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "chat")
    tokenizer.save_pretrained(folder / "chat")
    return Recipe.model_validate(
        {
            "name": "tools",
            "init_from": str(folder / "chat"),
            "lora": {"rank": 2},
            "corpus": {"source": str(folder / "tools.jsonl"), "form": "dialogue", "validation_fraction": 0.3},
            "model": {"context": 1024},
            "training": {
                "steps": 2, "batch_size": 2, "evaluate_every": 2, "warmup_steps": 1, "optimizer": "adamw",
                "learning_rate": 0.001,
            },
        }
    )  # fmt: skip


def test_the_calls_of_a_trials_best_checkpoint_are_counted(recipe, tmp_path):
    data = load_data(recipe)
    run = RunFolder(tmp_path / "run")
    list(run.train(Training(recipe, data)))
    assert calls_of(run.best, data) == {"valid_calls": 0.0, "right_calls": 0.0}  # it has learned nothing in two steps
    for conversation in data.held_out:
        for message in conversation.messages:
            message.pop("tool_calls", None)
    with pytest.raises(InputError, match="has no call"):
        calls_of(run.best, data)


def test_an_objective_of_calls_needs_conversations_with_tools(recipe):
    search = {"training.learning_rate": {"loguniform": [0.0001, 0.01]}}
    given = {"name": "tools", "search": search, "trials": 2, "objectives": ["validation_loss", "right_calls"]}
    assert SweepFile.model_validate({**given, "recipe": recipe.model_dump()}).wants_calls()
    with pytest.raises(ValueError, match=r"need conversations with tools: give recipe\.corpus a source \*\.jsonl"):
        SweepFile.model_validate(given)
