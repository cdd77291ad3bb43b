"""Every answer under a grammar is valid, whatever the model would write: in each kind of vocabulary, alone and in a
batch, whole and near its limit."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_answers import written
from voicechat_platform.assets import locate_gguf
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_serve.generation.answer_form import NO_TOOLS, TextForm
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.constraint import Grammars
from voicechat_serve.generation.tool_calls import HERMES, answer_grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["kind", "tall", "shy"]}, "minItems": 1, "maxItems": 3},
        "friend": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "age", "tags", "friend"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "object"},
    {"type": "array", "items": {"type": "number"}},
    {"type": "string"},
    {"type": "object", "properties": {"next": {"$ref": "#"}}},
    {
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}},
        "required": ["code"],
    },
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {
        "$defs": {"leaf": {"const": "leaf"}},
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/leaf"}, {"type": "null"}],
    },
]
ASCII = "".join(map(chr, range(32, 127))) + "\n"
CONTEXT = 256


def grammar_of(text: TextForm | dict) -> str:
    form = text if isinstance(text, TextForm) else TextForm("json_schema", text)
    grammar = answer_grammar(NO_TOOLS, form, HERMES, has_end=True)
    assert grammar is not None
    return grammar


@pytest.fixture(scope="module", params=["characters", "byte pairs", "smollm2"])
def vocabulary(request, tmp_path_factory) -> ChatTokenizer:
    if request.param == "smollm2":
        return ChatTokenizer(locate_gguf("smollm2-135m-instruct"))
    folder = tmp_path_factory.mktemp("vocabulary")
    kind = "characters" if request.param == "characters" else "byte_pairs"
    make_tokenizer(kind, 300, ASCII * 3).save_pretrained(folder)
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def grammars(vocabulary) -> Grammars:
    return vocabulary.grammars


@given(schema=st.sampled_from(SCHEMAS), room=st.integers(70, 400), seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_what_a_model_that_knows_nothing_writes_is_valid_before_its_limit(grammars, schema, room, seed):
    text, is_complete = written(grammars, grammar_of(schema), room, seed)
    assert is_complete
    jsonschema.validate(json.loads(text), schema)
